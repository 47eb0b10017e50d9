"""The training loop: many updates in one jitted call, then log, checkpoint, and look whether to stop."""

import datetime
import functools
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from memax_rl import distributed, sharding
from memax_rl._version import __version__
from memax_rl.agents import Agent
from memax_rl.envs.base import EnvironmentFailure, close, failure, host_of
from memax_rl.evaluation import evaluate_state, print_table
from memax_rl.networks.encoder import describe_inputs
from memax_rl.precision import describe, products_in
from memax_rl.rollout.step_count import StepCount
from memax_rl.rollout.streams import LARGEST
from memax_rl.runs.build import is_shape, key_impl, make_agent, seed_devices, seed_keys, seeds_of, sound_networks
from memax_rl.runs.config import TrainConfig, dump_config, make_config
from memax_rl.runs.loggers import check_logs, open_logs
from memax_rl.runs.plain_arrays import rekey
from memax_rl.runs.run import Run, RunError
from memax_rl.runs.spaces_file import spaces_of
from memax_rl.signals import Stopped, ready, stop_signals
from memax_rl.training.callbacks import Callback, TrainingProgress, callbacks_of
from memax_rl.training.evaluations import Best, Goals, restore_best, slowest
from memax_rl.training.session import Session, TrainingError, saved_part, update_of
from memax_rl.training.sizes import describe_sizes
from memax_rl.training.start_from import Taken, starting_from, weights_of
from memax_rl.training.usage import program_bytes, watch

# Updates in one jitted call: as many as take about this long, so that the host is rarely in the way and still answers.
_SECONDS_A_CALL = 1.0
_MOST_UPDATES_A_CALL = 256
# A reward scale that falls by more than this within an update is worth a word.
_LARGEST_FALL = 1_000
# How the messages of a collective that failed begin: with a status of absl's, as JAX hands it on.
_OF_THE_RUNTIME = re.compile("(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): ")
# The axis of rows in the arrays of a state, behind that of seeds.
_ROWS = 1


@runtime_checkable
class Updates(Protocol):
    """What `make_many_updates` uses of an agent, or of anything else that learns by updates."""

    learned_fields: tuple[str, ...]
    sharded_fields: tuple[str, ...]
    devices: int

    def update(self, state: Any) -> tuple[Any, dict[str, Any]]:
        """Return the new state and metrics, with `loss` and `env_steps` among them."""
        ...


@runtime_checkable
class Seeds(Protocol):
    """What `metric_rows` uses of a configuration."""

    @property
    def seed(self) -> int:
        """The first seed."""
        ...

    @property
    def num_seeds(self) -> int:
        """How many there are."""
        ...


def init_state(
    config: TrainConfig, agent: Agent[Any], progress: bool = False, resumes: bool = False
) -> tuple[PyTree, PyTree]:
    """Return the arrays of the state before training, with a leading seed axis, and the rest of the state.

    Unless the run `resumes`, the networks begin with the weights of `config.start_from`.

    Raises:
        ValueError: If they do not fit into the device's memory, before anything is allocated, or `start_from` does not
            fit.
    """
    keys = seed_keys(config)
    shapes = eqx.filter_eval_shape(agent.init, keys[0])
    sizes = describe_sizes(config, agent, shapes)
    if progress:
        print(sizes, file=sys.stderr)
    static = eqx.filter(shapes, is_shape, inverse=True)
    taken = Taken({}, ()) if resumes else weights_of(config, eqx.filter(shapes.network, is_shape))
    for line in taken.lines:
        _say(line)

    def arrays_of(keys, weights):
        def arrays(key, weights):
            return eqx.filter(starting_from(agent, weights).init(key), eqx.is_array)

        return jax.vmap(arrays)(keys, weights)

    # It runs once, so compiling it is all the cost: with the least effort it takes half the time.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(arrays_of, compiler_options=options)(keys, taken.arrays), static


