"""`memax-rl compare`: the scores of many runs side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from memax_rl.cli.common import PathType, answers


@click.command("compare", short_help="Compare the runs of studies.")
@click.argument("folders", nargs=-1, required=True, type=PathType(file_okay=False))
@click.option("--out", type=PathType(), help="Write report.html, tables, CSV files and figures into this folder.")
@click.option("--overwrite", is_flag=True, help="Replace the files of a report that is in the folder already.")
@click.option("--figures/--no-figures", default=None, help="Draw figures as PDF and PNG (default: yes).")
@click.option(
    "--level",
    "levels",
    type=click.FloatRange(0, 1),
    multiple=True,
    help="For the report's steps to a level: how far from chance to the best known (default: 0.5 and 0.9). Again for "
    "more.",
)
@click.option(
    "--scores",
    metavar="TASK CHANCE BEST",
    type=(str, float, float),
    multiple=True,
    help="Mean returns of a task by chance and at best, to normalize by: of an environment, or of a task as the tables "
    "name it. Again for more.",
)
@answers
def compare(
    folders: tuple[Path, ...],
    out: Path | None,
    overwrite: bool,
    figures: bool | None,
    levels: tuple[float, ...],
    scores: tuple[tuple[str, float, float], ...],
) -> None:
    """Compare the memories in all run folders at or under FOLDERS, by the returns of finished seeds."""
    from memax_rl.studies.adaptation import adaptations
    from memax_rl.studies.analysis import compare as compare_runs
    from memax_rl.studies.analysis import with_scores
    from memax_rl.studies.report import check_out, write
    from memax_rl.studies.results import results_and_curves

    if out is None and overwrite:
        raise ValueError("--overwrite says what to do with the folder of --out, which is not given; add --out DIR")
    if out is None and (figures or levels):
        raise ValueError(f"--{'figures' if figures else 'level'} is of the report, which --out makes; add --out DIR")
    _check_once("--level", levels)
    _check_once("--scores", [task for task, _, _ in scores])
    if out is not None:
        check_out(out, overwrite)
    table, drawn = results_and_curves(*folders)
    if scores:
        table = with_scores(table, {task: (chance, best) for task, chance, best in scores})
    comparison = compare_runs(table, drawn, levels)
    rows, adapted = adaptations(comparison)
    _print(comparison, adapted)
    if out is not None:
        frames = {"results": table, "curves": drawn} | ({"adaptation": rows} if len(rows) else {})
        draws = figures is not False
        written = write(out, comparison, adapted, frames, figures=draws, overwrite=overwrite)
        print("written: " + ", ".join(str(path) for path in written if path.parent == out))
        if draws:
            print(f"figures: {out / 'figures'}")


def _check_once(option: str, values: Sequence[Any]) -> None:
    if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise ValueError(f"{option} {twice[0]} is given twice; leave one of them out")


def _print(comparison: Any, adaptations: Any) -> None:
    from memax_rl.studies import tables
    from memax_rl.studies.comparison import sentence
    from memax_rl.studies.sections import doubled

    if len(comparison.left_out):
        seeds = sum(len(task.rows) for task in comparison.tasks)
        print(f"{len(comparison.left_out)} of {seeds} seeds are not finished, diverged or not evaluated")
    for task in comparison.tasks:
        if task.doubled:
            print(doubled(task))
        if task.scores:
            _print_table(tables.score_table(task))
            print(sentence(task.scores))
    for adaptation in adaptations:
        _print_table(tables.adaptation_table(adaptation))
    if len(comparison.tasks) > 1 and len(comparison.complete) > 1:
        if comparison.over_tasks:
            _print_table(tables.aggregate_table(comparison))
        _print_table(tables.rank_table(comparison))


def _print_table(table: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(table.title), caption=Text(table.caption))
    for i, column in enumerate(table.columns):
        shown.add_column(Text(column), justify="right" if i else "left")
    for row in table.rows:
        shown.add_row(*(Text(cell.text, "bold" if cell.strong else "") for cell in row))
    # Wide enough for the table where the output is no terminal.
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(shown)
