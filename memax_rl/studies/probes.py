"""The tables of supervised probes: scores by memory and task, and by length. Files alone are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memax_rl.runs.run import Run, RunError
from memax_rl.studies.analysis import Frame, with_labels
from memax_rl.studies.results import number, read_json, results


class Lengths(NamedTuple):
    """What a probe reached at so many times its trained length.

    Attributes:
        scores: Of each seed that did not diverge.
        norms: Of each of these, that of the last block's state after each trained length.
    """

    scores: list[float]
    norms: list[list[float]]


class Probe(NamedTuple):
    """A finished probe.

    Attributes:
        task: Its name and length, and settings that other probes of the same task have differently.
        memory: Its name, and settings that other probes of the same memory and task have differently.
        seed: The first seed.
        scores: Of each seed that did not diverge.
        seeds: How many there were.
        chance: The score of a guess.
        lengths: By times the trained length.
    """

    task: str
    memory: str
    seed: int
    scores: list[float]
    seeds: int
    chance: float
    lengths: dict[int, Lengths]


def finished_probes(*folders: str | Path) -> list[Probe]:
    """Return the finished probes at or under `folders`, in order.

    Raises:
        RunError: If there is no run, or a file of one is damaged.
    """
    rows: Frame = results(*folders)
    rows = rows[rows["agent"] == "probe"]
    if not len(rows):
        return []
    names = with_labels(rows).drop_duplicates("run").set_index("run")[["task", "label"]]
    found = []
    for path, (task, label) in zip(names.index, names.itertuples(index=False), strict=True):
        run = Run.open(path)
        summary = read_json(run.summary_path)
        if summary:
            try:
                found.append(_probe(str(task), str(label), run.fields(), summary))
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise RunError(f"summary.json or config.yaml of {path} is damaged ({error}); restore it") from None
    return found


def _probe(task: str, label: str, fields: Mapping[str, Any], summary: Mapping[str, Any]) -> Probe:
    _, *differing = task.split(", ")
    length = fields["task_options"]["length"]
    name = ", ".join([f"{fields['task']} {length}", *(part for part in differing if part != f"length={length}")])
    evaluation = summary["evaluation"]
    scores = [number(value) for value in evaluation["mean_return_per_seed"]]
    lengths = {}
    for row in summary.get("lengths", []):
        norms = [[number(blocks[-1]) for blocks in seed] for seed in row["state_norm_per_seed"]]
        lengths[int(row["times"])] = Lengths([number(score) for score in row["score_per_seed"]], norms)
    return Probe(
        name, label, int(fields["seed"]), scores, int(fields["num_seeds"]), float(evaluation["chance"]), lengths
    )


def by_memory(probes: Sequence[Probe]) -> dict[str, dict[str, list[Probe]]]:
    """Return the probes by memory and task, the memory with the highest mean score over the tasks first."""
    chances = chance_levels(probes)
    found: dict[str, dict[str, list[Probe]]] = {}
    for probe in probes:
        found.setdefault(probe.memory, {}).setdefault(probe.task, []).append(probe)

    def mean(own: Mapping[str, Sequence[Probe]]) -> float:
        # Where a task has no score, that of a guess.
        return float(np.mean([np.mean(scores_of(own.get(task, ())) or chance) for task, chance in chances.items()]))

    return {memory: found[memory] for memory in sorted(found, key=lambda memory: -mean(found[memory]))}


def chance_levels(probes: Sequence[Probe]) -> dict[str, float]:
    """Return the score of a guess on each task of some `probes`."""
    return {probe.task: probe.chance for probe in probes}


def scores_of(probes: Sequence[Probe]) -> list[float]:
    """Return the scores of all seeds of some `probes`."""
    return [score for probe in probes for score in probe.scores]


def score_table(*folders: str | Path) -> Any:
    """Return the mean score of each memory on each task as a table of rich's, or None where no probe has finished."""
    from rich.table import Table
    from rich.text import Text

    probes = finished_probes(*folders)
    if not probes:
        return None
    chances = chance_levels(probes)
    caption = "Mean over seeds, with lowest and highest where there are more."
    if any(len(probe.scores) < probe.seeds for probe in probes):
        caption += " Seeds that diverged count in no mean."
    table = Table(title="Scores: 1 is all right", caption=caption)
    for column in ("memory", *chances):
        table.add_column(Text(column), justify="left" if column == "memory" else "right")
    for memory, own in by_memory(probes).items():
        table.add_row(Text(memory), *(_cell(own.get(task, ())) for task in chances))
    table.add_row("chance", *(f"{chance:.3f}" for chance in chances.values()), style="dim")
    return table


def _cell(probes: Sequence[Probe]) -> str:
    values, seeds = scores_of(probes), sum(probe.seeds for probe in probes)
    if not seeds:
        return "–"
    if not values:
        return "diverged"
    text = f"{np.mean(values):.3f}"
    text += f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return text if len(values) == seeds else f"{text}, {len(values)} of {seeds} seeds"


def length_table(*folders: str | Path) -> Any:
    """Return scores and norms of the state at other lengths as a table of rich's, or None where none were measured."""
    from rich.table import Table
    from rich.text import Text

    probes = [probe for probe in finished_probes(*folders) if probe.lengths]
    if not probes:
        return None
    times = sorted({times for probe in probes for times in probe.lengths})
    table = Table(
        title="At other lengths than the trained one: score, and norm of the last block's state at the end",
        caption="Mean over the seeds of a run. A norm that grows with the length is a state that leaves what it knows.",
    )
    for column in ("task", "memory", "seed", *(f"x {n}" for n in times)):
        table.add_column(Text(column), justify="right" if column.startswith("x ") else "left")
    for probe in probes:
        shown = (_length_cell(probe.lengths.get(n, Lengths([], []))) for n in times)
        table.add_row(Text(probe.task), Text(probe.memory), str(probe.seed), *shown)
    return table


def _length_cell(reached: Lengths) -> str:
    if not reached.scores:
        return "–"
    return f"{np.mean(reached.scores):.3f}  {np.mean([norms[-1] for norms in reached.norms]):.3g}"