def train(
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    imports: Iterable[str] = (),
    trust: bool = False,
    **fields: Any,
) -> Run:
    """Train, and return the run.

    Args:
        config: The configuration; or give its fields as keyword arguments, nested as in YAML, for example
            `train(env="popgym/RepeatFirstEasy", network={"memory": "gru"}, total_steps=500_000)`.
        out: The run folder to make; by default a new one under runs/.
        resume: The folder of a run to continue, instead of all of the above. Beside it only `total_steps` may be given,
            to go on longer than the run was made for, and `devices`.
        progress: Show a progress bar.
        callbacks: Called after updates, after evaluations and at the end (`memax_rl.training.callbacks`).
        imports, trust: Modules of one's own, imported first; also packages that a resumed run may import, or whether it
            may import all (docs/runs.md).

    Raises:
        ValueError: For a wrong configuration.
        RunError: For a folder that cannot be used.
        TrainingError: If the loss is no longer finite, an episode is longer than the tape, or an environment on the
            host fails.
        KeyboardInterrupt: After the state was saved because of Ctrl-C or SIGTERM.
    """
    if resume is not None:
        if config is not None or fields.keys() - {"total_steps", "devices"} or out is not None:
            raise RunError("resume continues a run as configured; give nothing but total_steps and devices beside it")
        run = Run.open(resume, imports, trust)
        with run.lock() if distributed.is_first() else nullcontext(), run.trusted():
            config = run.config()
            if fields:
                config = make_config(config.model_dump() | fields)
            return _train(config, run, None, progress, callbacks)
    if config is None:
        config = make_config(fields | ({"imports": list(imports)} if imports else {}))
    elif fields:
        raise ValueError("give either config or its fields, not both")
    return _train(config, None, out, progress, callbacks)


def check(config: TrainConfig) -> list[str]:
    """Return in lines what would be trained. It tries all that can fail before the compilation, and makes nothing.

    Raises:
        What `train` raises before its first update.
    """
    sharding.require(config.devices)
    check_logs(config)
    callbacks_of(config, ())
    agent = make_agent(config)
    try:
        shapes = eqx.filter_eval_shape(agent.init, seed_keys(config)[0])
        lines = describe_inputs(agent.observation_space, config.network.image_settings, config.network.clip)
        weights = sum(x.size for x in jax.tree.leaves(eqx.filter(shapes.network, is_shape)))
        return [
            f"{config.agent} on {config.env}, memory {config.network.memory}, {config.total_steps:,} steps a seed",
            *(f"observation {line}" for line in lines),
            f"a network of {weights:,} numbers",
            describe(config.precision),
            describe_sizes(config, agent, shapes),
            *weights_of(config, eqx.filter(shapes.network, is_shape)).lines,
        ]
    finally:
        close(agent.env)


