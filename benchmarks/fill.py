"""Two ways to fill the tape, compared in the steps to a return.

    memax-rl study fill --out studies/fill --workers 1
    python benchmarks/fill.py studies/fill --out docs/fill

RepeatPreviousEasy has episodes of one length, PositionOnlyCartPoleEasy of any length up to 200. Three seeds, three
levels of return: after how many steps is each reached?
"""

import argparse
from pathlib import Path

import numpy as np
from table import read_groups

from memax_rl.evaluation.figures import look, make_figure
from memax_rl.runs import Run
from memax_rl.studies.plots import short

LEVELS = (0.5, 0.9, 0.95)


def columns(runs: list[Run], name: str) -> np.ndarray:
    """Return one metric [updates, seeds]; a run that made an update more than others is cut."""
    values = [[row[name] for row in run.metrics()] for run in runs]
    return np.array([one[: min(map(len, values))] for one in values]).T


def reached(returns: np.ndarray, at: np.ndarray, level: float) -> list[float]:
    """Return for each seed where a mean of three updates first passes the level; nan if never."""
    smooth = np.array([np.convolve(np.nan_to_num(r, nan=-1), np.ones(3) / 3, "valid") for r in returns.T]).T
    passed = smooth >= level
    return [float(at[2:, s][passed[:, s].argmax()]) if passed[:, s].any() else float("nan") for s in range(at.shape[1])]


def main() -> None:
    """Print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of studies")
    parser.add_argument("--out", type=Path, help="write the picture to this path, with .png added")
    arguments = parser.parse_args()
    found = read_groups(parser, arguments.folders)
    curves = {}
    print("| environment | rollout | level | thousand steps, each seed | utilization | lag |")
    print("|---|---|---|---|---|---|")
    for _, runs in found:
        env, fill = runs[0].fields()["env"].removeprefix("popgym/"), runs[0].fields()["ppo"]["rollout"]
        returns, steps = columns(runs, "episode/return"), columns(runs, "env_steps")
        use, lag = columns(runs, "tape/utilization").mean(), columns(runs, "tape/lag").mean()
        for level in LEVELS:
            at = ", ".join("never" if np.isnan(s) else f"{s / 1e3:.0f}" for s in reached(returns, steps, level))
            print(f"| {env} | {fill} | {level} | {at} | {use:.3f} | {lag:.2f} |", flush=True)
        curves[env, fill] = steps.mean(axis=1), returns
    if arguments.out:
        draw(curves, arguments.out.with_suffix(".png"))


def draw(curves: dict, path: Path) -> None:
    """Draw return against steps, a panel for each environment."""
    from matplotlib.lines import Line2D

    names = sorted({env for env, _ in curves}, reverse=True)
    styles = {}
    for place, fill in enumerate(sorted({fill for _, fill in curves}, reverse=True)):
        color, dashes, _ = look(place)
        styles[fill] = {"color": color, "linestyle": (0, dashes) if dashes else "-"}
    legend = [Line2D([], [], label=fill, **style) for fill, style in styles.items()]
    seeds = next(iter(curves.values()))[1].shape[1]
    caption = f"Mean return of the episodes that ended in an update: mean over {seeds} seeds, and their range."
    figure, axes = make_figure(len(names), "An LRU, with the two ways to fill a row of the tape", legend, caption)
    for axis, env in zip(axes, names, strict=True):
        for fill, style in styles.items():
            steps, returns = curves[env, fill]
            axis.plot(steps, returns.mean(axis=1), **style)
            low, high = returns.min(axis=1), returns.max(axis=1)
            axis.fill_between(steps, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axis.set_title(env, fontsize=8, loc="left")
        axis.set(xlabel="environment steps", ylabel="mean return")
        axis.xaxis.set_major_formatter(lambda value, _: short(value))
        axis.locator_params(axis="x", nbins=5)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
