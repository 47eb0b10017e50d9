"""The training loop: many updates in one jitted call, then log, checkpoint, and look whether to stop."""

import datetime
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import memax_rl
from memax_rl import devices, envs
from memax_rl.agents.dqn import DQN
from memax_rl.agents.ppo import PPO
from memax_rl.encoder import describe_inputs
from memax_rl.envs.base import EnvironmentFailure, close, failure, host_of
from memax_rl.envs.wrappers import wrap
from memax_rl.networks import make_actor_critic, make_q_network
from memax_rl.stopping import Stopped, ready, stop_signals
from memax_rl.streams import LARGEST, seed_key
from memax_rl.training.config import TrainConfig, make_config
from memax_rl.training.log import Log, check_logs, open_logs
from memax_rl.training.run import Run, RunError

# Updates in one jitted call: as many as take about this long, so that the host is rarely in the way and still answers.
_SECONDS_A_CALL = 1.0
_MOST_UPDATES_A_CALL = 256
# The axis of rows in the arrays of a state, behind that of seeds.
_ROWS = 1


class TrainingError(RuntimeError):
    """Training cannot go on. The message says at which update, why, and what to try."""


Agent = PPO | DQN


def make_environment(config: TrainConfig) -> tuple[Any, Any]:
    """Return the environment of a configuration in its wrappers, and its parameters. Raises `ValueError` as they do."""
    return wrap(*envs.make(config.env, **config.env_options), config.env, config.env_wrappers)


def make_agent(config: TrainConfig) -> Agent:
    """Return the agent of a configuration, with its environment. Raises `ValueError` if the two do not fit."""
    env, env_params = make_environment(config)
    if config.agent == "ppo":

        def actor_critic(observation_space, action_space, key):
            return make_actor_critic(config.network, observation_space, action_space, key=key)

        if config.devices > 1 and host_of(env) is not None:
            raise ValueError(f"devices={config.devices}, but {config.env} runs on the host; set devices to 1")
        return PPO(env, env_params, actor_critic, config.ppo, config.total_steps, config.devices)

    if config.devices > 1:
        raise ValueError(f"devices={config.devices}, but DQN trains on one device; set devices to 1")

    def q_network(observation_space, action_space, key):
        duelling = config.dqn.duelling
        return make_q_network(config.network, observation_space, action_space, duelling=duelling, key=key)

    return DQN(env, env_params, q_network, config.dqn, config.total_steps)


def seed_keys(config: TrainConfig) -> jax.Array:
    """Return one key a seed; it depends on the seed alone, not on how many train together."""
    # JAX 0.10 cannot compile Philox's high product for several devices ("failed to legalize mhlo.unknown").
    impl = "philox4x32" if config.devices == 1 else "threefry2x32"
    return jnp.stack([seed_key(config.seed + i, impl) for i in range(config.num_seeds)])


def init_state(config: TrainConfig, agent: Agent) -> tuple[PyTree, PyTree]:
    """Return the arrays of the state before training, with a leading seed axis, and the rest of the state."""
    keys = seed_keys(config)
    static = eqx.filter(eqx.filter_eval_shape(agent.init, keys[0]), _is_shape, inverse=True)

    def arrays_of(keys):
        return jax.vmap(lambda key: eqx.filter(agent.init(key), eqx.is_array))(keys)

    # It runs once, so compiling it is all the cost: with the least effort it takes half the time.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(arrays_of, compiler_options=options)(keys), static


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def train(
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = False,
    imports: Iterable[str] = (),
    trust: bool = False,
    **fields: Any,
) -> Run:
    """Train, and return the run.

    **Arguments:**

    - `config`: the configuration; or give its fields as keyword arguments, nested as in YAML, for example
      `train(env="popgym/RepeatFirstEasy", network={"memory": "gru"}, total_steps=500_000)`.
    - `out`: the run folder to make; by default a new one under runs/.
    - `resume`: the folder of an interrupted run to continue, instead of all of the above.
    - `progress`: show a progress bar.
    - `imports`, `trust`: packages that a resumed run's environment may import, or all of them; see docs/runs.md.

    **Raises:** `ValueError` for a wrong configuration; `RunError` for a folder that cannot be used; `TrainingError` if
    the loss is no longer finite, an episode is longer than the tape, or an environment on the host fails;
    `KeyboardInterrupt` after the state was saved because of Ctrl-C or SIGTERM.
    """
    if resume is not None:
        if config is not None or fields or out is not None:
            raise RunError("resume continues a run as it is configured; give nothing else beside it")
        run = Run.open(resume, imports, trust)
        with run.lock(), run.trusted():
            return _train(run.config(), run, None, progress)
    if config is None:
        config = make_config(fields)
    elif fields:
        raise ValueError("give either config or its fields, not both")
    return _train(config, None, out, progress)


