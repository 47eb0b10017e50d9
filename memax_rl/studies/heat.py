"""A heat map of normalized scores, tasks by memories: what it shows, and how matplotlib and SVG draw it."""

import unicodedata
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
# Names are shortened to as many characters.
_TASK, _MEMORY = 36, 28
# In the page: pixels of the map at most, of a row, of the narrowest and the widest column, and of the type.
_SVG_WIDTH, _SVG_ROW, _SVG_NARROW, _SVG_WIDE, _SVG_TYPE = 1180, 20, 15, 64, 11.5
# In a figure: points of the type, and of the narrowest column above which it stands upright.
_TYPE, _NARROW = 8, 8.3


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
        "Normalized scores, the mean over seeds: white at chance (0) and below, dark blue at the best known (1) and "
        f"above, gray without a score; {seeds_and_episodes(tasks)}. Memories in the order of their mean over the "
        "tasks where they have a score."
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
    """Return a score as it fits into a cell: five characters at most."""
    if not np.isfinite(value):
        return ""
    size = abs(value)
    if size < 9_999.5:
        return fixed(value, 2 if size < 9.995 else 0)
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _ems(names: Sequence[str]) -> float:
    """Return how wide the widest of the names is at most, in widths of an em."""
    return max(sum(map(_em, name)) for name in names)


def _em(character: str) -> float:
    # Of DejaVu Sans, which is wider than what most browsers take.
    if character in "MWmw@%…" or unicodedata.east_asian_width(character) in "FW":
        return 1.0
    if character.isupper() or character in "=+<>~#":
        return 0.84
    return 0.42 if character in "fijlrt.,:;'-/()[]| " else 0.65


def draw_heat(heat: Heat) -> Any:
    """Return the matplotlib figure, as wide as a page, of as many memories as there is room for side by side."""
    from matplotlib.colors import to_rgb

    tasks = [shorten(text, _TASK) for text in heat.tasks]
    most = int((72 * (WIDTH - 0.2) - _TYPE * _ems(tasks)) / _NARROW)
    memories = [shorten(text, _MEMORY) for text in heat.memories[:most]]
    caption = heat.caption + (f" The first {most} of {len(heat.memories)}." if most < len(heat.memories) else "")
    # Above the cells stand the names of the memories, upright.
    height = 0.4 + _TYPE * _ems(memories) / 72 + 0.17 * max(len(tasks), 3)
    figure, (axes,) = make_figure(1, heat.title, [], caption, width=WIDTH, height=height)
    axes.imshow([[to_rgb(_color(value)) for value in row] for row in heat.values[:, :most]], aspect="auto")
    axes.set_xticks(range(len(memories)), list(map(plain, memories)), rotation=90)
    axes.set_yticks(range(len(tasks)), list(map(plain, tasks)))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if heat.has_numbers:
        for row, column in np.ndindex(heat.values.shape):
            value = float(heat.values[row, column])
            color = "white" if value > _DARK else "black"
            axes.text(column, row, _number(value), ha="center", va="center", fontsize=_TYPE, color=color)
    return figure


def heat_chart(heat: Heat) -> str:
    """Return the heat map as an SVG element; each name and cell has all of it as title."""
    tasks = [shorten(text, _TASK) for text in heat.tasks]
    memories = [shorten(text, _MEMORY) for text in heat.memories]
    left, top = (12 + _SVG_TYPE * _ems(names) for names in (tasks, memories))
    width = float(np.clip((_SVG_WIDTH - left) / len(memories), _SVG_NARROW, _SVG_WIDE))
    parts = []
    for column, (memory, whole) in enumerate(zip(memories, heat.memories, strict=True)):
        x = left + width * (column + 0.5)
        parts.append(
            f'<text transform="translate({x + 4:.1f} {top - 6:.1f}) rotate(-90)">{escape(memory)}'
            f"<title>{escape(whole)}</title></text>"
        )
    for row, (task, whole) in enumerate(zip(tasks, heat.tasks, strict=True)):
        y = top + _SVG_ROW * row
        parts.append(
            f'<text x="{left - 6:.1f}" y="{y + 14:.1f}" text-anchor="end">{escape(task)}'
            f"<title>{escape(whole)}</title></text>"
        )
        parts += [_cell(heat, row, column, left + width * column, y, width) for column in range(len(memories))]
    across, down = left + width * len(memories), top + _SVG_ROW * len(tasks) + 4
    # On a narrow screen it is scrolled, so that its type stays legible.
    size = f'style="min-width:{0.85 * across:.0f}px;max-width:{across:.0f}px"'
    frame = f'viewBox="0 0 {across:.0f} {down:.0f}" {size}'
    return f'<svg {frame} role="img" aria-label="{escape(heat.title, quote=True)}">{"".join(parts)}</svg>'


def _cell(heat: Heat, row: int, column: int, x: float, y: float, width: float) -> str:
    """Return a cell as an SVG element, its corner at x and y."""
    value = float(heat.values[row, column])
    score = fixed(value, 3) if np.isfinite(value) else "no score"
    label = escape(f"{heat.tasks[row]}, {heat.memories[column]}: {score}")
    number = ""
    if heat.has_numbers and np.isfinite(value):
        light = ' class="light"' if value > _DARK else ""
        number = f'<text{light} x="{x + width / 2:.1f}" y="{y + 14:.1f}" text-anchor="middle">{_number(value)}</text>'
    return (
        f'<g><title>{label}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{_SVG_ROW - 1}" '
        f'fill="{_color(value)}"/>{number}</g>'
    )
