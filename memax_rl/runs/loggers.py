"""Where metrics go beside metrics.csv: a progress bar, TensorBoard, Weights & Biases."""

import abc
import importlib
import json
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, runtime_checkable

from memax_rl.runs.files import write_atomically
from memax_rl.runs.run import Run, RunError

Row = Mapping[str, float]
# Metrics that tell, beside the loss, how an agent does that plays no episodes (docs/bc.md).
_OF_IMITATION = ("accuracy", "action_error")


@runtime_checkable
class Logged(Protocol):
    """What logs use of a configuration, which is frozen: that of an agent or of a probe."""

    scored_by: ClassVar[str]
    """What `episode/return` is called."""

    @property
    def seed(self) -> int:
        """The first seed."""
        ...

    @property
    def num_seeds(self) -> int:
        """How many there are."""
        ...

    @property
    def total_steps(self) -> int:
        """Steps of each seed in all."""
        ...

    @property
    def tensorboard(self) -> bool:
        """Whether to log to TensorBoard."""
        ...

    @property
    def wandb(self) -> str | None:
        """The project of Weights & Biases to log to, or None."""
        ...

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """Return all fields; in `mode` "json" as JSON has them."""
        ...


class Logger(AbstractContextManager):
    """Something that is opened, given rows, and closed."""

    @abc.abstractmethod
    def write(self, rows: Sequence[Row]) -> None:
        """Take the rows of some updates."""

    def write_evaluations(self, rows: Sequence[Row]) -> None:
        """Take the rows of an evaluation during training. By default they are not shown."""


def check_logs(config: Logged) -> None:
    """Raise `ValueError` if a log that the configuration asks for needs a package that is missing, or a login.

    It makes nothing, and is called before anything is made.
    """
    asked = (
        (config.tensorboard, "tensorboard", "tensorboardX", "tensorboard is on"),
        (config.wandb is not None, "wandb", "wandb", f"wandb is {config.wandb!r}"),
    )
    for wanted, extra, package, what in asked:
        if wanted:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ValueError(
                    f"{what}, but the package {package} cannot be imported ({error}); "
                    f"install it with `pip install 'memax_rl[{extra}]'`, or leave {extra} out"
                ) from None
    if config.wandb is not None and os.environ.get("WANDB_MODE", "online") == "online":
        import wandb  # pyright: ignore[reportMissingImports]

        try:
            wandb.login()
        except wandb.Error as error:
            raise ValueError(
                f"wandb is {config.wandb!r}, but: {error} Or set WANDB_MODE=offline, to log into the run's folder"
            ) from None


def open_logs(config: Logged, run: Run, progress: bool) -> list[Logger]:
    """Return the logs that the configuration asks for; `check_logs` says before whether there is what they need."""
    logs: list[Logger] = []
    if progress:
        logs.append(Progress(config) if sys.stderr.isatty() else ConsoleLogger(config))
    if config.tensorboard:
        logs.append(TensorBoard(config, run))
    if config.wandb is not None:
        logs.append(WeightsAndBiases(config, run))
    return logs


class _Display(Logger):
    """What the progress bar and the plain lines share: the figures of the rows."""

    def __init__(self, config: Logged):
        self.config = config
        self.first: Row | None = None
        self.episode_return = math.nan
        self.score = ""

    def _score(self, rows: Sequence[Row]) -> str:
        """Return how well it goes, in words: the return or, where no episode is played, what imitation is judged by."""
        taught = [name for name in _OF_IMITATION if name in rows[-1]]
        if not taught or not math.isnan(self.episode_return):
            return f"{self.config.scored_by} {self.episode_return:.3f}"
        # Of the sound seeds: one that diverged has no number.
        of = {name: [row[name] for row in rows if not math.isnan(row[name])] for name in ("loss", *taught)}
        return "  ".join(f"{name} {sum(x) / len(x) if x else math.nan:.3f}" for name, x in of.items())

    def _figures(self, rows: Sequence[Row]) -> tuple[float, float]:
        """Return the steps of the slowest seed and the steps a second of all seeds."""
        last = [row for row in rows if row["update"] == rows[-1]["update"]]
        steps = min(row["env_steps"] for row in last)
        returns = [row["episode/return"] for row in rows if not math.isnan(row["episode/return"])]
        if returns:
            self.episode_return = sum(returns) / len(returns)
        self.score = self._score(rows)
        if self.first is None:
            self.first = last[0]
        seconds = last[0]["seconds"] - self.first["seconds"]
        done = steps - self.first["env_steps"]
        return steps, len(last) * done / seconds if seconds > 0 else math.nan

    def write_evaluations(self, rows: Sequence[Row]) -> None:
        """Print the mean return of the evaluated seeds."""
        if rows:
            steps, mean = min(row["env_steps"] for row in rows), sum(row["mean_return"] for row in rows) / len(rows)
            text = f"{steps:>12,.0f} steps: evaluation {self.config.scored_by} {mean:.3f}"
            self._print(text + (f", mean of {len(rows)} seeds" if len(rows) > 1 else ""))

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


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
        rate = "" if math.isnan(speed) else f"  {speed:,.0f} steps/s"
        self.bar.update(self.task, completed=steps, description="training", figures=f"{self.score}{rate}")

    def _print(self, text: str) -> None:
        self.bar.console.print(text, highlight=False)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