def _train(config: TrainConfig, resumed: Run | None, out: str | Path | None, progress: bool) -> Run:
    """Train a new run, or the resumed one. Nothing is made before all that can fail at the start was tried."""
    devices.require(config.devices)
    check_logs(config)
    agent = make_agent(config)
    if progress:
        for line in describe_inputs(agent.observation_space):
            print(f"observation {line}", file=sys.stderr)
    with ExitStack() as stack:
        stack.callback(close, agent.env)
        arrays, static = init_state(config, agent)
        _check_host(agent, arrays, "this was before the first update")
        if resumed is not None:
            run = resumed
            arrays, seconds = _resume(run, agent, arrays, static, progress)
        else:
            run, seconds = Run.create(out or default_folder(config), config), 0.0
            stack.enter_context(run.lock())
        arrays = place(agent, arrays)
        with ExitStack() as inner:
            logs = [inner.enter_context(log) for log in open_logs(config, run, progress)]
            stopped = inner.enter_context(stop_signals())
            arrays, seconds = _loop(config, agent, run, arrays, static, seconds, logs, stopped)
        arrays = jax.device_put(arrays, jax.devices()[0])
        _finish(config, run, seconds, agent, eqx.combine(arrays, static), progress)
    return run


def _resume(run: Run, agent: Agent, arrays: PyTree, static: PyTree, progress: bool) -> tuple[PyTree, float]:
    """Return the arrays and the seconds of a run that goes on; `arrays` are those before training."""
    run.clean()
    if not run.saved_updates() and not run.summary_path.exists():
        # It was killed before its first checkpoint, and begins again.
        run.drop_metrics_after(0)
        return arrays, 0.0
    arrays, seconds = restore(run, agent, arrays)
    if agent.unsaved:
        print(
            f"the {' and '.join(agent.unsaved)} of this run is not in its checkpoint: training goes on with an "
            "empty one, and not exactly as if it had never stopped",
            file=sys.stderr,
        )
    run.drop_metrics_after(_update_of(arrays))
    return _reopen(agent, arrays, static, progress), seconds


def restore(run: Run, agent: Agent, arrays: PyTree) -> tuple[PyTree, float]:
    """Return the arrays of the newest checkpoint, and the seconds trained so far.

    What the agent leaves out of checkpoints is taken from `arrays`, a state before training.

    **Raises:** `RunError`, see `Run.restore`.
    """
    saved, seconds = run.restore(_saved(agent, arrays))
    for name in agent.unsaved:
        saved = eqx.tree_at(lambda s, n=name: getattr(s, n), saved, getattr(arrays, name), is_leaf=lambda x: x is None)
    return saved, seconds


def load_agent(run: Run) -> tuple[Agent, Any]:
    """Return the agent of a run, and the networks of its seeds from the newest checkpoint, stacked along an axis.

    **Raises:** `RunError`, see `Run.restore`.
    """
    config = run.config()
    with run.trusted():
        agent = make_agent(config)

    def network(key):
        return agent.make_network(agent.observation_space, agent.action_space, key)

    # Shapes alone: nothing of the training state is made.
    keys = seed_keys(config)
    static = eqx.filter(eqx.filter_eval_shape(network, keys[0]), _is_shape, inverse=True)
    shapes = jax.eval_shape(jax.vmap(lambda key: eqx.filter(network(key), eqx.is_array)), keys)
    restored, _ = run.restore({"network": shapes}, whole=False)
    return agent, eqx.combine(restored["network"], static)


def _saved(agent: Agent, arrays: PyTree) -> PyTree:
    """Return the arrays without what the agent leaves out of checkpoints."""
    for name in agent.unsaved:
        arrays = eqx.tree_at(lambda s, n=name: getattr(s, n), arrays, None)
    return arrays


def _check_host(agent: Agent, arrays: PyTree, when: str) -> None:
    """Raise `TrainingError` if an environment on the host has failed by the time that `arrays` are there."""
    jax.block_until_ready(arrays)
    failed = failure(agent.env)
    if failed is not None:
        raise TrainingError(f"{failed}; {when}")


def _reopen(agent: Agent, arrays: PyTree, static: PyTree, progress: bool) -> PyTree:
    """Return a restored state whose environments can be stepped: on the host they begin new episodes."""
    if host_of(agent.env) is None:
        return arrays
    if progress:
        print(
            "the environment runs on the host, where its state cannot be saved: every stream begins a new episode, "
            "and what it had of an open one is not learnt from",
            file=sys.stderr,
        )
    # The copies that were made for the state before training are of no use.
    close(agent.env)
    reopen = jax.vmap(lambda state: eqx.filter(agent.reopen(eqx.combine(state, static)), eqx.is_array))
    arrays = jax.jit(reopen)(arrays)
    _check_host(agent, arrays, "this was when it was begun again for the resumed run")
    return arrays


