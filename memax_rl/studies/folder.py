"""The folder of a study: study.yaml, a run folder a cell, failures/, and locks."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memax_rl.paths import expanded
from memax_rl.runs.files import write_atomically
from memax_rl.runs.run import Run, RunError
from memax_rl.runs.yaml_text import read_fields
from memax_rl.studies import locks
from memax_rl.studies.grid import Cell, Study, differing, dump_study, load_study

# Seconds between two tries for a lock.
_WAIT = 0.2
# The modules that register what a configuration names. New cells may need more of them, which change nothing in others.
_MODULES = "imports"


class Folder:
    """Access to the files of a study's folder."""

    def __init__(self, path: str | Path):
        self.path = expanded(path)
        self.study_path = self.path / "study.yaml"

    def study(self) -> Study:
        """Return the study. Raises `RunError` if the folder holds none."""
        if not self.study_path.is_file():
            raise RunError(f"{self.path} is not a study's folder: it has no study.yaml")
        return load_study(self.study_path)

    def check_place(self, marker: str = "study.yaml", kind: str = "a study's folder") -> None:
        """Raise `RunError` if something else is there. To be called before a lock is made, which is a file too.

        Args:
            marker: The file that says what the folder is.
            kind: What that is.
        """
        if (self.path / marker).exists() or not self.path.exists():
            return
        # Another process may just make it, under hidden names.
        if not self.path.is_dir() or any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise RunError(f"{self.path} exists and is not {kind}; choose another with --out")

    def prepare(self, study: Study, cells: Sequence[Cell]) -> None:
        """Write study.yaml. A study that was here already may have got more values or seeds, and nothing else.

        Args:
            study, cells: The study, and its cells.

        Raises:
            RunError: If the folder holds another study, or anything else.
        """
        if self.study_path.exists():
            self._check_same(study, cells)
        elif self.path.exists() and (not self.path.is_dir() or any(p.name != ".locks" for p in self.path.iterdir())):
            raise RunError(f"{self.path} exists and is not a study's folder; choose another with --out")
        if not self.study_path.exists() or self.study() != study:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                write_atomically(self.study_path, dump_study(study))
            except OSError as error:
                raise RunError(f"{self.study_path} cannot be written: {error.strerror}") from None

    def _check_same(self, study: Study, cells: Sequence[Cell]) -> None:
        before = self.study()
        if before == study:
            self._check_cells(cells)
            return
        varied, now = {*before.grid, *before.zip}, {*study.grid, *study.zip}
        if varied != now:
            name = sorted(varied ^ now)[0]
            verbs = ("varies", "does not") if name in varied else ("does not vary", "does")
            raise RunError(f"the study in {self.path} {verbs[0]} {name}, and this one {verbs[1]}; choose another --out")
        changed = [name for name in differing(before.base, study.base) if name != _MODULES]
        if changed:
            raise RunError(
                f"{', '.join(changed)} differs from the study in {self.path}, whose cells would not be comparable; "
                "choose another --out"
            )
        gone = {cell.name for cell in before.cells()} - {cell.name for cell in cells}
        if gone:
            raise RunError(
                f"the study in {self.path} has the cell {sorted(gone)[0]}, which this one leaves out; name its values "
                "too, and new ones beside them"
            )
        self._check_cells(cells)

    def _check_cells(self, cells: Sequence[Cell]) -> None:
        """Raise `RunError` if the run folder of a cell is of another configuration."""
        for cell in cells:
            path = self.path / cell.name / "config.yaml"
            if not path.is_file():
                continue
            fields = differing(read_fields(path), cell.config.model_dump(mode="json"))
            if changed := [name for name in fields if name != _MODULES]:
                raise RunError(
                    f"{', '.join(changed)} of the run in {path.parent} differs from the study's; choose another --out"
                )

    # Cells

    def is_finished(self, cell: Cell) -> bool:
        """Return whether the cell's run has ended."""
        return (self.path / cell.name / "summary.json").is_file()

    def begun(self, cell: Cell) -> Run | None:
        """Return the cell's run, if it was begun. What a kill left of one that was being made is removed.

        Raises:
            RunError: If a damaged run is in its place.
        """
        folder = self.path / cell.name
        if (folder / "config.yaml").is_file():
            return Run(folder)
        if folder.is_dir():
            left = [path for path in folder.iterdir() if path.name not in (".lock",) and path.suffix != ".tmp"]
            if any(path.name != "checkpoints" or not path.is_dir() or any(path.iterdir()) for path in left):
                raise RunError(f"{folder} holds files but no config.yaml; move them away")
            shutil.rmtree(folder)
        return None

    def _lock_path(self, name: str) -> Path:
        return self.path / ".locks" / hashlib.sha256(name.encode()).hexdigest()[:32]

    @contextmanager
    def lock(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Try to hold a cell, or wait for it, and yield whether this process does.

        The lock ends with the process, however that ends; see `memax_rl.studies.locks`.

        Args:
            name: Of the cell.
            wait: Whether to wait until it is free.

        Raises:
            RunError: If the file system has no locks.
        """
        path = self._lock_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with locks.hold(path) as held:
                if held or not wait:
                    yield held
                    return
            time.sleep(_WAIT)

    def is_running(self, cell: Cell) -> bool:
        """Return whether some process, on whatever machine, seems to run the cell."""
        return locks.is_held(self._lock_path(cell.name))

    # Failures

    def failure_path(self, cell: Cell) -> Path:
        """Return the file that tells why a cell failed."""
        return self.path / "failures" / f"{cell.name}.json"

    def failure(self, cell: Cell) -> str | None:
        """Return why a cell failed, or None if it did not."""
        path = self.failure_path(cell)
        try:
            return str(json.loads(path.read_text())["message"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return f"{path} cannot be read"

    def write_failure(self, cell: Cell, failure: Mapping[str, Any]) -> None:
        """Write why a cell failed, the fields of `failure`.

        On a full disk nothing is written: the cell counts as not finished all the same.
        """
        path = self.failure_path(cell)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"cell": cell.name, **failure}, indent=2) + "\n")
        except OSError:
            pass

    def forget_failure(self, cell: Cell) -> None:
        """Remove what tells of a failure, once the cell is tried again or finished."""
        self.failure_path(cell).unlink(missing_ok=True)
