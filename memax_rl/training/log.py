"""Where metrics go beside metrics.csv: a progress bar, TensorBoard, Weights & Biases."""

import abc
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from memax_rl.training.config import TrainConfig
from memax_rl.training.run import Run

Row = Mapping[str, float]


class Log(AbstractContextManager):
    """Something that is opened, given rows, and closed."""

    @abc.abstractmethod
    def write(self, rows: Sequence[Row]) -> None:
        """Take the rows of some updates."""


def open_logs(config: TrainConfig, run: Run, progress: bool) -> list[Log]:
    """Return the logs that the configuration asks for. Raises `ValueError` if one needs a package that is missing."""
    logs: list[Log] = []
    if progress:
        logs.append(Progress(config) if sys.stderr.isatty() else Lines(config))
    if config.tensorboard:
        logs.append(TensorBoard(run))
    if config.wandb is not None:
        logs.append(WeightsAndBiases(config, run))
    return logs


class _Display(Log):
    """What the progress bar and the plain lines share: the figures of the rows."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.first: Row | None = None
        self.episode_return = math.nan

    def _figures(self, rows: Sequence[Row]) -> tuple[float, float]:
        """Return the steps of the slowest seed and the steps a second of all seeds."""
        last = [row for row in rows if row["update"] == rows[-1]["update"]]
        steps = min(row["env_steps"] for row in last)
        returns = [row["episode/return"] for row in rows if not math.isnan(row["episode/return"])]
        if returns:
            self.episode_return = sum(returns) / len(returns)
        if self.first is None:
            self.first = last[0]
        seconds = last[0]["seconds"] - self.first["seconds"]
        done = steps - self.first["env_steps"]
        return steps, len(last) * done / seconds if seconds > 0 else math.nan


class Progress(_Display):
    """A live bar on a terminal."""

    def __enter__(self) -> "Progress":
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%  {task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("compiling", total=self.config.total_steps, figures="")
        self.bar.start()
        return self

    def write(self, rows: Sequence[Row]) -> None:
        """Move the bar."""
        if not rows:
            return
        steps, speed = self._figures(rows)
        figures = f"return {self.episode_return:.3f}" + ("" if math.isnan(speed) else f"  {speed:,.0f} steps/s")
        self.bar.update(self.task, completed=steps, description="training", figures=figures)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


class Lines(_Display):
    """A line every few seconds, where the output is no terminal."""

    def __enter__(self) -> "Lines":
        print("compiling", file=sys.stderr, flush=True)
        self.printed = -math.inf
        return self

    def write(self, rows: Sequence[Row]) -> None:
        """Print a line if the last is old enough, or this is the end."""
        if not rows:
            return
        steps, speed = self._figures(rows)
        if time.monotonic() - self.printed >= 5 or steps >= self.config.total_steps:
            self.printed = time.monotonic()
            rate = "" if math.isnan(speed) else f"  {speed:,.0f} steps/s"
            print(
                f"{steps:>12,.0f} of {self.config.total_steps:,} steps  return {self.episode_return:.3f}{rate}",
                file=sys.stderr,
                flush=True,
            )

    def __exit__(self, *_: object) -> None:
        pass


class TensorBoard(Log):
    """TensorBoard event files in the run's folder."""

    def __init__(self, run: Run):
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError("tensorboard is on, but its writer is missing; pip install tensorboardX") from None
        self.writer = SummaryWriter(str(run.folder / "tensorboard"))

    def write(self, rows: Sequence[Row]) -> None:
        """Write one point a metric, update and seed, at the number of environment steps."""
        for row in rows:
            for name, value in row.items():
                if name not in ("update", "seed", "env_steps") and not math.isnan(value):
                    self.writer.add_scalar(f"seed{row['seed']:.0f}/{name}", value, int(row["env_steps"]))

    def __exit__(self, *_: object) -> None:
        self.writer.close()


class WeightsAndBiases(Log):
    """One run of Weights & Biases; the seeds are prefixes in it."""

    def __init__(self, config: TrainConfig, run: Run):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError("wandb is on, but the package is missing; pip install wandb") from None
        self.run = wandb.init(
            project=config.wandb,
            dir=str(run.folder),
            name=run.folder.name,
            id=run.folder.name,
            resume="allow",
            config=config.model_dump(mode="json"),
        )

    def write(self, rows: Sequence[Row]) -> None:
        """Write one point a metric, update and seed."""
        for row in rows:
            prefix = f"seed{row['seed']:.0f}/"
            self.run.log({prefix + k: v for k, v in row.items() if not math.isnan(v)} | {"update": row["update"]})

    def __exit__(self, *_: object) -> None:
        self.run.finish()
