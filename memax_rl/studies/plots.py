"""The figures of a comparison: what they show (`Plot`, `Intervals`), and how matplotlib draws it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memax_rl.evaluation.figures import COLUMN, GRAY, WIDTH, look, make_figure, plain, shorten
from memax_rl.runs.files import write_atomically
from memax_rl.studies.adaptation import AGENT, WIPED, Adaptation
from memax_rl.studies.analysis import Comparison, Curve, Task, seeds_and_episodes, span
from memax_rl.studies.comparison import STATISTICS, estimate
from memax_rl.studies.heat import Heat, draw_heat
from memax_rl.studies.tables import slug

# More bands than these hide each other and the lines.
MOST_BANDS = 8
# The legend of more lines is longer than a column's figure is high.
_MOST_IN_COLUMN = 12
_LEVELS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Line:
    """A line, and the band around it; nan where there is none. `place` chooses its look, see `figures.look`."""

    label: str
    place: int
    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Plot:
    """Lines over one axis, and horizontal lines with a name. `counts`: x are whole numbers."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    caption: str
    references: Sequence[tuple[str, float]] = ()
    counts: bool = False

    @property
    def has_bands(self) -> bool:
        """Whether the bands are drawn."""
        return len(self.lines) <= MOST_BANDS and any(np.isfinite(line.low).any() for line in self.lines)


@dataclass(frozen=True)
class Intervals:
    """Values with intervals, a row a memory and a panel a statistic."""

    name: str
    title: str
    labels: Sequence[str]
    places: Sequence[int]
    panels: dict[str, list[dict[str, float]]]
    caption: str


def _bands(lines: Sequence[Line], what: str) -> str:
    if not any(np.isfinite(line.low).any() for line in lines):
        return "One seed each, so there are no bands."
    if len(lines) > MOST_BANDS:
        return f"Without bands, of which there would be {len(lines)}."
    return f"Bands: {what}."


def learning_curves(comparison: Comparison, task: Task) -> Plot:
    """Return the curves of the training return on a task."""
    shown = [label for label in comparison.labels if label in task.curves]
    curves = [task.curves[label] for label in shown]
    lines = [
        Line(label, comparison.labels.index(label), c.steps, c.value, c.low, c.high)
        for label, c in zip(shown, curves, strict=True)
    ]
    caption = (
        f"Mean training return over {span((c.runs for c in curves), 'seed')}, by environment steps, as far as all "
        f"seeds of a memory go; each point the mean over the episodes of {_bin(curves):,.0f} steps. "
        + _bands(lines, "95 % intervals of the mean over seeds (Student)")
    )
    known = [("best known", task.best), ("chance", task.chance)] if task.is_normalized else []
    return Plot(
        f"curves-{slug(task.name)}",
        f"{task.name}: training",
        "environment steps",
        "training return",
        lines,
        caption,
        known,
    )


def adaptation_curves(comparison: Comparison, adaptation: Adaptation, who: str = AGENT) -> Plot:
    """Return the returns by episode of the agents, or of those with wiped memory, and the best strategy's last one."""
    frame = adaptation.frame
    lines = []
    for label, rows in frame[frame["who"] == who].groupby("label", sort=False):
        columns = [rows[name].to_numpy(float) for name in ("episode", "value", "low", "high")]
        lines.append(Line(str(label), comparison.labels.index(str(label)), *columns))
    references, caption = [], adaptation.caption
    last = frame[(frame["who"] == "strategy") & (frame["episode"] == frame["episode"].max())]
    if len(last):
        best = last.loc[last["value"].idxmax()]
        references = [(f"{best['label']}, at the end", float(best["value"]))]
        caption += " Dashed: what the best known strategy gets at the end of the trial."
    if len(lines) > MOST_BANDS:
        caption += f" Without bands, of which there would be {len(lines)}."
    name, title = f"adaptation-{slug(adaptation.task)}", f"{adaptation.task}: adaptation"
    if who == WIPED:
        name, title = f"{name}-wiped", f"{title}, memory wiped at every episode"
    return Plot(name, title, adaptation.unit, "return", lines, caption, references, counts=True)


def _bin(curves: Sequence[Curve]) -> float:
    """Return the environment steps between two points."""
    return next((float(c.steps[1] - c.steps[0]) for c in curves if len(c.steps) > 1), float(curves[0].steps[0]))


def profiles(comparison: Comparison) -> Plot:
    """Return the performance profiles."""
    found = comparison.profiles(_LEVELS)
    lines = [Line(label, comparison.labels.index(label), _LEVELS, *found[label]) for label in found]
    tasks = comparison.normalized
    caption = (
        f"Share of runs whose normalized score (0: chance, 1: the best known) is above a level, the mean over "
        f"{span([len(tasks)], 'task')}; {seeds_and_episodes(tasks)}. "
        + _bands(lines, "95 % intervals over seeds, by a bootstrap stratified by task")
    )
    return Plot("profiles", "Performance profiles", "normalized score", "share of runs above it", lines, caption)


