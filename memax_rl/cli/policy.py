"""`memax-rl export | play | collect`: what is done with a trained policy outside of training."""

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
_ONNX = "Write policy.onnx too, for ONNX Runtime (needs pip install 'memax_rl[onnx]'); a greedy policy alone."
_WRAPPED = "Take observations and rewards as the run's wrappers show them, instead of the environment's own."


@click.command("export", short_help="Write a trained policy into files that need no memax_rl.")
@_RUN
@click.option("--out", type=PathType(), required=True, help="The folder to make.")
@click.option("--seed", type=int, help="Which of the run's seeds (default: the first that did not diverge).")
@click.option("--batch-size", type=int, help="For how many environments at once (default: one, without a batch axis).")
@click.option("--wrapped", is_flag=True, help=_WRAPPED)
@click.option("--onnx", is_flag=True, help=_ONNX)
@greedy_option
@checkpoint_option
@trust_options
@answers
def export(run: Path, out: Path, imports: tuple[str, ...], trust: bool, **settings: Any) -> None:
    """Write the trained policy of a run into files that need no memax_rl: StableHLO for cpu and cuda, by jax.export.

    docs/policy.md says how to use them.
    """
    prepare_jax()
    import_own(imports, trust)
    from memax_rl.evaluation import export as exports

    made = exports.export(run, out, imports=imports, trust=trust, **settings)
    print("written: " + ", ".join(str(path) for path in sorted(made.iterdir())))


@click.command("play", short_help="Play episodes to look at: a video where it renders, and every step as text.")
@_RUN
@click.option("--episodes", type=int, default=3, show_default=True, help="How many.")
@click.option("--seed", type=int, help="Seed of the episodes (default: the run's).")
@click.option("--trained-seed", type=int, help="Which of the run's seeds plays (default: the first sound one).")
@greedy_option
@checkpoint_option
@trust_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--out", type=PathType(), help="Write into this folder instead of the run's.")
@answers
def play(run: Path, imports: tuple[str, ...], trust: bool, as_json: bool, out: Path | None, **settings: Any) -> None:
    """Play episodes of a run's agent in its environment, and write them down to look at.

    Writes play.jsonl, a line a step, and where the environment renders (Gymnasium's rgb_array) play.mp4, or play.gif
    without imageio, into the run folder.
    """
    prepare_jax()
    import_own(imports, trust)
    from memax_rl.evaluation import playback
    from memax_rl.runs.files import check_folder

    check_folder(out or run)
    result, steps, pictures = playback.play_episodes(run, imports=imports, trust=trust, **settings)
    report(result, as_json, playback.print_playback, playback.write_playback(result, steps, pictures, out or run))


@click.command(
    "collect",
    cls=EnvironmentOptionsCommand,
    short_help="Write episodes of a trained agent or a scripted strategy into a file.",
)
@click.argument("run", type=PathType(file_okay=False), required=False)
@click.option("--out", type=PathType(), required=True, help="The file to write, NAME.npz.")
@click.option("--episodes", type=int, required=True, help="How many.")
@click.option("--env", help="Instead of a run: the environment in which a scripted strategy plays.")
@click.option("--strategy", help="Which strategy (default: the best known for POPGym, else the first that is known).")
@click.option("--seed", type=int, help="Seed of the episodes (default: the run's, or 0).")
@click.option("--trained-seed", type=int, help="Which of the run's seeds plays (default: the first sound one).")
@greedy_option
@checkpoint_option
@trust_options
@click.pass_context
@answers
def collect(
    ctx: click.Context, run: Path | None, env: str | None, imports: tuple[str, ...], trust: bool, **settings: Any
) -> None:
    """Write complete episodes into a file to learn from, by `memax-rl train --agent bc --bc.data FILE`.

    A trained RUN plays in the environment of its training, or, with --env, a scripted strategy: POPGym's are perfect
    players of what can be solved. --env-options.NAME VALUE sets an option of that environment. docs/bc.md says what the
    file holds.
    """
    prepare_jax()
    import_own(imports, trust)
    from memax_rl import evaluation
    from memax_rl.runs.config import make_config
    from memax_rl.runs.overrides import override_env_options

    find_typed(env)
    env_options = None
    if ctx.obj:
        if env is None:
            raise ValueError(f"{ctx.obj[0]}: only with --env; a run plays in the environment of its training")
        env_options = override_env_options(make_config({"env": env}), ctx.obj)
    about = evaluation.collect(run, env=env, env_options=env_options, imports=imports, trust=trust, **settings)
    print(f"{about.episodes} episodes of {about.env} by {about.source}, mean return {about.mean_return:.3f}")
    print(f"written: {settings['out']}")
