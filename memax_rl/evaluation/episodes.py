"""Evaluation on fresh episodes. The agent acts through the same function as in training."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from memax_rl.agents.acting import plays_greedily
from memax_rl.envs.base import EnvironmentFailure, close, closing_new_copies, failure, host_of
from memax_rl.envs.baselines.scores import find_scores
from memax_rl.evaluation.statistics import summarize
from memax_rl.precision import products_in
from memax_rl.rollout.streams import Act, seed_key, start_stream, step_stream
from memax_rl.runs.build import load_agent, make_environment
from memax_rl.runs.config import TrainConfig, make_config
from memax_rl.runs.run import Checkpoint, Run
from memax_rl.unused import left_at_default


def play(
    env: Any, env_params: Any, act: Act, carry: Any, key: PRNGKeyArray, *, episodes: int, max_steps: int
) -> tuple[Float[Array, " episodes"], Int[Array, " episodes"], Bool[Array, " episodes"]]:
    """Play one episode in each of `episodes` fresh environments, all at once.

    One episode per environment rather than a fixed number of steps, which would count short episodes more often than
    long ones.

    Args:
        act, carry: How the agent acts, and the initial carry of its network.
        max_steps: Stop after this many steps.

    Returns:
        Return and length of each episode, so far where it did not end, and whether it ended within `max_steps`.
    """
    start_key, key = jax.random.split(key)
    start = jax.vmap(lambda k: start_stream(env, env_params, carry, k))(jax.random.split(start_key, episodes))
    initial = (jnp.zeros(episodes), jnp.zeros(episodes, jnp.int32), jnp.zeros(episodes, bool))

    def unfinished(progress):
        t, _, _, (_, _, ended) = progress
        return (t < max_steps) & ~jnp.all(ended)

    def body(progress):
        t, key, streams, (total, length, ended) = progress
        key, step_key = jax.random.split(key)
        step = jax.vmap(lambda s, k, active: step_stream(env, env_params, act, s, k, active))
        # An environment whose first episode has ended is not stepped any more.
        streams, _, finished = step(streams, jax.random.split(step_key, (episodes, 2)), ~ended)
        total = jnp.where(finished.done, finished.episode_return, total)
        length = jnp.where(finished.done, finished.episode_length, length)
        return t + 1, key, streams, (total, length, ended | finished.done)

    _, _, streams, (total, length, ended) = jax.lax.while_loop(unfinished, body, (0, key, start, initial))
    # What did not end counts with what it got: 0 would be the best of all where rewards are costs.
    so_far = jnp.where(ended, total, streams.episode_return), jnp.where(ended, length, streams.episode_length)
    return *so_far, ended


def evaluate_state(
    agent: Any,
    networks: Any,
    config: Any,
    seeds: Sequence[int],
    *,
    episodes: int = 256,
    greedy: bool | None = None,
    seed: int | None = None,
    env: Any = None,
    env_params: Any = None,
) -> dict[str, Any]:
    """Evaluate the networks of these seeds, stacked along a leading axis. Returns what `evaluate` returns.

    `env`, `env_params` replace the agent's own environment if given; `config` says which one it is.

    Args:
        episodes: How many of each network.
    """
    greedy = plays_greedily(agent, greedy)
    if env is None:
        env, env_params = agent.env, agent.env_params
    # Distinct from the keys of training.
    keys = jax.random.split(
        jax.random.fold_in(seed_key(config.seed if seed is None else seed), 2**31), config.num_seeds
    )[np.array(seeds) - config.seed]
    with products_in(config.precision):
        returns, lengths, ended = make_player(agent, env, env_params, episodes, greedy)(networks, keys)
    # Where a wrapper changes the task, the known scores do not apply.
    is_plain = not any(wrapper.changes_task for wrapper in config.env_wrappers) and not config.env_options.get(
        "arguments"
    )
    chance, best = (find_scores(config.env) if is_plain else None) or (None, None)
    per_seed = [float(np.mean(r)) for r in returns]
    return {
        "env": config.env,
        "memory": config.network.memory,
        "policy": "greedy" if greedy else "sampled",
        "episodes_per_seed": episodes,
        **of_seeds(config, seeds),
        "return": summarize(returns.astype(np.float64)),
        "return_over_episodes": summarize(returns.astype(np.float64), over="episodes"),
        "chance": chance,
        "best": best,
        "mean_return_per_seed": per_seed,
        "mean_length": float(np.mean(lengths)),
        "unfinished_episodes": int(np.sum(~ended)),
        "unusable_episodes": int(np.sum(~np.isfinite(returns))),
    }


def make_player(
    agent: Any, env: Any, env_params: Any, episodes: int, greedy: bool
) -> Callable[[Any, jax.Array], list[np.ndarray]]:
    """Return (networks, keys), both with a leading axis of seeds -> the results of `play` for each seed.

    It is compiled at the first call. Raises `EnvironmentFailure` if an environment on the host fails.

    Args:
        episodes: How many of each network.
    """
    longest = env.max_episode_steps(env_params)
    # One more than the longest, so that it is seen to end; where none is stated, an episode is played so far.
    max_steps = 10_000 if longest is None else longest + 1

    @eqx.filter_jit
    def run(networks, keys):
        def play_one(network, key):
            act, carry = agent.act(network, greedy), network.initial_state()
            return play(env, env_params, act, carry, key, episodes=episodes, max_steps=max_steps)

        if host_of(env) is None:
            return eqx.filter_vmap(play_one)(networks, keys)
        # One seed after the other on the host: JAX cannot vmap a host callback inside a loop of varying length.
        arrays, static = eqx.partition(networks, eqx.is_array)
        return jax.lax.map(lambda x: play_one(eqx.combine(x[0], static), x[1]), (arrays, keys))

    def play_seeds(networks, keys):
        with closing_new_copies(env):
            played = [np.asarray(x) for x in run(networks, keys)]
        if (failed := failure(env)) is not None:
            raise EnvironmentFailure(failed)
        return played

    return play_seeds


def evaluate(
    folder: str | Path,
    *,
    episodes: int = 256,
    greedy: bool | None = None,
    seed: int | None = None,
    env: str | None = None,
    env_options: dict[str, Any] | None = None,
    checkpoint: Checkpoint = "newest",
    imports: Iterable[str] = (),
    trust: bool = False,
) -> dict[str, Any]:
    """Play fresh episodes with the agents of a run and return statistics of their returns.

    Args:
        folder: The run folder.
        episodes: Fresh episodes for each of the run's seeds.
        greedy: Whether to take the best action at every step, instead of sampling (PPO) or exploring a little (DQN). By
            default DQN does and PPO does not.
        seed: Of the episodes; by default the run's own.
        env: Another environment than that of training, with the same spaces; in the run's wrappers.
        env_options: Options of the environment, in place of those of training.
        checkpoint: "newest", "best" by evaluation during training, or the update of one that was kept.
        imports, trust: Packages that the run's environment may import, or whether it may import any (docs/runs.md).

    Returns:
        A dict ready for JSON: `"return"` holds mean, median and interquartile mean with 95 % intervals, and in `"over"`
        what they are over: the mean returns of the runs (one a seed) if there are several, else the episodes.
        `"return_over_episodes"` holds the same of all episodes pooled; `"chance"` and `"best"` the mean returns of
        random actions and of a strong scripted strategy, None where unknown.

    Raises:
        RunError: If the folder is no run or has no sound checkpoint.
        ValueError: If `episodes` is below 1, or environment or options are wrong or have another observation or action
            space than the agent was trained for.
        EnvironmentFailure: If an environment on the host fails.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    run = Run.open(folder, imports, trust)
    config = run.config()
    agent, networks, seeds = load_agent(run, checkpoint)
    settings: dict[str, Any] = {"episodes": episodes, "greedy": greedy, "seed": seed}
    try:
        if env is None and not env_options:
            return evaluate_state(agent, networks, config, seeds, **settings) | {"checkpoint": checkpoint}
        config = elsewhere(config, env or config.env, env_options or {})
        other, params = make_environment(config)
        try:
            _check_spaces(agent, other, params, config)
            settings |= {"env": other, "env_params": params}
            return evaluate_state(agent, networks, config, seeds, **settings) | {"checkpoint": checkpoint}
        finally:
            close(other)
    finally:
        close(agent.env)


