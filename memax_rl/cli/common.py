"""What the commands share: how mistakes are answered, and options that several have."""

import difflib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from memax_rl.paths import expanded

# What is longer echoes a value that was longer still.
_LONGEST_MESSAGE = 1_000
_NO_MEMORY = "there is not enough memory for this; choose smaller sizes"
# What JAX's error of a device without memory begins with.
_EXHAUSTED = "RESOURCE_EXHAUSTED"


class PathType(click.Path):
    """A path, which the command itself looks at; a shell completes it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; a `~` that no shell has expanded is the home folder here too."""
        try:
            return expanded(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def answers(command: Callable[..., None]) -> Callable[..., int]:
    """Return the command with an exit status: 0, 2 after one line about a mistake, 128 + n after signal n."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as stop:
            print(f"\n{stop}" if str(stop) else "\nstopped", file=sys.stderr)
            return 128 + getattr(stop, "number", signal.SIGINT)
        except BrokenPipeError:
            # The reader of a listing went away, as `head` does. Nothing more can be printed.
            sys.stderr.close()
        except MemoryError:
            return fail(_NO_MEMORY)
        except (ValueError, OSError, RuntimeError) as error:
            if str(error).startswith(_EXHAUSTED):
                return fail(f"{_NO_MEMORY} ({' '.join(str(error).split())[:200]})")
            if not isinstance(error, _expected()):
                raise
            return fail(_words(error))
        return 0

    return run


def _expected() -> tuple[type[Exception], ...]:
    """Return what tells of a mistake of the user's, or of his environment's. Importing these takes seconds."""
    from memax_rl.envs.base import EnvironmentFailure
    from memax_rl.training import TrainingError

    return (ValueError, OSError, EnvironmentFailure, TrainingError)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def fail(text: str) -> int:
    """Print one line about a mistake, and return the status for it."""
    text = text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."
    print(f"memax-rl: error: {text}", file=sys.stderr)
    return 2


def did_you_mean(text: str, known: Iterable[str], otherwise: str) -> str:
    """Return close matches as a question, or what to do where there are none."""
    close = difflib.get_close_matches(text, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else otherwise


def trust_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--import` and `--trust`."""
    text = "Import what a run folder or configuration file names, whatever it is."
    command = click.option("--trust", is_flag=True, help=text)(command)
    return import_option(command)


def import_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--import`."""
    text = (
        "A module with environments, agents or memories of your own, in this folder or installed; it is imported "
        "first. Again for more."
    )
    return click.option("--import", "imports", multiple=True, metavar="MODULE", help=text)(command)


def import_own(imports: Sequence[str], trust: bool = False, *folders: Path) -> None:
    """Import the modules that the user named, from the current folder too, and from `folders`.

    Where the console script runs, and with `python -m memax_rl`, the current folder is not searched by itself.

    Raises:
        ValueError: If there is no such module.
    """
    if imports or trust:
        for folder in (os.getcwd(), *map(str, folders)):
            if folder not in sys.path:
                sys.path.append(folder)
    from memax_rl.envs.trust import import_modules, only_imports

    with only_imports(imports):
        import_modules(imports)
    for module in imports:
        _check_found(module)


def _check_found(module: str) -> None:
    """Raise `ValueError` where Python takes an installed module of this name before the one in this folder."""
    from memax_rl.envs.trust import is_installed

    found = getattr(sys.modules.get(module), "__file__", None)
    place = module.replace(".", "/")
    for own in (f"{place}.py", f"{place}/__init__.py"):
        if not Path(own).is_file() or (found is not None and Path(found).resolve() == Path(own).resolve()):
            continue
        if found is None or is_installed(found):
            raise ValueError(
                f"--import {module}: Python has another module of this name, {found or 'built in'}, and takes it "
                f"before {own} of this folder; rename yours"
            )


def prepare_jax(*, trains: bool = False) -> None:
    """Set up JAX, before anything uses it: compiled programs are kept from one start to the next (memax_rl/cache.py).

    Unless it trains, no more of a GPU's memory is taken than is needed, so that a run beside it goes on.
    """
    if not trains:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from memax_rl import cache

    cache.turn_on()


def find_typed(env: str | None) -> str | None:
    """Return the package or module that an environment typed here is of, which is looked for in this folder too."""
    from memax_rl import envs

    package = envs.package_of(env) if env else None
    if package and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return package


class EnvironmentOptionsCommand(click.Command):
    """A command that takes `--env-options.NAME VALUE`, before or after its own arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set `ctx.obj` to the arguments that are options of the environment; parse the rest."""
        own = {option for param in self.get_params(ctx) for option in (*param.opts, *param.secondary_opts)}
        ctx.obj, rest, queue = [], [], list(args)
        while queue:
            argument = queue.pop(0)
            name, equals, _ = argument.partition("=")
            if name.split(".")[0] == "--env-options":
                ctx.obj.append(argument)
                if not equals and queue and not queue[0].startswith("--"):
                    ctx.obj.append(queue.pop(0))
            elif name.startswith("--") and name not in {*own, "--"}:
                hint = did_you_mean(name, own, "of the configuration only --env-options.NAME may be changed here")
                raise click.UsageError(f"unrecognized argument {name}; {hint}")
            else:
                rest.append(argument)
        return super().parse_args(ctx, rest)


def greedy_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--greedy` and `--no-greedy`."""
    text = "Take the best action at every step, or not (default: no with ppo, which samples, yes with the others)."
    return click.option("--greedy/--no-greedy", default=None, help=text)(command)


class CheckpointType(click.ParamType):
    """Which checkpoint of a run: newest, best, or an update."""

    name = "checkpoint"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return what may be given."""
        return "[newest|best|UPDATE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word, or the number of an update; the run says whether it has that one."""
        text = str(value).lower()
        if text.isascii() and text.isdigit() and len(text) < 20:
            return int(text)
        if text not in ("newest", "best"):
            self.fail(f"expected newest, best or the update of a checkpoint, got {text[:100]!r}", param, ctx)
        return text


def checkpoint_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--checkpoint`."""
    text = "The newest, each seed's best by evaluation during training, or the one of an update that was kept."
    return click.option("--checkpoint", type=CheckpointType(), default="newest", show_default=True, help=text)(command)


def report(
    result: dict[str, Any], as_json: bool, print_table: Callable[[dict[str, Any]], None], written: Sequence[Path] = ()
) -> None:
    """Print a result, and what files it was written to; as JSON, the result alone."""
    if as_json:
        from memax_rl.runs.files import json_text

        print(json_text(result), end="")
        return
    print_table(result)
    if written:
        print("written: " + ", ".join(map(str, written)))
