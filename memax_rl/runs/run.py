"""A run is a folder: config.yaml, spaces.json, metrics.csv, evaluations.csv, checkpoints/, summary.json.

Nothing in it is ever half written.
"""

import fcntl
import math
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import PyTree
from pydantic import BaseModel

from memax_rl.envs.trust import import_modules, may_import, only_imports
from memax_rl.paths import expanded
from memax_rl.runs.checkpoint import BEST, CheckpointError, read_about, read_checkpoint, read_shapes, write_checkpoint
from memax_rl.runs.config import TrainConfig, dump_config, is_probe, load_config, make_config
from memax_rl.runs.files import json_text, write_atomically
from memax_rl.runs.plain_arrays import expected_arrays, from_plain, to_plain
from memax_rl.runs.rows import RunError as RunError
from memax_rl.runs.rows import append_rows, cut, drop_rows_after, last_cells, read_rows, write_rows
from memax_rl.runs.spaces_file import SpacesFile, dump_spaces, read_spaces
from memax_rl.runs.yaml_text import read_fields

# What of a run's configuration may be changed before it is resumed.
CHANGEABLE = (
    *("total_steps", "checkpoint_interval", "keep_every_n_steps", "eval_interval", "eval_episodes", "early_stopping"),
    *("tensorboard", "wandb", "on_divergence", "devices"),
)

# Which checkpoint: the newest, the best by evaluation, or that of an update.
Checkpoint = Literal["newest", "best"] | int


