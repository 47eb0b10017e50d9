"""The style shared by the figures: size, type that is legible at page or column width, colors, line styles, markers."""

import textwrap
from typing import Any

# Figures are as wide as the text of a page, or a column of it, so that type keeps its size in points there.
WIDTH, COLUMN = 7.0, 3.4
# Colors that color-blind readers tell apart (Okabe and Ito 2008); their yellow is left out, too pale on white.
BLUE, SKY, VERMILLION, GREEN = "#0072B2", "#56B4E9", "#D55E00", "#009E73"
ORANGE, PURPLE, BLACK, GRAY = "#E69F00", "#CC79A7", "#000000", "#767676"
_COLORS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
_STROKES = ((), (5, 2), (1, 1.5), (5, 1.5, 1, 1.5), (2.5, 2.5), (5, 1.5, 1, 1.5, 1, 1.5))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_TYPE = 8
_LINE = 0.155
# Of type of 8 points, by inch.
_CHARACTERS = 16
_LONGEST_LABEL = 60


def look(place: int) -> tuple[str, tuple[float, ...], str]:
    """Return color, dashes (none: a solid line) and marker of the line at a place; those of 280 places all differ."""
    colors, strokes = len(_COLORS), len(_STROKES)
    marker = MARKERS[(place + place // colors + place // (colors * strokes)) % len(MARKERS)]
    return _COLORS[place % colors], _STROKES[place // colors % strokes], marker


def plain(text: str) -> str:
    """Return a text such that matplotlib takes no part of it for a formula."""
    return text.replace("$", r"\$")


def shorten(text: str, most: int) -> str:
    """Return a text of at most `most` characters; both ends are kept, since names of one family differ at the end."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - most // 2 - 1) :]}"


def make_figure(
    panels: int,
    title: str,
    legend: list[Any],
    caption: str,
    ratios: tuple[float, ...] = (),
    *,
    width: float = WIDTH,
    height: float = 2.7,
    per_row: int | None = None,
) -> Any:
    """Return a figure of so many panels, and its axes, with title, legend and caption.

    Args:
        legend: Handles with labels, as matplotlib's `Line2D`.
        ratios: Widths of the panels against each other; by default equal.
        width: Of the figure, in inches.
        height: Of a row of panels, in inches.
        per_row: Panels in a row, by default all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    characters = int(_CHARACTERS * width)
    title = "\n".join(textwrap.wrap(title, int(0.76 * characters)))
    caption = "\n".join(textwrap.wrap(caption, int(1.05 * characters)))
    for handle in legend:
        handle.set_label(plain(shorten(str(handle.get_label()), min(_LONGEST_LABEL, characters - 10))))
    longest = max((len(handle.get_label()) for handle in legend), default=1)
    # A column has the line and the gaps besides its text, in characters.
    columns = max(1, min(len(legend), characters // (longest + 10)))
    below = _LINE * (-(-len(legend) // columns) * 1.15 + caption.count("\n") + 1) + 0.3
    across = per_row or panels
    down = -(-panels // across)
    above = height * down + 0.2 * (title.count("\n") + 1)
    title, caption = plain(title), plain(caption)
    figure = Figure(figsize=(width, above + below), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=(above, below))
    top, bottom = parts
    grid = top.subplots(down, across, squeeze=False, width_ratios=ratios or None).flatten()
    for panel in grid[panels:]:
        panel.remove()
    axes = grid[:panels]
    top.suptitle(title, x=0.01, ha="left", fontsize=10)
    if legend:
        bottom.legend(handles=legend, ncols=columns, loc="upper center", frameon=False, fontsize=_TYPE, handlelength=3)
    bottom.text(0.084 / width, 0.08 / below, caption, fontsize=_TYPE, va="bottom", linespacing=1.3)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=_TYPE)
        panel.xaxis.label.set_size(9)
        panel.yaxis.label.set_size(9)
    return figure, axes


def set_counts(axes: Any, first: int, last: int) -> None:
    """Set the horizontal axis to whole numbers from `first` to `last`, which may be the same."""
    from matplotlib.ticker import MaxNLocator

    margin = 0.5 if first == last else 0.02 * (last - first)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))


def seeds_and(seeds: int, count: int, what: str) -> str:
    """Return as "3 seeds, 16 episodes"."""
    return f"{seeds} seed{'s' if seeds != 1 else ''}, {count} {what}{'s' if count != 1 else ''}"


def trials_of(result: dict[str, Any]) -> str:
    """Say how many tasks were played: `512 tasks`, or where some were played more than once, of each split how many.

    Args:
        result: What `evaluate_in_context` returned, also that of a version that did not count distinct tasks.
    """
    tasks = result["tasks"]
    distinct = result.get("distinct_tasks", {})
    held_out, training = distinct.get("test", tasks), distinct.get("train", tasks)
    if held_out == training == tasks:
        return f"{tasks} tasks"
    return f"{tasks} trials of {held_out} held-out and {training} training tasks"
