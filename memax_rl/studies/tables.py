"""The tables of a comparison, for the terminal, HTML, Markdown and LaTeX."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from memax_rl.studies.adaptation import AGENT, Adaptation
from memax_rl.studies.analysis import WINDOW, Comparison, Task, seeds_and_episodes, span
from memax_rl.studies.comparison import STATISTICS, estimate, improvement, p_values

# Probabilities of improvement are a square of as many rows and columns; a larger one is not readable.
MOST_PAIRED = 16
_INTERVALS = "Brackets: 95 % intervals over seeds"


@dataclass(frozen=True)
class Cell:
    """A text, what it is sorted by, and whether it stands out."""

    text: str
    key: float | str = math.nan
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first column holds names. `caption` is one paragraph of plain text."""

    name: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def _name(label: str) -> Cell:
    return Cell(label, label)


def _count(value: float) -> Cell:
    return Cell(f"{value:,.0f}" if math.isfinite(value) else "–", value)


def fixed(value: float, digits: int) -> str:
    """Return a number with so many decimals, never as -0."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _interval(entry: dict[str, float], strong: bool = False, digits: int = 3) -> Cell:
    text = fixed(entry["value"], digits)
    if math.isfinite(entry["low"]):
        text += f" [{fixed(entry['low'], digits)}, {fixed(entry['high'], digits)}]"
    return Cell(text, entry["value"], strong)


def _digits(values: Sequence[np.ndarray]) -> int:
    """Return how many decimals to show: about four digits of the largest value."""
    largest = max((float(np.abs(v).max()) for v in values), default=0.0)
    return 3 - min(3, max(0, math.floor(math.log10(largest)))) if largest > 0 else 3


def _median_of(values: Iterable[float], form: str = ",.0f", scale: float = 1.0) -> Cell:
    """Return the median, with the lowest and highest value where they differ in what is shown."""
    known = [v / scale for v in values if math.isfinite(v)]
    if not known:
        return Cell("–")
    middle, low, high = (format(float(f(known)), form) for f in (np.median, min, max))
    return Cell(middle if low == high else f"{middle} ({low} to {high})", float(np.median(known)))


def score_table(task: Task) -> Table:
    """Return the scores of a task."""
    best = next(iter(task.scores), None)
    values = p_values(task.scores)
    columns = ["memory", "seeds", "mean", "interquartile mean", "median"]
    columns += ["normalized mean", "optimality gap"] if task.is_normalized else []
    digits, rows = _digits(list(task.scores.values())), []
    for label, scores in task.scores.items():
        p = values.get((str(best), label), values.get((label, str(best)), 1.0))
        mean = estimate([scores], "mean")
        cells = [_name(label), _count(len(scores)), _interval(mean, label == best or p >= 0.05, digits)]
        cells += [_interval(estimate([scores], "iqm"), digits=digits)]
        cells += [Cell(fixed(float(np.median(scores)), digits), float(np.median(scores)))]
        if task.is_normalized:
            cells.append(_interval({key: task.normalized(value) for key, value in mean.items()}))
            cells.append(_interval(estimate([task.normalized(scores)], "optimality_gap")))
        rows.append(cells)
    known = (
        f"Normalized: 0 is chance ({task.chance:g}), 1 the best known ({task.best:g})."
        if task.is_normalized
        else "Returns are not normalized: chance and best known are not known."
    )
    caption = (
        f"Mean return of {span_of(task, 'episodes')} evaluation episodes a seed; statistics over seeds. {_INTERVALS}. "
        "Bold: the best mean, and those that cannot be told apart from it (Welch's test, corrected after Holm, 5 %). "
        f"{known}"
    )
    return Table(f"scores-{slug(task.name)}", f"{task.name}: returns", caption, columns, rows)


def span_of(task: Task, column: str) -> str:
    """Return the values of a column of a task's scored runs, as "3" or "1 to 5"."""
    return span(int(n) for n in task.rows[column][task.rows["scored"]])


