"""How often the 95 % intervals of `memax-rl compare` hold the truth, on made-up normal and skewed run scores.

python benchmarks/interval_coverage.py [REPETITIONS]
"""

import sys

import numpy as np

from memax_rl.studies.comparison import STATISTICS, estimate


def coverage(statistic: str, draw, tasks: int, runs: int, repetitions: int) -> float:
    """Return the share of intervals that hold the statistic of very many runs."""
    rng = np.random.default_rng(0)
    truth = STATISTICS[statistic]([draw(rng, 400_000) for _ in range(tasks)])
    held = 0
    for i in range(repetitions):
        e = estimate([draw(rng, runs) for _ in range(tasks)], statistic, resamples=500, seed=i)
        held += e["low"] <= truth <= e["high"]
    return held / repetitions


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    shapes = {
        "normal": lambda rng, n: rng.normal(size=n),
        "skewed": lambda rng, n: rng.gamma(2.0, size=n),
    }
    print("| scores | statistic | tasks | 3 runs | 5 | 10 | 20 |\n|---|---|---|---|---|---|---|")
    for shape, draw in shapes.items():
        for tasks in (1, 4):
            for statistic in ("mean", "iqm"):
                row = [100 * coverage(statistic, draw, tasks, n, repetitions) for n in (3, 5, 10, 20)]
                print(f"| {shape} | {statistic} | {tasks} | " + " | ".join(f"{x:.1f}" for x in row) + " |", flush=True)


if __name__ == "__main__":
    main()
