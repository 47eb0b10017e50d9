"""Training a probe: many updates in one jitted call, logs, tests, checkpoints, and resume to the bit."""

import datetime
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from memax_rl._version import __version__
from memax_rl.probes.config import ProbeConfig, make_probe_config
from memax_rl.probes.learner import Learner
from memax_rl.probes.lengths import make_test, score_at_lengths, score_seeds
from memax_rl.rollout.step_count import StepCount
from memax_rl.rollout.streams import seed_key
from memax_rl.runs.build import is_shape
from memax_rl.runs.loggers import Logger, check_logs, open_logs
from memax_rl.runs.run import Run, RunError
from memax_rl.signals import Stopped, ready, stop_signals
from memax_rl.training.rows import metric_rows, until_divergence
from memax_rl.training.session import TrainingError, update_of
from memax_rl.training.updates import make_many_updates, updates_a_call
from memax_rl.training.usage import program_bytes, watch


def train(
    config: ProbeConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = False,
    **fields: Any,
) -> Run:
    """Train a probe, and return its run.

    Args:
        config: The configuration; or give its fields as keyword arguments, nested as in YAML, for example
            `train(task="parity", task_options={"length": 40}, network={"memory": "gru"})`.
        out: The run folder to make; by default a new one under runs/.
        resume: The folder of a run to continue, instead of all of the above.
        progress: Show a progress bar.

    Raises:
        ValueError: For a wrong configuration, or data that are not there.
        RunError: For a folder that cannot be used.
        TrainingError: If the loss is no longer finite.
        KeyboardInterrupt: After the state was saved because of Ctrl-C or SIGTERM.
    """
    if resume is not None:
        if config is not None or fields or out is not None:
            raise RunError("resume continues a probe as it is configured; give nothing beside it")
        run = Run.open(resume)
        with run.lock():
            return _train(load_probe_config(run), run, None, progress)
    if config is None:
        config = make_probe_config(fields)
    elif fields:
        raise ValueError("give either config or its fields, not both")
    return _train(config, None, out, progress)


def load_probe_config(run: Run) -> ProbeConfig:
    """Return the configuration of a probe's run. Raises `RunError` if it is the run of an agent, or is damaged."""
    if not run.is_probe():
        raise RunError(f"{run.folder} is the run of an agent, and no probe; continue it with memax-rl train --resume")
    try:
        return make_probe_config(run.fields())
    except ValueError as error:
        raise RunError(f"{run.config_path}: {error}") from None


def _train(config: ProbeConfig, resumed: Run | None, out: str | Path | None, progress: bool) -> Run:
    """Train a new run, or the resumed one. Nothing is made before all that can fail at the start was tried."""
    check_logs(config)
    peaks = watch()
    learner = Learner(config)
    arrays, static = _init(config, learner)
    with ExitStack() as stack:
        if resumed is None:
            run, seconds = Run.create(out or default_folder(config), config), 0.0
            stack.enter_context(run.lock())
        else:
            run = resumed
            arrays, seconds = _restore(run, arrays)
        with ExitStack() as inner:
            logs = [inner.enter_context(log) for log in open_logs(config, run, progress)]
            interrupted = inner.enter_context(stop_signals())
            session = _Session(config, learner, run, static, logs, seconds)
            arrays, taken = session.loop(arrays, interrupted)
        _finish(session, eqx.combine(arrays, static), {"update_bytes": taken} | peaks(), progress)
    return run


def _init(config: ProbeConfig, learner: Learner) -> tuple[PyTree, PyTree]:
    """Return the arrays of the state before training, with a leading seed axis, and the rest of the state."""
    keys = jnp.stack([seed_key(config.seed + i) for i in range(config.num_seeds)])
    static = eqx.filter(eqx.filter_eval_shape(learner.init, keys[0]), is_shape, inverse=True)
    arrays = jax.vmap(lambda key: eqx.filter(learner.init(key), eqx.is_array))
    # It runs once, so compiling it is all the cost.
    return jax.jit(arrays, compiler_options={"xla_backend_optimization_level": 0})(keys), static


def _restore(run: Run, arrays: PyTree) -> tuple[PyTree, float]:
    """Return the arrays of the newest checkpoint and the seconds trained; those before training where there is none."""
    run.clean()
    seconds = 0.0
    if run.saved_updates() or run.summary_path.exists():
        arrays, seconds = run.restore(arrays)
    run.drop_metrics_after(update_of(arrays))
    run.drop_evaluations_after(update_of(arrays))
    return arrays, seconds


