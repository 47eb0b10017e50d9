"""Which memory solves it? Six of them on one problem, as a study that goes on where it was stopped, read with pandas.

    python examples/which_memory.py --total-steps 200k --seeds 3

`memax-rl compare studies/which_memory` draws the report.
"""

import argparse
from pathlib import Path

import pandas as pd

import memax_rl

MEMORIES = ["gru", "lru", "min_gru", "mamba2", "gated_delta_net", "mlp"]


def main(total_steps: str, seeds: int, out: Path, memories: list[str]) -> pd.DataFrame:
    """Train all cells, and return the mean and the spread of the final returns of each memory, the best first."""
    study = {
        "base": {"total_steps": total_steps, "network.width": 64, "eval_episodes": 128},
        "grid": {"env": ["popgym/RepeatFirstEasy"], "network.memory": memories},
        "seeds": seeds,
    }
    outcome = memax_rl.study(study, out=out, progress=True)
    table = memax_rl.results(outcome.folder)
    by_memory = pd.DataFrame(table.groupby("memory")["final_return"].agg(["mean", "min", "max", "count"]))
    by_memory = by_memory.sort_values(by=["mean"], ascending=False)
    print(by_memory.round(3).to_string())
    return by_memory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-steps", default="200k")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("studies/which_memory"))
    parser.add_argument("--memories", nargs="+", default=MEMORIES)
    options = parser.parse_args()
    main(options.total_steps, options.seeds, options.out, options.memories)
