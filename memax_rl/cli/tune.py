"""`memax-rl tune`: search for settings."""

import sys
from pathlib import Path
from typing import Any

import click

from memax_rl.cli.common import PathType, answers, import_own, prepare_jax, trust_options
from memax_rl.cli.study import FieldsCommand, by_field

_EXAMPLES = """\
Examples:

\b
  memax-rl tune ppo --env popgym/CountRecallEasy --memory gru --total-steps 500k --out tuning/count_recall
  memax-rl tune my_space.yaml --trials 100 --out tuning/mine
  memax-rl tune tuning/mine                       go on, or help: run it in several places at once
  memax-rl train --config tuning/mine/best.yaml
"""


@click.command("tune", cls=FieldsCommand, epilog=_EXAMPLES, short_help="Search for the best settings.")
@click.argument("file", type=PathType(), required=True, metavar="FILE.yaml | NAME | DIR")
@click.option("--out", type=PathType(), help="The folder of the search; an existing one is continued.")
@click.option("--trials", type=click.IntRange(1), help="How many trials there are to be, of all processes together.")
@trust_options
@click.pass_context
@answers
def tune(
    ctx: click.Context, file: Path, out: Path | None, trials: int | None, imports: tuple[str, ...], trust: bool
) -> None:
    """Search a space of settings by trials, each a run in a folder of its own, and write the best to best.yaml.

    FILE comes first; NAME is a space of `memax-rl list tune`. Every field of the configuration is an option: one value
    holds for all trials, several are choices. The same command goes on with a search, and several processes may work
    on one.
    """
    prepare_jax(trains=True)
    import_own(imports, trust, *([file.resolve().parent] if file.is_file() else []))
    from memax_rl import studies

    if file.is_dir() and ctx.obj:
        raise ValueError(f"{file} is the folder of a search, which says what it is; leave out the fields")
    given: Any = file if file.is_dir() else _space(file, ctx.obj)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    ended = studies.tune(given, out=out, trials=trials, say=say, imports=imports, trust=trust)
    print(", ".join(f"{count} {state}" for state, count in ended.counts.items()) + f", in {ended.folder}")
    if ended.best is None:
        raise click.exceptions.Exit(1)
    print(f"best: {ended.value:.6g} with {ended.values}")
    print(f"memax-rl train --config {ended.best}")


def _space(file: Path, fields: dict[str, list[str]]) -> Any:
    """Return the space of a file, with the fields that were typed: one value for all trials, several as choices."""
    from memax_rl import studies
    from memax_rl.runs.yaml_text import parse_value

    whole = studies.load_space(file).model_dump(exclude_defaults=True)
    base, space = dict(whole.get("base", {})), dict(whole["space"])
    for name, texts in by_field(fields).items():
        base.pop(name, None)
        space.pop(name, None)
        values = [text if name == "preset" else parse_value(text) for text in texts]
        if len(values) > 1:
            space[name] = values
        else:
            base[name] = values[0]
    return studies.make_space(whole | {"base": base, "space": space})
