"""What is said while a study runs: a live table on a terminal, else a line whenever a cell ends."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memax_rl.studies.folder import Folder
from memax_rl.studies.grid import Cell

# Seconds between two looks into the files of running cells.
_LOOK = 2.0
_RETURN, _STEPS = "episode/return", "env_steps"


@dataclass(eq=False)
class Progress:
    """How far a study is."""

    folder: Folder
    cells: Sequence[Cell]
    done: set[str]
    running: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    last: dict[str, tuple[float, float]] = field(default_factory=dict)
    looked: float = 0.0

    def finish(self, cell: Cell, seconds: float) -> None:
        """Note that a cell has ended."""
        self.done.add(cell.name)
        self.seconds.append(seconds)
        self.last[cell.name] = self._read(cell)

    def look(self) -> None:
        """Read how far the running cells are, now and then."""
        if time.monotonic() - self.looked > _LOOK:
            self.looked = time.monotonic()
            for cell in self.cells:
                if cell.name in self.running:
                    self.last[cell.name] = self._read(cell)

    def _read(self, cell: Cell) -> tuple[float, float]:
        """Return steps and return of the last row of a cell's metrics."""
        path = self.folder.path / cell.name / "metrics.csv"
        try:
            with path.open("rb") as file:
                header = file.readline().decode().strip().split(",")
                file.seek(max(file.tell(), path.stat().st_size - 10_000))
                lines = [line.split(",") for line in file.read().decode(errors="replace").split("\n")[:-1]]
        except (OSError, UnicodeDecodeError):
            return 0.0, math.nan
        rows = [dict(zip(header, line, strict=True)) for line in lines if len(line) == len(header)]
        try:
            returns = [float(row[_RETURN]) for row in rows if row.get(_RETURN)]
            return (float(rows[-1][_STEPS]) if rows else 0.0), (returns[-1] if returns else math.nan)
        except (KeyError, ValueError):
            return 0.0, math.nan

    def _evaluated(self, cell: Cell) -> float:
        """Return the mean of a finished cell's evaluation, and where it had none, what training told last."""
        try:
            summary = json.loads((self.folder.path / cell.name / "summary.json").read_text())
            values = summary["evaluation"]["mean_return_per_seed"]
            return float(np.mean(np.array(values, float))) if values else math.nan
        except (OSError, ValueError, KeyError, TypeError):
            return self.last[cell.name][1]

    def describe(self, cell: Cell, seconds: float) -> str:
        """Return a line about a finished cell."""
        ended = len(self.done) + len(self.failed)
        left = self.seconds_left()
        rest = f", about {_duration(left)} left" if left else ""
        value = self._evaluated(cell)
        shown = "" if math.isnan(value) else f", {cell.config.scored_by} {value:.3g}"
        return f"{ended}/{len(self.cells)} finished: {cell.name} in {_duration(seconds)}{shown}{rest}"

    def seconds_left(self) -> float:
        """Return about how long the rest takes, from the cells that have ended; 0 where that is not known."""
        if not self.seconds or not self.running:
            return 0.0
        mean = sum(self.seconds) / len(self.seconds)
        left = len(self.cells) - len(self.done) - len(self.failed)
        already = sum(min(mean, time.monotonic() - since) for since in self.running.values())
        return max(0.0, mean * left - already) / len(self.running)

    def table(self) -> Any:
        """Return what a terminal shows."""
        from rich.table import Table

        waiting = len(self.cells) - len(self.done) - len(self.failed) - len(self.running)
        left = self.seconds_left()
        title = f"{len(self.done)} done, {len(self.running)} running, {len(self.failed)} failed, {waiting} waiting"
        table = Table(title=title + (f", about {_duration(left)} left" if left else ""), title_justify="left")
        for column in ("running", "steps", "return so far", "time"):
            table.add_column(column, justify="left" if column == "running" else "right")
        for cell in self.cells:
            if cell.name in self.running:
                steps, value = self.last.get(cell.name, (0.0, math.nan))
                shown = "" if math.isnan(value) else f"{value:.3g}"
                took = _duration(time.monotonic() - self.running[cell.name])
                table.add_row(cell.name, f"{min(1, steps / cell.config.total_steps):.0%}", shown, took)
        return table


@contextmanager
def show(progress: Progress, wanted: bool) -> Iterator[Callable[[str], None]]:
    """Show how far a study is, if wanted, on standard error. Yields a function that says a line."""
    if not wanted:
        yield lambda line: None
        return
    if not sys.stderr.isatty():
        yield lambda line: print(line, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(get_renderable=progress.table, console=console, refresh_per_second=2, transient=True):
        yield lambda line: console.print(line, markup=False, highlight=False)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3600:.1f} h"
