"""The parts of a report: what is said, drawn and tabulated over all tasks, and of each."""

import collections
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from memax_rl.studies import plots, tables
from memax_rl.studies.adaptation import WIPED, Adaptation
from memax_rl.studies.analysis import Comparison, Frame, Task, seeds_and_episodes, span
from memax_rl.studies.comparison import sentence
from memax_rl.studies.heat import Heat, heat_map
from memax_rl.studies.plots import Intervals, Plot
from memax_rl.studies.tables import Table


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    paragraphs: Sequence[str]
    plots: Sequence[Plot | Intervals | Heat]
    tables: Sequence[Table]


def heading(comparison: Comparison) -> tuple[str, str]:
    """Return the title of a report and what it is about, in a sentence or two."""
    memories, tasks = len(comparison.labels), len(comparison.tasks)
    title = f"{memories} memor{'ies' if memories != 1 else 'y'} on {span([tasks], 'task')}"
    rows: Frame = pd.concat([task.rows for task in comparison.tasks])
    scored = int(rows["scored"].sum())
    text = (
        f"{span([len(rows)], 'seed')} in {span([rows['run'].nunique()], 'run folder')}; {scored} finished and evaluated"
    )
    if scored:
        text += f"; a memory and task: {seeds_and_episodes([task for task in comparison.tasks if task.scores])}"
    return title, text + "."


def sections(comparison: Comparison, adaptations: Sequence[Adaptation] = ()) -> list[Section]:
    """Return the report's sections. The names of its plots and tables are all different."""
    found = [_overall(comparison)] if comparison.complete else []
    if (heat := heat_map(comparison)) is not None:
        found.append(Section("Memories by task", (), (heat,), ()))
    for task in comparison.tasks:
        found.append(_of_task(comparison, task, [a for a in adaptations if a.task == task.name]))
    if len(comparison.left_out):
        found.append(Section("Seeds left out", (), (), (tables.left_out_table(comparison),)))
    return _with_own_names(found)


def _overall(comparison: Comparison) -> Section:
    drawn: list[Plot | Intervals] = []
    shown: list[Table] = []
    said = []
    # Names with settings have commas of their own.
    lacking: dict[str, list[str]] = {}
    for label, tasks in comparison.incomplete.items():
        lacking.setdefault("; ".join(tasks), []).append(label)
    for tasks, labels in lacking.items():
        said.append(f"Left out of what follows, for want of a score on {tasks}: {'; '.join(labels)}.")
    compared = {task.name for task in comparison.compared}
    alone = [task.name for task in comparison.tasks if task.scores and task.name not in compared]
    if alone:
        said.append(f"Left out, because one memory alone has scores there: {'; '.join(alone)}.")
    without = [task.name for task in comparison.compared if not task.is_normalized]
    if without and not comparison.over_tasks:
        said.append(
            "There are no normalized scores, for which chance and best known are needed: give them by --scores."
        )
    elif without:
        said.append(f"Normalized scores leave out, because chance or best known are not known: {'; '.join(without)}.")
    if comparison.over_tasks:
        drawn += [plots.aggregates(comparison), plots.profiles(comparison)]
        shown.append(tables.aggregate_table(comparison))
    if len(comparison.complete) > 1:
        shown.append(tables.rank_table(comparison))
        if len(comparison.complete) <= tables.MOST_PAIRED:
            shown.append(tables.improvement_table(comparison))
        else:
            said.append(f"Pairs of more than {tables.MOST_PAIRED} memories are not tabulated.")
    return Section("Over all tasks", said, drawn, shown)


def _of_task(comparison: Comparison, task: Task, adaptations: Sequence[Adaptation]) -> Section:
    said = [f"{sentence(task.scores)}." if task.scores else "No seed is finished and evaluated."]
    if task.doubled:
        said.append(doubled(task))
    drawn: list[Plot | Intervals] = [plots.learning_curves(comparison, task)] if task.curves else []
    shown = [tables.score_table(task)] if task.scores else []
    shown.append(tables.cost_table(task))
    for adaptation in adaptations:
        drawn += [plots.adaptation_curves(comparison, adaptation)]
        drawn += [plots.adaptation_curves(comparison, adaptation, WIPED)]
        shown.append(tables.adaptation_table(adaptation))
    return Section(task.name, said, drawn, shown)


def doubled(task: Task) -> str:
    """Return in words that runs have the settings and the seed of others."""
    return f"{task.doubled} of the seeds repeat the settings and seed of another; each counts as a run of its own."


def _with_own_names(found: Sequence[Section]) -> list[Section]:
    seen: collections.Counter[Any] = collections.Counter()

    def own(thing: Any) -> Any:
        # A table and a plot may share a name: the one is a label in LaTeX, the other a file.
        seen[key := (isinstance(thing, Table), thing.name)] += 1
        return thing if seen[key] == 1 else dataclasses.replace(thing, name=f"{thing.name}-{seen[key]}")

    return [dataclasses.replace(s, plots=[own(p) for p in s.plots], tables=[own(t) for t in s.tables]) for s in found]
