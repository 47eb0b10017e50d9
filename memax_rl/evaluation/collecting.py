"""Episodes of a trained agent or of a scripted strategy, written down to learn from (`memax_rl.rollout.episodes_file`).

The player acts through the same function as in training, one episode in each of many fresh environments, so that short
episodes are no more frequent than long ones.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from memax_rl.agents.acting import plays_greedily
from memax_rl.envs import ids, spaces
from memax_rl.envs.base import EnvironmentFailure, close, closing_new_copies, failure
from memax_rl.envs.baselines.policy import Policy, RandomPolicy
from memax_rl.envs.baselines.scores import BEST_POLICIES
from memax_rl.envs.baselines.strategies import strategies
from memax_rl.envs.meta.trials import Trials
from memax_rl.envs.plain_spaces import to_plain
from memax_rl.evaluation.in_context import trained_episodes
from memax_rl.networks import from_environment, to_environment
from memax_rl.paths import expanded
from memax_rl.rollout.episodes_file import About, Episodes, dump_episodes
from memax_rl.rollout.streams import Act, RolloutState, seed_key, start_stream, step_stream
from memax_rl.rollout.tape import Tape, without_log_prob
from memax_rl.runs.build import load_agent, make_environment
from memax_rl.runs.config import make_config
from memax_rl.runs.files import check_folder, write_atomically
from memax_rl.runs.run import Checkpoint, Run

# Environments at once, and steps in one call: enough to keep the device busy, few enough to hold all slots.
_MOST_AT_ONCE = 256
_STEPS_A_CALL = 128
# Where no time limit is known, as in evaluation.
_LONGEST = 10_000


class Player(NamedTuple):
    """Who plays, and where.

    Attributes:
        env, params: The environment, and its parameters.
        act: How the player acts.
        initial_carry: (environment state) -> its carry at the start of an episode.
        source: What the file calls it.
        env_name: The environment's name.
    """

    env: Any
    params: Any
    act: Act
    initial_carry: Callable[[Any], Any]
    source: str
    env_name: str


def strategies_for(env: Any, params: Any, env_name: str) -> dict[str, Callable[[], Policy]]:
    """Return the scripted strategies for an environment by name, each made when called; the first is the default."""
    if isinstance(env, Trials):
        made = strategies(env, trained_episodes(env, env_name))
        # Random play, which is in it first, is nobody's default.
        made |= {"random": made.pop("random")}
        return {name: functools.partial(_given, policy) for name, policy in made.items()}
    found: dict[str, Callable[[], Policy]] = {}
    suite, _, family = env_name.partition("/")
    for level in ids.DIFFICULTIES:
        family = family.removesuffix(level)
    if suite == "popgym" and family in BEST_POLICIES:
        found["best"] = functools.partial(BEST_POLICIES[family], env)
    return found | {"random": functools.partial(_random, env.action_space(params))}


def _given(policy: Policy) -> Policy:
    return policy


def _random(space: Any) -> Policy:
    if isinstance(space, spaces.Box) and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(f"strategy: no action can be drawn evenly from {space!r}, which has no bounds")
    return RandomPolicy(space)


def scripted_player(env_name: str, env_options: Mapping[str, Any], strategy: str | None) -> Player:
    """Return a scripted strategy in its environment.

    Args:
        env_options: Options of the environment.
        strategy: Its name, one of `strategies_for`; None: the best known.

    Raises:
        ValueError: If there is no such environment, or no strategy of that name for it.
    """
    config = make_config({"env": env_name, "env_options": dict(env_options)})
    env, params = make_environment(config)
    known = strategies_for(env, params, config.env)
    name = next(iter(known)) if strategy is None else strategy
    if name not in known:
        close(env)
        raise ValueError(f"strategy: there is no {name!r} for {config.env}; known: {', '.join(known)}")
    policy, space = known[name](), env.action_space(params)

    def act(carry, inputs, key):
        shown = inputs._replace(previous_action=to_environment(space, inputs.previous_action))
        carry, action = policy.act(carry, shown, key)
        return carry, from_environment(space, action), jnp.zeros(())

    def initial_carry(state):
        return policy.initial_carry(getattr(state, "task", None))

    return Player(env, params, act, initial_carry, f"strategy {name}", config.env)


def trained_player(run: Run, checkpoint: Checkpoint, trained_seed: int | None, greedy: bool | None) -> Player:
    """Return a trained agent in the environment of its training.

    Args:
        checkpoint: As in `Run.restore`.
        trained_seed: One of the seeds of the run; None: the first that did not diverge.

    Raises:
        RunError: If the run has no sound checkpoint.
        ValueError: If the run has not trained that seed.
    """
    agent, networks, seeds = load_agent(run, checkpoint)
    config = run.config()
    chosen = seeds[0] if trained_seed is None else trained_seed
    try:
        if chosen not in seeds:
            raise ValueError(f"trained_seed={chosen}, but {run.folder} has trained {', '.join(map(str, seeds))}")
        is_greedy = plays_greedily(agent, greedy)
    except ValueError:
        close(agent.env)
        raise
    network = jax.tree.map(lambda leaf: leaf[seeds.index(chosen)] if eqx.is_array(leaf) else leaf, networks)
    carry = network.initial_state()
    act = agent.act(network, is_greedy)
    source = f"{config.agent} with {config.network.memory}, seed {chosen}"
    return Player(agent.env, agent.env_params, act, lambda state: carry, source, config.env)


def play_episodes(player: Player, key: PRNGKeyArray, episodes: int) -> list[Tape]:
    """Return complete episodes on tapes of numpy arrays [slots], actions as the environment takes them.

    Args:
        player: Who plays, and where.
        episodes: How many.

    Raises:
        ValueError: If an episode does not end.
        EnvironmentFailure: If an environment on the host fails.
    """
    played: list[Tape] = []
    with closing_new_copies(player.env):
        while len(played) < episodes:
            key, batch_key = jax.random.split(key)
            # Always as many, so that nothing is compiled twice; what is too many at the end is left out.
            played += _play_batch(player, batch_key, min(episodes, _MOST_AT_ONCE))
    return played[:episodes]


def _play_batch(player: Player, key: PRNGKeyArray, count: int) -> list[Tape]:
    env, params = player.env, player.params
    longest = env.max_episode_steps(params) or _LONGEST
    start_key, key = jax.random.split(key)
    start, steps = _programs(player, count)
    streams, parts, written = start(jax.random.split(start_key, count)), [], []
    open_ = jnp.ones(count, bool)
    for _ in range(-(-(longest + 1) // _STEPS_A_CALL)):
        key, step_key = jax.random.split(key)
        streams, open_, slots, wrote = steps(streams, open_, step_key)
        parts.append(jax.tree.map(np.asarray, slots))
        written.append(np.asarray(wrote))
        if (failed := failure(env)) is not None:
            raise EnvironmentFailure(failed)
        if not np.any(open_):
            break
    else:
        raise ValueError(f"an episode of {player.env_name} did not end within {longest:,} steps")
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    kept = np.concatenate(written)
    return [jax.tree.map(lambda leaf, i=i: leaf[kept[:, i], i], whole) for i in range(count)]


def _programs(player: Player, count: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the compiled (keys) -> streams, and (streams, open, key) -> streams, open, slots, which were written."""
    env, params, space = player.env, player.params, player.env.action_space(player.params)

    def start(key: PRNGKeyArray) -> RolloutState:
        stream = start_stream(env, params, None, key)
        return eqx.tree_at(
            lambda s: s.carry, stream, player.initial_carry(stream.environment), is_leaf=lambda x: x is None
        )

    def step(stream: RolloutState, is_open: Any, keys: Any) -> Any:
        # An episode is open until it was terminated or its final observation was passed over.
        passes = stream.final
        stream, slot, _ = step_stream(env, params, player.act, stream, keys, is_open)
        slot = eqx.tree_at(lambda t: t.action, slot, to_environment(space, slot.action))
        return stream, is_open & ~slot.terminated & ~passes, without_log_prob(slot), is_open

    @eqx.filter_jit
    def steps(streams: RolloutState, is_open: Any, key: PRNGKeyArray) -> Any:
        def body(carry, keys):
            streams, is_open, slot, wrote = jax.vmap(step)(carry[0], carry[1], keys)
            return (streams, is_open), (slot, wrote)

        keys = jax.random.split(key, (_STEPS_A_CALL, count, 2))
        (streams, is_open), (slots, wrote) = jax.lax.scan(body, (streams, is_open), keys)
        return streams, is_open, slots, wrote

    return eqx.filter_jit(jax.vmap(start)), steps