@contextmanager
def _with_the_others() -> Iterator[None]:
    """Raise `TrainingError` where a process that trains together with this one is gone."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        # What a collective raises is a ValueError where the array is read on the host.
        if distributed.count() == 1 or not _OF_THE_RUNTIME.match(str(error)):
            raise
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"this is process {jax.process_index()} of {distributed.count()}, and another one is gone ({reason}). The "
            "run goes on from its last checkpoint with --resume, on as many processes or others"
        ) from None


@_with_the_others()
def _train(
    config: TrainConfig, resumed: Run | None, out: str | Path | None, progress: bool, own: Sequence[Callback]
) -> Run:
    """Train a new run, or the resumed one. Nothing is made before all that can fail at the start was tried.

    Of several processes the first alone makes and writes the folder; all others return where it is.
    """
    sharding.require(config.devices)
    first = distributed.is_first()
    if first:
        check_logs(config)
    callbacks, progress, peaks = callbacks_of(config, own) if first else [], progress and first, watch()
    distributed.check_same(dump_config(config), "configuration")
    agent = make_agent(config) if resumed is None else make_agent(config, resumed.sizes())
    if progress:
        for line in describe_inputs(agent.observation_space, config.network.image_settings, config.network.clip):
            print(f"observation {line}", file=sys.stderr)
        print(describe(config.precision), file=sys.stderr)
    with ExitStack() as stack:
        stack.callback(close, agent.env)
        stack.enter_context(products_in(config.precision))
        spaces = spaces_of(agent.env, agent.env_params)
        arrays, static = init_state(config, agent, progress, resumes=resumed is not None)
        _check_host(agent, arrays, "this was before the first update")
        if resumed is not None:
            run = resumed
            arrays, seconds = _resume(config, run, agent, arrays, static, progress)
        else:
            folder = out or default_folder(config)
            run, seconds = Run.create(folder, config) if first else Run(folder), 0.0
            stack.enter_context(run.lock() if first else nullcontext())
        if first:
            run.write_spaces(spaces)
        seeds = config.num_seeds
        best = restore_best(run, arrays.network, seeds) if first else Best.none(arrays.network, seeds)
        with ExitStack() as inner:
            logs = [inner.enter_context(log) for log in (open_logs(config, run, progress) if first else ())]
            interrupted = inner.enter_context(stop_signals())
            session = Session(config, agent, run, static, logs, callbacks, best, seconds)
            arrays, taken = _loop(session, arrays, interrupted)
        if progress and session.stopped:
            print(f"stopped at update {update_of(arrays)}: {session.stopped}", file=sys.stderr)
        arrays = jax.device_put(sharding.gather(arrays, config.devices), jax.local_devices()[0])
        if first:
            state = eqx.combine(arrays, static)
            _finish(config, run, session.seconds, agent, state, {"update_bytes": taken} | peaks(), progress)
            for callback in callbacks:
                callback.on_end(TrainingProgress(run, config, update_of(arrays), [], state))
    return run


def _say(line: str) -> None:
    """Print a line to standard error, of several processes in the first alone."""
    if distributed.is_first():
        print(line, file=sys.stderr)


def _resume(
    config: TrainConfig, run: Run, agent: Agent[Any], arrays: PyTree, static: PyTree, progress: bool
) -> tuple[PyTree, float]:
    """Return the arrays and the seconds of a run that goes on; `arrays` are those before training.

    `config` is the run's, but for `total_steps` and `devices`, which are written into it here.
    """
    before, begins_again = run.config(), not run.saved_updates() and not run.summary_path.exists()
    changed = {name: getattr(config, name) for name in ("total_steps", "devices")}
    changed = {name: value for name, value in changed.items() if value != getattr(before, name)}
    seconds, saved_devices = 0.0, config.devices
    # Where it was killed before its first checkpoint, it begins again.
    if not begins_again:
        saved_devices = run.saved_devices()
        arrays, seconds = restore(run, agent, arrays, config.devices)
        _check_total_steps(config, run, before.total_steps, int(arrays.env_steps.to_numpy().max()))
        if agent.transient_fields and agent.transient_hint:
            _say(agent.transient_hint)
    if config.devices != saved_devices:
        _say(
            f"the run goes on with {config.devices} devices, and was on {saved_devices}: from here on it is another "
            "random run than one left alone"
        )
    update = 0 if begins_again else update_of(arrays)
    if len(set(distributed.gather([update])[:, 0].tolist())) > 1:
        raise RunError(f"the processes do not see the same checkpoints in {run.folder}; put it where all of them do")
    if distributed.is_first():
        run.clean()
        if changed:
            run.change(**changed)
        run.drop_metrics_after(update)
        run.drop_evaluations_after(update)
    return _reopen(agent, arrays, static, progress), seconds


def _check_total_steps(config: TrainConfig, run: Run, before: int, made: int) -> None:
    """Raise `RunError` if a run is to go on to fewer steps than it has made; say which schedules change."""
    if config.total_steps == before:
        return
    if config.total_steps <= made:
        raise RunError(
            f"total_steps: the run {run.folder} has made {made:,} steps already, so it can go on to more, got "
            f"{config.total_steps:,}"
        )
    _warn_of_schedules(config, before, made)


def _warn_of_schedules(config: TrainConfig, before: int, made: int) -> None:
    """Say in a line which schedules that run over `total_steps` change where a run goes on to another total."""
    changed = []
    for name, value in config.settings.model_dump().items():
        if name == "lr_schedule" and value != "constant":
            changed.append(f"the learning rate ({value})")
        if name == "epsilon_decay_steps" and value is None:
            changed.append("epsilon")
    if changed:
        _say(
            f"{' and '.join(changed)} of this run runs over total_steps: from step {made:,} on it is that of a run of "
            f"{config.total_steps:,} steps, where so far it was that of one of {before:,}. To have it where it was, "
            "start a new run with --start-from and a schedule of its own"
        )


def restore(run: Run, agent: Agent[Any], arrays: PyTree, devices: int = 1) -> tuple[PyTree, float]:
    """Return the arrays of the newest checkpoint, and the seconds trained so far.

    What the agent leaves out of checkpoints is taken from `arrays`, a state before training. Where the run goes on with
    other `devices` than it had, its random keys may become such of another kind.

    Raises:
        RunError: See `Run.restore`.
    """
    saved, seconds = run.restore(rekey(saved_part(agent, arrays), key_impl(run.saved_devices())))
    saved = rekey(saved, key_impl(devices))
    for name in agent.transient_fields:
        saved = eqx.tree_at(lambda s, n=name: getattr(s, n), saved, getattr(arrays, name), is_leaf=lambda x: x is None)
    return saved, seconds


def _check_host(agent: Agent[Any], arrays: PyTree, when: str) -> None:
    """Raise `TrainingError` if an environment on the host has failed by the time that `arrays` are there."""
    jax.block_until_ready(arrays)
    failed = failure(agent.env)
    if failed is not None:
        raise TrainingError(f"{failed}; {when}")


def _reopen(agent: Agent[Any], arrays: PyTree, static: PyTree, progress: bool) -> PyTree:
    """Return a restored state whose environments can be stepped: on the host they begin new episodes."""
    if host_of(agent.env) is None:
        return arrays
    if progress:
        print(
            "the environment runs on the host, where its state cannot be saved: every stream begins a new episode, "
            "and what it had of an open one is not learned from",
            file=sys.stderr,
        )
    # The copies that were made for the state before training are of no use.
    close(agent.env)
    reopen = jax.vmap(lambda state: eqx.filter(agent.reset_environments(eqx.combine(state, static)), eqx.is_array))
    arrays = jax.jit(reopen)(arrays)
    _check_host(agent, arrays, "this was when it was begun again for the resumed run")
    return arrays


def default_folder(config: TrainConfig) -> Path:
    """Return runs/ENV-MEMORY-seedN-TIME."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = config.env.split("/", 1)[1].replace("/", "-")
    return Path("runs") / f"{name}-{config.network.memory}-seed{config.seed}-{now}"


