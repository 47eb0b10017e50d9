"""A run is a folder: config.yaml, metrics.csv, checkpoints/, summary.json. Nothing in it is ever half written."""

import csv
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from memax_rl.files import write_atomically
from memax_rl.training.config import TrainConfig, dump_config, load_config


class RunError(ValueError):
    """A run folder cannot be used as asked. The message says what to do."""


class Run:
    """Access to the files of a run folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.config_path = self.folder / "config.yaml"
        self.metrics_path = self.folder / "metrics.csv"
        self.summary_path = self.folder / "summary.json"
        self.checkpoints = self.folder / "checkpoints"

    @classmethod
    def create(cls, folder: str | Path, config: TrainConfig) -> "Run":
        """Make a new run folder. Raises `RunError` if there is something in the folder already."""
        run = cls(folder)
        if run.folder.exists() and (not run.folder.is_dir() or any(run.folder.iterdir())):
            raise RunError(
                f"the run folder {run.folder} exists; choose another with --out, delete it, "
                f"or continue it with --resume {run.folder}"
            )
        run.checkpoints.mkdir(parents=True)
        write_atomically(run.config_path, dump_config(config))
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Return an existing run. Raises `RunError` if the folder is not one."""
        run = cls(folder)
        if not run.config_path.is_file():
            raise RunError(f"{run.folder} is not a run folder: it has no config.yaml")
        return run

    def config(self) -> TrainConfig:
        """Return the run's configuration."""
        return load_config(self.config_path)

    # Metrics

    def append_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Append rows to metrics.csv. The first call writes the header."""
        if not rows:
            return
        buffer = io.StringIO()
        new = not self.metrics_path.exists()
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows([{k: _cell(v) for k, v in row.items()} for row in rows])
        if new:
            write_atomically(self.metrics_path, buffer.getvalue())
        else:
            with self.metrics_path.open("a") as file:
                file.write(buffer.getvalue())

    def metrics(self) -> list[dict[str, float]]:
        """Return the rows of metrics.csv; an empty cell is nan."""
        if not self.metrics_path.exists():
            return []
        with self.metrics_path.open() as file:
            return [{k: float(v) if v else math.nan for k, v in row.items()} for row in csv.DictReader(file)]

    def drop_metrics_after(self, update: int) -> None:
        """Forget the rows of updates later than `update`: they will be made, and logged, again."""
        if self.metrics_path.exists():
            with self.metrics_path.open() as file:
                header, *lines = file.read().splitlines()
            column = header.split(",").index("update")
            # A line cut short by a kill has too few cells to tell its update; it is the last one, and goes too.
            whole = [line for line in lines if line.count(",") == header.count(",")]
            kept = [line for line in whole if float(line.split(",")[column]) <= update]
            write_atomically(self.metrics_path, "\n".join([header, *kept]) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.summary_path, json.dumps(summary, indent=2, allow_nan=True) + "\n")

    # Checkpoints

    def saved_updates(self) -> list[int]:
        """Return the update numbers of the complete checkpoints, in order."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit())

    def save(self, update: int, state: PyTree, seconds: float) -> None:
        """Save a state. Only the newest complete checkpoint is kept."""
        import orbax.checkpoint as ocp

        path = (self.checkpoints / str(update)).absolute()
        if not path.exists():
            content = {"state": _to_plain(state), "seconds": np.asarray(seconds)}
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, content)
        for older in self.saved_updates():
            if older < update:
                shutil.rmtree(self.checkpoints / str(older))

    def restore(self, like: PyTree) -> tuple[PyTree, float]:
        """Return the newest checkpoint, in the structure of `like`, and the seconds trained so far.

        **Raises:** `RunError` if there is none, it cannot be read, or it belongs to another configuration.
        """
        import orbax.checkpoint as ocp

        saved = self.saved_updates()
        if not saved:
            raise RunError(f"{self.folder} has no checkpoint to continue from; start again with another --out")
        path = (self.checkpoints / str(saved[-1])).absolute()
        want = {"state": _to_plain(like), "seconds": np.asarray(0.0)}
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                content = checkpointer.restore(path)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"the checkpoint {path} cannot be read, it may be cut short or damaged: {reason}") from None
        _check_same(path, content, want)
        return _from_plain(content["state"], like), float(content["seconds"])


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _to_plain(state: PyTree) -> dict[str, Any]:
    """Return a flat dict from path to plain array; random keys as their bits."""
    leaves = jax.tree.leaves_with_path(state)
    return {_name(path): np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for path, leaf in leaves}


def _from_plain(plain: Mapping[str, Any], like: PyTree) -> PyTree:
    def leaf(path, old):
        new = jnp.asarray(plain[_name(path)])
        return jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if _is_key(old) else new

    return jax.tree.map_with_path(leaf, like)


def _check_same(path: Path, content: Any, want: Any) -> None:
    """Raise `RunError` unless a checkpoint holds arrays of the names, shapes and dtypes that are expected."""

    def shapes(tree):
        try:
            return {name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in tree["state"].items()}
        except (KeyError, TypeError, AttributeError):
            return {}

    got, expected = shapes(content), shapes(want)
    for name in sorted(got.keys() ^ expected.keys()):
        raise RunError(
            f"the checkpoint {path} is from another configuration: {name} is only in "
            f"{'the checkpoint' if name in got else 'the configuration'}"
        )
    for name, shape in expected.items():
        if got[name] != shape:
            raise RunError(
                f"the checkpoint {path} is from another configuration: {name} has shape {list(got[name][0])} and dtype "
                f"{got[name][1]}, expected {list(shape[0])} and {shape[1]}"
            )
