"""`memax-rl evaluate | icl | inspect`: what is done with a trained run."""

from collections.abc import Callable
from contextlib import nullcontext
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
    short_help="Play fresh episodes with a trained agent.",
)
@_options(_RUN, click.option("--episodes", type=int, default=256, show_default=True, help="Fresh episodes a seed."))
@_options(click.option("--env", help="Another environment, with the spaces of the trained one."))
@_options(greedy_option, _SEED, checkpoint_option, trust_options, _JSON)
@click.pass_context
@answers
def evaluate(
    ctx: click.Context,
    run: Path,
    episodes: int,
    env: str | None,
    greedy: bool | None,
    seed: int | None,
    checkpoint: Any,
    imports: tuple[str, ...],
    trust: bool,
    as_json: bool,
) -> None:
    """Play fresh episodes with the agent of a run folder, and print its returns.

    --env-options.NAME VALUE changes an option of the environment, for example the length of a corridor.
    """
    prepare_jax()
    import_own(imports, trust)
    from memax_rl import evaluation
    from memax_rl.runs import Run
    from memax_rl.runs.overrides import override_env_options

    opened = Run.open(run, imports, trust)
    find_typed(env)
    env_options = None
    if ctx.obj:
        with opened.trusted():
            config = opened.config()
        # An environment that is typed here may be imported, as with `train`.
        with opened.trusted() if env is None else nullcontext():
            env_options = override_env_options(evaluation.elsewhere(config, env or config.env, {}), ctx.obj)
    result = evaluation.evaluate(
        run,
        episodes=episodes,
        env=env,
        greedy=greedy,
        seed=seed,
        env_options=env_options,
        checkpoint=checkpoint,
        imports=imports,
        trust=trust,
    )
    report(result, as_json, evaluation.print_table)


@click.command("icl", short_help="Measure whether an agent trained on trials adapts within its memory.")
@_options(_RUN, click.option("--tasks", type=int, default=512, show_default=True, help="Tasks of each split."))
@_options(click.option("--episodes", type=int, help="Episodes a trial (default: as in training)."))
@_options(greedy_option, _SEED, checkpoint_option, trust_options, _JSON, _OUT)
@answers
def icl(
    run: Path,
    tasks: int,
    episodes: int | None,
    greedy: bool | None,
    seed: int | None,
    checkpoint: Any,
    imports: tuple[str, ...],
    trust: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Measure whether an agent that was trained on trials adapts within its memory, on tasks seen and never seen.

    Writes icl.json and icl.png into the run folder.
    """
    prepare_jax()
    import_own(imports, trust)
    from memax_rl.evaluation import in_context
    from memax_rl.runs.files import check_folder

    check_folder(out or run)
    result = in_context.evaluate_in_context(
        run,
        tasks=tasks,
        episodes=episodes,
        greedy=greedy,
        seed=seed,
        checkpoint=checkpoint,
        imports=imports,
        trust=trust,
    )
    report(result, as_json, in_context.print_icl_table, in_context.write_results(result, out or run))


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