def make_many_updates(
    agent: Updates, static: PyTree, total_steps: int, *, stop_at_divergence: bool = False, seed_devices: int = 1
) -> Callable[..., tuple[PyTree, Bool[Array, " seeds"], Any]]:
    """Return (arrays, n, sound, until) -> (arrays, sound, metrics [_MOST_UPDATES_A_CALL, seeds]), for up to n updates.

    `sound` says which seeds have not diverged. A seed diverges in the update after which its loss or anything that it
    has learned is not finite; from there on it keeps what it had learned before that update.

    It stops early at the first update by which every sound seed has made `until` steps, a `StepCount` that is by
    default `total_steps`, no seed is sound or, with `stop_at_divergence`, one is not. The arrays are donated; they must
    be where `place` puts them, or, where `seed_devices` share the seeds, `sharding.place_seeds`.
    """

    def update(arrays, sound):
        state, metrics = agent.update(eqx.combine(arrays, static))
        finite = _is_finite(agent, state, metrics)
        sound = sound & finite
        new = eqx.filter(state, eqx.is_array)
        learned = [jax.tree.map(functools.partial(jnp.where, sound), *pair) for pair in _learned(agent, new, arrays)]
        # A field may be None: an auxiliary loss that there is not.
        where_learned = functools.partial(_fields, names=agent.learned_fields)
        new = eqx.tree_at(where_learned, new, learned, is_leaf=lambda x: x is None)
        return new, sound, metrics | {"finite": finite.astype(jnp.float32)}

    def update_seeds(arrays, sound):
        if sound.shape[0] > 1:
            return jax.vmap(update)(arrays, sound)
        # A batch axis of one seed would make every matrix product a batched one, which is much slower on a CPU.
        result = update(*jax.tree.map(lambda leaf: leaf[0], (arrays, sound)))
        return jax.tree.map(lambda leaf: leaf[None], result)

    def many(arrays, n, sound, until=None):
        until = total_steps if until is None else until
        shapes = jax.eval_shape(update_seeds, arrays, sound)[2]
        empty = jax.tree.map(lambda s: jnp.zeros((_MOST_UPDATES_A_CALL, *s.shape), s.dtype), shapes)

        def goes_on(carry):
            i, arrays, sound, _ = carry
            trains = jnp.any(sound & ~arrays.env_steps.reached(until))
            unwanted = ~jnp.all(sound) if stop_at_divergence else jnp.zeros((), bool)
            trains, unwanted = sharding.any_of(jnp.stack([trains, unwanted]), seed_devices)
            return (i < n) & trains & ~unwanted

        def body(carry):
            i, arrays, sound, log = carry
            arrays, sound, metrics = update_seeds(arrays, sound)
            return i + 1, arrays, sound, jax.tree.map(lambda rows, row: rows.at[i].set(row), log, metrics)

        # A loop with a bound known only at run time: one compilation serves every n.
        _, arrays, sound, log = jax.lax.while_loop(goes_on, body, (0, arrays, sound, empty))
        return arrays, sound, log

    if agent.devices > 1:
        many = sharding.shard_map(many, agent.devices, agent.sharded_fields, _ROWS)
    if seed_devices > 1:
        many = sharding.shard_seeds(many, seed_devices)
    return jax.jit(many, donate_argnums=0)