class ConsoleLogger(_Display):
    """A line every few seconds, where the output is no terminal."""

    def __enter__(self) -> "ConsoleLogger":
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
                f"{steps:>12,.0f} of {self.config.total_steps:,} steps  {self.score}{rate}",
                file=sys.stderr,
                flush=True,
            )

    def __exit__(self, *_: object) -> None:
        pass


class TensorBoard(Logger):
    """TensorBoard event files in the run's folder, a subfolder a seed, so that a metric's seeds share one chart."""

    def __init__(self, config: Logged, run: Run):
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        # What was logged behind the checkpoint that a run is resumed from is made, and logged, again.
        done = {int(row["seed"]): int(row["env_steps"]) for row in run.metrics()}
        self.writers = {
            seed: SummaryWriter(
                str(run.folder / "tensorboard" / f"seed{seed}"),
                purge_step=done[seed] + 1 if seed in done else None,
                # Files of one second would have one name.
                filename_suffix=f".after{done.get(seed, 0)}",
            )
            for seed in _seeds(config)
        }

    def write(self, rows: Sequence[Row]) -> None:
        """Write one point a metric, update and seed, at the number of environment steps."""
        for row in rows:
            for name, value in row.items():
                if name not in ("seed", "env_steps") and not math.isnan(value):
                    self.writers[int(row["seed"])].add_scalar(name, value, int(row["env_steps"]))

    def write_evaluations(self, rows: Sequence[Row]) -> None:
        """Write the rows as those of updates, under names of their own."""
        self.write([{name: x for name, x in _named_apart(row).items() if name != "update"} for row in rows])

    def __exit__(self, *_: object) -> None:
        for writer in self.writers.values():
            writer.close()


class WeightsAndBiases(Logger):
    """Weights & Biases: one run a seed, in a group that is this run; a resumed run goes on in the same ones."""

    def __init__(self, config: Logged, run: Run):
        self.config, self.folder = config, run.folder
        self.group, self.ids = _wandb_ids(run, _seeds(config))
        self.runs: dict[int, Any] = {}

    def __enter__(self) -> "WeightsAndBiases":
        import wandb  # pyright: ignore[reportMissingImports]

        try:
            for seed, run_id in self.ids.items():
                self.runs[seed] = wandb.init(
                    project=self.config.wandb,
                    dir=str(self.folder),
                    group=self.group,
                    name=f"{self.folder.absolute().name}-seed{seed}",
                    id=run_id,
                    resume="allow",
                    # Several runs are open at once, and none is the process's own.
                    reinit="create_new",
                    config=self.config.model_dump(mode="json") | {"seed": seed, "num_seeds": 1},
                )
                self.runs[seed].define_metric("env_steps")
                self.runs[seed].define_metric("*", step_metric="env_steps")
        except BaseException as error:
            self.__exit__()
            if isinstance(error, wandb.Error):
                raise RunError(f"wandb cannot begin a run in the project {self.config.wandb!r}: {error}") from None
            raise
        return self

    def write(self, rows: Sequence[Row]) -> None:
        """Write one point a metric, update and seed."""
        for row in rows:
            run = self.runs[int(row["seed"])]
            # What a run logged behind the checkpoint that it is resumed from is there already, and the same.
            if row["update"] >= run.starting_step:
                values = {name: value for name, value in row.items() if name != "seed" and not math.isnan(value)}
                run.log(values, step=int(row["update"]))

    def write_evaluations(self, rows: Sequence[Row]) -> None:
        """Write the rows as those of updates, under names of their own."""
        self.write([_named_apart(row) for row in rows])

    def __exit__(self, *_: object) -> None:
        for run in self.runs.values():
            run.finish()


def _named_apart(row: Row) -> Row:
    """Return the row of an evaluation with names that no metric of an update has."""
    return {name if name in ("update", "seed", "env_steps") else f"eval/{name}": value for name, value in row.items()}


def _seeds(config: Logged) -> range:
    return range(config.seed, config.seed + config.num_seeds)


def _wandb_ids(run: Run, seeds: Sequence[int]) -> tuple[str, dict[int, str]]:
    """Return the group and the ids of a run's seeds at Weights & Biases, which are drawn once and kept in its folder.

    A folder's name would not do: two folders of one name would be one run there.
    """
    path = run.folder / "wandb.json"
    if not path.exists():
        new = {
            "group": f"{run.folder.absolute().name[:100]}-{secrets.token_hex(4)}",
            "ids": {str(seed): secrets.token_hex(8) for seed in seeds},
        }
        write_atomically(path, json.dumps(new, indent=2) + "\n")
    try:
        content = json.loads(path.read_text())
        group, ids = content["group"], {seed: content["ids"][str(seed)] for seed in seeds}
        if isinstance(group, str) and all(re.fullmatch("[0-9a-f]{16}", run_id) for run_id in ids.values()):
            return group, ids
    except (ValueError, KeyError, TypeError, OSError):
        pass
    raise RunError(f"{path} does not hold a group and an id for each seed; delete it to begin new runs at wandb")
