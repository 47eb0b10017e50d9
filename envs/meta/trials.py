"""Trials: several episodes of one hidden task, for agents that learn inside their memory.

Duan et al. 2016, "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning",
https://arxiv.org/abs/1611.02779. To the agent a trial is *one* episode: it begins with the start flag, which resets the
memory, and ends for good. Where one of the inner episodes ends, the next begins with the same task and the memory goes
on; a flag in the observation says so, and the last action and reward are shown as always.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray, PyTree

from memax_rl.envs import spaces
from memax_rl.envs.base import Environment
from memax_rl.envs.baselines.policy import Policy

SPLITS = ("train", "test")
# More than the episodes of any trial.
UNLIMITED = 2**30
# The largest number of observations for each of which a trial can store whether it was seen.
COUNTABLE = 2**20


class TaskEnvironment(abc.ABC):
    """Episodes of a task, which is a pytree of arrays drawn from a key and hidden from the agent.

    Instances are hashed by identity and immutable. Dtypes are never weak, as in `Environment`.

    Attributes:
        episode_length: The longest episode, in steps; the trial truncates an episode there.
        ends_early: Whether an episode can end before that. Trials are packed best where none does.
        has_boundaries: Whether anything happens at an episode's end. A bandit's episode is only a block of pulls, the
            unit of the evaluation: the agent is shown no flag.
        test_fraction: Share of `all_tasks` that is held out.
        observation_space, action_space: Of the task.
    """

    episode_length: int
    ends_early: bool = False
    has_boundaries: bool = True
    test_fraction: float = 0.2
    observation_space: Any
    action_space: Any

    def draw_task(self, key: PRNGKeyArray) -> PyTree[Array]:
        """Draw a task. Tasks of the two splits are drawn with different keys. Needed where there are no `all_tasks`."""
        raise NotImplementedError

    def all_tasks(self) -> PyTree[Array] | None:
        """All tasks, stacked along a leading axis, where they can be counted; else None.

        `test_fraction` of them are held out: training trials have none of those, and test trials no others.
        """
        return None

    def strategies(self, episodes: int) -> Mapping[str, Policy]:
        """Known strategies for trials of so many episodes, by name, for `memax-rl icl` to compare agents with."""
        del episodes
        return {}

    @abc.abstractmethod
    def reset_episode(self, key: PRNGKeyArray, task: PyTree[Array]) -> tuple[Any, Any]:
        """Begin an episode of the task: first observation and state."""

    @abc.abstractmethod
    def step_episode(
        self, key: PRNGKeyArray, task: PyTree[Array], state: Any, action: Any
    ) -> tuple[Any, Any, Float32[Array, ""], Bool[Array, ""]]:
        """One transition: observation, state, reward, and whether the episode ended by itself."""

    def action_mask(self, task: PyTree[Array], state: Any) -> Bool[Array, " actions"] | None:
        """Which actions are legal in a state, as `Environment.action_mask`; None where all always are."""
        del task, state
        return None

    def best_return(self, task: PyTree[Array]) -> Float32[Array, ""] | None:
        """The largest expected return of an episode for one who knows the task, or None if it is not known."""
        del task
        return None


def _count(space: Any) -> int:
    """How many different observations there are."""
    return int(space.n) if isinstance(space, spaces.Discrete) else math.prod(int(n) for n in space.nvec)


def _tasks_of(tasks: TaskEnvironment, split: str, split_seed: int) -> PyTree[Array] | None:
    """The tasks of a split where all can be counted, in an order of the split's own; else None.

    Raises:
        ValueError: If there are fewer than two, or their arrays differ in number.
    """
    every = tasks.all_tasks()
    if every is None:
        return None
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(every)}
    if len(sizes) != 1 or sizes == {()} or min(sizes)[0] < 2:
        raise ValueError(
            f"all_tasks of {type(tasks).__name__} must stack two or more tasks along the first axis of every array, "
            f"got shapes {[jnp.shape(leaf) for leaf in jax.tree.leaves(every)]}"
        )
    count = min(sizes)[0]
    order = np.random.default_rng(split_seed).permutation(count)
    held_out = min(max(1, round(tasks.test_fraction * count)), count - 1)
    chosen = order[:held_out] if split == "test" else order[held_out:]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], every)


class TrialParams(eqx.Module):
    """When a trial ends: after so many episodes, or so many steps, whichever comes first.

    Attributes:
        episodes: The most episodes of a trial.
        max_steps_in_episode: The most steps of a trial, which is an episode to gymnax.
    """

    episodes: int | Int32[Array, ""]
    max_steps_in_episode: int | Int32[Array, ""]


class TrialState(eqx.Module):
    """The state of a trial.

    Attributes:
        task: The hidden task.
        episode, steps: Episodes ended and steps taken in this trial.
        time: Steps taken in this episode.
        inner: The state of this episode.
        seen: Which observations occurred in this trial, if new ones earn a bonus.
        unrewarded: Whether the trial is unrewarded.
    """

    task: PyTree[Array]
    episode: Int32[Array, ""]
    steps: Int32[Array, ""]
    time: Int32[Array, ""]
    inner: PyTree[Array]
    seen: Bool[Array, " observations"] | None = None
    unrewarded: Bool[Array, ""] | None = None


def _check_bonus(space: Any, novelty_bonus: float, unrewarded_fraction: float) -> None:
    if not 0 <= novelty_bonus < math.inf:
        raise ValueError(f"novelty_bonus must be a finite number of at least 0, got {novelty_bonus}")
    if novelty_bonus and not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        raise ValueError(
            f"novelty_bonus={novelty_bonus} needs observations that can be counted, Discrete or "
            f"MultiDiscrete, got {space!r}; set it to 0"
        )
    if novelty_bonus and _count(space) > COUNTABLE:
        raise ValueError(
            f"novelty_bonus={novelty_bonus} needs at most {COUNTABLE:,} different observations, and "
            f"{spaces.describe(space)} has {_count(space):.1e}; set it to 0"
        )
    if not 0 <= unrewarded_fraction < 1:
        raise ValueError(f"unrewarded_fraction must be at least 0 and below 1, got {unrewarded_fraction}")
    if unrewarded_fraction and not novelty_bonus:
        raise ValueError(
            f"unrewarded_fraction={unrewarded_fraction} with novelty_bonus=0: nothing could be learned from these "
            "trials; set novelty_bonus too"
        )


class Trials(Environment):
    """Trials of the tasks of one split.

    Observation: the task's own, in `{"observation": ..., "episode_start": [1.0] at an episode's first step, else
    [0.0]}`; the task's alone where it has no boundaries. A trial ends by termination: what would follow does not count.
    """

    def __init__(
        self,
        tasks: TaskEnvironment,
        *,
        episodes: int | None,
        steps: int | None = None,
        split: str = "train",
        split_seed: int = 0,
        num_tasks: int | None = None,
        discount_across_episodes: bool = True,
        novelty_bonus: float = 0.0,
        unrewarded_fraction: float = 0.0,
    ):
        """Make trials.

        Args:
            tasks: The family of tasks.
            episodes: Episodes a trial; None if it has so many steps instead.
            steps: Steps a trial; the last episode may be cut. None if it has so many episodes instead.
            split: "train" or "test". The tasks of the two splits come from different keys.
            split_seed: Seed of the split.
            num_tasks: Draw from only so many tasks; None for as many as there are.
            discount_across_episodes: Whether returns continue into the next episode of the trial. If not, they stop at
                an episode's end, while the memory is kept.
            novelty_bonus: Intrinsic reward of a step to an observation that is new in this trial, until the first
                positive reward of the trial. Without it an agent learns not to search where no training task ever paid.
                For finite observation spaces.
            unrewarded_fraction: Fraction of the trials of the training split whose rewards are all 0, so that only the
                bonus remains. Otherwise every search ends, in training, where some task pays, and the agent never
                learns to search on.

        Raises:
            ValueError: If an argument is out of range, or both or none of `episodes` and `steps` are given, or there is
                a bonus and the observations cannot be counted.
        """
        if (episodes is None) == (steps is None):
            raise ValueError(f"give either episodes or steps of a trial, got episodes={episodes} and steps={steps}")
        for name, value in (("episodes", episodes), ("steps", steps), ("num_tasks", num_tasks)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if split not in SPLITS:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        self.tasks = tasks
        self.table = _tasks_of(tasks, split, split_seed)
        if self.table is None and type(tasks).draw_task is TaskEnvironment.draw_task:
            raise ValueError(
                f"{type(tasks).__name__} must have draw_task(key), or all_tasks() where they can be counted"
            )
        self.episodes, self.steps, self.num_tasks = episodes, steps, num_tasks
        self.split, self.split_seed = split, split_seed
        self.discount_across_episodes = discount_across_episodes
        _check_bonus(tasks.observation_space, novelty_bonus, unrewarded_fraction)
        self.novelty_bonus = novelty_bonus
        self.unrewarded_fraction = unrewarded_fraction if split == "train" else 0.0

    def _place(self, observation: Array) -> Int32[Array, ""]:
        """The observation's number among all there are."""
        if isinstance(self.tasks.observation_space, spaces.Discrete):
            return observation
        sizes = tuple(int(n) for n in self.tasks.observation_space.nvec)
        return jnp.ravel_multi_index(tuple(observation), sizes, mode="clip").astype(jnp.int32)

    def _first_seen(self, observation: Array) -> Bool[Array, " observations"] | None:
        """Only this observation was seen; None where there is no bonus."""
        if not self.novelty_bonus:
            return None
        return jnp.arange(_count(self.tasks.observation_space)) == self._place(observation)

    @property
    def default_params(self) -> TrialParams:
        """The size of a trial that was asked for."""
        return TrialParams(
            episodes=UNLIMITED if self.episodes is None else self.episodes,
            max_steps_in_episode=UNLIMITED if self.steps is None else self.steps,
        )

    def to_measure(self, split: str, num_tasks: int | None) -> "Trials":
        """Trials of the same family to measure an agent with: of a split and a number of tasks, all rewarded.

        Args:
            split: "train" or "test".
            num_tasks: How many of the tasks of that split; None: all.
        """
        return Trials(
            self.tasks,
            episodes=self.episodes,
            steps=self.steps,
            split=split,
            split_seed=self.split_seed,
            num_tasks=num_tasks,
            discount_across_episodes=self.discount_across_episodes,
            novelty_bonus=self.novelty_bonus,
        )

    def with_episodes(self, episodes: int) -> TrialParams:
        """The parameters for trials of another number of episodes, each as long as it takes."""
        return dataclasses.replace(self.default_params, episodes=episodes, max_steps_in_episode=UNLIMITED)

    def max_episode_steps(self, params: TrialParams) -> int | None:
        """The most steps of a trial."""
        return min(int(params.max_steps_in_episode), int(params.episodes) * self.tasks.episode_length)

    def fixed_length(self, params: TrialParams) -> int | None:
        """The number of steps of a trial, where no episode can end early or the trial has a number of steps."""
        horizon = self.max_episode_steps(params)
        shortest = int(params.episodes) * (1 if self.tasks.ends_early else self.tasks.episode_length)
        return horizon if int(params.max_steps_in_episode) <= shortest or shortest == horizon else None

    def truncates(self, params: TrialParams) -> bool:
        """Never: a trial is over when it is over."""
        return False

    def action_space(self, params: TrialParams) -> Any:
        """The task's."""
        return self.tasks.action_space

    def observation_space(self, params: TrialParams) -> Any:
        """The task's, and the flag of an episode's start."""
        space = self.tasks.observation_space
        if not self.tasks.has_boundaries:
            return space
        # In the order in which JAX flattens a dict, so that a sample has its leaves where an observation has them.
        return spaces.Dict({"episode_start": spaces.Box(0.0, 1.0, (1,), jnp.float32), "observation": space})

    def action_mask(self, state: TrialState, params: TrialParams) -> Bool[Array, " actions"] | None:
        """The task's."""
        return self.tasks.action_mask(state.task, state.inner)

    def is_truncated(self, state: TrialState, params: TrialParams) -> Bool[Array, ""]:
        """Never: a trial is over when it is over."""
        return jnp.zeros((), bool)

    def draw_task(self, key: PRNGKeyArray) -> PyTree[Array]:
        """Draw a task of the split: a random index decides which key of the split makes it."""
        index = jax.random.bits(key)
        if self.num_tasks is not None:
            index = index % jnp.uint32(self.num_tasks)
        if self.table is not None:
            count = jnp.uint32(len(jax.tree.leaves(self.table)[0]))
            return jax.tree.map(lambda leaf: leaf[index % count], self.table)
        split_key = jax.random.fold_in(jax.random.key(self.split_seed), SPLITS.index(self.split))
        return self.tasks.draw_task(jax.random.fold_in(split_key, index))

    def _observe(self, observation: Any, first: Bool[Array, ""]) -> Any:
        if not self.tasks.has_boundaries:
            return observation
        return {"observation": observation, "episode_start": first.astype(jnp.float32)[None]}

    def reset_env(self, key: PRNGKeyArray, params: TrialParams) -> tuple[Any, TrialState]:
        """Draw a task and begin its first episode."""
        task = self.draw_task(jax.random.fold_in(key, 2))
        observation, inner = self.tasks.reset_episode(jax.random.fold_in(key, 3), task)
        zero = jnp.zeros((), jnp.int32)
        unrewarded = (
            jax.random.bernoulli(jax.random.fold_in(key, 4), self.unrewarded_fraction)
            if self.unrewarded_fraction
            else None
        )
        state = TrialState(task, zero, zero, zero, inner, self._first_seen(observation), unrewarded)
        return self._observe(observation, jnp.ones((), bool)), state

    def step_env(
        self, key: PRNGKeyArray, state: TrialState, action: Any, params: TrialParams
    ) -> tuple[Any, TrialState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """One step; where it ends an episode but not the trial, the next episode begins."""
        observation, inner, reward, terminated = self.tasks.step_episode(key, state.task, state.inner, action)
        info: dict[str, Any] = {}
        if state.unrewarded is not None:
            reward = jnp.where(state.unrewarded, 0, reward)
        seen = state.seen
        if seen is not None:
            place = self._place(observation)
            info["intrinsic_reward"] = jnp.where(seen[place], 0, self.novelty_bonus).astype(jnp.float32)
            # After a reward the search is over, and nothing is new any more.
            seen = seen.at[place].set(True) | (reward > 0)
        reward = jnp.asarray(reward, jnp.float32)
        steps, time = state.steps + 1, state.time + 1
        ended = jnp.asarray(terminated, bool) | (time >= self.tasks.episode_length)
        episode = state.episode + ended
        trial_ended = (episode >= params.episodes) | (steps >= params.max_steps_in_episode)
        begins = ended & ~trial_ended
        first = self.tasks.reset_episode(jax.random.fold_in(key, 1), state.task)
        observation, inner = jax.tree.map(lambda a, b: jnp.where(begins, a, b), first, (observation, inner))
        if not self.discount_across_episodes:
            info["discount"] = jnp.where(ended, 0, 1).astype(jnp.float32)
        after = TrialState(state.task, episode, steps, jnp.where(begins, 0, time), inner, seen, state.unrewarded)
        return self._observe(observation, begins), after, reward, trial_ended, info


def make_trials(tasks: TaskEnvironment, options: Mapping[str, Any]) -> Trials:
    """Trials of a family from the options of trials, all of them given.

    Args:
        tasks: The family.
        options: As `memax-rl list envs -v` shows them.
    """
    names = (
        "steps",
        "split",
        "split_seed",
        "num_tasks",
        "discount_across_episodes",
        "novelty_bonus",
        "unrewarded_fraction",
    )
    # Steps replace episodes, so that one option is enough to ask for them.
    episodes = None if options["steps"] is not None else options["episodes"]
    return Trials(tasks, episodes=episodes, **{name: options[name] for name in names})


class FromReset(TaskEnvironment):
    """Any environment whose reset draws the task: the task is the key, and every episode is reset with it.

    So the first state of an episode is the same throughout a trial, where that is random too.
    """

    ends_early = True

    def __init__(self, env: Any, params: Any):
        """Wrap an environment of `memax_rl.envs.make` and its parameters.

        Raises:
            ValueError: If the environment states no longest episode.
        """
        self.env, self.params = env, params
        horizon = env.max_episode_steps(params)
        if horizon is None:
            raise ValueError("env: a trial needs the longest length of an episode, and this environment states none")
        self.episode_length = horizon
        self.ends_early = env.fixed_length(params) is None
        self.observation_space, self.action_space = env.observation_space(params), env.action_space(params)

    def action_mask(self, task: PyTree[Array], state: Any) -> Bool[Array, " actions"] | None:
        """The environment's."""
        return self.env.action_mask(state, self.params)

    def draw_task(self, key: PRNGKeyArray) -> PyTree[Array]:
        """The bits of a key."""
        return jax.random.key_data(key)

    def reset_episode(self, key: PRNGKeyArray, task: PyTree[Array]) -> tuple[Any, Any]:
        """Reset with the task's key."""
        return self.env.reset(jax.random.wrap_key_data(task), self.params)

    def step_episode(
        self, key: PRNGKeyArray, task: PyTree[Array], state: Any, action: Any
    ) -> tuple[Any, Any, Float32[Array, ""], Bool[Array, ""]]:
        """The environment's step; its automatic reset is not used."""
        _, state, reward, terminated, truncated, info = self.env.step(key, state, action, self.params)
        return info["final_observation"], state, reward, terminated | truncated


class FromParams(FromReset):
    """Any environment whose parameters hold the task: some of them are drawn uniformly from ranges, once a trial."""

    def __init__(self, env: Any, params: Any, ranges: dict[str, tuple[float, float]]):
        """Wrap an environment and its default parameters.

        Args:
            env: From `memax_rl.envs.make`.
            params: Its parameters, a dataclass.
            ranges: For each parameter that differs between tasks, its least and largest value.

        Raises:
            ValueError: If a parameter does not exist or its range is empty.
        """
        super().__init__(env, params)
        known = {field.name for field in dataclasses.fields(params)}
        for name, (low, high) in ranges.items():
            if name not in known:
                raise ValueError(f"vary: there is no parameter {name!r}; there are {', '.join(sorted(known))}")
            if not low < high:
                raise ValueError(f"vary: {name} must lie between two numbers, the smaller first, got {[low, high]}")
        self.ranges = ranges

    def draw_task(self, key: PRNGKeyArray) -> dict[str, Float32[Array, ""]]:
        """The parameters that differ."""
        draws = jax.random.uniform(key, (len(self.ranges),))
        return {name: low + draws[i] * (high - low) for i, (name, (low, high)) in enumerate(self.ranges.items())}

    def action_mask(self, task: PyTree[Array], state: Any) -> Bool[Array, " actions"] | None:
        """The environment's under the task's parameters."""
        return self.env.action_mask(state, self._params(task))

    def _params(self, task: dict[str, Float32[Array, ""]]) -> Any:
        return dataclasses.replace(self.params, **task)

    def reset_episode(self, key: PRNGKeyArray, task: PyTree[Array]) -> tuple[Any, Any]:
        """A fresh episode under the task's parameters."""
        return self.env.reset(key, self._params(task))

    def step_episode(
        self, key: PRNGKeyArray, task: PyTree[Array], state: Any, action: Any
    ) -> tuple[Any, Any, Float32[Array, ""], Bool[Array, ""]]:
        """The environment's step under the task's parameters."""
        _, state, reward, terminated, truncated, info = self.env.step(key, state, action, self._params(task))
        return info["final_observation"], state, reward, terminated | truncated
