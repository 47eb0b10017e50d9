"""`memax-rl evaluate | icl | inspect`: what is done with a trained run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from memax_rl.cli.common import (
    EnvironmentOptionsCommand,
    PathType,
    answers,
    checkpoint_option,
    find_typed,
    greedy_option,
    import_own,
    prepare_jax,
    report,
    trust_options,
)

_RUN = click.argument("run", type=PathType(file_okay=False))
_RUNS = click.argument("runs", nargs=-1, required=True, type=PathType(file_okay=False))
_SEED = click.option("--seed", type=int, help="Seed of the episodes (default: the run's).")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_OUT = click.option("--out", type=PathType(), help="Write into this folder instead of the run's.")


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command(
    "evaluate",
    cls=EnvironmentOptionsCommand,
    short_help="Play fresh episodes with trained agents.",
)
@_options(_RUNS, click.option("--episodes", type=int, default=256, show_default=True, help="Fresh episodes a seed."))
@_options(click.option("--env", help="Another environment, with the spaces of the trained one."))
@_options(greedy_option, _SEED, checkpoint_option, trust_options, _JSON)
@click.pass_context
@answers
def evaluate(
    ctx: click.Context,
    runs: tuple[Path, ...],
    env: str | None,
    imports: tuple[str, ...],
    trust: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Play fresh episodes with the agent of a run folder, and print its returns.

    RUNS are run folders, or folders of studies, of which every finished run is evaluated.
    --env-options.NAME VALUE changes an option of the environment, for example the length of a corridor.
    """
    prepare_jax()
    import_own(imports, trust)
    from memax_rl import evaluation

    find_typed(env)
    folders, one = _runs_to_measure(runs)
    results = []
    for place, folder in enumerate(folders, start=1):
        with _named(folder, one):
            env_options = _env_options(folder, env, ctx.obj, imports, trust) if ctx.obj else None
            result = evaluation.evaluate(
                folder, env=env, env_options=env_options, imports=imports, trust=trust, **options
            )
        if one:
            report(result, as_json, evaluation.print_table)
        elif not as_json:
            print(f"{place}/{len(folders)} {_short(folder, runs)}: {evaluation.summary_line(result)}", flush=True)
        results.append({"run": str(folder)} | result)
    _print_all(results, as_json and not one)


def _env_options(
    folder: Path, env: str | None, typed: list[str], imports: tuple[str, ...], trust: bool
) -> dict[str, Any]:
    """Return the options of the environment in which a run is evaluated, with those that were typed."""
    from memax_rl import evaluation
    from memax_rl.runs import Run
    from memax_rl.runs.overrides import override_env_options

    opened = Run.open(folder, imports, trust)
    with opened.trusted():
        config = opened.config()
    # An environment that is typed may be imported, as with `train`.
    with opened.trusted() if env is None else nullcontext():
        return override_env_options(evaluation.elsewhere(config, env or config.env, {}), typed)


@click.command("icl", short_help="Measure whether agents trained on trials adapt within their memory.")
@_options(_RUNS, click.option("--tasks", type=int, default=512, show_default=True, help="Tasks of each split."))
@_options(click.option("--episodes", type=int, help="Episodes a trial (default: as in training)."))
@_options(greedy_option, _SEED, checkpoint_option, trust_options, _JSON, _OUT)
@_options(click.option("--missing", is_flag=True, help="Leave out the runs that hold an icl.json."))
@answers
def icl(
    runs: tuple[Path, ...],
    imports: tuple[str, ...],
    trust: bool,
    as_json: bool,
    out: Path | None,
    missing: bool,
    **options: Any,
) -> None:
    """Measure whether an agent that was trained on trials adapts within its memory, on tasks seen and never seen.

    RUNS are run folders, or folders of studies, of which every finished run is measured. Writes icl.json and icl.png
    into each run folder.
    """
    prepare_jax()
    import_own(imports, trust)
    from memax_rl.evaluation import in_context
    from memax_rl.runs.files import check_folder

    folders, one = _runs_to_measure(runs, missing, out)
    for folder in folders:
        check_folder(out or folder)
        with _named(folder, one):
            in_context.check_run(folder, imports=imports, trust=trust)
    results = []
    for place, folder in enumerate(folders, start=1):
        with _named(folder, one):
            result = in_context.evaluate_in_context(folder, imports=imports, trust=trust, **options)
        written = in_context.write_results(result, out or folder)
        if one:
            report(result, as_json, in_context.print_icl_table, written)
        elif not as_json:
            print(f"{place}/{len(folders)} {_short(folder, runs)}: {in_context.summary_line(result)}", flush=True)
        results.append({"run": str(folder)} | result)
    _print_all(results, as_json and not one)