def _fields(state: PyTree, names: Iterable[str]) -> list[PyTree]:
    return [getattr(state, name) for name in names]


def _learned(agent: Updates, *states: PyTree) -> Iterable[tuple[PyTree, ...]]:
    """Yield what the agent has learned, part by part, each as a tuple over the states."""
    return (tuple(getattr(state, name) for state in states) for name in agent.learned_fields)


def _is_finite(agent: Updates, state: PyTree, metrics: dict[str, Any]) -> Bool[Array, ""]:
    """Return whether loss and all that was learned are finite. A finite loss is no proof: its gradient may be nan."""
    learned = [eqx.filter(part, eqx.is_inexact_array) for (part,) in _learned(agent, state)]
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(learned)]))
    # An agent that fills a replay first has no loss yet.
    return finite & (jnp.isfinite(metrics["loss"]) | (metrics.get("gradient_steps", 1) == 0))


def place(agent: Agent[Any], arrays: PyTree) -> PyTree:
    """Return the arrays of the state on the agent's devices."""
    if agent.devices == 1:
        return arrays
    return sharding.place(arrays, agent.devices, agent.sharded_fields, _ROWS)


def _loop(session: Session, arrays: PyTree, interrupted: Callable[[], int]) -> tuple[PyTree, int | None]:
    """Train until every seed has made its steps.

    Returns the last state's arrays, and the bytes of an update, None if none was made.
    """
    config, agent, run = session.config, session.agent, session.run
    stop_at_divergence = config.on_divergence == "stop"
    count, known = seed_devices(config), run.diverged_seeds() if distributed.is_first() else []
    many = make_many_updates(
        agent, session.static, config.total_steps, stop_at_divergence=stop_at_divergence, seed_devices=count
    )
    sound = jnp.array([seed not in known for seed in seeds_of(config)])
    if count > 1:
        arrays, sound = sharding.place_seeds((arrays, sound), count)
    else:
        # At every call alike, or the updates are compiled again.
        arrays, sound = place(agent, arrays), sharding.replicate(sound, agent.devices)
    n, first, scales, taken = 1, True, {}, None
    # What the first process read of the run's folder counts.
    session.agree(0, False, n)
    if not session.stopped and _has_to_train(config, arrays, sound) and distributed.is_first():
        # It would tell of another state.
        run.summary_path.unlink(missing_ok=True)
    while not session.stopped and _has_to_train(config, arrays, sound):
        before, call, was_sound = update_of(arrays), time.monotonic(), np.asarray(sound)
        goals = Goals.after(config, slowest(arrays.env_steps, was_sound))
        until = StepCount.of(goals.until)
        arrays, sound, metrics = many(arrays, n, sound, until)
        after = update_of(arrays)
        if first:
            # Up to here this process has nothing to save. Once only: a later call would forget a signal that came.
            ready()
            taken, first = program_bytes(many, arrays, n, sound, until), False
        _check_host(agent, arrays, f"this was in updates {before + 1} to {after}; checkpoints: {session.kept}")
        took = (time.monotonic() - call) / (after - before)
        rows = metric_rows(config, jax.tree.map(np.asarray, metrics), before, after, session.seconds)
        rows = until_divergence(rows, {s for s, ok in zip(seeds_of(config), was_sound, strict=True) if ok})
        stops = bool(not np.any(sound) or (stop_at_divergence and not np.all(sound)))
        # The row in which a seed diverged is its last one, and tells so; of a run that stops only sound rows are kept.
        session.write([row for row in rows if row["finite"] or not stops])
        _check_rows(config, agent, rows, stops, session.kept)
        _warn_of_scale(config, rows, scales)
        session.look(arrays, np.asarray(sound), goals, rows)
        keep = goals.are_reached(goals.checkpoint, arrays, np.asarray(sound))
        # The first call compiled, so its time says nothing.
        n = 1 if session.every_update or (before == 0 and n == 1 and after == 1) else updates_a_call(took)
        number, saves, n = session.agree(interrupted(), keep, n)
        if saves or number:
            session.save(arrays, keep)
        if number:
            raise Stopped(f"stopped at update {after}; continue with --resume {run.folder}", number)
    session.save(arrays)
    return arrays, taken


