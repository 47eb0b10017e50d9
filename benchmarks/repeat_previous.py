"""The README's table and picture: RepeatPrevious solved, at three difficulties and by several memories.

    memax-rl study repeat_previous --out studies/repeat_previous --workers 1
    python benchmarks/repeat_previous.py studies/repeat_previous --out docs/repeat_previous

The study trains each row with three seeds, and evaluates 256 fresh episodes of each. Seconds are of the wall clock, for
training, with compilation; `--workers 1` trains one seed after the other, so that none waits for another.
"""

import argparse
from pathlib import Path

import numpy as np
from table import memory_of, numbers, read_groups, summary

from memax_rl.evaluation.figures import GRAY, look, make_figure
from memax_rl.runs import Run
from memax_rl.studies.plots import short

BEST_OF_PAPER = {"Easy": 1.0, "Medium": 0.789, "Hard": 0.191}
_ENV = "popgym/RepeatPrevious"


def curve(runs: list[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Return environment steps [updates] and mean return [updates, seeds]."""
    columns = [one.metrics() for one in runs]
    steps = np.array([row["env_steps"] for row in columns[0]])
    return steps, np.array([[row["episode/return"] for row in column] for column in columns]).T


def draw(curves: dict[str, list[Run]], path: Path) -> None:
    """Draw return against environment steps, a band from the lowest to the highest seed."""
    from matplotlib.lines import Line2D

    styles, legend = {}, []
    for place, level in enumerate(level for level in BEST_OF_PAPER if level in curves):
        color, dashes, _ = look(place)
        styles[level] = {"color": color, "linestyle": (0, dashes) if dashes else "-"}
        legend.append(Line2D([], [], label=f"{level}, LRU", **styles[level]))
    legend.append(Line2D([], [], color=GRAY, linestyle=":", label="the POPGym paper"))
    seeds = len(next(iter(curves.values())))
    caption = (
        f"Mean return of the episodes that ended in an update: mean over {seeds} seeds, and their range. Dotted: the "
        "best of the 13 models of the POPGym paper, after 15M steps."
    )
    figure, (axis,) = make_figure(1, "RepeatPrevious", legend, caption, height=3)
    for level, style in styles.items():
        steps, returns = curve(curves[level])
        axis.plot(steps, returns.mean(axis=1), **style)
        low, high = returns.min(axis=1), returns.max(axis=1)
        axis.fill_between(steps, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axis.axhline(BEST_OF_PAPER[level], color=style["color"], linestyle=":", linewidth=1.2)
    axis.set(xlabel="environment steps", ylabel="mean return", xscale="log", ylim=(-0.6, 1.05))
    axis.xaxis.set_major_formatter(lambda value, _: short(value))
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of studies")
    parser.add_argument("--out", type=Path, help="write the picture to this path, with .png added")
    arguments = parser.parse_args()
    found = read_groups(parser, arguments.folders)
    curves: dict[str, list[Run]] = {}
    print("| environment | memory | network | steps | mean return, each seed | seconds, each seed |")
    print("|---|---|---|---|---|---|")
    for _, runs in found:
        config, ended = runs[0].fields(), [summary(run) for run in runs]
        network = config["network"]
        shape = f"width {network['width']}, depth {network['depth']}"
        shape += "".join(f", {name} {value:g}" for name, value in network["memory_options"].items())
        returns = numbers([one["evaluation"]["return"]["mean"]["value"] for one in ended], 3)
        seconds = numbers([one["seconds"] for one in ended], 0)
        env = config["env"].removeprefix("popgym/")
        print(f"| {env} | {memory_of(config)} | {shape} | {config['total_steps']:,} | {returns} | {seconds} |")
        if network["memory"] == "lru":
            curves[config["env"].removeprefix(_ENV)] = runs
    if arguments.out:
        draw(curves, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