def default_folder(config: ProbeConfig) -> Path:
    """Return runs/TASK-MEMORY-seedN-TIME."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.task}-{config.network.memory}-seed{config.seed}-{now}"


class _Session:
    """A training in progress, but for the state itself."""

    def __init__(
        self,
        config: ProbeConfig,
        learner: Learner,
        run: Run,
        static: PyTree,
        logs: Sequence[Logger],
        seconds: float,
    ):
        self.config, self.learner, self.run, self.static, self.logs = config, learner, run, static, logs
        self.test = make_test(learner)
        self._began, self._saved_at = time.monotonic() - seconds, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds trained so far, without those of tests."""
        return time.monotonic() - self._began

    @property
    def seeds(self) -> range:
        """The seeds of the run."""
        return range(self.config.seed, self.config.seed + self.config.num_seeds)

    def loop(self, arrays: PyTree, interrupted: Callable[[], int]) -> tuple[PyTree, int | None]:
        """Train to the end. Return the last state's arrays, and the bytes of an update, None if none was made."""
        config, total = self.config, self.config.total_steps
        stop_at_divergence = config.on_divergence == "stop"
        many = make_many_updates(self.learner, self.static, total, stop_at_divergence=stop_at_divergence)
        known = self.run.diverged_seeds()
        sound = jnp.array([seed not in known for seed in self.seeds])
        n, first, taken = 1, True, None
        if self._has_to_train(arrays, sound):
            # It would tell of another state.
            self.run.summary_path.unlink(missing_ok=True)
        while self._has_to_train(arrays, sound):
            before, call, was_sound = update_of(arrays), time.monotonic(), np.asarray(sound)
            goal = self._next_goal(before)
            until = StepCount.of(goal * self.learner.steps)
            arrays, sound, metrics = many(arrays, n, sound, until)
            after = update_of(arrays)
            if first:
                # Up to here this process has nothing to save.
                ready()
                taken, first = program_bytes(many, arrays, n, sound, until), False
            took = (time.monotonic() - call) / (after - before)
            self._log(jax.tree.map(np.asarray, metrics), before, after, was_sound, np.asarray(sound))
            if after == goal and goal < config.total_updates:
                self._evaluate(arrays, np.asarray(sound))
            if time.monotonic() - self._saved_at >= config.checkpoint_interval or interrupted():
                self._save(arrays)
            if interrupted():
                text = f"stopped at update {after}; the same command goes on with {self.run.folder}"
                raise Stopped(text, interrupted())
            # The first call compiled, so its time says nothing.
            n = 1 if before == 0 and n == 1 and after == 1 else updates_a_call(took)
        self._save(arrays)
        return arrays, taken

    def _has_to_train(self, arrays: PyTree, sound: Any) -> bool:
        return bool(np.any(np.asarray(sound))) and update_of(arrays) < self.config.total_updates

    def _next_goal(self, update: int) -> int:
        """Return the update at which there is something to do again."""
        interval = self.config.eval_interval
        total = self.config.total_updates
        return total if interval is None else min(total, (update // interval + 1) * interval)

    def _log(self, metrics: Any, before: int, after: int, was_sound: np.ndarray, sound: np.ndarray) -> None:
        rows = metric_rows(self.config, metrics, before, after, self.seconds)
        rows = until_divergence(rows, {s for s, ok in zip(self.seeds, was_sound, strict=True) if ok})
        stops = not sound.any() or (self.config.on_divergence == "stop" and not sound.all())
        # The row in which a seed diverged is its last one; of a run that stops only sound rows are kept.
        kept = [row for row in rows if row["finite"] or not stops]
        self.run.append_metrics(kept)
        for log in self.logs:
            log.write(kept)
        lost = [row for row in rows if not row["finite"]]
        if stops and lost:
            saved = self.run.saved_updates()
            good = f"the last checkpoint is of update {saved[-1]}" if saved else "there is no checkpoint yet"
            raise TrainingError(
                f"loss or parameters are not finite at update {lost[-1]['update']:.0f} of seed "
                f"{lost[-1]['seed']:.0f}; {good}. Try a smaller learner.learning_rate or learner.max_grad_norm"
            )

    def sound_seeds(self, sound: Sequence[bool] | np.ndarray) -> dict[int, int]:
        """Return the places of the sound seeds, by seed."""
        return {seed: i for i, seed in enumerate(self.seeds) if sound[i]}

    def _evaluate(self, arrays: PyTree, sound: np.ndarray) -> None:
        begun, networks = time.monotonic(), eqx.combine(arrays.network, self.static.network)
        found = score_seeds(self.learner, self.test, networks, self.sound_seeds(sound))
        steps = float(update_of(arrays) * self.learner.steps)
        rows = [
            {"update": float(update_of(arrays)), "seed": float(seed), "env_steps": steps}
            | {"mean_return": one["score"], "loss": one["loss"]}
            for seed, one in found.items()
        ]
        if rows:
            self.run.append_evaluations(rows)
        for log in self.logs:
            log.write_evaluations(rows)
        self._began += time.monotonic() - begun

    def _save(self, arrays: PyTree) -> None:
        self.run.save(update_of(arrays), arrays, self.seconds)
        self._saved_at = time.monotonic()


def _finish(session: _Session, state: Any, memory: dict[str, Any], progress: bool) -> None:
    """Test the trained seeds and write summary.json. `memory`: what the training took, in bytes."""
    config, learner, run, seconds = session.config, session.learner, session.run, session.seconds
    diverged, updates = run.diverged_seeds(), update_of(state)
    seeds = session.sound_seeds([seed not in diverged for seed in session.seeds])
    found = score_seeds(learner, session.test, state.network, seeds)
    steps = updates * learner.steps
    sequences = -(-config.eval_sequences // config.learner.batch_size) * config.learner.batch_size
    summary: dict[str, Any] = {
        "memax_rl": __version__,
        "jax": jax.__version__,
        "device": str(jax.devices()[0]),
        "task": config.task,
        "memory": config.network.memory,
        "updates": updates,
        "env_steps": [steps] * config.num_seeds,
        "seconds": round(seconds, 3),
        "steps_per_second": round(steps * config.num_seeds / seconds, 1),
        # Of one seed.
        "parameters": sum(x[0].size for x in jax.tree.leaves(eqx.filter(state.network, eqx.is_inexact_array))),
        **memory,
        "evaluation": {
            "seeds": list(found),
            "mean_return_per_seed": [one["score"] for one in found.values()],
            "loss_per_seed": [one["loss"] for one in found.values()],
            "episodes_per_seed": sequences,
            "chance": learner.task.chance,
            "best": 1.0,
        },
    }
    if diverged:
        summary["diverged_seeds"] = diverged
    if config.test_lengths:
        summary["lengths"] = score_at_lengths(learner, state.network, seeds)
    run.write_summary(summary)
    if progress:
        for seed, one in found.items():
            print(f"seed {seed}: score {one['score']:.3f} (chance {learner.task.chance:.3g})", file=sys.stderr)
