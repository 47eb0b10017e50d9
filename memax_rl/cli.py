"""The command line: `memax-rl train | evaluate | icl | inspect | list`.

Heavy packages are imported by the command that uses them, so that help is quick. A mistake in what was typed is one
message on standard error and exit status 2.
"""

import argparse
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from memax_rl import signals

# What is longer echoes a value that was longer still.
_LONGEST_MESSAGE = 1_000
_TRAIN_USAGE = """\
usage: memax-rl train [--config FILE_OR_PRESET] [--out DIR] [any field of the configuration ...]
       memax-rl train --resume DIR
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = _make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command not in ("train", "evaluate") and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with signals.exit_at_once("stopped before the first update" if arguments.command == "train" else "stopped"):
            return _run(arguments, rest)
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\nstopped", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)
    except BrokenPipeError:
        # The reader of a listing went away, as `head` does. Nothing more can be printed.
        sys.stderr.close()
        return 0


def _run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    if arguments.command == "train":
        return _train(rest)
    if arguments.command == "evaluate":
        return _evaluate(arguments, rest)
    if arguments.command == "icl":
        return _icl(arguments)
    if arguments.command == "inspect":
        return _inspect(arguments)
    return _list(arguments)


def _make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands but `train`, which reads its own arguments."""
    from memax_rl import __version__

    parser = argparse.ArgumentParser(
        prog="memax-rl", description="Train, evaluate and compare memory models in reinforcement learning."
    )
    parser.add_argument("--version", action="version", version=f"memax_rl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train an agent; without arguments, the README's example", add_help=False)
    evaluate = commands.add_parser(
        "evaluate",
        help="play fresh episodes with a trained agent",
        epilog="--env-options.NAME VALUE changes an option of the environment, for example the length of a corridor",
    )
    evaluate.add_argument("run", type=Path, help="the run folder")
    evaluate.add_argument("--episodes", type=int, default=256, help="fresh episodes a seed (default: 256)")
    _add_greedy(evaluate)
    evaluate.add_argument("--seed", type=int, help="seed of the episodes (default: the run's)")
    _add_trust(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    icl = commands.add_parser("icl", help="measure whether an agent trained on trials adapts within its memory")
    icl.add_argument("run", type=Path, help="the run folder; icl.json and icl.png are written into it")
    icl.add_argument("--tasks", type=int, default=512, help="tasks of each split (default: 512)")
    icl.add_argument("--episodes", type=int, help="episodes a trial (default: as in training)")
    _add_greedy(icl)
    icl.add_argument("--seed", type=int, help="seed of the tasks (default: the run's)")
    _add_trust(icl)
    icl.add_argument("--json", action="store_true", help="print JSON instead of a table")
    icl.add_argument("--out", type=Path, help="write into this folder instead")
    look = commands.add_parser("inspect", help="measure how far back a trained agent's outputs depend on the past")
    look.add_argument("run", type=Path, help="the run folder; inspect.json, .csv and .png are written into it")
    look.add_argument("--steps", type=int, help="steps of an episode to look at (default: all, at most 256)")
    look.add_argument("--rows", type=int, default=16, help="fresh episodes a seed (default: 16)")
    look.add_argument("--seed", type=int, help="seed of the episodes (default: the run's)")
    _add_trust(look)
    look.add_argument("--json", action="store_true", help="print JSON instead of a table")
    look.add_argument("--out", type=Path, help="write into this folder instead")
    listing = commands.add_parser("list", help="list memories, environments, wrappers, agents or presets")
    listing.add_argument("what", choices=("memories", "envs", "wrappers", "agents", "presets"))
    more = "with papers, options and costs, or with spaces, scores and options"
    listing.add_argument("-v", "--verbose", action="store_true", help=more)
    return parser


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package that the environment of a run folder or configuration file may import, which runs its code",
    )
    parser.add_argument("--trust", action="store_true", help="let it import any package")


def _add_greedy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--greedy",
        action=argparse.BooleanOptionalAction,
        help="take the best action at every step, or not (default: yes with dqn, no with ppo, which samples)",
    )


def _fail(error: Exception) -> int:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(
        f"memax-rl: error: {text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + '...'}",
        file=sys.stderr,
    )
    return 2


