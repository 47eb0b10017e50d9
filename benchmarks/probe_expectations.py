"""Expectation against measurement: every row of `memax_rl.probes.expectations` is trained and compared.

    python benchmarks/probe_expectations.py --out probes/expectations --workers 1

Prints the table of docs/probes.md in Markdown; the exit status is 1 where a row disagrees. The folder is an ordinary
study: the same command goes on with what is there.
"""

import argparse
import json
import sys
from pathlib import Path

import memax_rl
from memax_rl.probes.expectations import BEYOND, EXPECTATIONS, Expectation, study
from memax_rl.studies import make_study


def scores(summary: dict) -> tuple[float, float]:
    """Return the scores of a run at the trained length and beyond, in the mean over its seeds."""
    by = {row["times"]: row["score_per_seed"] for row in summary["lengths"]}
    return tuple(sum(by[times]) / len(by[times]) for times in (1, BEYOND))  # pyright: ignore[reportReturnType]


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


def main() -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the study, new or to go on with")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    arguments = parser.parse_args()
    ended = memax_rl.study(study(), out=arguments.out, workers=arguments.workers, progress=True)
    for name, message in ended.failed.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    print(f"| task | memory | why | solved | at {BEYOND} x | score | at {BEYOND} x | agrees |")
    print("|---|---|---|---|---|---|---|---|")
    wrong = len(ended.failed)
    for expectation, cell in zip(EXPECTATIONS, make_study(study()).cells(), strict=True):
        path = arguments.out / cell.name / "summary.json"
        if path.exists():
            found = scores(json.loads(path.read_text()))
            wrong += not expectation.agrees(*found)
            print(row(expectation, *found))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
