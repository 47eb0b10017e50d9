"""Print the scores of a study of probes as tables in Markdown: by memory and task, and at lengths beyond the trained.

    memax-rl probe probes --out probes/table
    python benchmarks/probe_table.py probes/table
    python benchmarks/probe_table.py probes/table --csv docs/results/probes.csv

Each cell is the mean over seeds. Beyond the trained length it is the score, and after a slash the norm of the last
block's state at the end of a sequence over that at the end of a trained length: 1 is a state that stays in the range
that the network was trained with. The file has a line for each seed and length.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pages import to_csv

from memax_rl.runs.files import write_atomically
from memax_rl.studies.probes import Probe, by_memory, chance_levels, finished_probes, scores_of


def score(probes: Sequence[Probe]) -> str:
    """Return the mean score over all seeds."""
    scores = scores_of(probes)
    return f"{np.mean(scores):.3f}" if scores else "–"


def at_length(probes: Sequence[Probe], times: int) -> str:
    """Return the score at so many times the trained length, and the norm there over that after one of them."""
    reached = [probe.lengths[times] for probe in probes if times in probe.lengths]
    scores = [score for one in reached for score in one.scores]
    grown = [growth(norms) for one in reached for norms in one.norms]
    return f"{np.mean(scores):.3f} / {np.mean(grown):.2g}" if scores else "–"


def growth(norms: Sequence[float]) -> float:
    """Return the norm of the state at the end of a sequence over that at the end of a trained length."""
    return norms[-1] / max(norms[0], 1e-9)


def rows_of(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """Return a row for each probe, seed and length: the score, and how the last block's state has grown."""
    rows = []
    for probe in probes:
        about = {"task": probe.task, "memory": probe.memory, "chance": round(probe.chance, 4)}
        for place, score in enumerate(probe.scores):
            own = about | {"seed": probe.seed + place}
            if 1 not in probe.lengths:
                rows.append(own | {"times_trained_length": 1, "score": round(score, 4), "state_growth": ""})
            for times, reached in probe.lengths.items():
                values = {
                    "score": round(reached.scores[place], 4),
                    "state_growth": f"{growth(reached.norms[place]):.4g}",
                }
                rows.append(own | {"times_trained_length": times} | values)
    return sorted(rows, key=lambda row: (row["task"], row["memory"], row["seed"], row["times_trained_length"]))


def line(cells: Sequence[str]) -> str:
    """Return a row in Markdown."""
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of studies of probes")
    parser.add_argument("--csv", type=Path, help="write the scores into this file, too")
    chosen = parser.parse_args(argv)
    try:
        probes = finished_probes(*chosen.folders)
    except ValueError as error:
        parser.error(str(error))
    if not probes:
        parser.error("no probe has finished there")
    if chosen.csv:
        write_atomically(chosen.csv, to_csv(rows_of(probes)))
    found, chances = by_memory(probes), dict(sorted(chance_levels(probes).items()))
    print(line(["memory", *chances]), line(["---"] * (1 + len(chances))), sep="\n")
    for memory, own in found.items():
        print(line([memory, *(score(own.get(task, ())) for task in chances)]))
    print(line(["chance", *(f"{chance:.3f}" for chance in chances.values())]))
    for task in chances:
        longer = {memory: own[task] for memory, own in found.items() if any(one.lengths for one in own.get(task, ()))}
        if longer:
            times = sorted({n for probes in longer.values() for probe in probes for n in probe.lengths})
            print(
                f"\n{task}\n\n" + line(["memory", *(f"x {n}" for n in times)]),
                line(["---"] * (1 + len(times))),
                sep="\n",
            )
            for memory, own in longer.items():
                print(line([memory, *(at_length(own, n) for n in times)]))


if __name__ == "__main__":
    main()