def collect(
    run: str | Path | None = None,
    *,
    out: str | Path,
    episodes: int,
    env: str | None = None,
    env_options: Mapping[str, Any] | None = None,
    strategy: str | None = None,
    seed: int | None = None,
    trained_seed: int | None = None,
    greedy: bool | None = None,
    checkpoint: Checkpoint = "newest",
    imports: Iterable[str] = (),
    trust: bool = False,
) -> About:
    """Play episodes and write them into a file to learn from, for example by `memax-rl train --agent bc`.

    Args:
        run: The folder of the trained run that plays; or leave it out, and name `env`.
        out: The file to write, NAME.npz. One that is there is replaced.
        episodes: How many complete episodes.
        env, env_options: The environment in which a scripted strategy plays.
        strategy: Which; by default the best known for POPGym, and for trials the first that is not random.
        seed: Of the episodes; by default the run's, or 0.
        trained_seed: Which of the run's seeds plays; by default the first that did not diverge.
        greedy, checkpoint, imports, trust: As for `evaluate`.

    Returns:
        What the file says of the episodes.

    Raises:
        RunError: If the folder is no run or has no sound checkpoint.
        ValueError: If an argument is wrong, or an episode does not end.
        EnvironmentFailure: If an environment on the host fails.
    """
    path = expanded(out)
    of_run = {"trained_seed": trained_seed, "greedy": greedy, "checkpoint": checkpoint}
    _check_arguments(run, env, env_options, strategy, episodes, path, of_run)
    if run is None:
        assert env is not None
        player = scripted_player(env, env_options or {}, strategy)
        seed = 0 if seed is None else seed
    else:
        opened = Run.open(run, imports, trust)
        player = trained_player(opened, checkpoint, trained_seed, greedy)
        seed = opened.config().seed if seed is None else seed
    try:
        # Distinct from the keys of training and evaluation.
        played = play_episodes(player, jax.random.fold_in(seed_key(seed), 2**31 + 1), episodes)
        about = _about(player, played)
    finally:
        close(player.env)
    tape = jax.tree.map(lambda *leaves: np.concatenate(leaves), *played)
    _write(path, Episodes(tape, about))
    return about


