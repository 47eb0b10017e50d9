"""Charts of a report as SVG: text that stays text, no script, no file beside it."""

import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from memax_rl.evaluation.figures import look, shorten
from memax_rl.studies.plots import Intervals, Plot, short

_WIDTH, _HEIGHT = 400, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 12, 40
_MARKS = {
    "o": "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0z",
    "s": "M-2.6,-2.6h5.2v5.2h-5.2z",
    "^": "M0,-3.4L3.2,2.6H-3.2z",
    "D": "M0,-3.6L3.2,0L0,3.6L-3.2,0z",
    "v": "M0,3.4L3.2,-2.6H-3.2z",
    "P": "M-1.2,-3.4h2.4v2.2h2.2v2.4h-2.2v2.2h-2.4v-2.2h-2.2v-2.4h2.2z",
    "X": "M-3,-1.6L-1.6,-3L0,-1.4L1.6,-3L3,-1.6L1.4,0L3,1.6L1.6,3L0,1.4L-1.6,3L-3,1.6L-1.4,0z",
    "<": "M-3.4,0L2.6,-3.2V3.2z",
}


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from `low` to `high`, at most `most` + 1 of them."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _range(values: Iterable[np.ndarray], margin: float = 0.04) -> tuple[float, float]:
    known = np.concatenate([np.zeros(0), *map(np.ravel, values)])
    known = known[np.isfinite(known)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    room = margin * (high - low) or max(abs(high) * margin, 0.5)
    return low - room, high + room


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def chart(plot: Plot) -> str:
    """Return a plot as an SVG element. Each line is a group of class "line" with its label as title."""
    bands = [side for line in plot.lines for side in (line.low, line.high)] if plot.has_bands else []
    xs = _range([*(line.x for line in plot.lines), *([] if plot.counts else [np.zeros(1)])], 0.02)
    ys = _range([*(line.value for line in plot.lines), *bands, *(np.full(1, y) for _, y in plot.references)])

    def x_of(x: float) -> float:
        return _LEFT + (x - xs[0]) / (xs[1] - xs[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - ys[0]) / (ys[1] - ys[0]) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_frame(plot, xs, ys, x_of, y_of)]
    for text, y in plot.references:
        parts.append(
            f'<path class="reference" d="M{_LEFT},{y_of(y):.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text class="note" x="{_WIDTH - _RIGHT}" y="{y_of(y) - 3:.1f}" text-anchor="end">'
            f"{escape(text)}</text>"
        )
    for line in plot.lines:
        color, dashes, marker = look(line.place)
        whole = np.isfinite(line.value)
        shown = [(x_of(x), y_of(y)) for x, y in zip(line.x[whole], line.value[whole], strict=True)]
        parts.append(f'<g class="line" data-place="{line.place}"><title>{escape(line.label)}</title>')
        if plot.has_bands and np.isfinite(line.low).all():
            up = [(x_of(x), y_of(y)) for x, y in zip(line.x, line.high, strict=True)]
            down = [(x_of(x), y_of(y)) for x, y in zip(line.x, line.low, strict=True)]
            parts.append(f'<path class="band" fill="{color}" d="{_path([*up, *down[::-1]])}z"/>')
        if shown:
            parts.append(f'<path class="curve" stroke="{color}"{_dash(dashes)} d="{_path(shown)}"/>')
        every = max(1, len(shown) // 6)
        for x, y in shown[line.place % every :: every]:
            parts.append(f'<path fill="{color}" transform="translate({x:.1f} {y:.1f})" d="{_MARKS[marker]}"/>')
        parts.append("</g>")
    label = escape(f"{plot.title}: {plot.y_label} by {plot.x_label}", quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _dash(dashes: Sequence[float]) -> str:
    return f' stroke-dasharray="{" ".join(f"{1.6 * d:g}" for d in dashes)}"' if dashes else ""


def _frame(plot: Plot, xs, ys, x_of, y_of) -> str:
    """Return the axes, their numbers and names."""
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for y in ticks(*ys):
        parts.append(f'<path class="grid" d="M{_LEFT},{y_of(y):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y_of(y) + 4:.1f}" text-anchor="end">{short(round(y, 10))}</text>')
    for x in ticks(*xs, most=5):
        if plot.counts and x != round(x):
            continue
        parts.append(f'<path class="grid" d="M{x_of(x):.1f},{bottom}v4"/>')
        parts.append(f'<text x="{x_of(x):.1f}" y="{bottom + 16}" text-anchor="middle">{short(round(x, 10))}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT},{_TOP}V{bottom}H{_WIDTH - _RIGHT}"/>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{escape(plot.x_label)}</text>"
        f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(plot.y_label)}</text>'
    )
    return "".join(parts)


def swatch(place: int) -> str:
    """Return the sample of a line, for a legend."""
    color, dashes, marker = look(place)
    return (
        '<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true">'
        f'<path class="curve" stroke="{color}"{_dash(dashes)} d="M0,6H30"/>'
        f'<path fill="{color}" transform="translate(15 6)" d="{_MARKS[marker]}"/></svg>'
    )


def interval_chart(intervals: Intervals, name: str) -> str:
    """Return one panel of intervals as an SVG element, a row a memory."""
    entries = intervals.panels[name]
    left, row, bottom = 136, 20, 26
    height = row * len(entries) + bottom + 6
    xs = _range([np.array([e["value"], e["low"], e["high"]]) for e in entries])

    def x_of(x: float) -> float:
        return left + (x - xs[0]) / (xs[1] - xs[0]) * (_WIDTH - left - _RIGHT)

    parts = []
    for x in ticks(*xs, most=4):
        parts.append(f'<path class="grid" d="M{x_of(x):.1f},4V{height - bottom}"/>')
        parts.append(f'<text x="{x_of(x):.1f}" y="{height - 10}" text-anchor="middle">{short(round(x, 10))}</text>')
    for i, (label, place, entry) in enumerate(zip(intervals.labels, intervals.places, entries, strict=True)):
        color, _, marker = look(place)
        y = 6 + row * (i + 0.5)
        # About the characters that fit beside the panel; the whole name is in the title.
        parts.append(f'<g class="line" data-place="{place}"><title>{escape(label)}: {entry["value"]:.3f}</title>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(shorten(label, 20))}</text>')
        if math.isfinite(entry["low"]):
            parts.append(
                f'<path class="bar" stroke="{color}" d="M{x_of(entry["low"]):.1f},{y}H{x_of(entry["high"]):.1f}"/>'
            )
        parts.append(
            f'<path fill="{color}" transform="translate({x_of(entry["value"]):.1f} {y})" d="{_MARKS[marker]}"/></g>'
        )
    aria = escape(f"{intervals.title}: {name}", quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{aria}">{"".join(parts)}</svg>'