def _print_all(results: list[dict[str, Any]], as_json: bool) -> None:
    """Print the results of several runs as one list."""
    from memax_rl.runs.files import json_text

    if as_json:
        print(json_text(results), end="")


def _runs_to_measure(
    named: tuple[Path, ...], missing: bool = False, out: Path | None = None
) -> tuple[list[Path], bool]:
    """Return the run folders that a command is about, and whether a single run was named."""
    from memax_rl.studies.results import find_runs

    if len(named) == 1 and not missing and ((named[0] / "config.yaml").exists() or not named[0].is_dir()):
        return [named[0]], True
    if out is not None:
        raise ValueError("--out takes the files of one run folder, and each of several has its own; leave it out")
    found, typed = find_runs(*named), {path.resolve() for path in named}
    ended = [folder for folder in found if folder in typed or _is_sound(folder)]
    if len(ended) < len(found):
        print(
            f"{len(found) - len(ended)} of {len(found)} runs have not finished or diverged, and are left out",
            file=sys.stderr,
        )
    left = [folder for folder in ended if not (missing and (folder / "icl.json").exists())]
    if not left:
        print("nothing to measure", file=sys.stderr)
    return left, False


def _is_sound(folder: Path) -> bool:
    """Return whether a run has finished, and a seed of it did not diverge."""
    from memax_rl.runs import Run

    run = Run.open(folder)
    return run.summary_path.exists() and len(run.diverged_seeds()) < run.fields()["num_seeds"]


@contextmanager
def _named(folder: Path, one: bool) -> Iterator[None]:
    """Put the run in front of what is wrong with it, where there are several."""
    try:
        yield
    except ValueError as error:
        raise error if one or str(folder) in str(error) else ValueError(f"{folder}: {error}") from error


def _short(folder: Path, named: tuple[Path, ...]) -> str:
    """Return a run's folder, without that of the study where it lies in one."""
    for study in (path.resolve() for path in named):
        if study in folder.parents:
            return str(folder.relative_to(study))
    return str(folder)


@click.command("inspect", short_help="Measure how far back a trained agent's outputs depend on the past.")
@_options(_RUN, click.option("--steps", type=int, help="Steps of an episode to look at (default: all, at most 256)."))
@_options(click.option("--rows", type=int, default=16, show_default=True, help="Fresh episodes a seed."))
@_options(_SEED, checkpoint_option, trust_options, _JSON, _OUT)
@answers
def inspect(
    run: Path,
    steps: int | None,
    rows: int,
    seed: int | None,
    checkpoint: Any,
    imports: tuple[str, ...],
    trust: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Measure how far back the outputs of a run's agent depend on the past.

    Writes inspect.json, inspect.csv and inspect.png into the run folder.
    """
    prepare_jax()
    import_own(imports, trust)
    from memax_rl.evaluation import sensitivity
    from memax_rl.runs.files import check_folder

    check_folder(out or run)
    result = sensitivity.inspect(
        run, steps=steps, rows=rows, seed=seed, checkpoint=checkpoint, imports=imports, trust=trust
    )
    report(result, as_json, sensitivity.print_inspection, sensitivity.write_inspection(result, out or run))
