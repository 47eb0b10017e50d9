"""Expectation against measurement: every row of `memax_rl.probes.expectations` is trained and compared.

    python benchmarks/probe_expectations.py --out probes/expectations --workers 1

Prints the table of docs/probes.md in Markdown; the exit status is 1 where a row disagrees. The folder is an ordinary
study: the same command goes on with what is there.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import memax_rl
from memax_rl.probes.expectations import BEYOND, EXPECTATIONS, Expectation, study
from memax_rl.studies import make_study
from memax_rl.studies.results import read_json


def scores(summary: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the scores of a run at the trained length and beyond, in the mean over its seeds; None where all diverged.

    Raises:
        ValueError: For a damaged summary.
    """
    try:
        by = {row["times"]: [float(score) for score in row["score_per_seed"]] for row in summary["lengths"]}
        trained, beyond = by[1], by[BEYOND]
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"the summary.json of a probe does not tell its scores at 1 and {BEYOND} times") from None
    return (fmean(trained), fmean(beyond)) if trained and beyond else None


def expected(claim: bool | None) -> str:
    """Return a claim in a word."""
    return {True: "yes", False: "no", None: "–"}[claim]


def row(expectation: Expectation, trained: float, beyond: float) -> str:
    """Return a row of the table."""
    options = ", ".join(f"{name}: {str(value).lower()}" for name, value in expectation.options.items())
    memory = f"{expectation.memory} ({options})" if options else expectation.memory
    agrees = "yes" if expectation.agrees(trained, beyond) else "**no**"
    claims = f"{expected(expectation.trained)} | {expected(expectation.beyond)}"
    return (
        f"| {expectation.probe} | {memory} | {expectation.why} | {claims} | {trained:.3f} | {beyond:.3f} | {agrees} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the study, new or to go on with")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    arguments = parser.parse_args(argv)
    try:
        ended = memax_rl.study(study(), out=arguments.out, workers=arguments.workers, progress=True)
        found = [scores(read_json(ended.folder / name / "summary.json")) for name in ended.finished]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt as stopped:
        sys.exit(f"\n{stopped}" if str(stopped) else "\nstopped")
    for name, message in ended.failed.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    print(f"| task | memory | why | solved | at {BEYOND} x | score | at {BEYOND} x | agrees |")
    print("|---|---|---|---|---|---|---|---|")
    wrong, by_name = len(ended.failed), dict(zip(ended.finished, found, strict=True))
    for expectation, cell in zip(EXPECTATIONS, make_study(study()).cells(), strict=True):
        if cell.name not in by_name:
            continue
        reached = by_name[cell.name]
        if reached is None:
            print(f"diverged: {cell.name}", file=sys.stderr)
        else:
            print(row(expectation, *reached))
        wrong += reached is None or not expectation.agrees(*reached)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
