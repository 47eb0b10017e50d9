"""`memax-rl probe`: supervised tasks, and what each memory makes of them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from memax_rl.cli.common import PathType, answers, import_option, import_own
from memax_rl.cli.study import FieldsCommand, by_field, make_grid

_EXAMPLES = """\
Examples:

\b
  memax-rl probe --task parity --memory gru lru delta_product --out probes/parity
  memax-rl probe --task copying first_symbol --memory gru lru mamba2 --length 1000 --seeds 3 --out probes/long
  memax-rl probe --task parity --memory gru mamba2 --length 40 --test-lengths --out probes/lengths
  memax-rl probe --task copying --network.blocks '[lru, {memory: attention, window: 16}]' --out probes/stack
  memax-rl probe probes/parity                    go on with what is there, and print its table
  memax-rl compare probes/parity --out report     curves, intervals, costs
"""
_LENGTHS = "1,2,4,8,16"


@click.command("probe", cls=FieldsCommand, epilog=_EXAMPLES, short_help="Test memories on supervised tasks.")
@click.argument("file", type=PathType(), required=False, metavar="[FILE.yaml | NAME | DIR]")
@click.option("--out", type=PathType(), help="The folder of the study that is made; an existing one is continued.")
@click.option("--seeds", type=click.IntRange(1), help="How many seeds each combination is run with (default: 1).")
@click.option("--workers", type=click.IntRange(1), help="Processes (default: one a GPU, or one a core).")
@click.option(
    "--test-lengths",
    is_flag=False,
    flag_value=_LENGTHS,
    metavar="[TIMES,...]",
    help=f"Test also at so many times the trained length, with the norm of the state (without a value: {_LENGTHS}).",
)
@click.option("--check", is_flag=True, help="List the cells, and make nothing.")
@import_option
@click.pass_context
@answers
def probe(
    ctx: click.Context,
    file: Path | None,
    out: Path | None,
    seeds: int | None,
    workers: int | None,
    test_lengths: str | None,
    check: bool,
    imports: tuple[str, ...],
) -> None:
    """Train memories on tasks of `memax-rl list probes`, and print a table of their scores.

    --task and --memory take several names; --length is short for --task-options.length, and every other field of a
    probe is an option too, such as --total-updates or --learner.batch-size. Each combination is a run folder of a
    study, so that `study`, `compare` and a second call of the same command work on it. A score is 1 where all is right.
    """
    import_own(imports)
    from memax_rl import studies
    from memax_rl.studies import runner

    fields = by_field(ctx.obj, {"length": "task_options.length"})
    if file is not None and file.is_dir():
        if fields or seeds or test_lengths:
            raise ValueError(f"{file} is a study's folder, which says what it is; change it by its own command or file")
        given: Any = file
    else:
        if file is None and "task" not in fields:
            raise ValueError("which task? name one or several with --task, see `memax-rl list probes`")
        given = make_grid(file, fields, seeds, {"test_lengths": _lengths(test_lengths)} if test_lengths else {})
    chosen = studies.Folder(given).study() if isinstance(given, Path) else given
    cells = runner.check(chosen, imports)
    if any(not hasattr(cell.config, "task") for cell in cells):
        raise ValueError("a study of agents is no probe; run it with memax-rl study")
    if check:
        for index, one in enumerate(cells):
            print(f"{index}  {one.name}")
        return
    _check_data(cells)
    ended = studies.study(given, out=out, workers=workers, progress=True, imports=imports)
    _print(ended.folder)
    for name, message in ended.failed.items():
        print(f"failed: {name}: {message}")
    if ended.failed:
        print("the same command tries what failed again")
        raise click.exceptions.Exit(1)


def _lengths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--test-lengths takes whole numbers with commas, such as {_LENGTHS}, got {text!r}") from None


def _check_data(cells: Sequence[Any]) -> None:
    """Raise `ValueError` where a task lacks its data or a package, before anything is made."""
    for config in {repr(cell.config.task_options) + cell.config.task: cell.config for cell in cells}.values():
        for split in ("train", "test"):
            config.make_task().data(split)


def _print(folder: Path) -> None:
    """Print the scores of a study's finished probes, and those at other lengths."""
    from rich.console import Console

    from memax_rl.studies.probes import length_table, score_table

    console = Console()
    console = console if console.is_terminal else Console(width=160)
    table = score_table(folder)
    if table is None:
        print("no probe has finished yet", file=sys.stderr)
        return
    console.print(table)
    longer = length_table(folder)
    if longer is not None:
        console.print(longer)