def elsewhere(config: TrainConfig, env: str, options: dict[str, Any]) -> TrainConfig:
    """Return the configuration with another environment, or with other options of the same one."""
    kept = config.env_options if env == config.env else {}
    fields = config.model_dump() | {"env": env, "env_options": kept | options}
    with left_at_default() as left:
        other = make_config(fields)
    # What of the run's options has no effect beside these ones is not asked for; one of these is refused.
    return make_config(fields) if left & options.keys() else other


def _check_spaces(agent: Any, env: Any, env_params: Any, config: TrainConfig) -> None:
    spaces = (
        ("observation", agent.observation_space, env.observation_space(env_params)),
        ("action", agent.action_space, env.action_space(env_params)),
    )
    for name, trained, now in spaces:
        # Spaces compare by identity, so their representations are compared.
        if repr(trained) != repr(now):
            raise ValueError(
                f"env: {config.env} with options {config.env_options} has the {name} space {now!r}, and the agent was "
                f"trained for {trained!r}"
            )


def of_seeds(config: Any, seeds: Sequence[int]) -> dict[str, list[int]]:
    """Return what a result says of the seeds of a run, those with a sound network and the others."""
    lost = set(range(config.seed, config.seed + config.num_seeds)) - set(seeds)
    return {"seeds": list(seeds), "diverged_seeds": sorted(lost)}


