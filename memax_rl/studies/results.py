"""The results of many run folders as tables. Files alone are read: no environment is built, nothing is compiled."""

import io
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memax_rl.paths import expanded
from memax_rl.runs.config import is_probe
from memax_rl.runs.run import Run, RunError

_LARGEST_SUMMARY = 50_000_000
# Returns beyond it are damage: a reward larger than 1e18 ends a run.
_LARGEST = 1e100
_USAGE = ("parameters", "update_bytes", "peak_process_bytes", "peak_device_bytes")
# No run has more seeds.
_MOST_SEEDS = 4096
# What every table of results has; its other columns are settings that vary between the runs.
COLUMNS = (
    *("run", "env", "memory", "agent", "seed", "status", "final_return", "best_return", "steps", "wall_clock"),
    *("episodes", "chance", "best_known", *_USAGE, "device"),
)
_PARTS = ("env", "agent", "task", "seed", "num_seeds", "network.memory")


def find_runs(*folders: str | Path) -> list[Path]:
    """Return the run folders at or under `folders`, in order. Links are not followed.

    Raises:
        RunError: If a folder does not exist, or no run is found.
    """
    found: set[Path] = set()
    for folder in map(expanded, folders):
        if not folder.is_dir():
            raise RunError(f"{folder} is no folder; name a study's folder or run folders")
        for path, names, files in os.walk(folder, followlinks=False):
            if "config.yaml" in files:
                found.add(Path(path).resolve())
                names.clear()
    if not found:
        raise RunError(
            f"no run folder (one with a config.yaml) is under {', '.join(map(str, folders)) or 'nothing'}; name others"
        )
    return sorted(found)


def results(*folders: str | Path) -> pd.DataFrame:
    """Return one row a run and seed of all run folders at or under `folders`.

    The columns are run, env, memory, agent, seed, the configuration's fields that vary between runs, status
    ("finished", "unfinished" or "diverged"), `final_return` (the mean of the evaluation's episodes; nan where there is
    none), `best_return` (the highest mean of an update's episodes in training), steps, wall_clock (seconds of the
    whole run, its other seeds included), episodes of the evaluation, chance, best_known, parameters (of one seed),
    update_bytes, peak_process_bytes and peak_device_bytes (of the whole run, see docs/runs.md), and the device.

    Raises:
        RunError: If no run is found, or a file of one is damaged.
    """
    return _results(_read(folders))


def _results(read: Sequence["_Read"]) -> pd.DataFrame:
    rows, configs = [], []
    for run, fields, table in read:
        own = list(_rows(run, fields, table))
        rows += own
        configs += [_flat(fields)] * len(own)
    varying = sorted(_varying(configs) - set(_PARTS))
    return pd.DataFrame([row | {name: c.get(name) for name in varying} for row, c in zip(rows, configs, strict=True)])


def curves(*folders: str | Path) -> pd.DataFrame:
    """Return one row an update: run, env, memory, agent, seed, and the columns of metrics.csv.

    Raises:
        RunError: If no run is found, or a file of one is damaged.
    """
    return _curves(_read(folders))


