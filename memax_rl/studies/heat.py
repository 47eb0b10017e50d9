"""A heat map of normalized scores, tasks by memories: what it shows, and how matplotlib and SVG draw it."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from memax_rl.evaluation.figures import WIDTH, make_figure, plain, shorten
from memax_rl.studies.analysis import Comparison, seeds_and_episodes
from memax_rl.studies.tables import fixed

# More columns leave no room for the number in a cell.
_MOST_WITH_NUMBERS = 14
# Chance is almost white, the best known a blue on which white type is read.
_CHANCE, _BEST = np.array([244, 247, 250]), np.array([0, 84, 140])
_UNKNOWN = "#d9d9d9"
# From here on white type has more contrast than black.
_DARK = 0.77
_SVG_WIDTH, _SVG_ROW, _SVG_LEFT, _SVG_TOP = 1180, 20, 250, 118


@dataclass(frozen=True)
class Heat:
    """The mean normalized score of each memory on each task.

    Attributes:
        tasks: The rows.
        memories: The columns.
        values: [tasks, memories]; nan where there is no score.
    """

    name: str
    title: str
    tasks: Sequence[str]
    memories: Sequence[str]
    values: np.ndarray
    caption: str

    @property
    def has_numbers(self) -> bool:
        """Whether there is room for the numbers in the cells."""
        return len(self.memories) <= _MOST_WITH_NUMBERS


def heat_map(comparison: Comparison) -> Heat | None:
    """Return the heat map, the memory with the best mean first; None for fewer than two tasks or two memories."""
    tasks = [task for task in comparison.tasks if task.is_normalized and task.scores]
    memories = [label for label in comparison.labels if any(label in task.scores for task in tasks)]
    if min(len(tasks), len(memories)) < 2:
        return None
    means = [{label: float(np.mean(scores)) for label, scores in task.normalized_scores.items()} for task in tasks]
    values = np.array([[row.get(label, np.nan) for label in memories] for row in means])
    order = np.argsort(-np.nanmean(values, axis=0), kind="stable")
    caption = (
        "Normalized scores (0 and below: chance, 1 and above: the best known), the mean over seeds; "
        f"{seeds_and_episodes(tasks)}. Memories in the order of their mean over the tasks where they have a score; "
        "gray where there is none."
    )
    names = [memories[i] for i in order]
    rows = _without_suite([task.name for task in tasks])
    return Heat("heat-map", "Normalized scores by task", rows, names, values[:, order], caption)


def _without_suite(names: Sequence[str]) -> list[str]:
    """Return the names of tasks without their suite, where it is the same for all."""
    suites = {name.partition("/")[:2] for name in names}
    return [name.partition("/")[2] if len(suites) == 1 and "/" in name else name for name in names]


def _color(value: float) -> str:
    """Return the color of a score as #rrggbb."""
    if not np.isfinite(value):
        return _UNKNOWN
    share = min(1.0, max(0.0, value))
    return "#" + "".join(f"{round(c):02x}" for c in _CHANCE + share * (_BEST - _CHANCE))


def _number(value: float) -> str:
    return fixed(value, 2 if abs(value) < 10 else 0) if np.isfinite(value) else ""


def draw_heat(heat: Heat) -> Any:
    """Return the matplotlib figure, as wide as a page."""
    from matplotlib.colors import to_rgb

    # Above the cells stand the names of the memories, upright.
    height = 1.8 + 0.17 * len(heat.tasks)
    figure, (axes,) = make_figure(1, heat.title, [], heat.caption, width=WIDTH, height=height)
    axes.imshow([[to_rgb(_color(value)) for value in row] for row in heat.values], aspect="auto")
    axes.set_xticks(range(len(heat.memories)), [plain(shorten(text, 20)) for text in heat.memories], rotation=90)
    axes.set_yticks(range(len(heat.tasks)), [plain(shorten(text, 32)) for text in heat.tasks])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if heat.has_numbers:
        for row, column in np.ndindex(heat.values.shape):
            value = float(heat.values[row, column])
            color = "white" if value > _DARK else "black"
            axes.text(column, row, _number(value), ha="center", va="center", fontsize=8, color=color)
    return figure


def heat_chart(heat: Heat) -> str:
    """Return the heat map as an SVG element; each cell has its task, memory and score as title."""
    width = min(64.0, (_SVG_WIDTH - _SVG_LEFT) / len(heat.memories))
    height = _SVG_TOP + _SVG_ROW * len(heat.tasks) + 4
    parts = []
    for column, memory in enumerate(heat.memories):
        x = _SVG_LEFT + width * (column + 0.5)
        parts.append(
            f'<text transform="translate({x + 4:.1f} {_SVG_TOP - 6}) rotate(-90)">{escape(shorten(memory, 18))}</text>'
        )
    for row, task in enumerate(heat.tasks):
        y = _SVG_TOP + _SVG_ROW * row
        parts.append(
            f'<text x="{_SVG_LEFT - 6}" y="{y + 14}" text-anchor="end">{escape(shorten(task, 36))}'
            f"<title>{escape(task)}</title></text>"
        )
        for column, memory in enumerate(heat.memories):
            value = float(heat.values[row, column])
            number = _number(value)
            left = _SVG_LEFT + width * column
            label = escape(f"{task}, {memory}: {number or 'no score'}")
            parts.append(
                f'<g><title>{label}</title><rect x="{left:.1f}" y="{y}" width="{width - 1:.1f}" '
                f'height="{_SVG_ROW - 1}" fill="{_color(value)}"/>'
            )
            if heat.has_numbers and number:
                light = ' class="light"' if value > _DARK else ""
                middle = left + width / 2
                parts.append(f'<text{light} x="{middle:.1f}" y="{y + 14}" text-anchor="middle">{number}</text>')
            parts.append("</g>")
    size = f'viewBox="0 0 {_SVG_LEFT + width * len(heat.memories):.0f} {height}"'
    return f'<svg {size} role="img" aria-label="{escape(heat.title, quote=True)}">{"".join(parts)}</svg>'
