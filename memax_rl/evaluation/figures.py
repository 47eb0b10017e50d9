"""Layout shared by the figures: size, a font that is legible at page width, legend and caption below the panels."""

import textwrap
from typing import Any

# Figures are as wide as the text of a page, so that type keeps its size in points there.
WIDTH = 7.0
_TYPE = 8
_LINE = 0.155
_CHARACTERS = 112


def make_figure(panels: int, title: str, legend: list[Any], caption: str, ratios: tuple[float, ...] = ()) -> Any:
    """Return a figure of so many panels in a row, and its axes, with title, legend and caption.

    Args:
        legend: Handles with labels, as matplotlib's `Line2D`.
        ratios: Widths of the panels against each other; by default equal.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title = "\n".join(textwrap.wrap(title, 85))
    caption = "\n".join(textwrap.wrap(caption, _CHARACTERS + 6))
    for handle in legend:
        handle.set_label(textwrap.shorten(str(handle.get_label()), 60, placeholder="…"))
    longest = max((len(handle.get_label()) for handle in legend), default=1)
    # A column has the line and the gaps besides its text, in characters.
    columns = max(1, min(len(legend), _CHARACTERS // (longest + 10)))
    below = _LINE * (-(-len(legend) // columns) * 1.15 + caption.count("\n") + 1) + 0.3
    above = 2.7 + 0.2 * (title.count("\n") + 1)
    figure = Figure(figsize=(WIDTH, above + below), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=(above, below))
    top, bottom = parts
    axes = top.subplots(1, panels, squeeze=False, width_ratios=ratios or None)[0]
    top.suptitle(title, x=0.01, ha="left", fontsize=10)
    if legend:
        bottom.legend(handles=legend, ncols=columns, loc="upper center", frameon=False, fontsize=_TYPE, handlelength=3)
    bottom.text(0.012, 0.08 / below, caption, fontsize=_TYPE, va="bottom", linespacing=1.3)
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
