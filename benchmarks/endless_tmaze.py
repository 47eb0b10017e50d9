"""Test the agents of a study of the Endless T-maze, trained on corridors of up to 5 steps, on longer ones.

    memax-rl study endless_tmaze --out studies/endless_tmaze
    python benchmarks/endless_tmaze.py studies/endless_tmaze

Prints the corridors passed, of 10, of each seed, by memory and length of the corridor.
"""

import argparse
from pathlib import Path

from table import numbers, read_groups

from memax_rl.evaluation import evaluate

TEST_LENGTHS = (5, 10, 20)


def corridors(result) -> float:
    """Corridors passed: the return without the cost of the steps, which is 0.01 each."""
    return result["return"]["mean"]["value"] + 0.01 * result["mean_length"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of studies")
    arguments = parser.parse_args()
    found = read_groups(parser, arguments.folders, evaluated=False)
    print("| memory | " + " | ".join(f"length {n}" for n in TEST_LENGTHS) + " |")
    print("|---" * (1 + len(TEST_LENGTHS)) + "|")
    for name, runs in found:
        options = ({"length": length, "random_length": False} for length in TEST_LENGTHS)
        cells = [numbers([corridors(evaluate(run.folder, env_options=o)) for run in runs], 2) for o in options]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
