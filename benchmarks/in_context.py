"""Write docs/results/in_context.md: how the agents of a study of trials adapt to held-out tasks.

    memax-rl study in_context --workers 1 --out studies/in_context
    memax-rl icl studies/in_context
    python benchmarks/in_context.py studies/in_context    # docs/results/in_context.csv, and page and picture from it
    python benchmarks/in_context.py                       # page and picture alone

The file has a line for each run and player: the agent, the agent with its memory wiped at every episode, and the known
strategies.
"""

import argparse
import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from pages import FOLDER, Row, fill, mean, to_csv, twice
from table import memory_of, read_groups, summary

from memax_rl.evaluation.figures import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    make_figure,
    set_counts,
)
from memax_rl.runs import Run
from memax_rl.runs.files import write_atomically
from memax_rl.studies.comparison import mean_interval
from memax_rl.studies.results import read_json

AGENT, WIPED = "agent", "memory wiped"
# They are told the task that the agent has to find out.
TOLD = ("oracle", "known model")
# Of the options of a family, those that set its presets apart.
TELLING = ("arms", "size")
_PER_ROW, _BANDS = 3, 3
_MEMORIES = (BLUE, GREEN, PURPLE, ORANGE, SKY, "#882255")


def task_of(fields: dict[str, Any]) -> str:
    """Return what a run was trained on, such as `DarkRoom, size 5`."""
    options = fields["env_options"]
    told = [f"{name} {options[name]}" for name in TELLING if name in options]
    return ", ".join([fields["env"].removeprefix("meta/"), *told])


def rows_of(run: Run) -> list[Row]:
    """Return a row for each player of the trials of a run. Raises `ValueError` if it was not measured."""
    fields, ended = run.fields(), summary(run)
    result = read_json(run.folder / "icl.json")
    if not result:
        raise ValueError("there is no icl.json; run `memax-rl icl` on the study first")
    about = {
        "task": task_of(fields),
        "memory": memory_of(fields),
        "seed": fields["seed"],
        "steps": fields["total_steps"],
        "seconds": round(ended["seconds"]),
        "trials": result["tasks"],
        "held_out_tasks": result["distinct_tasks"]["test"],
        "unit": "episode" if result["has_boundaries"] else f"{result['episode_length']} pulls",
    }
    test = result["test"]
    players = {AGENT: test["agent"], WIPED: test["wiped"]} | result["strategies"]
    return [
        about | {"who": who, "returns": " ".join(f"{one['value']:.4g}" for one in played["return_by_episode"])}
        for who, played in players.items()
    ]


def returns_of(rows: list[Row], task: str, who: str, memory: str | None = None) -> np.ndarray:
    """Return the mean return by episode [runs, episodes] of a player; a strategy has one for each run of any memory."""
    own = [row for row in rows if row["task"] == task and row["who"] == who and memory in (None, row["memory"])]
    return np.array([[float(value) for value in row["returns"].split()] for row in own])


def in_order(rows: list[Row], key: str, **fixed: str) -> list[str]:
    """Return the values of a column in the order in which they come, of rows whose other columns are as given."""
    chosen = [row for row in rows if all(row[name] == value for name, value in fixed.items())]
    return list(dict.fromkeys(str(row[key]) for row in chosen))


def strategies_of(rows: list[Row], task: str) -> list[str]:
    """Return the strategies of a task, the one with the greatest return of a whole trial first."""
    names = [who for who in in_order(rows, "who", task=task) if who not in (AGENT, WIPED)]
    return sorted(names, key=lambda who: -returns_of(rows, task, who).sum(axis=1).mean())


def share(rows: list[Row], task: str, memory: str) -> list[float]:
    """Return for each seed the return of a whole trial, from random actions (0) to the best strategy (1)."""
    best, random = (returns_of(rows, task, who).sum(axis=1).mean() for who in (strategies_of(rows, task)[0], "random"))
    return list((returns_of(rows, task, AGENT, memory).sum(axis=1) - random) / (best - random))


