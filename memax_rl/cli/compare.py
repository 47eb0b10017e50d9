"""`memax-rl compare`: the scores of many runs side by side."""

from pathlib import Path
from typing import Any

import click

from memax_rl.cli.common import PathType, answers


@click.command("compare", short_help="Compare the runs of studies.")
@click.argument("folders", nargs=-1, required=True, type=PathType(file_okay=False))
@click.option("--out", type=PathType(), help="Write results.csv and curves.csv into this folder.")
@answers
def compare(folders: tuple[Path, ...], out: Path | None) -> None:
    """Compare the memories in all run folders at or under FOLDERS, by the returns of finished seeds."""
    from memax_rl.runs.files import write_atomically
    from memax_rl.studies.results import results_and_curves

    table, drawn = results_and_curves(*folders)
    _print(table)
    if out is not None:
        rows = {"results.csv": table, "curves.csv": drawn}
        out.mkdir(parents=True, exist_ok=True)
        for name, content in rows.items():
            write_atomically(out / name, content.to_csv(index=False))
        print("written: " + ", ".join(str(out / name) for name in rows))


def _print(results: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from memax_rl.studies.comparison import estimate, sentence

    console = Console()
    scored = results[(results["status"] == "finished") & results["final_return"].notna()]
    if len(scored) < len(results):
        print(f"{len(results) - len(scored)} of {len(results)} seeds are not finished, diverged or not evaluated")
    for (env, agent), task in scored.groupby(["env", "agent"]):
        table = Table(title=f"{env}, {agent}", caption="returns, not normalized; 95 % intervals over seeds")
        for column in ("memory", "seeds", "mean", "95 % interval", "interquartile mean", "95 % interval"):
            table.add_column(column, justify="left" if column == "memory" else "right")
        scores = {name: rows["final_return"].to_numpy() for name, rows in task.groupby(_labels(task))}
        if (doubled := task.assign(label=_labels(task)).duplicated(["label", "seed"]).sum()) > 0:
            print(f"{doubled} runs repeat the settings and seed of another; each counts as a run of its own")
        for name in sorted(scores, key=lambda name: -scores[name].mean()):
            cells = []
            for statistic in ("mean", "iqm"):
                e = estimate([scores[name]], statistic)
                cells += [f"{e['value']:.3f}", "-" if e["low"] != e["low"] else f"{e['low']:.3f} to {e['high']:.3f}"]
            table.add_row(name, str(len(scores[name])), *cells)
        console.print(table)
        print(sentence(scores))


def _labels(task: Any) -> Any:
    """Return what tells the runs of one task apart besides their seed: the memory, and every setting that differs."""
    from memax_rl.studies.results import COLUMNS

    labels = task["memory"].astype(str)
    for name in task.columns.difference(COLUMNS, sort=False):
        if task[name].astype(str).nunique() > 1:
            labels = labels + f", {name}=" + task[name].astype(str)
    return labels
