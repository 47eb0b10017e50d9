"""`memax-rl study`: a grid of runs, from a file or from fields with several values."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from memax_rl.cli.common import PathType, answers, import_own, trust_options

_EXAMPLES = """\
Examples:

\b
  memax-rl study --env popgym/RepeatPreviousEasy popgym/CountRecallEasy --memory gru lru --seeds 5 --out studies/first
  memax-rl study my_study.yaml --out studies/second --check
  memax-rl study studies/first                    go on with what is there
  memax-rl study studies/first --cell 3           one cell, as a job of an array
  memax-rl study my_study.yaml --out /shared/second --ray 10.0.0.1:6379 --cell-gpus 0.5
  memax-rl study my_study.yaml --out /shared/second --slurm --slurm-options.partition gpu --slurm-options.time 240
"""

# Stands for --ray without an address.
_OWN_CLUSTER = ""
_SLURM = "slurm-options."


class FieldsCommand(click.Command):
    """`study` and `tune`: an option that is not its own is a field, and takes all values up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set `ctx.obj` to the fields and their values; parse the rest."""
        own = {option for param in self.get_params(ctx) for option in param.opts}
        fields: dict[str, list[str]] = {}
        rest: list[str] = []
        values: list[str] | None = None
        for argument in args:
            if argument.startswith("-") and not _is_number(argument):
                name, equals, value = argument.removeprefix("--").partition("=")
                if argument.split("=")[0] in own or not argument.startswith("--"):
                    rest.append(argument)
                    values = None
                    continue
                if name in fields:
                    raise click.UsageError(f"--{name} is given twice; name its values one after the other")
                values = fields[name] = [value] if equals else []
            elif values is None:
                rest.append(argument)
            else:
                values.append(argument)
        for name, given in fields.items():
            if not given:
                raise click.UsageError(f"--{name} needs a value, or several")
        ctx.obj = fields
        return super().parse_args(ctx, rest)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@click.command("study", cls=FieldsCommand, epilog=_EXAMPLES, short_help="Train a grid of runs, and go on with it.")
@click.argument("file", type=PathType(), required=False, metavar="[FILE.yaml | NAME | DIR]")
@click.option("--out", type=PathType(), help="The study's folder; an existing one is continued.")
@click.option("--seeds", type=click.IntRange(1), help="How many seeds each combination is run with (default: 1).")
@click.option("--workers", type=click.IntRange(1), help="Processes (default: one a GPU, or one a core).")
@click.option(
    "--ray",
    is_flag=False,
    flag_value=_OWN_CLUSTER,
    metavar="[ADDRESS]",
    help="Run the cells as tasks of Ray, of the cluster at HOST:PORT or of this machine's.",
)
@click.option("--cell-cpus", type=float, help="With --ray: the cores that a cell gets (default: 1).")
@click.option("--cell-gpus", type=float, help="With --ray: the GPUs, also a part (default: 1 where there are any).")
@click.option("--slurm", is_flag=True, help="Run the cells as a job array; --slurm-options.NAME VALUE for sbatch.")
@click.option("--cell", type=click.IntRange(0), help="Run this cell alone, in this process; --check numbers them.")
@click.option("--check", is_flag=True, help="List the cells, and make nothing.")
@trust_options
@click.pass_context
@answers
def study(
    ctx: click.Context,
    file: Path | None,
    out: Path | None,
    seeds: int | None,
    workers: int | None,
    ray: str | None,
    cell_cpus: float | None,
    cell_gpus: float | None,
    slurm: bool,
    cell: int | None,
    check: bool,
    imports: tuple[str, ...],
    trust: bool,
) -> None:
    """Train every combination of the given values, each in a run folder of its own.

    Every field of the configuration is an option, as with `train`, and takes several values; --preset takes shipped
    configurations. FILE comes first; NAME is a study of `memax-rl list studies`. The same command goes on with a study
    that was interrupted or has failed cells, and, with more values or seeds, runs what is new. The exit status is 1 if
    cells failed.
    """
    import_own(imports, trust, *([file.resolve().parent] if file and file.is_file() else []))
    from memax_rl import studies
    from memax_rl.studies import runner

    options = _slurm_options(ctx.obj)
    on = _engine(ray, cell_cpus, cell_gpus, options if slurm or options else None)
    _check_together(on, cell, check, workers)
    if file is not None and file.is_dir():
        if ctx.obj or seeds:
            raise ValueError(f"{file} is a study's folder, which says what it is; change it by its own command or file")
        given: Any = file
    else:
        given = make_grid(file, ctx.obj, seeds)
    chosen = studies.Folder(given).study() if isinstance(given, Path) else given
    for part in chosen.unmatched():
        print(f"exclude: {part} leaves nothing out, because no combination has these values", file=sys.stderr)
    if check:
        for index, one in enumerate(runner.check(chosen, imports, trust)):
            print(f"{index}  {one.name}")
        return
    if cell is not None:
        folder, cells = runner.open_study(given, out, imports, trust)
        answer = runner.run_one(folder, cells, cell, imports, trust)
        print(f"{answer['outcome']}: {cells[cell].name}" + (f": {answer['message']}" if "message" in answer else ""))
        failed = answer["outcome"] == "failed"
    else:
        ended = studies.study(given, out=out, workers=workers, on=on, progress=True, imports=imports, trust=trust)
        print(f"{len(ended.finished)} cells finished, {len(ended.failed)} failed, in {ended.folder}")
        for name, message in ended.failed.items():
            print(f"failed: {name}: {message}")
        failed = bool(ended.failed)
    if failed:
        print("the same command tries what failed again")
        raise click.exceptions.Exit(1)


def _check_together(on: Any, cell: int | None, check: bool, workers: int | None) -> None:
    """Raise `ValueError` if one of the options would be ignored beside another."""
    if on is not None and (cell is not None or check):
        raise ValueError("--cell and --check run nothing elsewhere; leave out --ray and --slurm")
    if cell is not None and (check or workers is not None):
        what = "--check lists all cells" if check else "--workers are for several"
        raise ValueError(f"--cell runs one cell in this process, and {what}; give one of the two")


def _slurm_options(fields: dict[str, list[str]]) -> dict[str, Any]:
    """Take the options of Slurm out of the fields that were typed."""
    from memax_rl.runs.yaml_text import parse_value

    options = {}
    for name in [name for name in fields if name.startswith(_SLURM)]:
        texts = fields.pop(name)
        if len(texts) > 1:
            raise ValueError(f"--{name} takes one value, got {' '.join(texts)}; a list is written '[one, other]'")
        options[name.removeprefix(_SLURM)] = parse_value(texts[0])
    return options


def _engine(ray: str | None, cpus: float | None, gpus: float | None, slurm: dict[str, Any] | None) -> Any:
    """Return where the cells are to run: None for this machine."""
    from memax_rl import studies

    if ray is not None and slurm is not None:
        raise ValueError("--ray and --slurm are two places to run in; choose one")
    if ray is None and (cpus is not None or gpus is not None):
        raise ValueError(
            "--cell-cpus and --cell-gpus are for --ray; Slurm has --slurm-options.cpus-per-task and .gpus-per-node"
        )
    if ray is not None:
        return studies.Ray(None if ray == _OWN_CLUSTER else ray, 1.0 if cpus is None else cpus, gpus)
    return studies.Slurm(slurm) if slurm is not None else None


def by_field(fields: Mapping[str, Sequence[str]], short: Mapping[str, str] | None = None) -> dict[str, Sequence[str]]:
    """Return the values that were typed by the full name of their field.

    Args:
        fields: Values by names as they were typed.
        short: Other names that are short for a field.

    Raises:
        ValueError: If two of the names are of the same field.
    """
    from memax_rl.studies.grid import canonical

    names: dict[str, str] = {}
    for typed in fields:
        name = canonical((short or {}).get(typed, typed))
        if name in names:
            raise ValueError(f"--{names[name]} and --{typed} are the same field; give one of them")
        names[name] = typed
    return {name: fields[typed] for name, typed in names.items()}


def make_grid(
    file: Path | None, fields: dict[str, Sequence[str]], seeds: int | None, more: Mapping[str, Any] | None = None
) -> Any:
    """Return the study of a file, with the fields that were typed: one value for all cells, several for the grid.

    Args:
        file: None for a study of these fields alone.
        fields: What was typed, the values of each.
        seeds: How many, or None for those of the file.
        more: Values of fields for all cells.

    Raises:
        ValueError: If a field cannot be set so.
    """
    from memax_rl import studies
    from memax_rl.runs.yaml_text import parse_value

    whole: dict[str, Any] = {} if file is None else studies.load_study(file).model_dump()
    base, grid = dict(whole.get("base", {})) | dict(more or {}), dict(whole.get("grid", {}))
    for name, texts in by_field(fields).items():
        if name in whole.get("zip", {}):
            raise ValueError(f"--{name} is zipped with other fields in {file}; change it there")
        if any(name in case for case in whole.get("cases", ())):
            raise ValueError(f"--{name} stands in the cases of {file}; change it there")
        known = {"env", "network.memory", "agent"}
        for text in texts:
            if name in known and "," in text and not text.lstrip().startswith("["):
                raise ValueError(f"--{name}: several values stand one after the other, without commas, got {text}")
        base.pop(name, None)
        # A name of a preset may look like anything else.
        values = [text if name == "preset" else parse_value(text) for text in texts]
        if len(values) > 1 or name in grid or (file is None and name in ("env", "task", "network.memory")):
            grid[name] = values
        else:
            base[name] = values[0]
    return studies.make_study(whole | {"base": base, "grid": grid} | ({"seeds": seeds} if seeds else {}))