def _train(argv: Sequence[str]) -> int:
    """Train: `argv` is what follows `memax-rl train`."""
    first = argparse.ArgumentParser(prog="memax-rl train", add_help=False, allow_abbrev=False)
    first.add_argument(
        "--config",
        help="a YAML file, or a preset of `memax-rl list presets` (if --env is not given either: "
        "the preset of the agent, as ppo/repeat_previous_easy)",
    )
    first.add_argument("--out", type=Path, help="the run folder to make (default: a new one under runs/)")
    first.add_argument("--resume", type=Path, help="continue the run in this folder")
    first.add_argument("--check", action="store_true", help="say what would be trained, and make nothing")
    _add_trust(first)
    own, fields = first.parse_known_args(argv)
    if "-h" in fields or "--help" in fields:
        from memax_rl.runs.config import describe_fields

        print(_TRAIN_USAGE)
        print(first.format_help().split("\n\n", 1)[1])
        print("fields of the configuration, as --name value, --name=value, and for switches also --name and --no-name:")
        print(describe_fields())
        return 0
    if own.resume is not None and (own.config or own.out or own.check or fields):
        given = " ".join(argv)
        return _fail(ValueError(f"--resume continues a run as it is configured; it takes nothing else, got: {given}"))

    # As many CPU devices as cores, for --devices. JAX counts them when it is first used, which the next import does.
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))
    from memax_rl import agents
    from memax_rl.envs.base import EnvironmentFailure
    from memax_rl.envs.trust import only_imports
    from memax_rl.runs import RunError, load_config, make_config, override
    from memax_rl.training import TrainingError, check, train

    try:
        if own.resume is not None:
            run = train(resume=own.resume, progress=True, imports=own.imports, trust=own.trust)
        else:
            typed_env = _value_of("--env", fields)
            agent = (_value_of("--agent", fields) or "ppo").lower()
            preset = agents.spec(agent).preset
            base = load_config(preset) if preset and not typed_env else make_config({"agent": agent})
            # What is typed here may be imported; what a file says, only with --import or --trust.
            package = typed_env.removeprefix("gym/").rpartition(":")[0] if typed_env else ""
            typed = [package] if package else []
            if typed or own.imports or own.trust:
                # Where the console script runs, unlike `python -m`, the current folder is not searched by itself.
                sys.path.append(os.getcwd())
            with only_imports([*own.imports, *typed], trust=own.trust):
                config = override(base if own.config is None else load_config(own.config), fields)
                if own.check:
                    print("\n".join(check(config)))
                    return 0
                run = train(config, out=own.out, progress=True)
    except (RunError, TrainingError, EnvironmentFailure, ValueError, OSError) as error:
        return _fail(error)
    except MemoryError:
        return _fail(ValueError("there is not enough memory for this; choose smaller sizes"))
    print(f"run folder: {run.folder}")
    return 0


def _value_of(name: str, fields: Sequence[str]) -> str | None:
    """Return the last value that is given to a field, or None."""
    texts = [*fields, ""]
    given = [
        texts[i + 1] if field == name else field.partition("=")[2]
        for i, field in enumerate(fields)
        if field == name or field.startswith(f"{name}=")
    ]
    return given[-1] if given else None