def _warn_of_scale(config: TrainConfig, rows: list[dict[str, float]], scales: dict[float, float]) -> None:
    """Say so where returns became so much larger within an update that those before it no longer count for anything.

    `scales` holds the last reward scale of each seed, and is brought up to date.
    """
    for row in rows:
        seed, scale = row["seed"], row.get("reward_scale", 1.0)
        before = scales.get(seed, scale)
        scales[seed] = scale
        if scale < before / _LARGEST_FALL:
            _say(
                f"{config.env}: reward_scale fell from {before:.3g} to {scale:.3g} at update {row['update']:.0f} of "
                f"seed {seed:.0f}: a return was {before / scale:.0e} times as large as those before, which the agent "
                "hardly sees any more. Bound the rewards, or set ppo.reward_scale"
            )


def _has_to_train(config: TrainConfig, arrays: PyTree, sound: Bool[Array, " seeds"]) -> bool:
    return bool(np.any(np.asarray(sound) & (arrays.env_steps.to_numpy() < config.total_steps)))


def until_divergence(rows: list[dict[str, float]], seeds: set[int]) -> list[dict[str, float]]:
    """Return the rows of these seeds, of each up to the one in which it diverged."""
    kept = []
    for row in rows:
        if row["seed"] in seeds:
            kept.append(row)
            if not row["finite"]:
                seeds = seeds - {row["seed"]}
    return kept