def aggregates(comparison: Comparison) -> Intervals:
    """Return the statistics over tasks."""
    names = {"iqm": "interquartile mean", "mean": "mean", "median": "median", "optimality_gap": "optimality gap"}
    panels = {
        name: [estimate(scores, key) for scores in comparison.over_tasks.values()]
        for key, name in names.items()
        if key in STATISTICS
    }
    labels = list(comparison.over_tasks)
    tasks = comparison.normalized
    caption = (
        f"Normalized scores (0: chance, 1: the best known) over {span([len(tasks)], 'task')}; "
        f"{seeds_and_episodes(tasks)}. Bars: 95 % intervals over seeds, by a bootstrap stratified by task. Of the "
        "optimality gap less is better."
    )
    places = [comparison.labels.index(label) for label in labels]
    return Intervals("aggregate", "Normalized scores", labels, places, panels, caption)


def draw(shown: Plot | Intervals | Heat) -> Any:
    """Return the matplotlib figure: of a plot as wide as a column, of all else or many lines as wide as a page."""
    if isinstance(shown, Heat):
        return draw_heat(shown)
    return _draw_intervals(shown) if isinstance(shown, Intervals) else _draw_plot(shown)


def _draw_plot(plot: Plot) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import Normal, Stroke
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    styles = [_style(line.place) for line in plot.lines]
    legend = [Line2D([], [], label=line.label, **style) for line, style in zip(plot.lines, styles, strict=True)]
    width = COLUMN if len(plot.lines) <= _MOST_IN_COLUMN else WIDTH
    figure, (axes,) = make_figure(
        1, plot.title, legend, plot.caption, width=width, height=2.2 if width == COLUMN else 3.2
    )
    for line, style in zip(plot.lines, styles, strict=True):
        every = max(1, len(line.x) // 6)
        shift = line.place % every
        axes.plot(line.x, line.value, markevery=(shift if shift < len(line.x) else 0, every), **style)
        if plot.has_bands:
            axes.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.18, linewidth=0)
    for text, y in plot.references:
        axes.axhline(y, color=GRAY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        note = axes.annotate(plain(text), (1, y), (0, 1.5), xycoords=("axes fraction", "data"),
                             textcoords="offset points", ha="right", va="bottom", fontsize=8, color=GRAY)  # fmt: skip
        note.set_path_effects([Stroke(linewidth=2, foreground="white"), Normal()])
    axes.set_xlabel(plain(plot.x_label))
    axes.set_ylabel(plain(plot.y_label))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=plot.counts, min_n_ticks=1))
    if plot.lines and max(line.x[-1] for line in plot.lines) >= 10_000:
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
    else:
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return figure


def short(value: float) -> str:
    """Return a number as 0, 500, 20k or 1.5M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _style(place: int) -> dict[str, Any]:
    color, dashes, marker = look(place)
    return {
        "color": color,
        "linestyle": (0, dashes) if dashes else "-",
        "marker": marker,
        "markersize": 3.5,
        "linewidth": 1.3,
    }


def _draw_intervals(intervals: Intervals) -> Any:
    height = 0.5 + 0.19 * max(3, len(intervals.labels))
    figure, axes = make_figure(
        len(intervals.panels), intervals.title, [], intervals.caption, width=WIDTH, height=height
    )
    rows = np.arange(len(intervals.labels))
    for panel, (name, entries) in zip(axes, intervals.panels.items(), strict=True):
        for row, place, entry in zip(rows, intervals.places, entries, strict=True):
            style = _style(place)
            panel.plot([entry["low"], entry["high"]], [row, row], color=style["color"], linewidth=2.5, alpha=0.5)
            panel.plot(entry["value"], row, color=style["color"], marker=style["marker"], markersize=4.5)
        panel.set_title(name, fontsize=8, loc="left")
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_yticks(rows, [])
        panel.grid(axis="x", color="#dddddd", linewidth=0.6)
        panel.locator_params(axis="x", nbins=4)
        panel.margins(x=0.08)
    axes[0].set_yticks(rows, [plain(shorten(label, 24)) for label in intervals.labels])
    return figure


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as PDF, with type that can be edited, and as PNG, and return the paths."""
    import matplotlib

    paths = []
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for ending, options in (("pdf", {"metadata": {"CreationDate": None}}), ("png", {"dpi": 200})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, **options)
            paths.append(folder / f"{name}.{ending}")
            write_atomically(paths[-1], buffer.getvalue())
    return paths
