"""Write docs/results/popgym.md from the runs of the study of POPGym.

    memax-rl study popgym --workers 1 --out studies/popgym
    python benchmarks/popgym_results.py studies/popgym      # docs/results/popgym.csv, and the page from it
    python benchmarks/popgym_results.py                     # the page alone

A run that is not finished is not in the file, and its task is marked as not run. "Last" is the mean return of the
episodes that ended in the last 65,536 steps of training, "best epoch" the greatest mean of the epochs of so many steps,
one after the other, into which training falls: the measure of the POPGym paper.
"""

import argparse
import csv
import math
from pathlib import Path

import numpy as np
from pages import FOLDER, Row, fill, mean, to_csv, twice
from table import EPOCH, best_epoch, memory_of, read_groups, summary

from memax_rl.envs.baselines.scores import reference_scores
from memax_rl.runs import Run
from memax_rl.runs.files import write_atomically
from memax_rl.studies.comparison import estimate

# The best of 13 models after 15 million steps, best epoch: Morad et al. 2023, https://arxiv.org/abs/2303.01859, at
# Easy, Medium and Hard. Of the others no figure is at hand.
PAPER = {
    "RepeatFirst": (1.0, 1.0, 0.969),
    "RepeatPrevious": (1.0, 0.789, 0.191),
    "Autoencode": (-0.283, -0.425, -0.456),
    "CountRecall": (0.509, -0.528, -0.475),
    "HigherLower": (0.529, 0.511, 0.506),
    "Concentration": None,
    "Battleship": None,
    "MineSweeper": None,
    "MultiarmedBandit": (0.631, 0.598, 0.574),
    "PositionOnlyCartPole": (1.0, 1.0, 1.0),
    "VelocityOnlyCartPole": None,
    "NoisyPositionOnlyCartPole": (0.995, 0.642, 0.390),
    "PositionOnlyPendulum": None,
    "NoisyPositionOnlyPendulum": None,
}
DIFFICULTIES = ("Easy", "Medium", "Hard")


def last_epoch(metrics: list[dict[str, float]]) -> float:
    """Return the mean return of the episodes that ended in the last 65,536 steps of training. NaN if none did."""
    last = [row for row in metrics if row["env_steps"] > metrics[-1]["env_steps"] - EPOCH and row["episode/count"] > 0]
    count = sum(row["episode/count"] for row in last)
    return sum(row["episode/return"] * row["episode/count"] for row in last) / count if count else math.nan


def row_of(run: Run) -> Row:
    """Return what is kept of a finished run."""
    fields, ended = run.fields(), summary(run)
    metrics = run.metrics()
    return {
        "task": fields["env"].removeprefix("popgym/"),
        "memory": memory_of(fields),
        "seed": fields["seed"],
        "steps": int(metrics[-1]["env_steps"]),
        "return": round(ended["evaluation"]["return"]["mean"]["value"], 4),
        "episodes": ended["evaluation"]["episodes_per_seed"],
        "last": round(last_epoch(metrics), 4),
        "best_epoch": round(best_epoch(metrics), 4),
        "seconds": round(ended["seconds"]),
        "jax": ended["jax"],
    }


def rows_of(parser: argparse.ArgumentParser, folders: list[Path]) -> list[Row]:
    """Return the finished runs of studies, one seed a run, in order of task and seed."""
    runs = [run for _, own in read_groups(parser, folders) for run in own]
    for run in runs:
        if not run.fields()["env"].startswith("popgym/"):
            parser.error(f"{run.folder} is a run of {run.fields()['env']}, which is no task of POPGym")
    if said := twice([(run.fields()["env"], run.fields()["seed"], run.folder) for run in runs]):
        parser.error(said)
    return sorted(map(row_of, runs), key=lambda row: (row["task"], row["seed"]))


def line(task: str, paper: float | None, rows: list[Row]) -> str:
    """Return a row of the page's table."""
    chance, best = reference_scores(f"popgym/{task}")
    scores = [f"{chance:.3f}", f"{best:.3f}", "" if paper is None else f"{paper:.3f}"]
    if not rows:
        return f"| {task} | not run | | | | | | {' | '.join(scores)} | |"
    column = {key: [float(row[key]) for row in rows] for key in ("return", "last", "best_epoch", "seconds")}
    shown = [mean(column[key]) for key in ("return", "last", "best_epoch")]
    steps = f"{int(rows[0]['steps']) / 1e6:.1f}M"
    minutes = f"{np.mean(column['seconds']) / 60:.1f}"
    return f"| {task} | {rows[0]['memory']} | {steps} | {len(rows)} | {' | '.join(shown + scores)} | {minutes} |"


def normalized(rows: list[Row]) -> list[float]:
    """Return the return of each run on the way from chance (0) to the best known strategy (1)."""
    scores = [(float(row["return"]), *reference_scores(f"popgym/{row['task']}")) for row in rows]
    return [(value - chance) / (best - chance) for value, chance, best in scores]


def over_tasks(scores: list[np.ndarray], statistic: str) -> str:
    """Return a statistic as `memax-rl compare` has it, with its 95 % interval if every task has two runs or more."""
    found = estimate(scores, statistic)
    interval = f" [{found['low']:.3f}, {found['high']:.3f}]" if math.isfinite(found["low"]) else ""
    return f"{found['value']:.3f}{interval}"


def tables(rows: list[Row]) -> str:
    """Return the table of all tasks, and the sentence on all of them together."""
    lines = [
        "| task | memory | steps | seeds | return | last 65,536 steps | best epoch | chance | best known | paper "
        "| minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for family, paper in PAPER.items():
        for place, difficulty in enumerate(DIFFICULTIES):
            task = family + difficulty
            own = [row for row in rows if row["task"] == task]
            lines.append(line(task, paper and paper[place], own))
    tasks = sorted({row["task"] for row in rows})
    scores = [np.array(normalized([row for row in rows if row["task"] == task])) for task in tasks]
    of = "runs"
    if len({len(own) for own in scores}) > 1:
        # Else a task with more seeds would count for more.
        scores, of = [own.mean(keepdims=True) for own in scores], "tasks' means"
    hours = sum(float(row["seconds"]) for row in rows) / 3600
    lines += [
        "",
        f"{len(tasks)} of {len(PAPER) * len(DIFFICULTIES)} tasks have run, {hours:.1f} hours of training in all. "
        f"With chance as 0 and the best known strategy as 1, the interquartile mean of the {of} is "
        f"{over_tasks(scores, 'iqm')}, the mean over these tasks {over_tasks(scores, 'mean')}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, help="of studies; without, the page is made from the file")
    folders = parser.parse_args().folders
    if folders:
        write_atomically(FOLDER / "popgym.csv", to_csv(rows_of(parser, folders)))
    with (FOLDER / "popgym.csv").open() as file:
        rows = list(csv.DictReader(file))
    page = FOLDER / "popgym.md"
    write_atomically(page, fill(page.read_text(), tables(rows)))


if __name__ == "__main__":
    main()
