"""Print the scores of a study of probes as tables in Markdown: by memory and task, and at lengths beyond the trained.

    memax-rl probe probes --out probes/table
    python benchmarks/probe_table.py probes/table

Each cell is the mean over seeds. Beyond the trained length it is the score, and after a slash the norm of the last
block's state at the end of a sequence over that at the end of a trained length: 1 is a state that stays in the range
that the network was trained with.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from memax_rl.studies.probes import finished_probes

Probes = list[tuple[dict[str, Any], dict[str, Any]]]


def grouped(probes: Probes) -> tuple[dict[str, dict[str, list[dict[str, Any]]]], dict[str, float]]:
    """Return the summaries by memory and task, the best memory first, and the chance level of each task."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    chances: dict[str, float] = {}
    for fields, summary in probes:
        task = f"{fields['task']} {fields['task_options']['length']}"
        found.setdefault(summary["memory"], {}).setdefault(task, []).append(summary)
        chances[task] = summary["evaluation"]["chance"]
    order = sorted(found, key=lambda memory: -sum(mean_score(own) for own in found[memory].values()))
    return {memory: found[memory] for memory in order}, dict(sorted(chances.items()))


def mean_score(summaries: list[dict[str, Any]]) -> float:
    """Return the mean score over all seeds."""
    return float(np.mean([value for one in summaries for value in one["evaluation"]["mean_return_per_seed"]]))


def at_length(summaries: list[dict[str, Any]], times: int) -> str:
    """Return the score at so many times the trained length, and the norm there over that after one of them."""
    scores, growth = [], []
    for summary in summaries:
        (row,) = (row for row in summary["lengths"] if row["times"] == times)
        scores += row["score_per_seed"]
        # [lengths, blocks] of each seed.
        norms = np.array(row["state_norm_per_seed"])[:, :, -1]
        growth += list(norms[:, -1] / np.maximum(norms[:, 0], 1e-9))
    return f"{np.mean(scores):.3f} / {np.mean(growth):.2g}"


def line(cells: list[str]) -> str:
    """Return a row in Markdown."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of studies of probes")
    probes = finished_probes(*parser.parse_args().folders)
    found, chances = grouped(probes)
    print(line(["memory", *chances]), line(["---"] * (1 + len(chances))), sep="\n")
    for memory, own in found.items():
        print(line([memory, *(f"{mean_score(own[task]):.3f}" if task in own else "–" for task in chances)]))
    print(line(["chance", *(f"{chance:.3f}" for chance in chances.values())]))
    for task in chances:
        longer = {memory: own[task] for memory, own in found.items() if task in own and own[task][0].get("lengths")}
        if longer:
            times = sorted(row["times"] for row in next(iter(longer.values()))[0]["lengths"])
            print(
                f"\n{task}\n\n" + line(["memory", *(f"x {n}" for n in times)]),
                line(["---"] * (1 + len(times))),
                sep="\n",
            )
            for memory, summaries in longer.items():
                print(line([memory, *(at_length(summaries, n) for n in times)]))


if __name__ == "__main__":
    main()