def _about(player: Player, played: list[Tape]) -> About:
    return About(
        env=player.env_name,
        source=player.source,
        observation=to_plain(player.env.observation_space(player.params)),
        action=to_plain(player.env.action_space(player.params)),
        episodes=len(played),
        mean_return=float(np.mean([np.sum(tape.reward, dtype=np.float64) for tape in played])),
    )


def _write(path: Path, episodes: Episodes) -> None:
    """Write the file. Raises `ValueError` if the environment gave what could not be read again."""
    try:
        content = dump_episodes(episodes)
    except ValueError as error:
        raise ValueError(f"env: nobody can learn from what {episodes.about.env} gave: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def _check_arguments(
    run: Any, env: str | None, env_options: Any, strategy: str | None, episodes: int, path: Path, of_run: dict[str, Any]
) -> None:
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    if (run is None) == (env is None):
        raise ValueError("give either the folder of a run, which plays, or env, where a scripted strategy plays")
    if run is not None and strategy is not None:
        raise ValueError(f"strategy={strategy!r} plays instead of a run; leave the run out and give env")
    if run is not None and env_options:
        raise ValueError("env_options: only with env; a run plays in the environment of its training")
    ignored = [name for name, value in of_run.items() if value not in (None, "newest")]
    if run is None and ignored:
        raise ValueError(f"{ignored[0]} says how a run plays, and with env a scripted strategy does; leave it out")
    if path.suffix != ".npz":
        raise ValueError(f"out must be a file NAME.npz, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"out: {path} is a folder")
    check_folder(path.parent)