class Run:
    """Access to the files of a run folder."""

    def __init__(self, folder: str | Path, imports: Iterable[str] = (), trust: bool = False):
        self.folder = expanded(folder)
        self._imports, self._trust = tuple(imports), trust
        self.config_path = self.folder / "config.yaml"
        self.spaces_path = self.folder / "spaces.json"
        self.metrics_path = self.folder / "metrics.csv"
        self.evaluations_path = self.folder / "evaluations.csv"
        self.summary_path = self.folder / "summary.json"
        self.checkpoints = self.folder / "checkpoints"

    def __repr__(self) -> str:
        """Say what the run is and how far it came, from its files as they are; a damaged run has a repr too."""
        try:
            return f"Run({str(self.folder)!r}, {self._describe()})"
        except (ValueError, LookupError, TypeError, AttributeError, OSError, ArithmeticError) as error:
            return f"Run({str(self.folder)!r}, not readable: {cut(str(error))})"

    def _describe(self) -> str:
        fields = read_fields(self.config_path)
        network, first = fields["network"], int(fields["seed"])
        memory = "+".join([block["memory"] for block in network["blocks"]] or [network["memory"]])
        last = first + int(fields["num_seeds"]) - 1
        seeds = f"{first}" if first == last else f"{first}-{last}"
        if is_probe(fields):
            status = "finished" if self.summary_path.exists() else "unfinished"
            made = int(max(last_cells(self.metrics_path, "update"), default=0)) if self.metrics_path.exists() else 0
            whole = int(fields["total_updates"])
            return f"task={fields['task']!r}, memory={memory!r}, seeds={seeds}, updates={made:,} of {whole:,}, {status}"
        steps, total = self._last_steps(), int(fields["total_steps"])
        ended = self.summary_path.exists() and (steps >= total or bool(self.stopped()))
        status = "finished" if ended else "unfinished"
        return f"env={fields['env']!r}, memory={memory!r}, seeds={seeds}, steps={steps:,} of {total:,}, {status}"

    def _last_steps(self) -> int:
        """Return the most environment steps that a seed made; only the end of metrics.csv is read."""
        if not self.metrics_path.exists():
            return 0
        return int(max(last_cells(self.metrics_path, "env_steps"), default=0))

    @classmethod
    def create(cls, folder: str | Path, config: BaseModel) -> "Run":
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
            raise RunError(f"{cut(str(run.folder))} cannot be opened: {error.strerror}") from None
        if not is_run:
            raise RunError(f"{cut(str(run.folder))} is not a run folder: it has no config.yaml{run._runs_below()}")
        # A folder may be a stranger's, and a link may lead anywhere.
        tables = (run.metrics_path, run.evaluations_path)
        files = (run.config_path, run.spaces_path, *tables, run.summary_path, *run._checkpoint_files())
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
        fields = self._fields_of_agent()
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
            ValueError: If the configuration is wrong.
            RunError: If it is missing or damaged, or the run is that of a probe.
        """
        fields = self._fields_of_agent()
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

    def _fields_of_agent(self) -> dict[str, Any]:
        fields = self.fields()
        if self.is_probe():
            raise RunError(f"{self.folder} is the run of a probe, which has no agent; see `memax-rl probe --help`")
        return fields

    def is_probe(self) -> bool:
        """Return whether this is a supervised probe (`memax_rl.probes`). Raises `ValueError` as `fields` does."""
        return is_probe(self.fields())

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
            options = " ".join(f"--import {cut(module)}" for module in missing)
            raise RunError(
                f"the run {self.folder} was trained with {cut(', '.join(missing))}, which is not imported, because "
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
                    f"the run {self.folder} is in use by another process ({cut(file.read().strip())}); wait until it "
                    "ends, or end it"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield

    # Metrics

    def append_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Append rows to metrics.csv. The first call writes the header. Raises `RunError` if it cannot be written."""
        append_rows(self.metrics_path, rows)

    def metrics(self) -> list[dict[str, float]]:
        """Return the rows of metrics.csv; an empty cell is nan. Raises `RunError` if the file holds anything else."""
        return read_rows(self.metrics_path)

    def drop_metrics_after(self, update: int) -> None:
        """Forget the rows of updates later than `update`: they will be made, and logged, again.

        Raises:
            RunError: If the file is damaged, or ends before `update`.
        """
        drop_rows_after(self.metrics_path, update)

    def append_evaluations(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Append rows to evaluations.csv, which is written whole: it is short, and never cut short then.

        Raises:
            RunError: If the file is damaged or cannot be written.
        """
        write_rows(self.evaluations_path, [*self.evaluations(), *rows])

    def evaluations(self) -> list[dict[str, float]]:
        """Return the rows of evaluations.csv, one for each seed and evaluation during training.

        Raises:
            RunError: If the file is damaged.
        """
        rows = read_rows(self.evaluations_path)
        if rows and not {"update", "seed", "env_steps"} <= rows[0].keys():
            raise RunError(f"{self.evaluations_path} has no column seed or env_steps; restore the file, or delete it")
        return rows

    def drop_evaluations_after(self, update: int) -> None:
        """Forget the evaluations of updates later than `update`: they will be made again. Raises `RunError`."""
        rows = self.evaluations()
        kept = [row for row in rows if row["update"] <= update]
        if len(kept) < len(rows):
            write_rows(self.evaluations_path, kept)

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
        """Write summary.json. Raises `RunError` if it cannot be written."""
        try:
            write_atomically(self.summary_path, json_text(summary))
        except OSError as error:
            raise RunError(f"{self.summary_path} cannot be written: {error.strerror}") from None

    def _runs_below(self) -> str:
        """Say where a folder that is no run has some, as that of a study: the end of a message, or nothing."""
        if not self.folder.is_dir():
            return ""
        below = sorted(self.folder.glob("*/config.yaml")) or sorted(self.folder.glob("*/*/*/config.yaml"))
        if not below:
            return ""
        is_study = (self.folder / "study.yaml").is_file()
        return f"; {'it is a study, whose runs' if is_study else 'runs'} are below, such as {cut(str(below[0].parent))}"

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

    def save(
        self,
        update: int,
        state: PyTree,
        seconds: float,
        *,
        best: PyTree | None = None,
        keep: bool = False,
        stopped: str = "",
        sizes: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a state. Of the older checkpoints only those are left that were saved to be kept.

        Args:
            update: After which update this is.
            seconds: Trained so far.
            best: What `restore` returns for "best", if there is any: it is in the same file, so that no process that
                is killed leaves a state and a best that do not belong together.
            keep: Whether the checkpoint is left when there are newer ones.
            stopped: Why the training ends with this state before its last step, if it does.
            sizes: Settings of the agent that the configuration leaves open, as they were chosen when the run began.

        Raises:
            RunError: If it cannot be written; the last one is as it was.
        """
        path, kept = self.checkpoint_path(update), {}
        for saved in self.saved_updates():
            kept[saved] = self._is_kept(saved)
        is_new = update not in kept or (keep and not kept[update])
        if is_new or (stopped and self._about(update).get("stopped") != stopped):
            about = {"seconds": seconds, "config": read_fields(self.config_path), "has_best": best is not None}
            about |= {"kept": keep or kept.get(update, False), "stopped": stopped, "sizes": dict(sizes or {})}
            try:
                write_checkpoint(path, to_plain(state) | to_plain(best or {}, BEST), about)
            except OSError as error:
                raise RunError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from None
        for older, is_kept in kept.items():
            if older < update and not is_kept:
                self.checkpoint_path(older).unlink()

    def restore(self, like: PyTree, whole: bool = True, checkpoint: Checkpoint = "newest") -> tuple[PyTree, float]:
        """Return a checkpoint, in the structure of `like`, and the seconds trained so far.

        Args:
            like: Arrays or their shapes.
            whole: Whether the checkpoint must hold no others. Else only those of `like` are read.
            checkpoint: "newest"; "best", which has the field "network" of each seed as it was when the seed was
                evaluated best (`TrainConfig.eval_interval`); or the update of a checkpoint, of `saved_updates`.

        Raises:
            RunError: If there is no such checkpoint, it cannot be read, or it belongs to another configuration.
        """
        update = self._choose(checkpoint)
        path, prefix = self.checkpoint_path(update), BEST if checkpoint == "best" else ""
        try:
            arrays, about = read_checkpoint(path, expected_arrays(like, prefix), whole and not prefix)
            seconds, before = float(about["seconds"]), dict(about["config"])
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, CheckpointError) else "it does not say what it holds"
            raise RunError(f"the checkpoint {path} cannot be read: {cut(reason)}") from None
        self._check_unchanged(before)
        return from_plain(arrays, like, prefix), seconds

    def shapes(self, checkpoint: Checkpoint = "newest") -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Return shape and dtype of each array of a checkpoint, as `restore` names it, and read none.

        Raises:
            RunError: If there is no such checkpoint, or it cannot be read.
        """
        path, prefix = self.checkpoint_path(self._choose(checkpoint)), BEST if checkpoint == "best" else ""
        try:
            shapes = read_shapes(path)
        except CheckpointError as error:
            raise RunError(f"the checkpoint {path} cannot be read: {cut(str(error))}") from None
        # Those of the best have the prefix, and only they do.
        return {n.removeprefix(BEST): x for n, x in shapes.items() if n.startswith(BEST) == bool(prefix)}

    def restore_some(self, like: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, np.ndarray]:
        """Return arrays of a checkpoint by name, shaped as those in `like`; no other is read. Raises `RunError`."""
        path, prefix = self.checkpoint_path(self._choose(checkpoint)), BEST if checkpoint == "best" else ""
        expected = {prefix + name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in like.items()}
        try:
            arrays, _ = read_checkpoint(path, expected, whole=False)
        except CheckpointError as error:
            raise RunError(f"the checkpoint {path} cannot be read: {cut(str(error))}") from None
        return {name: arrays[prefix + name] for name in like}

    def _choose(self, checkpoint: Checkpoint) -> int:
        """Return the update whose file holds a checkpoint. The best of each seed is in the newest file."""
        saved = self.saved_updates()
        if not saved:
            raise RunError(f"{self.folder} has no checkpoint to continue from; start again with another --out")
        if checkpoint == "best" and not self.has_best():
            why = "none of its networks was evaluated while it trained; train with --eval-interval, or take the newest"
            if self.evaluations():
                why = "up to its newest none was evaluated with a return that is finite; take the newest"
            raise RunError(f"the run {self.folder} has no best checkpoint: {why}")
        if checkpoint in ("newest", "best"):
            return saved[-1]
        if checkpoint not in saved:
            raise RunError(
                f"checkpoint: expected newest, best or the update of one that the run {self.folder} holds "
                f"({cut(', '.join(map(str, saved)))}), got {cut(str(checkpoint))!r}"
            )
        return int(checkpoint)

    def has_best(self) -> bool:
        """Return whether the newest checkpoint holds a best one. Raises `RunError` if it cannot be read."""
        saved = self.saved_updates()
        return bool(saved) and self._about(saved[-1]).get("has_best") is True

    def stopped(self) -> str:
        """Return why the training ended before its last step, or an empty text.

        A change of `total_steps` or `early_stopping` in its configuration since lets it go on.

        Raises:
            RunError: If the newest checkpoint cannot be read.
        """
        saved = self.saved_updates()
        about = self._about(saved[-1]) if saved else {}
        reason, before, now = about.get("stopped"), about.get("config"), self.fields()
        if not isinstance(reason, str) or not isinstance(before, dict):
            return ""
        same = all(before.get(name) == now.get(name) for name in ("total_steps", "early_stopping"))
        return reason if same else ""

    def sizes(self) -> dict[str, Any]:
        """Return the settings of the agent that were chosen when the run began. Raises `RunError` as `stopped` does."""
        saved = self.saved_updates()
        sizes = self._about(saved[-1]).get("sizes") if saved else None
        return sizes if isinstance(sizes, dict) else {}

    def saved_devices(self) -> int:
        """Return on how many devices the newest checkpoint was made. Raises `RunError` as `stopped` does."""
        saved = self.saved_updates()
        config = self._about(saved[-1]).get("config") if saved else None
        devices = (config if isinstance(config, dict) else self.fields()).get("devices")
        return devices if isinstance(devices, int) else 1

    def change(self, **changed: int) -> None:
        """Write the `changed` fields into the run's configuration. Raises `RunError` if it cannot be written."""
        fields = self.fields() | changed
        try:
            write_atomically(self.config_path, yaml.safe_dump(fields, sort_keys=False))
        except OSError as error:
            raise RunError(f"{self.config_path} cannot be written: {error.strerror}") from None

    def _is_kept(self, update: int) -> bool:
        try:
            return self._about(update).get("kept") is True
        except RunError:
            # Nothing says that a damaged one may go.
            return True

    def _about(self, update: int) -> dict[str, Any]:
        path = self.checkpoint_path(update)
        try:
            return dict(read_about(path))
        except (CheckpointError, TypeError, ValueError) as error:
            raise RunError(f"the checkpoint {path} cannot be read: {cut(str(error))}") from None

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
