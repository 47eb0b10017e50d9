"""The tables of supervised probes: scores by memory and task, and by length. Files alone are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memax_rl.runs.config import is_probe
from memax_rl.runs.run import Run, RunError
from memax_rl.studies.results import find_runs, read_json


def finished_probes(*folders: str | Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return configuration and summary of each finished probe at or under `folders`. Raises `RunError`."""
    found = []
    for path in find_runs(*folders):
        run = Run.open(path)
        fields, summary = run.fields(), read_json(run.summary_path)
        if is_probe(fields) and summary:
            found.append((fields, summary))
    return found


def _task(fields: Mapping[str, Any]) -> str:
    return f"{fields['task']} {fields['task_options']['length']}"


def _memory(fields: Mapping[str, Any]) -> str:
    return "+".join([block["memory"] for block in fields["network"]["blocks"]] or [fields["network"]["memory"]])


def scores(probes: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """Return the scores of all seeds by memory and task.

    Args:
        probes: Configuration and summary of each run.

    Raises:
        RunError: For a damaged file.
    """
    found: dict[str, dict[str, list[float]]] = {}
    try:
        for fields, summary in probes:
            own = found.setdefault(_memory(fields), {}).setdefault(_task(fields), [])
            own += [float(value) for value in summary["evaluation"]["mean_return_per_seed"]]
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(f"the summary.json or config.yaml of a probe is damaged ({error}); restore it") from None
    return found


def score_table(*folders: str | Path) -> Any:
    """Return the mean score of each memory on each task as a table of rich's, or None where no probe has finished."""
    from rich.table import Table
    from rich.text import Text

    probes = finished_probes(*folders)
    if not probes:
        return None
    chances = {_task(fields): float(summary["evaluation"]["chance"]) for fields, summary in probes}
    found = scores(probes)
    caption = "Mean over seeds, with lowest and highest where there are more."
    table = Table(title="Scores: 1 is all right", caption=caption)
    for column in ("memory", *chances):
        table.add_column(Text(column), justify="left" if column == "memory" else "right")

    def mean(own: Mapping[str, list[float]]) -> float:
        return float(np.mean([float(np.mean(own.get(task) or chance)) for task, chance in chances.items()]))

    for memory, own in sorted(found.items(), key=lambda item: -mean(item[1])):
        table.add_row(memory, *(_cell(own.get(task, [])) for task in chances))
    table.add_row("chance", *(f"{chance:.3f}" for chance in chances.values()), style="dim")
    return table


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    text = f"{np.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"


def length_table(*folders: str | Path) -> Any:
    """Return scores and norms of the state at other lengths as a table of rich's, or None where none were measured."""
    from rich.table import Table
    from rich.text import Text

    probes = [(fields, summary) for fields, summary in finished_probes(*folders) if summary.get("lengths")]
    if not probes:
        return None
    times = sorted({row["times"] for _, summary in probes for row in summary["lengths"]})
    table = Table(
        title="At other lengths than the trained one: score, and norm of the last block's state at the end",
        caption="Mean over the seeds of a run. A norm that grows with the length is a state that leaves what it knows.",
    )
    for column in ("task", "memory", "seed", *(f"x {n}" for n in times)):
        table.add_column(Text(column), justify="right" if column.startswith("x ") else "left")
    for fields, summary in probes:
        by = {row["times"]: row for row in summary["lengths"]}
        shown = [
            f"{np.mean(by[n]['score_per_seed']):.3f}  {np.mean([s[-1][-1] for s in by[n]['state_norm_per_seed']]):.3g}"
            if n in by and by[n]["seeds"]
            else "–"
            for n in times
        ]
        table.add_row(_task(fields), _memory(fields), str(fields["seed"]), *shown)
    return table
