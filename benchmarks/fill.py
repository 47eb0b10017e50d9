"""Two ways to fill the tape, compared in return against steps and against seconds.

    python benchmarks/fill.py --out docs/fill

RepeatPreviousEasy has episodes of one length, PositionOnlyCartPoleEasy of any length up to 200. Three seeds together,
three levels of return: when is each reached?
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from memax_rl.runs import Run, load_config, make_config
from memax_rl.training import train

PRESETS = {
    "RepeatPreviousEasy": "ppo/repeat_previous_easy",
    "PositionOnlyCartPoleEasy": "ppo/position_only_cartpole_easy",
}
LEVELS = (0.5, 0.9, 0.95)


def columns(run: Run, name: str) -> np.ndarray:
    """Return one metric [updates, seeds]."""
    rows = run.metrics()
    seeds = sorted({row["seed"] for row in rows})
    return np.array([[row[name] for row in rows if row["seed"] == seed] for seed in seeds]).T


def reached(returns: np.ndarray, at: np.ndarray, level: float) -> list[float]:
    """Return for each seed where a mean of three updates first passes the level; nan if never."""
    smooth = np.array([np.convolve(np.nan_to_num(r, nan=-1), np.ones(3) / 3, "valid") for r in returns.T]).T
    passed = smooth >= level
    return [float(at[2:, s][passed[:, s].argmax()]) if passed[:, s].any() else float("nan") for s in range(at.shape[1])]


def main() -> None:
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--total-steps", type=int, default=250_000)
    parser.add_argument("--out", type=Path, help="write the picture to this path, with .png added")
    arguments = parser.parse_args()
    curves = {}
    print("| environment | fill | level | thousand steps, each seed | seconds | utilization | lag |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for env, preset in PRESETS.items():
            for fill in ("whole_episodes", "truncated_bptt"):
                fields = load_config(preset).model_dump()
                fields |= {"num_seeds": arguments.seeds, "eval_episodes": 0, "total_steps": arguments.total_steps}
                fields["ppo"]["rollout"] = fill
                if fill == "truncated_bptt":
                    # As many slots an update as the others have, in the many short rows that streams are used with.
                    fields["ppo"] |= {"num_envs": 64, "rollout_length": 128}
                run = train(make_config(fields), out=Path(folder) / f"{env}-{fill}")
                returns, steps = columns(run, "episode/return"), columns(run, "env_steps")
                seconds = columns(run, "seconds") - columns(run, "seconds")[0]
                use, lag = columns(run, "tape/utilization").mean(), columns(run, "tape/lag").mean()
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

    figure, axes = plt.subplots(2, len(PRESETS), figsize=(9, 6), layout="constrained", sharey=True)
    for column, env in enumerate(PRESETS):
        for (name, fill), (steps, seconds, returns) in curves.items():
            if name != env:
                continue
            for axis, x in zip(axes[:, column], (steps, seconds), strict=True):
                (line,) = axis.plot(x, returns.mean(axis=1), label=fill)
                axis.fill_between(x, returns.min(axis=1), returns.max(axis=1), alpha=0.2, color=line.get_color())
        axes[0, column].set(title=env, xlabel="environment steps")
        axes[1, column].set(xlabel="seconds after compilation, three seeds together")
    axes[0, 0].set_ylabel("mean return")
    axes[1, 0].set_ylabel("mean return")
    axes[0, 0].legend()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
