"""Train memories on the Endless T-maze with corridors of up to 5 steps, and test them on longer ones.

    python benchmarks/endless_tmaze.py --memories gru lru min_gru --steps 1000000 --seeds 3

Prints the corridors passed, of 10, of each seed, by memory and length of the corridor.
"""

import argparse
from pathlib import Path

from memax_rl.evaluation import evaluate
from memax_rl.runs import load_config, override
from memax_rl.training import train

PRESET, TEST_LENGTHS = "ppo/meta_endless_tmaze", (5, 10, 20)


def corridors(result) -> float:
    """Corridors passed: the return without the cost of the steps, which is 0.01 each."""
    return result["return"]["mean"]["value"] + 0.01 * result["mean_length"]


def passed_by(memory: str, seed: int, steps: int, out: Path) -> dict[int, float]:
    """Train one seed, and return the corridors that it passes, by their length."""
    fields = {"memory": memory, "seed": seed, "total-steps": steps, "eval-episodes": 0}
    config = override(
        load_config(PRESET), [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    )
    folder = train(config, out=out / f"{memory}_{seed}").folder
    options = ({"length": length, "random_length": False} for length in TEST_LENGTHS)
    return {o["length"]: corridors(evaluate(folder, env_options=o)) for o in options}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", nargs="+", default=["gru", "lru", "min_gru"])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/endless_tmaze"))
    arguments = parser.parse_args()
    print("| memory | " + " | ".join(f"length {n}" for n in TEST_LENGTHS) + " |")
    print("|---" * (1 + len(TEST_LENGTHS)) + "|")
    for memory in arguments.memories:
        passed = [passed_by(memory, seed, arguments.steps, arguments.out) for seed in range(arguments.seeds)]
        cells = [", ".join(f"{of_seed[length]:.2f}" for of_seed in passed) for length in TEST_LENGTHS]
        print(f"| {memory} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
