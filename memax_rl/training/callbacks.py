"""Callbacks: what one's own code may do while a run trains, and early stopping.

`memax_rl.train(..., callbacks=[...])` calls each of them in its order; docs/runs.md has an example.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from memax_rl.runs.config import TrainConfig
from memax_rl.runs.run import Run


class TrainingProgress(NamedTuple):
    """What a callback is given.

    Attributes:
        run: The run; the rows are in its files already.
        config: Its configuration.
        update: The last update that was made.
        rows: Of `on_update`: the rows of metrics.csv since the last call, one an update and seed. Of `on_evaluation`:
            those of evaluations.csv of this update, one a seed. Of `on_end`: none.
        state: The agent's state after this update, with a leading axis of seeds. The next update takes its arrays away,
            so copy what is to be kept.
    """

    run: Run
    config: TrainConfig
    update: int
    rows: Sequence[Mapping[str, float]]
    state: Any


class Callback:
    """Base of callbacks; each method does nothing until a subclass says what it does.

    An exception in a method ends the training and is raised as it is. The run folder can be resumed then: it goes on
    from its newest checkpoint, and the updates after that are made, and told, again.
    """

    every_update: bool = False
    """Whether `on_update` is called after every single update. Otherwise it is called about once a second, with the
    rows of all updates since, which is faster where updates are short."""

    def check(self, config: TrainConfig) -> None:
        """Raise `ValueError` if the callback is of no use with a configuration; nothing was made yet."""

    def on_update(self, progress: TrainingProgress) -> str | None:
        """Look at updates. A text ends the training, and says why in the run's summary."""

    def on_evaluation(self, progress: TrainingProgress) -> str | None:
        """Look at an evaluation during training (`TrainConfig.eval_interval`), after `on_update`; return as that."""

    def on_end(self, progress: TrainingProgress) -> None:
        """Look at the run, whose summary is written. Not called where a signal or an error ended it."""


class EarlyStopping(Callback):
    """End the training when evaluations no longer get better, for every sound seed.

    What it has seen is in evaluations.csv, so that a resumed run stops where one left alone does.

    Args:
        metric: The column of evaluations.csv to look at.
        patience: Stop after so many evaluations in a row that are not better than the best before them.
        min_delta: What is better by less, or by as much, is not better.
        mode: Whether more ("max") or less ("min") is better.

    Raises:
        ValueError: If `patience` is below 1 or `min_delta` below 0.
    """

    def __init__(
        self,
        metric: Literal["mean_return", "mean_length"] = "mean_return",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Literal["max", "min"] = "max",
    ):
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        if min_delta < 0:
            raise ValueError(f"min_delta must be at least 0, got {min_delta}")
        self.metric, self.patience, self.min_delta, self.sign = metric, patience, min_delta, 1 if mode == "max" else -1

    def check(self, config: TrainConfig) -> None:
        """Raise `ValueError` if there are no evaluations to look at."""
        if config.eval_interval is None:
            raise ValueError("early stopping looks at evaluations during training; set eval_interval")

    def on_evaluation(self, progress: TrainingProgress) -> str | None:
        """Return why to stop, if every seed of this evaluation has used up its patience."""
        rows = progress.run.evaluations()
        seeds = {row["seed"] for row in progress.rows}
        series = [[self.sign * row[self.metric] for row in rows if row["seed"] == seed] for seed in seeds]
        if not series or any(evaluations_since_best(s, self.min_delta) < self.patience for s in series):
            return None
        return f"early stopping: {self.metric} did not improve in {self.patience} evaluations"


def evaluations_since_best(values: Iterable[float], min_delta: float) -> int:
    """Return how many values came after the best one, where to be better is to be larger by more than `min_delta`."""
    best, since = -math.inf, 0
    for value in values:
        best, since = (value, 0) if value > best + min_delta else (best, since + 1)
    return since


def callbacks_of(config: TrainConfig, own: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks of a training, that of the configuration before the user's `own`.

    Raises:
        ValueError: As `Callback.check`.
    """
    settings = config.early_stopping
    shipped = [EarlyStopping(**settings.model_dump())] if settings.patience is not None else []
    callbacks: list[Callback] = [*shipped, *own]
    for callback in callbacks:
        callback.check(config)
    return callbacks
