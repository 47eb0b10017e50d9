"""Print what the runs of studies reached, as a table in Markdown.

    memax-rl study popgym --out studies/popgym --workers 1
    python benchmarks/table.py studies/popgym

"best epoch" is the measure of the POPGym paper: the greatest mean return of the episodes that ended in an epoch, one of
the spans of 65,536 steps, one after the other, into which training falls. It is above the mean where returns vary by
chance. Seconds are of the wall clock and for training, with compilation: with several workers at once there are more of
them. Seeds that are not finished are left out.
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memax_rl.runs import Run
from memax_rl.studies.results import find_runs, read_json

EPOCH = 65_536


def best_epoch(metrics: list[dict[str, float]]) -> float:
    """Return the greatest mean return of the episodes that ended in an epoch. NaN if none is complete."""
    best, total, count, end = -math.inf, 0.0, 0.0, EPOCH
    for row in metrics:
        if row["episode/count"] > 0:
            total += row["episode/return"] * row["episode/count"]
            count += row["episode/count"]
        if row["env_steps"] >= end:
            best = max(best, total / count) if count else best
            total, count, end = 0.0, 0.0, row["env_steps"] + EPOCH
    return best if best > -math.inf else math.nan


def numbers(values: list[float], digits: int) -> str:
    """Return the values, separated by commas."""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def groups(folders: list[Path]) -> Iterator[tuple[str, list[Run]]]:
    """Yield the finished runs of studies that differ by their seed alone, and the name they share."""
    finished = [run for path in find_runs(*folders) if (run := Run.open(path)).summary_path.exists()]
    for parent, runs in itertools.groupby(finished, key=lambda run: run.folder.parent):
        study = next((above for above in parent.parents if (above / "study.yaml").is_file()), parent.parent)
        yield str(parent.relative_to(study)), sorted(runs, key=lambda run: run.fields()["seed"])


def read_groups(
    parser: argparse.ArgumentParser, folders: list[Path], *, evaluated: bool = True
) -> list[tuple[str, list[Run]]]:
    """Return what `groups` yields of studies of agents. Ends the program with a line where there is no such run.

    Args:
        evaluated: Whether the runs must have been evaluated at their end.
    """
    try:
        found = list(groups(folders))
        for run in (run for _, runs in found for run in runs):
            if run.is_probe():
                parser.error(f"{run.folder} is a probe; print its study with benchmarks/probe_table.py")
            if evaluated and "return" not in summary(run).get("evaluation", {}):
                parser.error(f"{run.folder} was not evaluated at its end, or its summary.json is damaged")
    except ValueError as error:
        parser.error(str(error))
    if not found:
        parser.error("no run has finished there")
    return found


def summary(run: Run) -> dict[str, Any]:
    """Return what summary.json holds. Raises `RunError` if it is damaged."""
    return read_json(run.summary_path)


def memory_of(config: dict[str, Any]) -> str:
    """Return the name of a run's memory, of a stack those of its blocks."""
    network = config["network"]
    return "+".join([block["memory"] for block in network["blocks"]] or [network["memory"]])


def main() -> None:
    """Print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of studies whose runs were evaluated")
    chosen = parser.parse_args()
    found = read_groups(parser, chosen.folders)
    print(
        "| runs | memory | steps | mean | return of each seed | best epoch of each seed | chance | best known | "
        "seconds of each seed |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, runs in found:
        config, ended = runs[0].fields(), [summary(run) for run in runs]
        returns = [one["evaluation"]["return"]["mean"]["value"] for one in ended]
        epochs = [best_epoch(run.metrics()) for run in runs]
        known = [ended[0]["evaluation"][key] for key in ("chance", "best")]
        shown = ["" if value is None else f"{value:.3f}" for value in known]
        print(
            f"| {name} | {memory_of(config)} | {config['total_steps']:,} | {statistics.mean(returns):.3f} | "
            f"{numbers(returns, 3)} | {numbers(epochs, 3)} | {shown[0]} | {shown[1]} | "
            f"{numbers([one['seconds'] for one in ended], 0)} |"
        )


if __name__ == "__main__":
    main()
