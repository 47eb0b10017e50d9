"""The figure of an in-context evaluation: return by episode, so that adaptation is a line that rises."""

from pathlib import Path
from typing import Any

from memax_rl.files import save_figure

# Colours that colour-blind readers tell apart (Okabe and Ito 2008).
_AGENT, _TRAINING, _WIPED = "#0072B2", "#56B4E9", "#D55E00"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the result of `evaluate_in_context` as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    episodes = result["episodes"]
    ends = [(_line(left, result["test"]["agent"], _AGENT, 2.6), "agent, new tasks", _AGENT)]
    ends.append((_line(left, result["train"]["agent"], _TRAINING, 1.6, "--"), "agent, training tasks", _TRAINING))
    ends.append((_line(left, result["test"]["wiped"], _WIPED, 2.0), "memory wiped", _WIPED))
    shades = iter(("#000000", "#707070", "#909090", "#555555", "#a0a0a0", "#303030"))
    styles = iter((":", "-.", (0, (1, 3)), (0, (5, 2)), (0, (3, 1, 1, 1)), (0, (7, 3))))
    # From best to worst, so that the best known is the black one.
    ranked = sorted(result["strategies"].items(), key=lambda item: -item[1]["area"]["value"])
    for name, summary in ranked:
        shade = next(shades, "#888888")
        ends.append((_line(left, summary, shade, 1.1, next(styles, ":"), band=False), name, shade))
    _label_ends(left, ends, episodes)
    unit = "episode of the trial" if result["has_boundaries"] else f"block of {result['episode_length']} pulls"
    left.set_xlabel(unit)
    left.set_ylabel("return of the episode" if result["has_boundaries"] else "return of the block")
    left.set_title("Does it adapt?", loc="left", fontsize=11)
    left.set_xlim(1, episodes)
    if result["longer"]:
        longest = max(result["longer"], key=int)
        _line(right, result["longer"][longest], _AGENT, 2.6)
        right.set_xlim(1, int(longest) * episodes)
        right.axvline(result["trained_episodes"], color="#999999", linewidth=1)
        right.text(
            result["trained_episodes"], 0.02, "  trained up to here", transform=right.get_xaxis_transform(), fontsize=8
        )
    right.set_xlabel(unit)
    right.set_title("Longer than trained (new tasks)", loc="left", fontsize=11)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"{result['env']}, {result['memory']}", x=0.01, ha="left")
    save_figure(figure, path)


def _line(axes: Any, summary: dict[str, Any], colour: str, width: float, style: Any = "-", band: bool = True) -> float:
    """Draw the return by episode, with its interval as a band, and return where the line ends."""
    points = summary["return_by_episode"]
    x = range(1, len(points) + 1)
    axes.plot(x, [p["value"] for p in points], color=colour, linewidth=width, linestyle=style)
    if band:
        low, high = [p["low"] for p in points], [p["high"] for p in points]
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    return points[-1]["value"]


def _label_ends(axes: Any, ends: list[tuple[float, str, str]], episodes: int) -> None:
    """Write each line's name at its right end, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = (high - low) / 22
    place = -float("inf")
    for value, name, colour in sorted(ends):
        place = max(value, place + gap)
        axes.annotate(
            name,
            (episodes, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
            annotation_clip=False,
        )