def default_folder(config: TrainConfig) -> Path:
    """Return runs/ENV-MEMORY-seedN-TIME."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = config.env.split("/", 1)[1].replace("/", "-")
    return Path("runs") / f"{name}-{config.network.memory}-seed{config.seed}-{now}"


def make_many_updates(agent: Agent, static: PyTree, total_steps: int) -> Callable[[PyTree, int], tuple[PyTree, Any]]:
    """Return (arrays, n) -> (arrays, metrics [_MOST_UPDATES_A_CALL, seeds]), which makes up to n updates.

    It stops early at the first update by which every seed has made `total_steps`. The arrays are donated; they must be
    where `place` puts them.
    """

    def update(arrays):
        state, metrics = agent.update(eqx.combine(arrays, static))
        return eqx.filter(state, eqx.is_array), metrics | {"finite": _is_finite(agent, state)}

    def one(arrays):
        if arrays.updates.shape[0] > 1:
            return jax.vmap(update)(arrays)
        # A batch axis of one seed would make every matrix product a batched one, which is much slower on a CPU.
        result = update(jax.tree.map(lambda leaf: leaf[0], arrays))
        return jax.tree.map(lambda leaf: leaf[None], result)

    def many(arrays, n):
        shapes = jax.eval_shape(one, arrays)[1]
        empty = jax.tree.map(lambda s: jnp.zeros((_MOST_UPDATES_A_CALL, *s.shape), s.dtype), shapes)

        def more(carry):
            i, arrays, _ = carry
            return (i < n) & (jnp.min(arrays.env_steps) < total_steps)

        def body(carry):
            i, arrays, log = carry
            arrays, metrics = one(arrays)
            return i + 1, arrays, jax.tree.map(lambda m, now: m.at[i].set(now), log, metrics)

        # A loop with a bound known only at run time: one compilation serves every n.
        _, arrays, log = jax.lax.while_loop(more, body, (0, arrays, empty))
        return arrays, log

    if agent.devices > 1:
        many = devices.over_devices(many, agent.devices, agent.shared_out, _ROWS)
    return jax.jit(many, donate_argnums=0)


def _is_finite(agent: Agent, state: PyTree) -> jax.Array:
    """Return 1.0 if all that was learned is finite. A finite loss is no proof: its gradient may be nan."""
    learned = [eqx.filter(getattr(state, name), eqx.is_inexact_array) for name in agent.learned]
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(learned)]
    return jnp.all(jnp.stack(finite)).astype(jnp.float32)


def find_diverged(config: TrainConfig, network: PyTree) -> list[int]:
    """Return the seeds whose network, in a stack of those of all seeds, is not finite."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))]
    sound = [all(bool(np.all(np.isfinite(leaf[i]))) for leaf in leaves) for i in range(config.num_seeds)]
    return [config.seed + i for i, is_sound in enumerate(sound) if not is_sound]


def place(agent: Agent, arrays: PyTree) -> PyTree:
    """Return the arrays of the state on the agent's devices."""
    if agent.devices == 1:
        return arrays
    return devices.place(arrays, agent.devices, agent.shared_out, _ROWS)


def _update_of(arrays: PyTree) -> int:
    return int(np.asarray(arrays.updates)[0])


