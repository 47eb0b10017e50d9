"""Running the cells of a study as jobs of an engine: Ray or Slurm, on machines that share the study's folder.

The engine says when a job has ended; what came of its cell is in the study's own files, wherever it ran.
"""

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from memax_rl.signals import Stopped, ready, stop_signals
from memax_rl.studies.folder import Folder
from memax_rl.studies.grid import Cell, read_config
from memax_rl.studies.progress import Progress, show
from memax_rl.studies.worker import run_cell

# Seconds to wait for an engine, for a cell that another process runs, and between looks at which cells run.
_TICK, _PATIENCE, _LOOK = 0.5, 2.0, 2.0
# Seconds for jobs to save and end, once they are to stop.
GRACE = 120.0

# What a job needs, in plain values: any engine can carry it to another machine.
Job = Mapping[str, Any]


@runtime_checkable
class Engine(Protocol):
    """What runs jobs somewhere else."""

    name: str
    """What is said of it."""

    def submit(self, jobs: Sequence[Job], variables: Mapping[str, str]) -> None:
        """Have `run_job` called with each job, once, and again where a machine is lost.

        Args:
            jobs: What to run.
            variables: Of the environment of the processes; JAX reads them before the first job does anything.
        """
        ...

    def ended(self, timeout: float) -> Iterable[tuple[str, str]]:
        """Wait so many seconds at most; yield the cell's name of each job that ended, and its error or ""."""
        ...

    def cancel(self) -> None:
        """Have all jobs save and end, and wait until they have, or for `GRACE` seconds."""
        ...


@dataclass(frozen=True)
class Setup:
    """What all jobs of a study have in common.

    Attributes:
        folder: The study's folder, absolute.
        imports, trust: What configurations may cause to be imported.
    """

    folder: Path
    imports: tuple[str, ...]
    trust: bool

    def job(self, cell: Cell) -> Job:
        """Return the job of a cell."""
        return {
            "folder": str(self.folder),
            "imports": list(self.imports),
            "trust": self.trust,
            "path": [str(Path(entry).resolve()) for entry in sys.path if Path(entry).is_dir()],
            "name": cell.name,
            "group": cell.group,
            "config": cell.config.model_dump(mode="json"),
        }


def run_job(job: Job) -> str:
    """Run a cell in this process, on whatever machine it is, and return its outcome. The folder has the rest.

    A cell that another process runs is waited for: that one may be of a machine that was lost a moment ago.

    Raises:
        KeyboardInterrupt: After the state was saved because of SIGINT or SIGTERM.
    """
    from memax_rl.envs.trust import import_modules, only_imports

    sys.path += [path for path in job["path"] if path not in sys.path]
    imports, trust = tuple(job["imports"]), bool(job["trust"])
    folder = Folder(Path(job["folder"]))
    with only_imports(imports, trust=trust):
        import_modules(imports)
        cell = Cell(job["name"], job["group"], read_config(job["config"]))
    while (answer := run_cell(folder, cell, imports, trust))["outcome"] == "busy":
        time.sleep(_PATIENCE)
    return answer["outcome"]


def run_on(engine: Engine, setup: Setup, cells: Sequence[Cell], progress: bool) -> Progress:
    """Run all cells that are not finished as jobs of an engine, and return how that ended.

    Raises:
        KeyboardInterrupt: After all jobs were stopped because of Ctrl-C or SIGTERM.
    """
    folder = Folder(setup.folder)
    waiting = {cell.name: cell for cell in cells if not folder.is_finished(cell)}
    devices = max(cell.config.devices for cell in cells)
    state = Progress(folder, cells, {cell.name for cell in cells} - waiting.keys())
    with show(state, progress) as say, stop_signals() as stopped:
        say(f"{len(cells)} cells, {len(waiting)} to run, on {engine.name}, in {folder.path}")
        for cell in waiting.values():
            if folder.failure(cell) is not None:
                say(f"again: {cell.name}, which failed before")
                folder.forget_failure(cell)
        # From here on there is something to save.
        ready()
        try:
            # The longest first, so that no machine works alone in the end.
            ordered = sorted(waiting.values(), key=lambda c: -c.config.total_steps * c.config.network.width)
            engine.submit([setup.job(cell) for cell in ordered], {"JAX_NUM_CPU_DEVICES": str(devices)})
            looked = 0.0
            while waiting and not stopped():
                for name, error in engine.ended(_TICK):
                    _note(state, waiting.pop(name), error, say)
                if time.monotonic() - looked > _LOOK:
                    looked = time.monotonic()
                    _look(state, waiting.values())
        finally:
            engine.cancel()
        number = stopped()
    if number:
        raise Stopped(f"stopped; the same command goes on with {folder.path}", number)
    return state


def _look(state: Progress, waiting: Iterable[Cell]) -> None:
    """Note which cells run: those that some process holds."""
    held = [cell.name for cell in waiting if state.folder.is_running(cell)]
    state.running = {name: state.running.get(name, time.monotonic()) for name in held}
    state.look()


def _note(state: Progress, cell: Cell, error: str, say: Any) -> None:
    """Note what came of a cell whose job has ended."""
    took = time.monotonic() - state.running.pop(cell.name, time.monotonic())
    for path in (state.folder.path / cell.name, state.folder.failure_path(cell).parent):
        # A network file system looks again for files that were not there when the folder is listed.
        with suppress(OSError):
            os.listdir(path)
    if state.folder.is_finished(cell):
        state.finish(cell, took)
        say(state.describe(cell, took))
        return
    message = state.folder.failure(cell)
    if message is None:
        message = f"its job ended before it did: {error or 'without a word'}"
        state.folder.write_failure(cell, {"message": message, "kind": "crash", "traceback": ""})
    state.failed[cell.name] = message
    say(f"failed: {cell.name}: {message}")
