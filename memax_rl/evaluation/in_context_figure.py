"""The figure of an in-context evaluation: return by episode. Adaptation is a rising line."""

import itertools
from pathlib import Path
from typing import Any

from memax_rl.evaluation.figures import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    make_figure,
    set_counts,
    trials_of,
)
from memax_rl.runs.files import save_figure

# The colors of the agent are used for nothing else.
_AGENT, _TRAINING, _WIPED = BLUE, SKY, VERMILLION
_STRATEGIES = (BLACK, GREEN, PURPLE, ORANGE)
# A strategy is told by its color, its dashes and its marker, so that twenty are still apart.
_DASHES = ((0, (1, 1.5)), (0, (5, 2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the result of `evaluate_in_context` as a PNG file."""
    save_figure(icl_figure(result), path)


def icl_figure(result: dict[str, Any]) -> Any:
    """Return the matplotlib figure of a result of `evaluate_in_context`."""
    lines = _lines(result)
    longer = result["longer"] or {}
    # Without trials that are longer there is no second panel.
    figure, axes = make_figure(
        1 + bool(longer),
        f"{result['env']}, {result['memory']}",
        [_handle(style) for _, style, _ in lines],
        _caption(result),
        (3, 2) if longer else (),
    )
    unit = "episode of the trial" if result["has_boundaries"] else f"block of {result['episode_length']} pulls"
    for summary, style, band in lines:
        _draw_line(axes[0], summary, style, band)
    set_counts(axes[0], 1, result["episodes"])
    axes[0].set_ylabel("return of the episode" if result["has_boundaries"] else "return of the block")
    axes[0].set_title("Does it adapt?", loc="left", fontsize=9)
    if longer:
        longest = max(longer, key=int)
        _draw_line(axes[1], longer[longest], lines[0][1], True)
        set_counts(axes[1], 1, len(longer[longest]["return_by_episode"]))
        axes[1].axvline(result["trained_episodes"], color=GRAY, linewidth=1)
        axes[1].sharey(axes[0])
        axes[1].tick_params(labelleft=False)
        axes[1].set_title("Longer than trained, new tasks", loc="left", fontsize=9)
    for panel in axes:
        panel.set_xlabel(unit)
    axes[0].autoscale(axis="y")
    return figure


def _lines(result: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any], bool]]:
    """Return (summary, style, has a band) for each line, in the order of the legend."""

    def style(label: str, color: str, width: float, dashes: Any = "-", marker: str = "") -> dict[str, Any]:
        return {"label": label, "color": color, "linewidth": width, "linestyle": dashes, "marker": marker}

    lines = [
        (result["test"]["agent"], style("agent, new tasks", _AGENT, 2.4), True),
        (result["train"]["agent"], style("agent, training tasks", _TRAINING, 1.6, "--"), True),
        (result["test"]["wiped"], style("agent, new tasks, memory wiped", _WIPED, 2.0), True),
    ]
    looks = zip(itertools.cycle(_STRATEGIES), itertools.cycle(_DASHES), itertools.cycle(MARKERS), strict=False)
    ranked = sorted(result["strategies"].items(), key=lambda item: -item[1]["area"]["value"])
    for (name, summary), (color, dashes, marker) in zip(ranked, looks, strict=False):
        lines.append((summary, style(name, color, 1.1, dashes, marker), False))
    return lines


def _caption(result: dict[str, Any]) -> str:
    seeds = len(result["seeds"])
    caption = (
        f"Mean return by {'episode' if result['has_boundaries'] else 'block'} of the trial, weights fixed "
        f"({seeds} seed{'s' if seeds > 1 else ''}, {trials_of(result)}, {result['policy']} actions). "
        f"Bands: 95 % bootstrap intervals of the mean over tasks{' and seeds' if seeds > 1 else ''}."
    )
    if result["strategies"]:
        caption += " Known strategies play the same new tasks, the best first; they are drawn without a band."
    if result["longer"]:
        caption += f" Gray line: the length of a trial in training, {result['trained_episodes']}."
    return caption


def _handle(style: dict[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], markersize=3.5, **style)


def _draw_line(axes: Any, summary: dict[str, Any], style: dict[str, Any], band: bool) -> None:
    """Draw the return by episode, with its interval as a band."""
    points = summary["return_by_episode"]
    x = list(range(1, len(points) + 1))
    # One point alone is no line, and would not be seen.
    marker = style["marker"] or ("o" if len(points) == 1 else "")
    every = max(1, len(points) // 8)
    axes.plot(x, [p["value"] for p in points], markersize=3.5, markevery=every, **(style | {"marker": marker}))
    if band:
        low, high = [p["low"] for p in points], [p["high"] for p in points]
        if len(points) == 1:
            axes.vlines(x, low, high, color=style["color"], linewidth=1)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
