"""The training loop: many updates in one jitted call, then log, checkpoint, and look whether to stop."""

import datetime
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from memax_rl import distributed, sharding
from memax_rl._version import __version__
from memax_rl.agents import Agent
from memax_rl.agents.base import Taught
from memax_rl.envs import spaces as env_spaces
from memax_rl.envs.base import EnvironmentFailure, close, has_action_mask
from memax_rl.evaluation import evaluate_state, print_table
from memax_rl.networks.encoder import describe_inputs
from memax_rl.precision import describe, products_in
from memax_rl.rollout.step_count import StepCount
from memax_rl.runs.build import is_shape, make_agent, seed_devices, seed_keys, seeds_of, sound_networks
from memax_rl.runs.config import TrainConfig, dump_config, make_config
from memax_rl.runs.loggers import check_logs, open_logs
from memax_rl.runs.run import Run, RunError
from memax_rl.runs.spaces_file import spaces_of
from memax_rl.signals import Stopped, ready, stop_signals
from memax_rl.training.callbacks import Callback, TrainingProgress, callbacks_of
from memax_rl.training.evaluations import Best, Goals, restore_best, slowest
from memax_rl.training.resuming import check_host
from memax_rl.training.resuming import resume as resume_run
from memax_rl.training.rows import check_rows, metric_rows, until_divergence, warn_of_scale
from memax_rl.training.session import Session, TrainingError, update_of
from memax_rl.training.sizes import describe_sizes
from memax_rl.training.start_from import Taken, starting_from, weights_of
from memax_rl.training.unreached import unreached
from memax_rl.training.updates import make_many_updates, place, updates_a_call
from memax_rl.training.usage import program_bytes, watch

# How the messages of a collective that failed begin: with a status of absl's, as JAX hands it on.
_OF_THE_RUNTIME = re.compile("(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): ")


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
    static = eqx.filter(shapes, is_shape, inverse=True)
    taken = Taken({}, ()) if resumes else weights_of(config, eqx.filter(shapes.network, is_shape))
    # A mistake of the configuration is told by now, alone.
    if progress:
        for line in describe_inputs(agent.observation_space, config.network.image_settings, config.network.clip):
            print(f"observation {line}", file=sys.stderr)
        print(describe(config.precision), sizes, sep="\n", file=sys.stderr)
    for line in [*taken.lines, *_of_teacher(config, agent), *unreached(config)]:
        distributed.say(line)

    def arrays_of(keys, weights):
        def arrays(key, weights):
            return eqx.filter(starting_from(agent, weights).init(key), eqx.is_array)

        return jax.vmap(arrays)(keys, weights)

    # It runs once, so compiling it is all the cost: with the least effort it takes half the time.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(arrays_of, compiler_options=options)(keys, taken.arrays), static


def _of_teacher(config: TrainConfig, agent: Agent[Any]) -> list[str]:
    """Return a line if an agent that has read its data learns from a teacher in another environment; else none."""
    played_in = agent.played_in if isinstance(agent, Taught) else None
    if played_in in (None, config.env):
        return []
    return [
        f"the episodes of the data were played in {played_in}, and this run is of {config.env}, which has the same "
        "spaces: it learns what was done there, and is evaluated here"
    ]


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
    modules = list(imports)
    if config is None:
        config = make_config(fields | ({"imports": modules} if modules else {}))
    elif fields:
        raise ValueError("give either config or its fields, not both")
    elif modules:
        config = make_config(config.model_dump() | {"imports": list(dict.fromkeys([*config.imports, *modules]))})
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
        masked = ", of which a mask says what is legal" if has_action_mask(agent.env, agent.env_params) else ""
        return [
            f"{config.agent} on {config.env}, memory {config.network.memory}, {config.total_steps:,} steps a seed",
            *(f"observation {line}" for line in lines),
            f"action {env_spaces.describe(agent.action_space)}{masked}",
            f"a network of {weights:,} numbers",
            describe(config.precision),
            describe_sizes(config, agent, shapes),
            *weights_of(config, eqx.filter(shapes.network, is_shape)).lines,
            *_of_teacher(config, agent),
            *unreached(config),
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
    with ExitStack() as stack:
        stack.callback(close, agent.env)
        stack.enter_context(products_in(config.precision))
        spaces = spaces_of(agent.env, agent.env_params)
        arrays, static = init_state(config, agent, progress, resumes=resumed is not None)
        check_host(agent, arrays, "this was before the first update")
        if resumed is not None:
            run = resumed
            arrays, seconds = resume_run(config, run, agent, arrays, static, progress)
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


def default_folder(config: TrainConfig) -> Path:
    """Return runs/ENV-MEMORY-seedN-TIME."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = config.env.split("/", 1)[1].replace("/", "-")
    return Path("runs") / f"{name}-{config.network.memory}-seed{config.seed}-{now}"


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
        check_host(agent, arrays, f"this was in updates {before + 1} to {after}; checkpoints: {session.kept}")
        took = (time.monotonic() - call) / (after - before)
        rows = metric_rows(config, jax.tree.map(np.asarray, metrics), before, after, session.seconds)
        rows = until_divergence(rows, {s for s, ok in zip(seeds_of(config), was_sound, strict=True) if ok})
        stops = bool(not np.any(sound) or (stop_at_divergence and not np.all(sound)))
        # The row in which a seed diverged is its last one, and tells so; of a run that stops only sound rows are kept.
        session.write([row for row in rows if row["finite"] or not stops])
        check_rows(config, agent, rows, stops, session.kept)
        warn_of_scale(config, rows, scales)
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


def _has_to_train(config: TrainConfig, arrays: PyTree, sound: Bool[Array, " seeds"]) -> bool:
    return bool(np.any(np.asarray(sound) & (arrays.env_steps.to_numpy() < config.total_steps)))


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