def results_and_curves(*folders: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what `results` and `curves` return; the files are read once.

    Raises:
        RunError: If no run is found, or a file of one is damaged.
    """
    read = _read(folders)
    return _results(read), _curves(read)


def _curves(read: Sequence["_Read"]) -> pd.DataFrame:
    tables = []
    for run, fields, metrics in read:
        about = pd.DataFrame({"run": str(run.folder)} | _names(fields, run), index=metrics.index)
        tables.append(pd.concat([about, metrics.drop(columns=[c for c in about if c in metrics])], axis=1))
    drawn = pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)
    counts = ["update", "seed", "env_steps"]
    return drawn.astype(dict.fromkeys(counts, np.int64))


_Read = tuple[Run, dict[str, Any], pd.DataFrame]


def _read(folders: Sequence[str | Path]) -> list[_Read]:
    runs = [Run.open(folder) for folder in find_runs(*folders)]
    return [(run, run.fields(), _metrics(run)) for run in runs]


def _names(fields: dict[str, Any], run: Run) -> dict[str, str]:
    try:
        network = fields["network"]
        memory = "+".join([block["memory"] for block in network["blocks"]] or [network["memory"]])
        if is_probe(fields):
            return {"env": f"probe/{fields['task']}", "memory": memory, "agent": "probe"}
        return {"env": str(fields["env"]), "memory": memory, "agent": str(fields["agent"])}
    except (LookupError, TypeError):
        raise RunError(f"{run.config_path} is not the complete configuration of a run; restore the file") from None


def _rows(run: Run, fields: dict[str, Any], table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    names, summary = _names(fields, run), _summary(run)
    try:
        evaluation = summary.get("evaluation", {})
        means = dict(zip(evaluation.get("seeds", []), evaluation.get("mean_return_per_seed", []), strict=True))
        lost = set(summary.get("diverged_seeds", [])) | set(table["seed"][table["finite"] == 0].astype(int))
        first, count = int(fields["seed"]), int(fields["num_seeds"])
        if count > _MOST_SEEDS:
            raise ValueError(f"num_seeds is {count}")
        for seed in range(first, first + count):
            own = table[table["seed"] == seed]
            steps = int(max(own["env_steps"].tolist(), default=0))
            # A probe has nothing that ends it before its last update.
            total = 0 if is_probe(fields) else int(fields["total_steps"])
            ended = bool(summary) and (steps >= total or "stopped" in summary)
            yield {"run": str(run.folder), **names, "seed": seed} | {
                "status": "diverged" if seed in lost else "finished" if ended else "unfinished",
                "final_return": number(means.get(seed)),
                "best_return": _largest(own["episode/return"]),
                "steps": steps,
                "wall_clock": float(summary.get("seconds", _largest(own["seconds"]))),
                "episodes": int(evaluation.get("episodes_per_seed", 0)),
                "chance": number(evaluation.get("chance")),
                "best_known": number(evaluation.get("best")),
                **{name: number(summary.get(name)) for name in _USAGE},
                "device": str(summary.get("device", "")),
            }
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise RunError(f"the run {run.folder} is damaged ({error}); restore its files, or move it away") from None


def _largest(column: Any) -> float:
    return float(column.max())


def number(value: Any) -> float:
    """Return a `value` as a number, nan for None.

    Raises:
        ValueError: For one that no run reaches, whose square would overflow.
    """
    found = math.nan if value is None else float(value)
    if _LARGEST < abs(found) < math.inf:
        raise ValueError(f"it holds {found:g}, which no run reaches")
    return found


def _summary(run: Run) -> dict[str, Any]:
    return read_json(run.summary_path)


def read_json(path: Path) -> dict[str, Any]:
    """Return what a run's JSON file holds, nothing where there is no file. A link is not followed.

    Raises:
        RunError: If it cannot be read, or holds anything but keys and values.
    """
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST_SUMMARY:
            raise RunError(f"{path} is a link, no plain file, or larger than {_LARGEST_SUMMARY:,} bytes; move it away")
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except RunError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} must hold keys and values, got {type(content).__name__}")
    return content


def _metrics(run: Run) -> pd.DataFrame:
    needed = ["update", "seed", "seconds", "env_steps", "episode/return", "finite"]
    if not run.metrics_path.exists():
        return pd.DataFrame({name: np.zeros(0) for name in needed})
    text = run.metrics_path.read_bytes()
    rows = run.metrics_path
    try:
        # A line that is not written to its end is left out.
        table = pd.read_csv(io.BytesIO(text[: text.rfind(b"\n") + 1]), dtype=float)
    except ValueError as error:
        raise RunError(f"{rows} is damaged: {error}") from None
    if missing := [name for name in needed if name not in table]:
        raise RunError(f"{rows} lacks the columns {', '.join(missing)}; restore the file")
    for name in ("update", "seed", "env_steps"):
        _check_cells(rows, table, name, np.abs(table[name].to_numpy()) < 2.0**62)
    returns = table["episode/return"].to_numpy()
    _check_cells(rows, table, "episode/return", (np.abs(returns) < _LARGEST) | ~np.isfinite(returns))
    return table


def _check_cells(path: Path, table: Any, name: str, sound: np.ndarray) -> None:
    if not sound.all():
        held = table[name].to_numpy()[~sound][0]
        raise RunError(f"{path} is damaged: column {name} holds {held:g}; restore the file")


def _flat(fields: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str | int | float | None) else json.dumps(value)
    return flat


def _varying(configs: list[dict[str, Any]]) -> set[str]:
    names = {name for config in configs for name in config}
    return {name for name in names if len({repr(config.get(name)) for config in configs}) > 1}