def cost_table(task: Task) -> Table:
    """Return what the runs of a task took: steps to a level, time, parameters and memory."""
    columns = ["memory", *(f"steps to {level.value:.3g}" for level in task.levels), "seconds", "steps a second"]
    columns += ["parameters", "update, MiB", "process peak, MiB", "device peak, MiB"]
    rows = []
    for label, runs in task.rows.groupby("label", sort=False):
        cells = [_name(str(label))]
        for level in task.levels:
            cells.append(_steps(level.steps.get(str(label), np.zeros(0))))
        # The seeds of one run folder share its time and memory.
        one = runs.drop_duplicates("run")
        done = runs.groupby("run")["steps"].sum() / runs.groupby("run")["wall_clock"].max().replace(0, np.nan)
        cells += [_median_of(one["wall_clock"]), _median_of(done), _median_of(one["parameters"])]
        for name in ("update_bytes", "peak_process_bytes", "peak_device_bytes"):
            cells.append(_median_of(one[name], ",.1f" if name == "update_bytes" else ",.0f", 2**20))
        rows.append(cells)
    kept = [i for i, name in enumerate(columns) if "MiB" not in name or any(row[i].text != "–" for row in rows)]
    levels = "; ".join(f"{level.value:.3g} is {level.name}" for level in task.levels)
    devices = ", ".join(sorted({str(device) for device in task.rows["device"] if device})) or "an unknown device"
    caption = (
        "Medians over runs, with the lowest and the highest where they differ. Steps: until the mean of "
        f"{WINDOW} updates' training returns is that high{f' ({levels})' if levels else ''}. Seconds are of the wall "
        f"clock, compilation included, on {devices}; runs side by side slow each other. Update: what the compiled "
        "update takes."
    )
    return Table(
        f"cost-{slug(task.name)}",
        f"{task.name}: what it takes",
        caption,
        [columns[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
    )


def _steps(steps: np.ndarray) -> Cell:
    if not len(steps):
        return Cell("–", math.inf)
    reached = steps[np.isfinite(steps)]
    of = f"{len(reached)} of {len(steps)}"
    # The runs that never reach it count: the median is unknown where they are half or more.
    ranked = np.sort(steps)
    middle = (ranked[(len(steps) - 1) // 2] + ranked[len(steps) // 2]) / 2
    text = f"{middle:,.0f} ({of})" if math.isfinite(middle) else f"not reached ({of})"
    return Cell(text, float(middle))


def aggregate_table(comparison: Comparison) -> Table:
    """Return the statistics of normalized scores over tasks."""
    columns = ["memory", "interquartile mean", "mean", "median", "optimality gap"]
    rows = []
    for label, scores in comparison.over_tasks.items():
        found = {name: estimate(scores, name) for name in STATISTICS}
        rows.append([_name(label), *(_interval(found[name]) for name in ("iqm", "mean", "median", "optimality_gap"))])
    rows.sort(key=lambda row: -float(row[1].key))
    tasks = comparison.normalized
    caption = (
        f"Scores of runs, 0 for chance and 1 for the best known, over {span([len(tasks)], 'task')} "
        f"({', '.join(task.name for task in tasks)}); {seeds_and_episodes(tasks)}. The median is over the tasks' "
        f"means. {_INTERVALS}, by a bootstrap stratified by task. The optimality gap is how far scores stay below 1: "
        "less is better."
    )
    return Table("aggregate", "Normalized scores over tasks", caption, columns, rows)


def rank_table(comparison: Comparison) -> Table:
    """Return the ranking over tasks."""
    rows = []
    for label in comparison.complete:
        rank = comparison.ranks[label]
        first = "–" if math.isnan(rank["first"]) else f"{100 * rank['first']:.0f} %"
        rows.append([_name(label), _interval(rank, digits=2), Cell(first, rank["first"])])
    caption = (
        f"Rank by the mean score, 1 the best, the mean over {span([len(comparison.compared)], 'task')}; equal means "
        "share a rank. Brackets: 95 % intervals of the rank, from the uncertainty of the means over seeds. Chance to "
        "be first: how often its rank is the best within that uncertainty."
    )
    return Table("ranking", "Ranking", caption, ["memory", "mean rank", "chance to be first"], rows)


def improvement_table(comparison: Comparison) -> Table:
    """Return for each pair how probably a run of the one scores above a run of the other."""
    labels = comparison.complete
    scores = {label: [task.scores[label] for task in comparison.compared] for label in labels}
    rows = []
    for a in labels:
        cells = [_name(a)]
        for b in labels:
            cells.append(Cell("·") if a == b else _interval(improvement(scores[a], scores[b]), digits=2))
        rows.append(cells)
    caption = (
        "How probably a run of the row's memory scores above a run of the column's, ties counted half; "
        f"the mean over the tasks. {_INTERVALS}; one without width says that the seeds do not overlap, not "
        "that it is certain. 0.5 is no difference."
    )
    return Table("improvement", "Probability of improvement", caption, ["memory", *labels], rows)


def left_out_table(comparison: Comparison) -> Table:
    """Return the seeds without a score."""
    rows = []
    for run in comparison.left_out.to_dict("records"):
        why = run["status"] if run["status"] != "finished" else "not evaluated, or its return is not finite"
        cells = [_name(str(run["label"])), _name(str(run["task"])), _count(run["seed"]), Cell(str(why), str(why))]
        rows.append([*cells, _count(run["steps"]), Cell(str(run["run"]), str(run["run"]))])
    columns = ["memory", "task", "seed", "why", "steps", "run"]
    return Table("left-out", "Seeds left out", "Seeds without a score; no statistic counts them.", columns, rows)


def adaptation_table(adaptation: Adaptation) -> Table:
    """Return how much the agents gain within a trial, beside the strategies."""
    frame, rows = adaptation.frame, []
    for (who, label), points in frame.groupby(["who", "label"], sort=False):
        first, last = (points.iloc[i][["value", "low", "high"]].to_dict() for i in (0, -1))
        measures = adaptation.measures.get(str(label), {}) if who == AGENT else {}
        name = str(label) if who == AGENT else f"{label}, {who}"
        cells = [_name(name), _interval(first, digits=2), _interval(last, digits=2)]
        for measure in ("gain", "area", "regret"):
            known = measure in measures and math.isfinite(measures[measure]["value"])
            cells.append(_interval(measures[measure], digits=2) if known else Cell("–"))
        rows.append(cells)
    columns = ["who", "first", "last", "gain", "area", "regret"]
    caption = (
        f"{adaptation.caption} Gain: last minus first. Area: the return of the whole trial. Regret: what the best "
        "known expected return is above it."
    )
    return Table(f"adaptation-{slug(adaptation.task)}", f"{adaptation.task}: adaptation", caption, columns, rows)


def slug(name: str) -> str:
    """Return a name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "task"


def to_markdown(table: Table) -> str:
    """Return a table as GitHub's Markdown."""
    lines = [f"### {markdown_text(table.title)}", "", "| " + " | ".join(map(markdown_text, table.columns)) + " |"]
    lines.append("|---|" + "---:|" * (len(table.columns) - 1))
    for row in table.rows:
        cells = [f"**{markdown_text(cell.text)}**" if cell.strong else markdown_text(cell.text) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", markdown_text(table.caption), ""])


def markdown_text(text: str) -> str:
    """Return a text such that Markdown takes no part of it for markup."""
    text = re.sub(r"([\\`*_{}|$~])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
}


def to_latex(table: Table) -> str:
    """Return a table as LaTeX, for the package booktabs."""

    def cell(cell: Cell) -> str:
        # A bracket at the start of a row would be taken for the argument of the line's end before it.
        text = _latex(cell.text)
        return f"\\textbf{{{text}}}" if cell.strong else text

    lines = [r"\begin{table}", r"\centering", f"\\caption{{{_latex(f'{table.title}. {table.caption}')}}}"]
    lines += [f"\\label{{tab:{table.name}}}", f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(_latex, table.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(cell, row)) + r" \\" for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex(text: str) -> str:
    found = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    # TeX's own minus, where a number begins with one.
    found = re.sub(r"(?<![\w.-])-(?=[\d.])", "$-$", found)
    return f"{{{found}}}" if found[:1] in ("[", "*") else found