def tables(rows: list[Row]) -> str:
    """Return the table of the agents, and that of the strategies."""
    lines = [
        "| task | memory | steps | first episode | last episode | last, memory wiped | share of the best | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in in_order(rows, "task"):
        for memory in in_order(rows, "memory", task=task):
            agent = returns_of(rows, task, AGENT, memory)
            wiped = returns_of(rows, task, WIPED, memory)
            runs = [row for row in rows if (row["task"], row["memory"], row["who"]) == (task, memory, AGENT)]
            columns = (agent[:, 0], agent[:, -1], wiped[:, -1], share(rows, task, memory))
            minutes = np.mean([float(row["seconds"]) for row in runs]) / 60
            lines.append(
                f"| {task} | {memory} | {int(runs[0]['steps']) / 1e6:.1f}M | "
                f"{' | '.join(mean(list(column), 2) for column in columns)} | {minutes:.1f} |"
            )
    lines += ["", "| task | strategy | first episode | last episode | whole trial |", "|---|---|---|---|---|"]
    for task in in_order(rows, "task"):
        for who in strategies_of(rows, task):
            played = returns_of(rows, task, who)
            columns = (played[:, 0], played[:, -1], played.sum(axis=1))
            lines.append(f"| {task} | {who} | {' | '.join(f'{column.mean():.2f}' for column in columns)} |")
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Draw the return by episode, a panel a task."""
    from matplotlib.lines import Line2D

    tasks, memories = in_order(rows, "task"), in_order(rows, "memory")
    looks = dict(zip(memories, zip(itertools.cycle(_MEMORIES), MARKERS, strict=False), strict=False))
    legend = [
        Line2D([], [], color=color, marker=marker, markersize=4, linewidth=2, label=memory)
        for memory, (color, marker) in looks.items()
    ]
    styles = {
        WIPED: {"color": VERMILLION, "linestyle": "--", "linewidth": 1.2},
        "best strategy that is not told the task": {"color": BLACK, "linestyle": ":", "linewidth": 1.6},
        "told the task": {"color": BLACK, "linestyle": (0, (5, 1.5, 1, 1.5)), "linewidth": 1},
        "random actions": {"color": GRAY, "linestyle": (0, (2.5, 2.5)), "linewidth": 1},
    }
    legend += [Line2D([], [], label=label, **style) for label, style in styles.items()]
    seeds = len(in_order(rows, "seed"))
    caption = (
        "Mean return of each episode of a trial (of a bandit, each block of pulls) on held-out tasks, weights fixed; "
        f"{seeds} seeds, {rows[0]['trials']} trials of each. Bands, where there are at most {_BANDS} memories: 95 % "
        "intervals of the mean over seeds (Student's)."
    )
    figure, axes = make_figure(len(tasks), "Does it adapt?", legend, caption, height=1.75, per_row=_PER_ROW)
    for place, (axis, task) in enumerate(zip(axes, tasks, strict=True)):
        _draw_task(axis, rows, task, looks, styles)
        if place % _PER_ROW == 0:
            axis.set_ylabel("return")
    figure.savefig(path, dpi=130)


def _draw_task(
    axis: Any, rows: list[Row], task: str, looks: dict[str, tuple[str, str]], styles: dict[str, Any]
) -> None:
    """Draw the panel of a task."""
    known = strategies_of(rows, task)
    fair = [who for who in known if who not in (*TOLD, "random")]
    others = dict(zip(styles, (None, fair[:1], [who for who in known if who in TOLD], ["random"]), strict=True))
    for label, names in others.items():
        for who in names or ():
            played = returns_of(rows, task, who).mean(axis=0)
            axis.plot(np.arange(1, len(played) + 1), played, **styles[label])
    memories = in_order(rows, "memory", task=task)
    for memory in memories:
        color, marker = looks[memory]
        middle, low, high = mean_interval(returns_of(rows, task, AGENT, memory))
        x = np.arange(1, len(middle) + 1)
        axis.plot(x, returns_of(rows, task, WIPED, memory).mean(axis=0), **styles[WIPED])
        axis.plot(x, middle, color=color, linewidth=2, marker=marker, markersize=4, markevery=max(1, len(x) // 5))
        # More than a few bands are a fog.
        if len(memories) <= _BANDS:
            axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    axis.set_title(task, loc="left", fontsize=8)
    set_counts(axis, 1, len(x))


def measured(parser: argparse.ArgumentParser, folders: list[Path]) -> list[Row]:
    """Return the rows of all finished runs of studies, in order of task, memory and seed."""
    runs = [run for _, own in read_groups(parser, folders, evaluated=False) for run in own]
    names = [f"{task_of(fields)} with {memory_of(fields)}" for fields in (run.fields() for run in runs)]
    if said := twice([(name, run.fields()["seed"], run.folder) for name, run in zip(names, runs, strict=True)]):
        parser.error(said)
    rows = []
    for run in runs:
        try:
            rows += rows_of(run)
        except ValueError as error:
            parser.error(f"{run.folder}: {error}")
    return sorted(rows, key=lambda row: (row["task"], row["memory"], row["seed"]))


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, help="of studies; without, page and picture from the file")
    chosen = parser.parse_args()
    if chosen.folders:
        write_atomically(FOLDER / "in_context.csv", to_csv(measured(parser, chosen.folders)))
    with (FOLDER / "in_context.csv").open() as file:
        rows = list(csv.DictReader(file))
    page = FOLDER / "in_context.md"
    write_atomically(page, fill(page.read_text(), tables(rows)))
    draw(rows, FOLDER / "in_context.png")


if __name__ == "__main__":
    main()