def say_lost(result: dict[str, Any]) -> str:
    """Return in words, for the end of a caption, which seeds a result leaves out; nothing where it has all.

    Args:
        result: With a list of `diverged_seeds`.
    """
    lost = list(map(str, result["diverged_seeds"]))
    return f"; left out, because diverged in training: seed{'s' * (len(lost) > 1)} {', '.join(lost)}" if lost else ""


def summary_line(result: dict[str, Any]) -> str:
    """Return in a line what the result of `evaluate` says."""
    mean = result["return"]["mean"]
    counts = {"did not end": result["unfinished_episodes"], "with returns not finite": result["unusable_episodes"]}
    told = "".join(f", {count} {what}" for what, count in counts.items() if count)
    seeds, episodes = len(result["seeds"]), f"{result['episodes_per_seed']} episodes"
    over = f"{seeds} seeds, {episodes} each" if seeds > 1 else episodes
    return f"mean return {mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}], {over}{told}{say_lost(result)}"


def print_table(result: dict[str, Any]) -> None:
    """Print the result of `evaluate` as a table."""
    from rich.console import Console
    from rich.table import Table

    seeds, over = len(result["seeds"]), result["return"]["over"]
    table = Table(title=f"{result['env']}, {result['memory']}, {result['policy']} actions")
    for column in ("return", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "return" else "right")
    names = {"mean": "mean", "median": "median", "iqm": "interquartile mean"}
    shown = [(f"{name} over {over}", result["return"][key]) for key, name in names.items()]
    if over == "runs":
        shown += [(f"{names[key]} over episodes", result["return_over_episodes"][key]) for key in ("median", "iqm")]
    for name, r in shown:
        table.add_row(name, f"{r['value']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}")
    for seed, mean in zip(result["seeds"], result["mean_return_per_seed"], strict=True):
        table.add_row(f"mean of seed {seed}", f"{mean:.3f}", "")
    if result["chance"] is not None:
        table.add_row("chance (random actions)", f"{result['chance']:.3f}", "")
        table.add_row("best known strategy", f"{result['best']:.3f}", "")
    table.caption = (
        f"{seeds} seed{'s' if seeds > 1 else ''}, {result['episodes_per_seed']} fresh episodes each; intervals: "
        f"bootstrap over {'runs, or over runs and their episodes' if seeds > 1 else 'episodes'}"
        f"{say_lost(result)}"
    )
    if result["unfinished_episodes"]:
        table.caption += f"; {result['unfinished_episodes']} did not end, and count as far as they went"
    if result["unusable_episodes"]:
        table.caption += f"; {result['unusable_episodes']} have a return that is not finite, as some reward was not"
    Console().print(table)