def _evaluate(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Evaluate: `rest` holds options of the environment that differ from those of training."""
    from memax_rl.envs.base import EnvironmentFailure
    from memax_rl.evaluation import evaluate, print_table
    from memax_rl.runs import Run
    from memax_rl.runs.config import override_env_options

    try:
        run = Run.open(arguments.run, arguments.imports, arguments.trust)
        with run.trusted():
            env_options = override_env_options(run.config(), rest) if rest else None
        result = evaluate(
            arguments.run,
            episodes=arguments.episodes,
            greedy=arguments.greedy,
            seed=arguments.seed,
            env_options=env_options,
            imports=arguments.imports,
            trust=arguments.trust,
        )
    except (ValueError, EnvironmentFailure, OSError) as error:
        return _fail(error)
    _report(result, arguments.json, print_table)
    return 0


def _report(
    result: dict[str, Any], as_json: bool, print_table: Callable[[dict[str, Any]], None], written: Iterable[Path] = ()
) -> None:
    """Print a result, and what files it was written to; as JSON, the result alone."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    print_table(result)
    if written:
        print("written: " + ", ".join(map(str, written)))


def _icl(arguments: argparse.Namespace) -> int:
    from memax_rl.envs.base import EnvironmentFailure
    from memax_rl.evaluation.in_context import evaluate_in_context, print_icl_table, write_results

    try:
        result = evaluate_in_context(
            arguments.run,
            tasks=arguments.tasks,
            episodes=arguments.episodes,
            greedy=arguments.greedy,
            seed=arguments.seed,
            imports=arguments.imports,
            trust=arguments.trust,
        )
    except (ValueError, EnvironmentFailure, OSError) as error:
        return _fail(error)
    _report(result, arguments.json, print_icl_table, write_results(result, arguments.out or arguments.run))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from memax_rl.envs.base import EnvironmentFailure
    from memax_rl.evaluation.sensitivity import inspect, print_inspection, write_inspection

    try:
        result = inspect(
            arguments.run,
            steps=arguments.steps,
            rows=arguments.rows,
            seed=arguments.seed,
            imports=arguments.imports,
            trust=arguments.trust,
        )
    except (ValueError, EnvironmentFailure, OSError) as error:
        return _fail(error)
    _report(result, arguments.json, print_inspection, write_inspection(result, arguments.out or arguments.run))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    if arguments.what == "envs":
        _list_envs(arguments.verbose)
    elif arguments.what == "agents":
        from memax_rl import agents

        for name in agents.names():
            print(f"{name:12s}{agents.spec(name).summary}" if arguments.verbose else name)
    elif arguments.what == "wrappers":
        _list_wrappers(arguments.verbose)
    elif arguments.what == "presets":
        from memax_rl.runs.config import preset_path, presets

        for name in presets():
            first = preset_path(name).read_text().splitlines()[0]
            print(f"{name:40s}{first.removeprefix('#')}" if arguments.verbose else name)
    else:
        from memax_rl import memory

        for line in _describe_memories() if arguments.verbose else memory.names():
            print(line, flush=True)
    return 0


def _list_wrappers(verbose: bool) -> None:
    from memax_rl.envs.wrappers import CONFIGS

    for name, model in CONFIGS.items():
        summary = (model.__doc__ or "").split("\n")[0]
        print(f"{name:24s}{summary}" if verbose else name)
        if verbose:
            for option, field in model.model_fields.items():
                if option != "name":
                    default = "required" if field.is_required() else f"default: {field.get_default()}"
                    print(f"    {option}: {field.description} ({default})")


def _list_envs(verbose: bool) -> None:
    from memax_rl import envs

    if verbose:
        print(_ENV_LINE.format("name", "observation", "action", "horizon", "chance", "best"))
    for name in envs.names():
        print(_describe_env(name) if verbose else name)
        if verbose:
            _print_options(name)
    print("gym/ID: any environment of Gymnasium, as gym/CartPole-v1; gym/package:ID imports the package first")
    if verbose:
        _print_options("gym/ID")


def _print_options(env_id: str) -> None:
    from memax_rl import envs

    for option, (default, meaning) in envs.options(env_id).items():
        print(f"    {option}: {meaning.rstrip('.')} (default: {json.dumps(default)})")


_ENV_LINE = "{:40s} {:34s} {:22s} {:>7s} {:>7s} {:>7s}"


def _describe_env(name: str) -> str:
    """Return the line of one environment; a dash where something is not known."""
    from memax_rl import envs
    from memax_rl.envs.baselines.scores import find_scores
    from memax_rl.envs.spaces import describe

    scores = [f"{score:.3f}" for score in find_scores(name) or ()] or ["-", "-"]
    if name in envs.DOWNLOADS:
        return _ENV_LINE.format(name, "- (downloads its data)", "-", "-", *scores)
    if install := envs.missing_package(name):
        return _ENV_LINE.format(name, f"- (needs {install})", "-", "-", *scores)
    env, params = envs.make(name)
    spaces = describe(env.observation_space(params)), describe(env.action_space(params))
    return _ENV_LINE.format(name, *spaces, str(envs.max_episode_steps(env, params) or "-"), *scores)


def _describe_memories(width: int = 128) -> Iterator[str]:
    """Yield the lines of `memax-rl list memories -v`; state and cost are those of the model that `make` returns."""
    import equinox as eqx
    import jax

    from memax_rl import memory

    yield f"State: numbers carried. Cost: kFLOP of a step of learning. Both at width {width} with the default options."
    yield f"{'name':20s} {'class':10s} {'state':>7s} {'cost':>7s}  paper"
    for name in memory.names():
        entry = memory.spec(name)
        make = functools.partial(memory.make, name, in_size=width, out_size=width)
        model = eqx.filter_eval_shape(lambda key, make=make: make(key=key), jax.random.key(0))
        state, cost = memory.state_size(model), memory.training_flops(model) / 1e3
        yield f"{name:20s} {entry.family:10s} {state:7,d} {cost:7,.0f}  {entry.paper}".rstrip()
        if entry.verified:
            yield f"{'':20s}   verified: {entry.verified}"
        for option, meaning in entry.options.items():
            yield f"{'':20s}   {option}: {meaning}"


if __name__ == "__main__":
    sys.exit(main())
