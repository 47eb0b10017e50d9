"""The README's tables and picture: RepeatPrevious solved, at three difficulties and by several memories.

    python benchmarks/repeat_previous.py --out docs/repeat_previous

Trains each row with three seeds, one after the other, evaluates 256 fresh episodes of each, prints a table in Markdown
and draws the learning curves. Seconds are of the wall clock, with compilation, for each seed by itself.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from memax_rl.evaluation import evaluate
from memax_rl.runs import Run, load_config, make_config
from memax_rl.training import train

# What a memory needs beyond the preset to solve the Easy level, as fields of the configuration. The gated networks
# learn more slowly than the LRU. minGRU's gates see the input only: one layer reaches about .1, three order what they
# have seen. Linear attention sums the past without an order: the rotary option tells four steps ago from five.
SETTINGS = {
    "lru": {},
    "gru": {"total_steps": 200_000},
    "lstm": {"total_steps": 200_000},
    "min_gru": {"network": {"depth": 3}, "total_steps": 900_000},
    "linear_transformer": {
        "network": {"memory_options": {"rotary_base": 10.0}},
        "ppo": {"learning_rate": 3e-3},
        "total_steps": 700_000,
    },
    "mlp": {"total_steps": 200_000},
}
BEST_OF_PAPER = {"Easy": 1.0, "Medium": 0.789, "Hard": 0.191}


def run(fields: dict, folder: Path) -> tuple[Run, float, float]:
    """Train and evaluate one seed; return the run, its mean return, and the seconds that training took."""
    start = time.perf_counter()
    result = train(make_config(fields), out=folder)
    seconds = time.perf_counter() - start
    return result, evaluate(result.folder)["return"]["mean"]["value"], seconds


def curve(runs: list[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Return environment steps [updates] and mean return [updates, seeds]."""
    columns = [one.metrics() for one in runs]
    steps = np.array([row["env_steps"] for row in columns[0]])
    return steps, np.array([[row["episode/return"] for row in column] for column in columns]).T


def draw(curves: list[tuple[str, list[Run], float]], path: Path) -> None:
    """Draw return against environment steps, a band from the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for label, runs, best in curves:
        steps, returns = curve(runs)
        (line,) = axis.plot(steps, returns.mean(axis=1), label=f"{label}, LRU")
        axis.fill_between(steps, returns.min(axis=1), returns.max(axis=1), alpha=0.25, color=line.get_color())
        axis.axhline(best, color=line.get_color(), linestyle=":", linewidth=1.2)
    axis.plot([], [], color="gray", linestyle=":", label="best of 13 models in the POPGym paper, 15 M steps")
    axis.set(xlabel="environment steps", ylabel="mean return of an episode", xscale="log", ylim=(-0.6, 1.05))
    axis.set_title("RepeatPrevious: mean and range of three seeds")
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--memories", nargs="*", choices=SETTINGS, default=list(SETTINGS), help="at the Easy level")
    parser.add_argument(
        "--levels", nargs="*", choices=["Medium", "Hard"], default=["Medium", "Hard"], help="with the LRU"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the picture to this path, with .png added")
    arguments = parser.parse_args()
    curves = []
    with tempfile.TemporaryDirectory() as folder:
        print("| environment | memory | network | steps | mean return, each seed | seconds, each seed |")
        print("|---|---|---|---|---|---|")

        def row(level: str, memory: str) -> list[Run]:
            fields = load_config(f"ppo/repeat_previous_{level.lower()}").model_dump()
            settings = dict(SETTINGS[memory]) if level == "Easy" else {}
            network = fields["network"] | {"memory": memory} | settings.pop("network", {})
            ppo = fields["ppo"] | settings.pop("ppo", {})
            fields |= {"eval_episodes": 0, **settings, "network": network, "ppo": ppo}
            label = f"{level}-{memory}"
            seeds = range(arguments.seeds)
            runs, returns, seconds = zip(
                *(run(fields | {"seed": i}, Path(folder) / f"{label}-{i}") for i in seeds), strict=True
            )
            shape = f"width {network['width']}, depth {network['depth']}"
            shape += "".join(f", {name} {value:g}" for name, value in network["memory_options"].items())
            results = ", ".join(f"{r:.3f}" for r in returns)
            times = ", ".join(f"{s:.0f}" for s in seconds)
            steps = f"{fields['total_steps']:,}"
            print(f"| RepeatPrevious{level} | {memory} | {shape} | {steps} | {results} | {times} |", flush=True)
            return list(runs)

        for memory in arguments.memories:
            runs = row("Easy", memory)
            if memory == "lru":
                curves.append(("Easy", runs, BEST_OF_PAPER["Easy"]))
        for level in arguments.levels:
            curves.append((level, row(level, "lru"), BEST_OF_PAPER[level]))
        if arguments.out:
            draw(curves, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
