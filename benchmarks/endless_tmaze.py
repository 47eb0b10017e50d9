"""Train memories on the Endless T-maze with corridors of up to 5 steps, and test them on longer ones.

    python benchmarks/endless_tmaze.py --memories gru lru min_gru --steps 1000000

Prints the corridors passed, of 10, by memory and length of the corridor.
"""

import argparse
from pathlib import Path

from memax_rl.evaluation import evaluate
from memax_rl.training import make_config, train

TRAIN_LENGTH, TEST_LENGTHS, CORRIDORS = 5, (5, 10, 20), 10


def corridors(result) -> float:
    """Corridors passed: the return without the cost of the steps, which is 0.01 each."""
    return result["return"]["mean"]["value"] + 0.01 * result["mean_length"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", nargs="+", default=["gru", "lru", "min_gru"])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/endless_tmaze"))
    arguments = parser.parse_args()
    print("| memory | " + " | ".join(f"length {n}" for n in TEST_LENGTHS) + " |")
    print("|---" * (1 + len(TEST_LENGTHS)) + "|")
    for memory in arguments.memories:
        options = {"length": TRAIN_LENGTH, "random_length": True, "corridors": CORRIDORS}
        config = make_config(
            {
                "env": "meta/EndlessTMaze",
                "env_options": options,
                "total_steps": arguments.steps,
                "num_seeds": arguments.seeds,
                "eval_episodes": 0,
                "network": {"memory": memory, "width": 64},
                "ppo": {"num_envs": 32, "slots": 400, "learning_rate": 1e-3, "discount": 0.95},
            }
        )
        run = train(config, out=arguments.out / memory)
        cells = []
        for length in TEST_LENGTHS:
            result = evaluate(run.folder, env_options={"length": length, "random_length": False})
            cells.append(f"{corridors(result):.2f}")
        print(f"| {memory} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