def _loop(config, agent, run: Run, arrays, static, seconds, logs: list[Log], stopped) -> tuple[PyTree, float]:
    """Train until every seed has made its steps. Return the last state's arrays and the seconds it took."""
    many = make_many_updates(agent, static, config.total_steps)
    # Seeds train independently, so those that are still sound go on.
    diverged: dict[int, dict[str, float]] = {}
    for seed in find_diverged(config, arrays.network):
        diverged[seed] = {"seed": seed, "update": _update_of(arrays), "loss": np.nan}
    n, saved_at, saved = 1, time.monotonic(), _update_of(arrays)
    begun = time.monotonic() - seconds
    while int(np.min(arrays.env_steps)) < config.total_steps:
        before, call = _update_of(arrays), time.monotonic()
        new, metrics = many(arrays, n)
        after = _update_of(new)
        ready()
        kept = f"the last is of update {saved} in {run.checkpoints}" if run.saved_updates() else "there is none yet"
        _check_host(agent, new, f"this was in updates {before + 1} to {after}; checkpoints: {kept}")
        seconds, took = time.monotonic() - begun, (time.monotonic() - call) / (after - before)
        rows = _rows(config, jax.tree.map(np.asarray, metrics), before, after, seconds)
        rows = [row for row in rows if row["seed"] not in diverged]
        unusable = next((row for row in rows if row["env/unusable"] > 0), None)
        overlong = next((row for row in rows if row["tape/overlong"] > 0), None)
        for row in rows:
            if row["seed"] not in diverged and _has_diverged(row):
                diverged[int(row["seed"])] = row
        stops = len(diverged) == config.num_seeds or (diverged and config.on_divergence == "stop")
        # The row in which a seed diverged is its last one, and tells so; of a run that stops only sound rows are kept.
        ends = {seed: row["update"] - bool(stops) for seed, row in diverged.items()}
        sound = [row for row in rows if row["update"] <= ends.get(int(row["seed"]), np.inf)]
        run.append_metrics(sound)
        for log in logs:
            log.write(sound)
        if unusable is not None:
            raise TrainingError(
                f"{config.env} gave an observation or a reward that is not finite or larger than {LARGEST:g}, at "
                f"{unusable['env/unusable']:.0f} steps of update {unusable['update']:.0f} of seed "
                f"{unusable['seed']:.0f}; mend the environment, or wrap it so that it stays within bounds. "
                f"Checkpoints: {kept}"
            )
        if stops:
            bad = max(diverged.values(), key=lambda row: row["update"])
            what = "a parameter is not finite" if np.isfinite(bad["loss"]) else f"the loss is {bad['loss']}"
            raise TrainingError(
                f"{what} at update {bad['update']:.0f} of seed {bad['seed']:.0f}; good checkpoints: {kept}. Try a "
                f"smaller {agent.name}.learning_rate or {agent.name}.max_grad_norm, and look whether observations or "
                "rewards are very large"
            )
        if overlong is not None:
            raise TrainingError(
                f"an episode is longer than a row of the tape ({agent.config.slots} slots) at update "
                f"{overlong['update']:.0f}; {agent.longer}"
            )
        arrays = new
        if stopped() or time.monotonic() - saved_at >= config.checkpoint_interval:
            run.save(after, _saved(agent, arrays), seconds)
            saved, saved_at = after, time.monotonic()
        if stopped():
            raise Stopped(f"stopped at update {after}; continue with --resume {run.folder}", stopped())
        # The first call compiled, so its time says nothing.
        n = 1 if before == 0 and n == 1 and after == 1 else _updates_a_call(took)
    run.save(_update_of(arrays), _saved(agent, arrays), seconds)
    return arrays, seconds


def _has_diverged(row: dict[str, float]) -> bool:
    # An agent that fills a replay first has no loss yet.
    return row["finite"] == 0 or (not np.isfinite(row["loss"]) and row.get("gradient_steps", 1) > 0)


def _updates_a_call(seconds_an_update: float) -> int:
    return int(np.clip(_SECONDS_A_CALL / max(seconds_an_update, 1e-6), 1, _MOST_UPDATES_A_CALL))


def _rows(config: TrainConfig, metrics, before: int, after: int, seconds: float) -> list[dict[str, float]]:
    """Return one row an update and seed. Seeds are never averaged: the spread is the result."""
    return [
        {"update": before + i + 1, "seed": config.seed + s, "seconds": round(seconds, 3)}
        | {name: float(m[i, s]) for name, m in metrics.items()}
        for i in range(after - before)
        for s in range(config.num_seeds)
    ]


def _finish(config: TrainConfig, run: Run, seconds: float, agent: Agent, state: Any, progress: bool) -> None:
    """Evaluate the trained seeds and write summary.json."""
    from memax_rl.evaluation import evaluate_state, print_table

    summary: dict[str, Any] = {
        "memax_rl": memax_rl.__version__,
        "jax": jax.__version__,
        "device": str(jax.devices()[0]),
        "env": config.env,
        "agent": config.agent,
        "memory": config.network.memory,
        "updates": int(state.updates[0]),
        "env_steps": [int(n) for n in state.env_steps],
        "seconds": round(seconds, 3),
        "steps_per_second": round(float(np.sum(state.env_steps)) / seconds, 1),
    }
    if diverged := find_diverged(config, state.network):
        summary["diverged_seeds"] = diverged
    if config.eval_episodes:
        try:
            result = evaluate_state(agent, state.network, config, episodes=config.eval_episodes)
        except EnvironmentFailure as error:
            raise TrainingError(
                f"{error}; this was in the evaluation after the training, whose last state is saved"
            ) from None
        summary["evaluation"] = result
        if progress:
            print_table(result)
    run.write_summary(summary)
