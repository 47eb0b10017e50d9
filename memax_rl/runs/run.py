"""A run is a folder: config.yaml, spaces.json, metrics.csv, checkpoints/, summary.json. None is ever half written."""

import csv
import fcntl
import io
import json
import math
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from memax_rl.envs.trust import import_modules, may_import, only_imports
from memax_rl.runs.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from memax_rl.runs.config import TrainConfig, dump_config, load_config, make_config, read_fields
from memax_rl.runs.files import append, write_atomically
from memax_rl.runs.spaces_file import SpacesFile, dump_spaces, read_spaces

# What of a run's configuration may be changed before it is resumed.
CHANGEABLE = ("total_steps", "checkpoint_interval", "eval_episodes", "tensorboard", "wandb", "on_divergence")


class RunError(ValueError):
    """A run folder cannot be used as asked. The message says what to do."""


class Run:
    """Access to the files of a run folder."""

    def __init__(self, folder: str | Path, imports: Iterable[str] = (), trust: bool = False):
        self.folder = Path(folder)
        self._imports, self._trust = tuple(imports), trust
        self.config_path = self.folder / "config.yaml"
        self.spaces_path = self.folder / "spaces.json"
        self.metrics_path = self.folder / "metrics.csv"
        self.summary_path = self.folder / "summary.json"
        self.checkpoints = self.folder / "checkpoints"

    def __repr__(self) -> str:
        """Say what the run is and how far it came, from its files as they are; a damaged run has a repr too."""
        try:
            return f"Run({str(self.folder)!r}, {self._describe()})"
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            return f"Run({str(self.folder)!r}, not readable: {_cut(str(error))})"

    def _describe(self) -> str:
        fields = read_fields(self.config_path)
        network, first, total = fields["network"], int(fields["seed"]), int(fields["total_steps"])
        memory = "+".join([block["memory"] for block in network["blocks"]] or [network["memory"]])
        last = first + int(fields["num_seeds"]) - 1
        seeds = f"{first}" if first == last else f"{first}-{last}"
        steps = self._last_steps()
        status = "finished" if self.summary_path.exists() and steps >= total else "unfinished"
        return f"env={fields['env']!r}, memory={memory!r}, seeds={seeds}, steps={steps:,} of {total:,}, {status}"

    def _last_steps(self) -> int:
        """Return the most environment steps that a seed made; only the end of metrics.csv is read."""
        if not self.metrics_path.exists():
            return 0
        column = self._metrics_header().index("env_steps")
        with self.metrics_path.open("rb") as file:
            file.seek(max(0, self.metrics_path.stat().st_size - 100_000))
            # Without the header, or a line cut short, in front, and a line that is not written to its end.
            lines = file.read().decode(errors="replace").split("\n")[1:-1]
        return int(max((float(line.split(",")[column]) for line in lines), default=0))

    @classmethod
    def create(cls, folder: str | Path, config: TrainConfig) -> "Run":
        """Make a new run folder. Raises `RunError` if there is something in the folder already."""
        run = cls(folder)
        if run.folder.exists() and (not run.folder.is_dir() or any(run.folder.iterdir())):
            raise RunError(
                f"the run folder {run.folder} exists; choose another with --out, delete it, "
                f"or continue it with --resume {run.folder}"
            )
        try:
            run.checkpoints.mkdir(parents=True)
            write_atomically(run.config_path, dump_config(config))
        except OSError as error:
            shutil.rmtree(run.folder, ignore_errors=True)
            raise RunError(f"the run folder {run.folder} cannot be made: {error.strerror}") from None
        return run

    @classmethod
    def open(cls, folder: str | Path, imports: Iterable[str] = (), trust: bool = False) -> "Run":
        """Return an existing run.

        `imports`, `trust`: packages that its configuration may cause to be imported, or all of them (docs/runs.md).

        Raises:
            RunError: If the folder is not a run.
        """
        run = cls(folder, imports, trust)
        try:
            is_run = run.config_path.is_file()
        except OSError as error:
            raise RunError(f"{_cut(str(run.folder))} cannot be opened: {error.strerror}") from None
        if not is_run:
            raise RunError(f"{_cut(str(run.folder))} is not a run folder: it has no config.yaml")
        # A folder may be a stranger's, and a link may lead anywhere.
        files = (run.config_path, run.spaces_path, run.metrics_path, run.summary_path, *run._checkpoint_files())
        for path in (
            *files,
            run.checkpoints,
            run.folder / "tensorboard",
            run.folder / "wandb",
            run.folder / "wandb.json",
        ):
            if path.is_symlink():
                raise RunError(f"{path} is a link; a run folder holds its own files. Replace it by what it leads to")
        for path in files:
            # Reading a pipe would wait for ever.
            if path.exists() and not path.is_file():
                raise RunError(f"{path} is no file; a run folder holds plain files. Remove it, or take another folder")
        return run

    def config(self) -> TrainConfig:
        """Return the run's configuration.

        Raises:
            ValueError: If the file cannot be read or lacks a field: a run's own configuration is complete.
        """
        fields = self.fields()
        with self.trusted():
            self._import_modules(fields)
            config = load_config(self.config_path)
        self._check_complete(config, fields)
        return config

    def config_to_act(self) -> TrainConfig:
        """Return the run's configuration, whose environment was not looked at: it need not be installed.

        Modules of one's own are imported where the user allows it; without them an agent or a memory of one's own is
        unknown.

        Raises:
            ValueError: As `config`.
        """
        fields = self.fields()
        # Any environment stands for the run's own.
        known = {name: value for name, value in fields.items() if name not in ("imports", "env", "env_options")}
        with self.trusted():
            import_modules(module for module in _modules(fields) if may_import(module))
            try:
                config = make_config(known)
            except ValueError as error:
                self._import_modules(fields)
                raise ValueError(f"{self.config_path}: {error}") from None
        if not isinstance(fields.get("env"), str):
            raise RunError(f"{self.config_path} does not say by its env which environment it is of")
        self._check_complete(config, fields)
        return config.model_copy(update={"env": fields["env"]})

    def _check_complete(self, config: TrainConfig, fields: Mapping[str, Any]) -> None:
        missing = sorted(_missing(config.model_dump(mode="json"), fields))
        if missing:
            raise RunError(
                f"{self.config_path} lacks {', '.join(missing)}: a run's own configuration holds every field, so this "
                "file was changed or cut short"
            )

    def fields(self) -> dict[str, Any]:
        """Return the fields of the run's configuration, as they are in its file. It needs no module of one's own.

        Raises:
            ValueError: If the file cannot be read.
        """
        return read_fields(self.config_path)

    def write_spaces(self, spaces: SpacesFile) -> None:
        """Write spaces.json, unless it is there already: a run's spaces do not change.

        Raises:
            RunError: If it cannot be written.
        """
        try:
            if not self.spaces_path.exists():
                write_atomically(self.spaces_path, dump_spaces(spaces))
        except OSError as error:
            raise RunError(f"{self.spaces_path} cannot be written: {error.strerror}") from None

    def spaces(self) -> SpacesFile | None:
        """Return what the run's policy sees and does, or None for a run of a version that did not write it down.

        Raises:
            ValueError: If the file is damaged.
        """
        return read_spaces(self.spaces_path) if self.spaces_path.exists() else None

    def _import_modules(self, fields: Mapping[str, Any]) -> None:
        """Import what the run was trained with, where the user allows it."""
        names = _modules(fields)
        missing = [module for module in names if not may_import(module)]
        if missing:
            options = " ".join(f"--import {_cut(module)}" for module in missing)
            raise RunError(
                f"the run {self.folder} was trained with {_cut(', '.join(missing))}, which is not imported, because "
                f"that runs its code; if you trust it, add {options} or --trust (from Python: import it, or trust=True)"
            )
        import_modules(names)

    def trusted(self) -> AbstractContextManager[None]:
        """Return a context in which the run causes no import but what the user allowed."""
        return only_imports(self._imports, trust=self._trust)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for one process that writes to it. The lock ends with the process, however that ends.

        Raises:
            RunError: If another process holds it.
        """
        path = self.folder / ".lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}") from None
        with os.fdopen(descriptor, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"the run {self.folder} is in use by another process ({_cut(file.read().strip())}); wait until it "
                    "ends, or end it"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield

    # Metrics

    def append_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Append rows to metrics.csv. The first call writes the header.

        Raises:
            RunError: If the file cannot be written.
        """
        if not rows:
            return
        try:
            self._append_metrics(rows)
        except OSError as error:
            raise RunError(f"{self.metrics_path} cannot be written: {error.strerror}") from None

    def _append_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        buffer = io.StringIO()
        new = not self.metrics_path.exists()
        columns = list(rows[0])
        if not new and set(header := self._metrics_header()) == set(columns):
            columns = header
        elif not new:
            differ = ", ".join(sorted(set(header) ^ set(columns)))
            raise RunError(f"{self.metrics_path} has other columns than this run writes: {_cut(differ)}")
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows([{k: _cell(v) for k, v in row.items()} for row in rows])
        if new:
            write_atomically(self.metrics_path, buffer.getvalue())
        else:
            append(self.metrics_path, buffer.getvalue())

    def metrics(self) -> list[dict[str, float]]:
        """Return the rows of metrics.csv; an empty cell is nan.

        Raises:
            RunError: If the file holds anything else.
        """
        if not self.metrics_path.exists():
            return []
        header, lines = self._metrics_lines()
        try:
            return [dict(zip(header, (float(v) if v else math.nan for v in line), strict=True)) for line in lines]
        except ValueError:
            bad = next(i for i, line in enumerate(lines) if len(line) != len(header) or not all(map(_is_cell, line)))
            raise RunError(
                f"{self.metrics_path} is damaged in line {bad + 2}: {_cut(','.join(lines[bad]))!r}"
            ) from None

    def _metrics_header(self) -> list[str]:
        """Return the header alone: reading all rows at every append would take ever longer."""
        with self.metrics_path.open(errors="replace") as file:
            return file.readline(1_000_000).rstrip("\n").split(",")

    def _metrics_lines(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the cells of all lines."""
        try:
            header, *lines = [line.split(",") for line in self.metrics_path.read_text().splitlines()] or [[]]
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{self.metrics_path} cannot be read: {error}") from None
        if "update" not in header:
            raise RunError(f"{self.metrics_path} has no header with a column 'update'; restore the file, or delete it")
        return header, lines

    def drop_metrics_after(self, update: int) -> None:
        """Forget the rows of updates later than `update`: they will be made, and logged, again.

        Raises:
            RunError: If the file is damaged, or ends before `update`.
        """
        if not self.metrics_path.exists():
            return
        header, lines = self._metrics_lines()
        # A line cut short by a kill has no end, whatever cells it has; it is the last one, and goes too.
        whole = lines if self.metrics_path.read_bytes().endswith(b"\n") else lines[:-1]
        if any(len(line) != len(header) or not all(map(_is_cell, line)) for line in whole):
            self.metrics()
        column = header.index("update")
        if not all(line[column] for line in whole):
            raise RunError(f"{self.metrics_path} is damaged: a row does not say of which update it is")
        kept = [line for line in whole if float(line[column]) <= update]
        last = max((int(float(line[column])) for line in kept), default=0)
        if last < update:
            raise RunError(
                f"{self.metrics_path} ends with update {last}, and the checkpoint is of update {update}: rows were "
                "lost. Restore the file, or delete it to go on without the rows before"
            )
        _check_no_row_lost(self.metrics_path, [dict(zip(header, line, strict=True)) for line in kept], update)
        write_atomically(self.metrics_path, "\n".join(",".join(line) for line in [header, *kept]) + "\n")

    def diverged_seeds(self) -> list[int]:
        """Return the seeds that diverged in training, as metrics.csv tells.

        Raises:
            RunError: If the file is damaged.
        """
        lost = [row.get("seed", math.nan) for row in self.metrics() if row.get("finite") == 0]
        if any(math.isnan(seed) for seed in lost):
            raise RunError(f"{self.metrics_path} is damaged: a row does not say of which seed it is")
        return sorted({int(seed) for seed in lost})

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        try:
            write_atomically(self.summary_path, json.dumps(summary, indent=2, allow_nan=True) + "\n")
        except OSError as error:
            raise RunError(f"{self.summary_path} cannot be written: {error.strerror}") from None

    # Checkpoints

    def _checkpoint_files(self) -> list[Path]:
        return list(self.checkpoints.iterdir()) if self.checkpoints.is_dir() else []

    def saved_updates(self) -> list[int]:
        """Return the update numbers of the complete checkpoints, in order."""
        paths = self._checkpoint_files()
        return sorted(
            int(path.stem) for path in paths if path.stem.isascii() and path.stem.isdigit() and path.suffix == ".npz"
        )

    def checkpoint_path(self, update: int) -> Path:
        """Return the file of the checkpoint of an update."""
        return self.checkpoints / f"{update}.npz"

    def clean(self) -> None:
        """Remove what killed processes left half written."""
        for folder in (self.folder, self.checkpoints):
            for path in folder.glob(".*.tmp"):
                path.unlink()

    def save(self, update: int, state: PyTree, seconds: float) -> None:
        """Save a state. Only the newest complete checkpoint is kept.

        Raises:
            RunError: If it cannot be written; the last one is as it was.
        """
        path = self.checkpoint_path(update)
        if not path.exists():
            about = {"seconds": seconds, "config": read_fields(self.config_path)}
            try:
                write_checkpoint(path, _to_plain(state), about)
            except OSError as error:
                raise RunError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from None
        for older in self.saved_updates():
            if older < update:
                self.checkpoint_path(older).unlink()

    def restore(self, like: PyTree, whole: bool = True) -> tuple[PyTree, float]:
        """Return the newest checkpoint, in the structure of `like`, and the seconds trained so far.

        `like` holds arrays or their shapes; unless `whole`, only some of those in the checkpoint, and no other is read.

        Raises:
            RunError: If there is none, it cannot be read, or it belongs to another configuration.
        """
        saved = self.saved_updates()
        if not saved:
            raise RunError(f"{self.folder} has no checkpoint to continue from; start again with another --out")
        path = self.checkpoint_path(saved[-1])
        try:
            arrays, about = read_checkpoint(path, _expected(like), whole)
            seconds, before = float(about["seconds"]), dict(about["config"])
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, CheckpointError) else "it does not say what it holds"
            raise RunError(f"the checkpoint {path} cannot be read: {_cut(reason)}") from None
        self._check_unchanged(before)
        return _from_plain(arrays, like), seconds

    def _check_unchanged(self, before: dict[str, Any]) -> None:
        """Raise `RunError` if the configuration was changed since a checkpoint was saved."""
        now = read_fields(self.config_path)
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        forbidden = [name for name in changed if name not in CHANGEABLE]
        if forbidden:
            raise RunError(
                f"{', '.join(forbidden)} in {self.config_path} changed since the checkpoint was saved; a run goes on "
                f"as it began. Only {', '.join(CHANGEABLE)} may be changed"
            )


def _check_no_row_lost(path: Path, rows: Sequence[Mapping[str, str]], update: int) -> None:
    """Raise `RunError` unless each seed has a row for every update up to `update`, or up to that of its divergence.

    A run that went on without its rows begins with a later update than the first.
    """
    by_seed: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        by_seed.setdefault(row.get("seed", ""), []).append(row)
    first = min((int(float(row["update"])) for row in rows), default=1)
    for seed, own in by_seed.items():
        found = [int(float(row["update"])) for row in own]
        last = found[-1] if own[-1].get("finite") and float(own[-1]["finite"]) == 0 else update
        if found != list(range(first, last + 1)):
            raise RunError(
                f"{path} does not hold one row an update of seed {seed} from update {first} to {last}: rows were lost "
                "or doubled. Restore the file, or delete it to go on without the rows before"
            )


def _missing(whole: Mapping[str, Any], given: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of the fields that are not given, those of parts with the part's name before them."""
    for name, value in whole.items():
        if not isinstance(given, Mapping) or name not in given:
            yield prefix + name
        elif isinstance(value, Mapping) and name not in ("env_options", "memory_options"):
            yield from _missing(value, given[name], f"{prefix}{name}.")


def _modules(fields: Mapping[str, Any]) -> list[str]:
    """Return the modules of one's own that a configuration names."""
    modules = fields.get("imports") or []
    return [module for module in modules if isinstance(module, str)] if isinstance(modules, list) else []


def _cut(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


def _is_cell(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _to_plain(state: PyTree) -> dict[str, Any]:
    """Return a flat dict from path to plain array; random keys as their bits. Arrays without a number are left out."""
    leaves = [(path, leaf) for path, leaf in jax.tree.leaves_with_path(state) if leaf.size]
    return {_name(path): np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for path, leaf in leaves}


def _from_plain(plain: Mapping[str, Any], like: PyTree) -> PyTree:
    def leaf(path, old):
        if not old.size:
            return jnp.zeros(old.shape, old.dtype)
        new = jnp.asarray(plain[_name(path)])
        return jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if _is_key(old) else new

    return jax.tree.map_with_path(leaf, like)


def _expected(like: PyTree) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return shape and dtype of each array of a checkpoint by name."""
    # Keys are saved as their bits.
    plain = jax.tree.map(lambda x: jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x, like)
    leaves = jax.tree.leaves_with_path(plain)
    return {_name(where): (leaf.shape, np.dtype(leaf.dtype)) for where, leaf in leaves if leaf.size}
