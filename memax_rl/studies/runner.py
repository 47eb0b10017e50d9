"""Running a study: its cells in processes of this machine, or as jobs of an engine."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import memax_rl
from memax_rl.envs.trust import import_modules, only_imports
from memax_rl.paths import expanded
from memax_rl.runs.run import RunError
from memax_rl.signals import Stopped, ready, stop_signals
from memax_rl.studies import machine
from memax_rl.studies.folder import Folder
from memax_rl.studies.grid import Cell, Study, load_study, make_study
from memax_rl.studies.on_ray import Ray
from memax_rl.studies.on_slurm import Slurm
from memax_rl.studies.progress import Progress, show
from memax_rl.studies.remote import Setup, run_on
from memax_rl.studies.worker import run_cell

# How often a cell may end its process, by a lack of memory or a fault, before it counts as failed.
_MOST_CRASHES = 3
# Seconds between looks at a cell that another process runs, and for workers to save before they are killed.
_PATIENCE, _GRACE = 2.0, 120.0


@dataclass(frozen=True)
class Outcome:
    """How a study ended.

    Attributes:
        folder: The study's folder.
        finished: The names of the finished cells; each is the path of a run folder inside `folder`.
        failed: Why each of the others failed.
    """

    folder: Path
    finished: tuple[str, ...]
    failed: dict[str, str]


def _find(
    study: "Study | Mapping[str, Any] | str | Path", out: str | Path | None, imports: Sequence[str]
) -> tuple[Folder, Study]:
    """Return the folder of a study, which may not be there yet, and the study, whose runs name the modules."""
    folder = Folder(out) if out is not None else None
    if isinstance(study, str | Path):
        path = expanded(study)
        if path.is_dir():
            if folder is not None:
                raise RunError("the folder of a study says itself where it is; leave out --out")
            return Folder(path), Folder(path).study()
        study = load_study(path)
    elif not isinstance(study, Study):
        study = make_study(study)
    if folder is None:
        raise RunError("a new study needs a folder; name one with --out")
    return folder, study.naming(imports)


def open_study(
    study: "Study | Mapping[str, Any] | str | Path", out: str | Path | None, imports: Sequence[str], trust: bool
) -> tuple[Folder, tuple[Cell, ...]]:
    """Return the folder of a study, made if it is new, and all cells. Nothing is made before all was checked.

    Raises:
        ValueError: If the study is wrong, or the folder holds another one.
    """
    folder, study = _find(study, out, imports)
    cells = check(study, imports, trust)
    _prepare(folder, study, cells)
    return folder, cells


def _prepare(folder: Folder, study: Study, cells: Sequence[Cell]) -> None:
    folder.check_place()
    with folder.lock("study.yaml", wait=True):
        folder.prepare(study, cells)


def check(study: Study, imports: Sequence[str] = (), trust: bool = False) -> tuple[Cell, ...]:
    """Return the cells of a study. Raises `ValueError` if one has a wrong configuration."""
    with only_imports(imports, trust=trust):
        import_modules(imports)
        if trust:
            import_modules(study.base.get("imports") or ())
        return study.cells()


def run_one(folder: Folder, cells: Sequence[Cell], index: int, imports: Sequence[str], trust: bool) -> dict[str, Any]:
    """Run one cell in this process, as a job of an array does, and return what `run_cell` does.

    Args:
        cells: All cells of the study.
        index: The number of the cell.

    Raises:
        ValueError: If there is no cell of that number.
    """
    if not 0 <= index < len(cells):
        raise ValueError(f"there is no cell {index}; the study has cells 0 to {len(cells) - 1}")
    return run_cell(folder, cells[index], imports, trust)


def study(
    study: "Study | Mapping[str, Any] | str | Path",
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    on: Ray | Slurm | None = None,
    progress: bool = False,
    imports: Iterable[str] = (),
    trust: bool = False,
) -> Outcome:
    """Run a study to its end, and return how it ended. `workers` and all other arguments are those of `memax_rl.study`.

    Raises:
        ValueError: If the study is wrong, the folder holds another one, or `on` cannot be used; no cell was run then.
        KeyboardInterrupt: After all cells were saved because of Ctrl-C or SIGTERM.
    """
    names = tuple(imports)
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be 1 at least, got {workers}")
    folder, study = _find(study, out, names)
    cells = check(study, names, trust)
    if on is None:
        _prepare(folder, study, cells)
        return _Pool(folder, cells, workers, names, trust).run(progress)
    setup = Setup(folder.path.resolve(), names, trust)
    with on.connect(workers) if isinstance(on, Ray) else on.connect(setup.folder, workers) as engine:
        _prepare(folder, study, cells)
        return _outcome(run_on(engine, setup, cells, progress), folder)


def _outcome(state: Progress, folder: Folder) -> Outcome:
    return Outcome(folder.path, tuple(sorted(state.done)), dict(sorted(state.failed.items())))


@dataclass(eq=False)
class _Worker:
    """A process and the cell that it runs."""

    process: subprocess.Popen[str]
    errors: Any
    cell: Cell | None = None
    since: float = 0.0
    hears: threading.Thread = field(default_factory=threading.Thread)


@dataclass(eq=False)
class _Pool:
    """The workers of a study and what is left to do."""

    folder: Folder
    cells: Sequence[Cell]
    wanted: int | None
    imports: tuple[str, ...]
    trust: bool
    workers: dict[int, _Worker] = field(default_factory=dict)
    answers: "queue.Queue[tuple[int, _Worker, str]]" = field(default_factory=queue.Queue)
    crashes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, progress: bool) -> Outcome:
        """Run all cells that are not finished."""
        self.waiting = [cell for cell in self.cells if not self.folder.is_finished(cell)]
        self.busy: dict[str, tuple[Cell, float]] = {}
        done = {cell.name for cell in self.cells} - {cell.name for cell in self.waiting}
        self.state = Progress(self.folder, self.cells, done)
        again = [cell.name for cell in self.waiting if self.folder.failure(cell) is not None]
        self.gpus = machine.gpus()
        self.count = min(self.wanted or len(self.gpus) or len(machine.cores()), max(1, len(self.waiting)))
        with show(self.state, progress) as say, stop_signals() as stopped:
            self.say = say
            workers = f"{self.count} worker{'s' if self.count > 1 else ''}"
            say(f"{len(self.cells)} cells, {len(self.waiting)} to run, {workers}, in {self.folder.path}")
            for name in again:
                say(f"again: {name}, which failed before")
            try:
                while (self.waiting or self.busy or any(w.cell for w in self.workers.values())) and not stopped():
                    self._start()
                    self._listen()
            finally:
                self._end()
            number = stopped()
        if number:
            raise Stopped(f"stopped; the same command goes on with {self.folder.path}", number)
        return _outcome(self.state, self.folder)

    def _start(self) -> None:
        """Give every idle worker a cell, and start the workers that are missing."""
        now = time.monotonic()
        for name, (cell, since) in list(self.busy.items()):
            if now - since > _PATIENCE:
                del self.busy[name]
                self.waiting.append(cell)
        for index in range(self.count):
            if not self.waiting:
                return
            worker = self.workers.get(index)
            if worker is None:
                worker = self.workers[index] = self._spawn(index)
                # From here on there is something to save.
                ready()
            if worker.cell is None:
                cell = self._next()
                self.waiting.remove(cell)
                job = {"name": cell.name, "group": cell.group, "config": cell.config.model_dump(mode="json")}
                worker.cell, worker.since = cell, now
                self.state.running[cell.name] = now
                self._send(worker, job)

    def _next(self) -> Cell:
        """Return the cell to run next: first one of each group, to learn how long it takes, then the longest."""
        running = {worker.cell.group for worker in self.workers.values() if worker.cell}

        def rank(cell: Cell) -> tuple[int, float]:
            known = self.seconds.get(cell.group)
            if known:
                return 1, -max(known)
            return (2 if cell.group in running else 0), -cell.config.total_steps * cell.config.network.width

        return min(self.waiting, key=rank)

    def _spawn(self, index: int) -> _Worker:
        devices = max(cell.config.devices for cell in self.cells)
        package = str(Path(memax_rl.__file__).resolve().parent.parent)
        inherited = os.environ.get("PYTHONPATH")
        environment = {
            "JAX_NUM_CPU_DEVICES": str(devices),
            **os.environ,
            **machine.variables(index, self.count, self.gpus),
            "PYTHONPATH": os.pathsep.join([package, *([inherited] if inherited else [])]),
        }
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the worker lives
        command = [sys.executable, "-P", "-m", "memax_rl.studies.worker"]
        chosen = machine.cores() if self.gpus else machine.share_of(index, self.count, machine.cores())
        with machine.on_cores(chosen):
            # In a session of its own: Ctrl-C comes to this process alone, which passes it on.
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,
            )
        worker = _Worker(process, errors)
        worker.hears = threading.Thread(target=self._hear, args=(index, worker), daemon=True)
        worker.hears.start()
        path = [entry or os.getcwd() for entry in sys.path]
        setup = {"folder": str(self.folder.path.resolve()), "imports": self.imports, "trust": self.trust, "path": path}
        self._send(worker, setup)
        return worker

    def _send(self, worker: _Worker, message: Mapping[str, Any]) -> None:
        assert worker.process.stdin
        try:
            worker.process.stdin.write(json.dumps(message) + "\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            # It died. `_listen` hears of that.
            pass

    def _hear(self, index: int, worker: _Worker) -> None:
        """Pass on what a worker answers; an empty text is its end."""
        assert worker.process.stdout
        for line in worker.process.stdout:
            self.answers.put((index, worker, line))
        worker.process.stdout.close()
        self.answers.put((index, worker, ""))

    def _listen(self) -> None:
        """Wait a moment for an answer, and note it."""
        try:
            index, worker, line = self.answers.get(timeout=0.2)
        except queue.Empty:
            self.state.look()
            return
        cell, worker.cell = worker.cell, None
        took = time.monotonic() - worker.since
        if cell is not None:
            self.state.running.pop(cell.name, None)
        if not line:
            del self.workers[index]
            self._note_death(worker, cell)
            return
        assert cell
        answer = json.loads(line)
        if answer["outcome"] == "busy":
            self.busy[cell.name] = cell, time.monotonic()
        elif answer["outcome"] == "failed":
            self.state.failed[cell.name] = answer["message"]
            self.say(f"failed: {cell.name}: {answer['message']}")
        else:
            self.seconds.setdefault(cell.group, []).append(took)
            self.state.finish(cell, took)
            self.say(self.state.describe(cell, took))

    def _note_death(self, worker: _Worker, cell: Cell | None) -> None:
        """Have the cell of a worker that died run again, unless it did so too often."""
        status = worker.process.wait()
        _close(worker)
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        worker.errors.seek(0)
        last = (worker.errors.read()[-2000:].strip().splitlines() or [""])[-1]
        worker.errors.close()
        if cell is None:
            # It was idle, and another takes its place.
            return
        self.crashes[cell.name] = self.crashes.get(cell.name, 0) + 1
        if self.crashes[cell.name] < _MOST_CRASHES:
            self.say(f"a worker process ended ({how}) in {cell.name}, which another goes on with")
            self.waiting.append(cell)
            return
        message = f"it ended its process {_MOST_CRASHES} times ({how}){': ' if last else ''}{last}"
        self.folder.write_failure(cell, {"message": message, "kind": "crash", "traceback": ""})
        self.state.failed[cell.name] = message
        self.say(f"failed: {cell.name}: {message}")

    def _end(self) -> None:
        """Stop all workers: those that train save what they have."""
        for worker in self.workers.values():
            worker.process.terminate()
        deadline = time.monotonic() + _GRACE
        for worker in self.workers.values():
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.hears.join()
            _close(worker)
            worker.errors.close()
        self.workers.clear()


def _close(worker: _Worker) -> None:
    """Close what leads to a worker that ended. Where it did not read all, there is no one to read the rest."""
    assert worker.process.stdin
    with contextlib.suppress(BrokenPipeError):
        worker.process.stdin.close()
