"""An agent that learns inside its memory: its weights fixed, it plays bandits that it has never seen better and better.

    python examples/learn_in_context.py --total-steps 1M

Beside it: the same agent with its memory wiped at every block of pulls, random play, and the Gittins index.
"""

import argparse
from pathlib import Path

import memax_rl
from memax_rl.evaluation.in_context import evaluate_in_context


def main(total_steps: str, out: Path, tasks: int) -> dict[str, list[float]]:
    """Train, and return the mean payout of each block of ten pulls, for the agent and what it is compared with."""
    run = memax_rl.train(
        env="meta/BernoulliBandit",
        env_options={"arms": 5, "episodes": 4},
        network={"memory": "gru", "width": 64},
        total_steps=total_steps,
        eval_episodes=0,
        out=out,
    )
    result = evaluate_in_context(run.folder, tasks=tasks)
    test = result["test"]
    shown = {"agent": test["agent"], "wiped memory": test["wiped"], **result["strategies"]}
    found = {name: [entry["value"] for entry in played["return_by_episode"]] for name, played in shown.items()}
    for name, payouts in found.items():
        print(f"{name:18s} {'  '.join(f'{payout:5.2f}' for payout in payouts)}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-steps", default="1M")
    parser.add_argument("--out", type=Path, default=Path("runs/learn_in_context"))
    parser.add_argument("--tasks", type=int, default=256)
    options = parser.parse_args()
    main(options.total_steps, options.out, options.tasks)
