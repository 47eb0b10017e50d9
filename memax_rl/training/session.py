"""What stands around the loop of one training: its run folder, logs, evaluations, callbacks and checkpoints."""

import time
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, PyTree

from memax_rl import distributed, sharding
from memax_rl.agents import Agent
from memax_rl.envs.base import EnvironmentFailure
from memax_rl.runs.build import chosen_sizes
from memax_rl.runs.config import TrainConfig
from memax_rl.runs.loggers import Logger
from memax_rl.runs.run import Run
from memax_rl.training.callbacks import Callback, TrainingProgress
from memax_rl.training.evaluations import Best, Goals, Rows, make_evaluation


class TrainingError(RuntimeError):
    """Training cannot go on. The message says at which update, why, and what to try."""


class Session:
    """A training in progress, but for the state itself: the loop holds that, and gives its arrays away.

    Of several processes that train together, the first alone writes, evaluates and calls callbacks.

    Args:
        static: What of the state is no array.
        best: The best networks so far.
        seconds: Trained so far.
    """

    def __init__(
        self,
        config: TrainConfig,
        agent: Agent[Any],
        run: Run,
        static: PyTree,
        logs: Sequence[Logger],
        callbacks: Sequence[Callback],
        best: Best,
        seconds: float,
    ):
        self.config, self.agent, self.run, self.static = config, agent, run, static
        self.logs, self.callbacks, self.best = logs, callbacks, best
        self._is_first = distributed.is_first()
        self.stopped = run.stopped() if self._is_first else ""
        self._evaluate = make_evaluation(config, agent, static)
        self._began, self._saved_at = time.monotonic() - seconds, time.monotonic()
        self._sizes = run.sizes() if self._is_first and run.saved_updates() else chosen_sizes(config, agent)

    @property
    def kept(self) -> str:
        """Which checkpoint there is, in words."""
        saved = self.run.saved_updates()
        return f"the last is of update {saved[-1]} in {self.run.checkpoints}" if saved else "there is none yet"

    @property
    def seconds(self) -> float:
        """Seconds trained so far, without those of evaluations and callbacks."""
        return time.monotonic() - self._began

    @property
    def every_update(self) -> bool:
        """Whether a callback looks at every update by itself."""
        return any(callback.every_update for callback in self.callbacks)

    def write(self, rows: Rows) -> None:
        """Write the rows of some updates into metrics.csv and the logs."""
        if not self._is_first:
            return
        self.run.append_metrics(rows)
        for log in self.logs:
            log.write(rows)

    def look(self, arrays: PyTree, sound: Bool[np.ndarray, " seeds"], goals: Goals, rows: Rows) -> None:
        """Call the callbacks with the rows of some updates; evaluate, and call them again, where it is due.

        Afterwards `stopped` is the first reason that a callback gave to stop, or empty.

        Raises:
            TrainingError: If an environment on the host fails in the evaluation.
        """
        if not self._is_first:
            return
        begun = time.monotonic()
        state = eqx.combine(arrays, self.static)
        progress = TrainingProgress(self.run, self.config, update_of(arrays), rows, state)
        reasons = [callback.on_update(progress) for callback in self.callbacks]
        if goals.are_reached(goals.evaluation, arrays, sound):
            progress = progress._replace(rows=self._measure(arrays, sound))
            reasons += [callback.on_evaluation(progress) for callback in self.callbacks]
        self.stopped = next((reason for reason in reasons if reason), "")
        self._began += time.monotonic() - begun

    def _measure(self, arrays: PyTree, sound: Bool[np.ndarray, " seeds"]) -> Rows:
        """Evaluate, write the rows, choose the best anew, and return the rows."""
        update = update_of(arrays)
        try:
            rows, mean_return = self._evaluate(arrays, sound, update)
        except EnvironmentFailure as error:
            raise TrainingError(
                f"{error}; this was in the evaluation after update {update}; checkpoints: {self.kept}"
            ) from None
        self.run.append_evaluations(rows)
        for log in self.logs:
            log.write_evaluations(rows)
        self.best = self.best.improved(arrays.network, update, mean_return)
        return rows

    def is_due(self) -> bool:
        """Return whether the last checkpoint is as old as the configuration allows."""
        return time.monotonic() - self._saved_at >= self.config.checkpoint_interval

    def save(self, arrays: PyTree, keep: bool = False) -> None:
        """Save a checkpoint, with the best so far in it. Raises `RunError` if it cannot be written."""
        part = sharding.gather(saved_part(self.agent, arrays), self.config.devices)
        self._saved_at = time.monotonic()
        if not self._is_first:
            return
        best = self.best._asdict() if self.best.update.any() else None
        more: dict[str, Any] = {"best": best, "keep": keep, "stopped": self.stopped, "sizes": self._sizes}
        self.run.save(update_of(arrays), part, self.seconds, **more)
        self._saved_at = time.monotonic()

    def agree(self, interrupted: int, saves: bool, updates: int) -> tuple[int, bool, int]:
        """Return what all processes do next, where they differ in their clocks and signals.

        The first decides whether to save, after how many updates to look again, and whether a callback has stopped the
        run; a signal to any of them is one to all.

        Returns:
            The signal or 0, whether to save, and the number of updates.
        """
        mine = [interrupted, saves or self.is_due(), updates, bool(self.stopped)]
        everyone = distributed.gather(mine)
        _, save, count, stopped = everyone[0].tolist()
        if stopped and not self.stopped:
            self.stopped = "the first process stopped it"
        return int(everyone[:, 0].max()), bool(save), count


def saved_part(agent: Agent[Any], arrays: PyTree) -> PyTree:
    """Return the arrays without what the agent leaves out of checkpoints."""
    for name in agent.transient_fields:
        arrays = eqx.tree_at(lambda s, n=name: getattr(s, n), arrays, None)
    return arrays


def update_of(arrays: PyTree) -> int:
    """Return how many updates a state has made."""
    return int(np.asarray(arrays.updates)[0])
