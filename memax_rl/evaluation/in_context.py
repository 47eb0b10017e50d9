"""In-context reinforcement learning: does an agent improve within a trial, with fixed weights?

A trial is several episodes of one hidden task. The return of every episode of a trial is measured on training tasks and
on held-out tasks, for trials of the training length and longer ones, and compared with known strategies and with the
same agent whose memory is reset at every episode, which cannot adapt.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from memax_rl import envs
from memax_rl.agents.acting import plays_greedily
from memax_rl.envs.baselines.policy import Policy
from memax_rl.envs.baselines.strategies import strategies
from memax_rl.envs.meta.trials import TrialParams, Trials
from memax_rl.evaluation.episodes import of_seeds, say_lost
from memax_rl.evaluation.figures import trials_of
from memax_rl.networks import from_environment
from memax_rl.precision import products_in
from memax_rl.rollout.streams import Act, seed_key, start_stream, step_stream
from memax_rl.runs.build import Trained, load_to_act
from memax_rl.runs.config import TrainConfig
from memax_rl.runs.files import json_text, write_atomically
from memax_rl.runs.run import Checkpoint, Run

# Longer trials are this many times as long as in training.
LONGER = (2, 4)


def play_trials(
    env: Trials,
    act: Act,
    initial_carry: Callable[[Any], Any],
    key: PRNGKeyArray,
    *,
    tasks: int,
    episodes: int | Int[Array, ""],
    most_episodes: int,
    wiped: bool | Bool[Array, ""] = False,
) -> Float[Array, "tasks most_episodes"]:
    """Play one trial of each of `tasks` tasks and return the return of every episode, 0 after the trial's end.

    The tasks depend on the key alone, not on the player.

    Args:
        act, initial_carry: How to act, and the carry before a trial, made from the task (which only an oracle may look
            at).
        episodes: Episodes a trial, at most `most_episodes`, which sets the shape.
        wiped: Whether memory, previous action and previous reward are reset at every episode, as at a trial's start.
    """
    params = TrialParams(episodes=episodes, max_steps_in_episode=most_episodes * env.tasks.episode_length)
    start_key, key = jax.random.split(key)

    def start(key):
        stream = start_stream(env, params, None, key)
        return dataclasses.replace(stream, carry=initial_carry(stream.environment.task))

    def step_trial(stream, keys):
        inputs, wipe = stream.inputs, wiped & (stream.environment.time == 0)
        inputs = inputs._replace(
            start=inputs.start | wipe,
            previous_action=jax.tree.map(lambda a: jnp.where(wipe, jnp.zeros_like(a), a), inputs.previous_action),
            previous_reward=jnp.where(wipe, 0, inputs.previous_reward),
        )
        episode = stream.environment.episode
        stream, slot, finished = step_stream(env, params, act, dataclasses.replace(stream, inputs=inputs), keys)
        return stream, episode, slot.reward, finished.done

    def unfinished(carry):
        return ~jnp.all(carry[2])

    def body(carry):
        key, streams, ended, returns = carry
        key, step_key = jax.random.split(key)
        streams, episode, reward, done = jax.vmap(step_trial)(streams, jax.random.split(step_key, (tasks, 2)))
        returns = returns.at[jnp.arange(tasks), episode].add(jnp.where(ended, 0, reward))
        return key, streams, ended | done, returns

    streams = jax.vmap(start)(jax.random.split(start_key, tasks))
    carry = (key, streams, jnp.zeros(tasks, bool), jnp.zeros((tasks, most_episodes)))
    return jax.lax.while_loop(unfinished, body, carry)[3]


def best_returns(env: Trials, key: PRNGKeyArray, tasks: int) -> Float[np.ndarray, " tasks"] | None:
    """Return the best expected return of an episode of each task that `play_trials` plays with this key, or None.

    Args:
        tasks: How many.
    """
    result = jax.vmap(env.tasks.best_return)(_drawn_tasks(env, key, tasks))
    return None if result is None else np.asarray(result, np.float64)


def same_tasks(env: Trials, key: PRNGKeyArray, tasks: int) -> Int[np.ndarray, " tasks"]:
    """Return a number for each trial that `play_trials` plays with this key, the same for trials of the same task.

    Args:
        tasks: How many trials.
    """
    drawn = jax.tree.leaves(_drawn_tasks(env, key, tasks))
    plain = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in drawn]
    rows = [np.ascontiguousarray(x).reshape(tasks, -1).view(np.uint8).reshape(tasks, -1) for x in plain]
    # A family of one task may need no arrays to say which.
    rows.append(np.zeros((tasks, 0), np.uint8))
    return np.unique(np.concatenate(rows, axis=1), axis=0, return_inverse=True)[1].reshape(tasks)


def _drawn_tasks(env: Trials, key: PRNGKeyArray, tasks: int) -> Any:
    """Return the tasks that `play_trials` plays with this key, stacked."""
    start_key, _ = jax.random.split(key)
    return jax.vmap(lambda key: env.reset(key, env.default_params)[1].task)(jax.random.split(start_key, tasks))


def summarize_trials(
    returns: Float[np.ndarray, "seeds tasks episodes"],
    best: Float[np.ndarray, " tasks"] | None,
    *,
    same: Int[np.ndarray, " tasks"] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the mean return by episode, gain, area and regret, each with a confidence interval.

    - `"return_by_episode"`: a list, one entry an episode of the trial.
    - `"gain"`: return of the last episode minus that of the first.
    - `"area"`: the area under the curve, that is the return of the whole trial.
    - `"regret"`: the sum of the best expected returns minus the area; None where the best is unknown.

    Each is `{"value", "low", "high"}`. The interval is a percentile bootstrap that resamples tasks and seeds; all seeds
    play the same tasks, and a resampled task contributes all its trials and their episodes.

    Args:
        returns: Of every episode of a trial of each task.
        best: The best expected return of an episode of each task, or None.
        same: The number of each trial's task, as `same_tasks` gives it, where a task may be played twice. With one
            task alone its trials are resampled.
        confidence: Share of the intervals, such as .95.
        resamples: Draws of the bootstrap.
        seed: Of these draws.
    """
    seeds, tasks, episodes = returns.shape
    same = np.arange(tasks) if same is None or same.max() == 0 else same
    distinct = int(same.max()) + 1
    columns = [returns, returns[..., -1:] - returns[..., :1], returns.sum(axis=-1, keepdims=True)]
    if best is not None:
        columns.append((episodes * best[None] - returns.sum(axis=-1))[..., None])
    x = np.concatenate(columns, axis=-1)
    rng = np.random.default_rng(seed)
    drawn_seeds = rng.integers(seeds, size=(resamples, seeds))
    means = np.empty((resamples, x.shape[-1]))
    for i, drawn in enumerate(drawn_seeds):
        # The seeds play the same tasks, so a task is drawn for all of them.
        weights = rng.multinomial(distinct, np.full(distinct, 1 / distinct))[same]
        means[i] = np.einsum("t,stf->f", weights / (weights.sum() * seeds), x[drawn])
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    value = x.mean(axis=(0, 1))
    entries = [{"value": float(v), "low": float(a), "high": float(b)} for v, a, b in zip(value, low, high, strict=True)]
    return {
        "return_by_episode": entries[:episodes],
        "gain": entries[episodes],
        "area": entries[episodes + 1],
        "regret": entries[episodes + 2] if best is not None else None,
    }


