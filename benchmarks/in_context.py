"""Print how the agents of a study of trials adapt to held-out tasks, in Markdown.

    memax-rl study in_context --out studies/in_context --workers 1
    python benchmarks/in_context.py studies/in_context

Every run is measured as by `memax-rl icl`, on held-out tasks: the return of a whole trial and of its first and last
episode, and of the last episode with the memory wiped at every episode. In the row under each: what known strategies
get in a whole trial, and in brackets in the last episode. Seconds are of the wall clock and for training, with
compilation.
"""

import argparse
import statistics
from pathlib import Path

from table import memory_of, numbers, read_groups, summary

from memax_rl.evaluation.in_context import evaluate_in_context


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of studies")
    parser.add_argument("--tasks", type=int, default=512, help="held-out tasks")
    parser.add_argument("--greedy", action="store_true", help="take the best action at every step (PPO samples)")
    chosen = parser.parse_args()
    found = read_groups(parser, chosen.folders)
    print("| runs | memory | steps | trial | mean of trials | first episode | last episode | last, wiped | seconds |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name, runs in found:
        options = {"tasks": chosen.tasks, "longer": (), "greedy": chosen.greedy or None}
        results = [evaluate_in_context(run.folder, **options) for run in runs]
        agents = [result["test"]["agent"] for result in results]
        trials = [agent["area"]["value"] for agent in agents]
        first = [agent["return_by_episode"][0]["value"] for agent in agents]
        last = [agent["return_by_episode"][-1]["value"] for agent in agents]
        wiped = [result["test"]["wiped"]["return_by_episode"][-1]["value"] for result in results]
        config = runs[0].fields()
        print(
            f"| {name} | {memory_of(config)} | {config['total_steps']:,} | {numbers(trials, 2)} | "
            f"{statistics.mean(trials):.2f} | {numbers(first, 2)} | {numbers(last, 2)} | {numbers(wiped, 2)} | "
            f"{numbers([summary(run)['seconds'] for run in runs], 0)} |"
        )
        known = [
            f"{strategy} {s['area']['value']:.2f} ({s['return_by_episode'][-1]['value']:.2f})"
            for strategy, s in results[-1]["strategies"].items()
        ]
        print(f"| | | | {', '.join(known)} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