def _check_rows(config: TrainConfig, agent: Agent[Any], rows: list[dict[str, float]], stops: bool, kept: str) -> None:
    """Raise `TrainingError` if the rows tell of something that training cannot go on with.

    `stops`: whether a seed that diverged ends the run. `kept`: which checkpoint there is, in words.
    """
    unusable = next((row for row in rows if row["env/unusable"] > 0), None)
    if unusable is not None:
        raise TrainingError(
            f"{config.env} gave an observation or a reward that is not finite or larger than {LARGEST:g}, first at "
            f"step {unusable['env/unusable']:.0f} of update {unusable['update']:.0f} of seed {unusable['seed']:.0f}; "
            f"mend the environment, or wrap it so that it stays within bounds. Checkpoints: {kept}"
        )
    diverged = [row for row in rows if not row["finite"]]
    if stops and diverged:
        bad = diverged[-1]
        what = f"the loss is {bad['loss']}"
        if np.isfinite(bad["loss"]) or bad.get("gradient_steps", 1) == 0:
            what = "a parameter is not finite"
        raise TrainingError(
            f"{what} at update {bad['update']:.0f} of seed {bad['seed']:.0f}; good checkpoints: {kept}. Try a smaller "
            f"{agent.name}.learning_rate or {agent.name}.max_grad_norm, and look whether observations or rewards are "
            "very large"
        )
    overlong = next((row for row in rows if row["tape/overlong"] > 0), None)
    if overlong is not None:
        raise TrainingError(
            f"an episode is longer than a row of the tape at update {overlong['update']:.0f}; {agent.overlong_hint}"
        )


def updates_a_call(seconds_an_update: float) -> int:
    """Return how many updates take about as long as the host may be away."""
    return int(np.clip(_SECONDS_A_CALL / max(seconds_an_update, 1e-6), 1, _MOST_UPDATES_A_CALL))


def metric_rows(config: Seeds, metrics, before: int, after: int, seconds: float) -> list[dict[str, float]]:
    """Return one row an update and seed. Seeds are never averaged: the spread is the result."""
    metrics = {name: m.to_numpy() if isinstance(m, StepCount) else m for name, m in metrics.items()}
    return [
        {"update": before + i + 1, "seed": config.seed + s, "seconds": round(seconds, 3)}
        | {name: float(m[i, s]) for name, m in metrics.items()}
        for i in range(after - before)
        for s in range(config.num_seeds)
    ]


def _finish(
    config: TrainConfig, run: Run, seconds: float, agent, state, memory: dict[str, Any], progress: bool
) -> None:
    """Evaluate the trained seeds and write summary.json. `memory`: what the training took, in bytes."""
    steps = state.env_steps.to_numpy()
    diverged = run.diverged_seeds()
    summary: dict[str, Any] = {
        "memax_rl": __version__,
        "jax": jax.__version__,
        "device": str(jax.devices()[0]),
        "processes": distributed.count(),
        "precision": config.precision,
        "env": config.env,
        "agent": config.agent,
        "memory": config.network.memory,
        "updates": int(state.updates[0]),
        "env_steps": steps.tolist(),
        "seconds": round(seconds, 3),
        "steps_per_second": round(float(np.sum(steps)) / seconds, 1),
        # Of one seed.
        "parameters": sum(x[0].size for x in jax.tree.leaves(eqx.filter(state.network, eqx.is_inexact_array))),
        **memory,
    }
    if diverged:
        summary["diverged_seeds"] = diverged
    if stopped := run.stopped():
        summary["stopped"] = stopped
    if config.eval_episodes:
        try:
            networks, seeds = sound_networks(run, config, state.network)
            result = evaluate_state(agent, networks, config, seeds, episodes=config.eval_episodes)
        except EnvironmentFailure as error:
            raise TrainingError(
                f"{error}; this was in the evaluation after the training, whose last state is saved"
            ) from None
        summary["evaluation"] = result
        if progress:
            print_table(result)
    run.write_summary(summary)
