"""Scripted policies for the meta suite, by the names that strategies have in the literature.

They keep their carry through a trial. An oracle is also told the hidden task when the trial begins.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from memax_rl.envs.baselines import bandit_indices as bandit
from memax_rl.envs.baselines.policy import Policy, RandomPolicy
from memax_rl.envs.meta.bandit import Bandit, BernoulliBandit
from memax_rl.envs.meta.cartpole import ProjectedCartPole
from memax_rl.envs.meta.grid import DarkRoom, Grid, KeyToDoor
from memax_rl.envs.meta.mdp import TabularMDP, finite_horizon_q
from memax_rl.envs.meta.pointmass import STEP, PointMass
from memax_rl.envs.meta.trials import TaskEnvironment, Trials
from memax_rl.envs.popgym.cartpole import THETA_LIMIT, TIME_STEP, X_LIMIT


class BanditIndexPolicy(Policy):
    """Count what every arm paid, and pull the arm of the highest score."""

    arms: int = eqx.field(static=True)
    score: bandit.Score

    def initial_carry(self, task: Any = None) -> bandit.Counts:
        """Nothing was pulled."""
        return bandit.Counts(jnp.zeros(self.arms), jnp.zeros(self.arms, jnp.int32))

    def act(self, carry: bandit.Counts, inputs: Any, key: PRNGKeyArray) -> tuple[bandit.Counts, Array]:
        """Count the last pull, then choose."""
        pulled = (jnp.arange(self.arms) == inputs.previous_action) & ~inputs.start
        counts = bandit.Counts(carry.paid + jnp.where(pulled, inputs.previous_reward, 0), carry.pulls + pulled)
        return counts, jnp.argmax(self.score(counts, key)).astype(jnp.int32)


class PosteriorSamplingCarry(eqx.Module):
    """Transitions and rewards seen, the plan for this episode, its time, and the last state."""

    visits: Float[Array, "states actions states"]
    pulls: Float[Array, "states actions"]
    paid: Float[Array, "states actions"]
    plan: Float[Array, "steps states actions"]
    time: Int[Array, ""]
    state: Int[Array, ""]


class PosteriorSampling(Policy):
    """At every episode's start draw an MDP from the posterior and follow its optimal plan.

    Osband et al. 2013, https://arxiv.org/abs/1306.0940. The prior is the family's own.
    """

    tasks: TabularMDP = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> PosteriorSamplingCarry:
        """Nothing was seen."""
        states, actions, steps = self.tasks.states, self.tasks.actions, self.tasks.episode_length
        zero = jnp.zeros((), jnp.int32)
        return PosteriorSamplingCarry(
            jnp.zeros((states, actions, states)),
            jnp.zeros((states, actions)),
            jnp.zeros((states, actions)),
            jnp.zeros((steps, states, actions)),
            zero,
            zero,
        )

    def act(self, carry: PosteriorSamplingCarry, inputs: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        """Learn from the last step, plan if an episode begins, and follow the plan."""
        state, first = inputs.observation["observation"], inputs.observation["episode_start"][0] > 0
        action, reward = inputs.previous_action, inputs.previous_reward
        # What followed the last step of an episode is not shown, so only its reward is learned from.
        visits = carry.visits.at[carry.state, action, state].add(jnp.where(first, 0.0, 1.0))
        pulls = carry.pulls.at[carry.state, action].add(jnp.where(inputs.start, 0.0, 1.0))
        paid = carry.paid.at[carry.state, action].add(jnp.where(inputs.start, 0, reward))

        def draw_and_plan(carry):
            # The barrier keeps XLA from hoisting the draws out of the loop, as what is the same in each of its turns.
            (begins, _), alpha = jax.lax.optimization_barrier((carry, 1 + visits))
            transition_key, reward_key = jax.random.split(key)
            gamma = jax.random.gamma(transition_key, alpha)
            precision = 1 + pulls / self.tasks.reward_noise**2
            mean = (1 + paid / self.tasks.reward_noise**2) / precision
            mean = mean + jax.random.normal(reward_key, mean.shape) / jnp.sqrt(precision)
            transition = gamma / jnp.sum(gamma, axis=-1, keepdims=True)
            return jnp.zeros_like(begins), finite_horizon_q(transition, mean, self.tasks.episode_length)

        # A loop of one turn or none. Under `vmap` a `cond` would plan at every step; this plans when an episode begins.
        _, plan = jax.lax.while_loop(lambda carry: carry[0], draw_and_plan, (first, carry.plan))
        time = jnp.where(first, 0, carry.time)
        after = PosteriorSamplingCarry(visits, pulls, paid, plan, time + 1, state)
        return after, jnp.argmax(plan[time, state]).astype(jnp.int32)


class KnownModel(Policy):
    """An oracle that follows the optimal plan of the MDP itself."""

    tasks: TabularMDP = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> tuple[Array, Array]:
        """The plan, by value iteration, and the time."""
        model = self.tasks.model(task)
        plan = finite_horizon_q(model.transition, model.reward, self.tasks.episode_length)
        return plan, jnp.zeros((), jnp.int32)

    def act(self, carry: tuple[Array, Array], inputs: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        """Follow it."""
        plan, time = carry
        time = jnp.where(inputs.observation["episode_start"][0] > 0, 0, time)
        action = jnp.argmax(plan[time, inputs.observation["observation"]]).astype(jnp.int32)
        return (plan, time + 1), action


def _toward(cell: Int[Array, "2"], goal: Int[Array, "2"]) -> Array:
    """The move from a cell toward a goal: along the row axis first; stay if it is reached."""
    down, right = goal[0] - cell[0], goal[1] - cell[1]
    vertical, horizontal = jnp.where(down < 0, 1, 2), jnp.where(right < 0, 3, 4)
    return jnp.where(down != 0, vertical, jnp.where(right != 0, horizontal, 0)).astype(jnp.int32)


def spiral(size: int) -> np.ndarray:
    """The moves that visit every cell of a grid once, from its middle."""
    legs = [leg for n in range(1, size) for leg in (n, n)] + [size - 1]
    turns = (4, 2, 3, 1)  # right, down, left, up
    return np.array([turns[i % 4] for i, leg in enumerate(legs) for _ in range(leg)], np.int32)


class Searcher(Policy):
    """Walk the same spiral in every episode until the goal pays, then stay: the best that no memory of it allows."""

    tasks: DarkRoom = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> tuple[Array, Array]:
        """Steps along the spiral, and whether the goal was found in this episode."""
        return jnp.zeros((), jnp.int32), jnp.zeros((), bool)

    def act(self, carry: tuple[Array, Array], inputs: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        """The next move of the spiral."""
        first = inputs.observation["episode_start"][0] > 0
        time = jnp.where(first, 0, carry[0])
        found = ~first & (carry[1] | (inputs.previous_reward > 0))
        path = jnp.asarray(spiral(self.tasks.size))
        action = jnp.where(found | (time >= path.shape[0]), 0, path[jnp.minimum(time, path.shape[0] - 1)])
        return (time + 1, found), action.astype(jnp.int32)


class ExplorerCarry(eqx.Module):
    """Cells seen in this trial, the goal and whether it is known, and the last cell."""

    seen: Bool[Array, "size size"]
    goal: Int[Array, "2"]
    known: Bool[Array, ""]
    cell: Int[Array, "2"]


class Explorer(Policy):
    """Go to the nearest cell that was not seen in this trial; once the goal is known, straight to it."""

    tasks: DarkRoom = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> ExplorerCarry:
        """Nothing was seen."""
        size = self.tasks.size
        start = self.tasks.start()
        return ExplorerCarry(jnp.zeros((size, size), bool), start, jnp.zeros((), bool), start)

    def act(self, carry: ExplorerCarry, inputs: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        """Explore or exploit."""
        cell, first = inputs.observation["observation"], inputs.observation["episode_start"][0] > 0
        # At an episode's start the reward is that of the last one's final cell, which its action tells.
        before = jnp.where(first, self.tasks.move(carry.cell, inputs.previous_action), cell)
        pays = (inputs.previous_reward > 0) & ~inputs.start
        seen = carry.seen.at[cell[0], cell[1]].set(True).at[before[0], before[1]].set(True)
        known, goal = carry.known | pays, jnp.where(pays, before, carry.goal)
        rows = jnp.arange(self.tasks.size)
        distance = jnp.abs(rows[:, None] - cell[0]) + jnp.abs(rows[None, :] - cell[1])
        nearest = jnp.argmin(jnp.where(seen, 2 * self.tasks.size, distance))
        unseen = jnp.stack([nearest // self.tasks.size, nearest % self.tasks.size]).astype(jnp.int32)
        return ExplorerCarry(seen, goal, known, cell), _toward(cell, jnp.where(known, goal, unseen))


class GridOracle(Policy):
    """An oracle that walks from one hidden cell to the next."""

    tasks: Grid = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> tuple[Array, Array]:
        """The hidden cells, and which of them comes next."""
        return task, jnp.zeros((), jnp.int32)

    def act(self, carry: tuple[Array, Array], inputs: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        """Walk."""
        goals, index = carry
        cell = inputs.observation["observation"]
        index = jnp.where(inputs.observation["episode_start"][0] > 0, 0, index)
        reached = jnp.all(cell == goals[index])
        index = jnp.minimum(index + reached, goals.shape[0] - 1)
        return (goals, index), _toward(cell, goals[index])


class CartPoleOracle(Policy):
    """An oracle that knows the projection: it recovers the positions, and velocities as their differences."""

    def initial_carry(self, task: Any = None) -> tuple[Any, Array]:
        """The task, and the last positions."""
        return task, jnp.zeros(2)

    def act(self, carry: tuple[Any, Array], inputs: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        """Push the cart to where the pole is about to fall."""
        task, last = carry
        scale = jnp.array([X_LIMIT, THETA_LIMIT])
        positions = task.projection.T @ inputs.observation["observation"] * scale
        first = inputs.observation["episode_start"][0] > 0
        velocities = jnp.where(first, 0, (positions - last) / TIME_STEP)
        lean = positions[1] + 0.25 * velocities[1] + 0.02 * positions[0] + 0.06 * velocities[0]
        return (task, positions), ((lean > 0) ^ task.swapped).astype(jnp.int32)


class PointMassOracle(Policy):
    """An oracle that walks straight to the goal."""

    def initial_carry(self, task: Any = None) -> Array:
        """The goal."""
        return task

    def act(self, carry: Array, inputs: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        """Walk."""
        return carry, jnp.clip((carry - inputs.observation["observation"]) / STEP, -1, 1)


def _bandit_strategies(tasks: Bandit, pulls: int) -> dict[str, Policy]:
    bernoulli = isinstance(tasks, BernoulliBandit)
    scores: dict[str, bandit.Score] = {
        "greedy": bandit.Greedy(bernoulli),
        "UCB1": bandit.UCB1(),
        "Thompson sampling": bandit.Thompson(bernoulli),
    }
    # The indices know the prior, which is not uniform where the probabilities are given.
    if bernoulli and tasks.payouts is None and pulls <= bandit.MOST_PULLS:
        scores["Gittins index"] = bandit.gittins(pulls)
        if tasks.arms == 2:
            scores["Bayes-optimal"] = bandit.bayes_optimal(pulls)
    return {name: BanditIndexPolicy(tasks.arms, score) for name, score in scores.items()}


def _built_in(tasks: TaskEnvironment, episodes: int) -> dict[str, Policy]:
    if isinstance(tasks, Bandit):
        return _bandit_strategies(tasks, episodes * tasks.episode_length)
    if isinstance(tasks, TabularMDP):
        return {"posterior sampling": PosteriorSampling(tasks), "known model": KnownModel(tasks)}
    if isinstance(tasks, DarkRoom):
        return {"searcher": Searcher(tasks), "explorer": Explorer(tasks), "oracle": GridOracle(tasks)}
    if isinstance(tasks, KeyToDoor):
        return {"oracle": GridOracle(tasks)}
    if isinstance(tasks, ProjectedCartPole):
        return {"oracle": CartPoleOracle()}
    if isinstance(tasks, PointMass):
        return {"oracle": PointMassOracle()}
    return {}


def strategies(env: Trials, episodes: int) -> dict[str, Policy]:
    """The known strategies for trials of so many episodes, by name; "random" is always one."""
    known = _built_in(env.tasks, episodes) | dict(env.tasks.strategies(episodes))
    return {"random": RandomPolicy(env.tasks.action_space), **known}