def trained_episodes(env: Any, env_name: str) -> int:
    """Return the number of episodes of a trial in training.

    Raises:
        ValueError: If the environment has no trials, or trials of one episode only.
    """
    if not isinstance(env, Trials):
        raise _no_trials(env_name)
    params = env.default_params
    episodes = int(params.episodes) if env.steps is None else -(-env.steps // env.tasks.episode_length)
    if episodes < 2:
        raise ValueError(
            f"the run was trained on trials of one episode of {env_name}, so it has learned to adapt to nothing; train "
            "it with --env-options.episodes 2 or more"
        )
    return episodes


def _no_trials(env_name: str) -> ValueError:
    families = ", ".join(name for name in envs.names() if name.startswith("meta/") and name != "meta/EndlessTMaze")
    return ValueError(
        f"the run was trained on {env_name}, which has no hidden tasks to adapt to; train on one of {families} "
        "(meta/Trials makes trials of any gymnax, popgym or xminigrid environment) or a family of your own "
        "(docs/own_task_family.md), or use `memax-rl evaluate`"
    )


def _check_trials(config: Any) -> int:
    """Return the episodes a trial that a run was trained on. Raises `ValueError` if its trials cannot be played."""
    if config.env.startswith(("gym/", "envpool/")):
        raise _no_trials(config.env)
    others = [wrapper.name for wrapper in config.env_wrappers]
    if others:
        raise ValueError(
            f"the run was trained with env_wrappers {', '.join(others)}, and trials are played without; train it "
            "without them, or use `memax-rl evaluate`"
        )
    return trained_episodes(envs.make(config.env, **config.env_options)[0], config.env)


def check_run(folder: str | Path, *, imports: Iterable[str] = (), trust: bool = False) -> None:
    """Check that the trials of a run can be played, without playing any.

    Raises:
        RunError: If the folder is no run.
        ValueError: If the run was not trained on trials of several episodes.
    """
    _check_trials(Run.open(folder, imports, trust).config())


def _about(config: TrainConfig, trials: Trials) -> dict[str, Any]:
    """Return what the run was trained on, and what its episodes are like."""
    return {
        "env": config.env,
        "env_options": config.env_options,
        "memory": config.network.memory,
        "episode_length": trials.tasks.episode_length,
        "has_boundaries": trials.tasks.has_boundaries,
    }


def evaluate_in_context(
    folder: str | Path,
    *,
    tasks: int = 512,
    episodes: int | None = None,
    longer: tuple[int, ...] = LONGER,
    greedy: bool | None = None,
    seed: int | None = None,
    checkpoint: Checkpoint = "newest",
    imports: Iterable[str] = (),
    trust: bool = False,
) -> dict[str, Any]:
    """Play trials with the agents of a run and return how they adapt.

    Args:
        folder: The run folder.
        tasks: Tasks of each split, the same ones for every seed of the run and for every strategy.
        episodes: Episodes a trial; by default as many as in training.
        longer: Also play trials so many times as long, on held-out tasks.
        greedy: Whether to take the best action at every step. By default DQN does, and PPO samples.
        seed: Of the tasks; by default the run's own.
        checkpoint: "newest", "best" by evaluation during training, or the update of one that was kept.
        imports, trust: Packages that the run's environment may import, or whether it may import any (docs/runs.md).

    Returns:
        A dict ready for JSON; `summarize_trials` says what it holds of agent, wiped agent and strategies.

    Raises:
        RunError: If the folder is no run or has no sound checkpoint.
        ValueError: If an argument is out of range, or the run was not trained on trials of several episodes.
    """
    _check_size(tasks, episodes)
    run = Run.open(folder, imports, trust)
    trained_on = _check_trials(config := run.config())
    trained = load_to_act(run, checkpoint)
    seeds, greedy = trained.seeds, plays_greedily(trained.acting, greedy)
    episodes = trained_on if episodes is None else episodes
    key = jax.random.fold_in(seed_key(config.seed if seed is None else seed), 2**31)
    most = episodes * max((1, *longer))

    def measure(env: Trials, n: int, wiped: bool = False) -> dict[str, Any]:
        with products_in(config.precision):
            returns = _play_seeds(trained, greedy, env, key, tasks, n, most, wiped)
        return _summary(env, key, returns)

    # `num_tasks` limits the training tasks only.
    train, test = _trials(config, "train"), _trials(config, "test", num_tasks=None)
    return {
        **_about(config, test),
        "policy": "greedy" if greedy else "sampled",
        **of_seeds(config, seeds),
        "checkpoint": checkpoint,
        **_count(train, test, key, tasks),
        "episodes": episodes,
        "trained_episodes": trained_on,
        "train": {"agent": measure(train, episodes), "wiped": measure(train, episodes, wiped=True)},
        "test": {"agent": measure(test, episodes), "wiped": measure(test, episodes, wiped=True)},
        "strategies": _measure_strategies(test, key, tasks, episodes),
        "longer": {str(n): measure(test, n * episodes) for n in longer},
    }


def _check_size(tasks: int, episodes: int | None) -> None:
    if tasks < 2:
        raise ValueError(f"tasks must be at least 2, got {tasks}")
    if episodes is not None and episodes < 2:
        raise ValueError(f"episodes must be at least 2, or there is no adaptation to see, got {episodes}")


def _trials(config: Any, split: str, **options: Any) -> Trials:
    """Return the trials of a split."""
    if "unrewarded_fraction" not in envs.options(config.env):
        # Trials that were registered as an environment: those of the other split are made from them.
        own = envs.make(config.env, **config.env_options)[0]
        return own.to_measure(split, options.get("num_tasks", own.num_tasks))
    # Unrewarded trials are for training only.
    return envs.make(config.env, **(config.env_options | {"split": split, "unrewarded_fraction": 0.0} | options))[0]


def _play_seeds(
    trained: Trained, greedy: bool, env: Trials, key: PRNGKeyArray, tasks: int, episodes: int, most: int, wiped: bool
) -> Float[np.ndarray, "seeds tasks episodes"]:
    """Return what `_play_agent` returns for each seed of a run."""
    arrays = jnp.asarray(episodes), jnp.asarray(wiped)
    networks = (_network_of(trained.networks, place) for place in range(len(trained.seeds)))
    played = [_play_agent(trained.acting.act, greedy, env, one, key, tasks, most, *arrays) for one in networks]
    return np.stack(played)[..., :episodes]


def _network_of(networks: Any, place: int) -> Any:
    """Return one of the networks that are stacked along an axis."""
    return jax.tree.map(lambda leaf: leaf[place] if eqx.is_array(leaf) else leaf, networks)


# Compiled once for the runs of a study that differ by their seed: nothing of a run is in it but the networks' values.
@eqx.filter_jit
def _play_agent(
    act_of: Callable[[Any, bool], Act],
    greedy: bool,
    env: Trials,
    network: Any,
    key: PRNGKeyArray,
    tasks: int,
    most: int,
    episodes: Int[Array, ""],
    wiped: Bool[Array, ""],
) -> Float[Array, "tasks most"]:
    """Return the returns of trials of so many episodes, of at most `most`, played with a network."""
    act, carry = act_of(network, greedy), network.initial_state()
    return play_trials(env, act, lambda _: carry, key, tasks=tasks, episodes=episodes, most_episodes=most, wiped=wiped)


@eqx.filter_jit
def _play_strategy(
    policy: Policy, env: Trials, key: PRNGKeyArray, tasks: int, episodes: int
) -> Float[Array, "tasks episodes"]:
    """Return the returns of trials played by a known strategy."""

    def act(carry, inputs, key):
        carry, action = policy.act(carry, inputs, key)
        return carry, from_environment(env.tasks.action_space, action), jnp.zeros(())

    start = policy.initial_carry
    return play_trials(env, act, start, key, tasks=tasks, episodes=episodes, most_episodes=episodes)


def _count(train: Trials, test: Trials, key: PRNGKeyArray, tasks: int) -> dict[str, Any]:
    """Return how many trials of each split are played, and of how many different tasks they are."""
    distinct = {env.split: int(same_tasks(env, key, tasks).max()) + 1 for env in (train, test)}
    return {"tasks": tasks, "distinct_tasks": distinct}


def _summary(env: Trials, key: PRNGKeyArray, returns: Float[np.ndarray, "seeds tasks episodes"]) -> dict[str, Any]:
    """Return the summary of trials that were played with this key."""
    tasks = returns.shape[1]
    best, same = best_returns(env, key, tasks), same_tasks(env, key, tasks)
    return summarize_trials(returns.astype(np.float64), best, same=same)


def _measure_strategies(env: Trials, key: PRNGKeyArray, tasks: int, episodes: int) -> dict[str, Any]:
    """Return the summary of every known strategy, on the tasks that the agent plays."""
    known = strategies(env, episodes)
    played = {name: _play_strategy(policy, env, key, tasks, episodes) for name, policy in known.items()}
    return {name: _summary(env, key, np.asarray(r)[None]) for name, r in played.items()}


def write_results(result: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write icl.json and icl.png into a folder and return their paths.

    Args:
        result: What `evaluate_in_context` returns.
    """
    from memax_rl.evaluation.in_context_figure import draw

    folder.mkdir(parents=True, exist_ok=True)
    data, figure = folder / "icl.json", folder / "icl.png"
    write_atomically(data, json_text(result))
    draw(result, figure)
    return data, figure


def print_icl_table(result: dict[str, Any]) -> None:
    """Print the result of `evaluate_in_context` as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['env']}, {result['memory']}, {result['policy']} actions")
    table.add_column("tasks, who")
    columns = ("first", "last", "gain", "area", "regret")
    for column in columns:
        table.add_column(column, justify="right")

    def add(name: str, summary: dict[str, Any]) -> None:
        by_episode = summary["return_by_episode"]
        cells = [by_episode[0], by_episode[-1], summary["gain"], summary["area"], summary["regret"]]
        table.add_row(name, *("" if c is None else _cell(c) for c in cells))

    add("held-out, agent", result["test"]["agent"])
    add("held-out, memory wiped", result["test"]["wiped"])
    add("training, agent", result["train"]["agent"])
    add("training, memory wiped", result["train"]["wiped"])
    for n, summary in result["longer"].items():
        add(f"held-out, agent, {n} x as long", summary)
    table.add_section()
    for name, summary in result["strategies"].items():
        add(f"held-out, {name}", summary)
    seeds = len(result["seeds"])
    over = "tasks and seeds" if seeds > 1 else "tasks"
    table.caption = (
        f"{result['episodes']} episodes a trial ({result['trained_episodes']} in training), {trials_of(result)}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}; ± half of the 95 % interval over {over}"
        f"{say_lost(result)}"
    )
    # Wide enough for the table where the output is no terminal.
    console = Console()
    (console if console.is_terminal else Console(width=110)).print(table)


def summary_line(result: dict[str, Any]) -> str:
    """Return in a line what the result of `evaluate_in_context` says of held-out tasks."""
    agent, wiped = result["test"]["agent"]["return_by_episode"], result["test"]["wiped"]["return_by_episode"]
    what = "episode" if result["has_boundaries"] else "block"
    return (
        f"first {what} {_cell(agent[0])}, last {_cell(agent[-1])}, last with the memory wiped {_cell(wiped[-1])}, "
        f"whole trial {_cell(result['test']['agent']['area'])}"
    )


def _cell(entry: dict[str, float]) -> str:
    return f"{entry['value']:.2f} ± {(entry['high'] - entry['low']) / 2:.2f}"
