"""Two ways to fill the tape, compared in return against steps and against seconds.

    memax-rl study fill --out studies/fill --workers 1
    python benchmarks/fill.py studies/fill --out docs/fill

RepeatPreviousEasy has episodes of one length, PositionOnlyCartPoleEasy of any length up to 200. Three seeds, three
levels of return: when is each reached? Seconds are those after compilation, of each seed by itself.
"""

import argparse
from pathlib import Path

import numpy as np
from table import groups

from memax_rl.runs import Run

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
    curves = {}
    print("| environment | rollout | level | thousand steps, each seed | seconds | utilization | lag |")
    print("|---|---|---|---|---|---|---|")
    for _, runs in groups(arguments.folders):
        env, fill = runs[0].fields()["env"].removeprefix("popgym/"), runs[0].fields()["ppo"]["rollout"]
        returns, steps = columns(runs, "episode/return"), columns(runs, "env_steps")
        seconds = columns(runs, "seconds") - columns(runs, "seconds")[0]
        use, lag = columns(runs, "tape/utilization").mean(), columns(runs, "tape/lag").mean()
        for level in LEVELS:
            at = ", ".join(f"{s / 1e3:.0f}" for s in reached(returns, steps, level))
            time = np.mean(reached(returns, seconds, level))
            print(f"| {env} | {fill} | {level} | {at} | {time:.1f} | {use:.3f} | {lag:.2f} |", flush=True)
        curves[env, fill] = steps.mean(axis=1), seconds.mean(axis=1), returns
    if arguments.out:
        draw(curves, arguments.out.with_suffix(".png"))


def draw(curves: dict, path: Path) -> None:
    """Draw return against steps (above) and against seconds (below) for each environment."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted({env for env, _ in curves}, reverse=True)
    figure, axes = plt.subplots(2, len(names), figsize=(9, 6), layout="constrained", sharey=True, squeeze=False)
    for column, env in enumerate(names):
        for (name, fill), (steps, seconds, returns) in curves.items():
            if name != env:
                continue
            for axis, x in zip(axes[:, column], (steps, seconds), strict=True):
                (line,) = axis.plot(x, returns.mean(axis=1), label=fill)
                axis.fill_between(x, returns.min(axis=1), returns.max(axis=1), alpha=0.2, color=line.get_color())
        axes[0, column].set(title=env, xlabel="environment steps")
        axes[1, column].set(xlabel="seconds after compilation")
    axes[0, 0].set_ylabel("mean return")
    axes[1, 0].set_ylabel("mean return")
    axes[0, 0].legend()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
