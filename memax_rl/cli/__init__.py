"""The command line: `memax-rl train`, `evaluate`, `icl`, `inspect`, `export`, `play`, `collect`, `list`, `study` ...

Heavy packages are imported by the command that uses them, so that help is quick. A mistake in what was typed is one
message on standard error and exit status 2.
"""

import io
import sys
from collections.abc import Sequence

import click

from memax_rl import signals
from memax_rl._version import __version__
from memax_rl.cli.common import fail
from memax_rl.cli.compare import compare
from memax_rl.cli.listing import listing
from memax_rl.cli.play import evaluate, icl, inspect
from memax_rl.cli.policy import collect, export, play
from memax_rl.cli.probe import probe
from memax_rl.cli.study import study
from memax_rl.cli.train import train
from memax_rl.cli.tune import tune

_NAME = "memax-rl"
_SOURCES = {
    "bash": 'eval "$(memax-rl completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(memax-rl completion zsh)"    in ~/.zshrc',
    "fish": "memax-rl completion fish | source    in ~/.config/fish/completions/memax-rl.fish",
}


@click.group(_NAME, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="memax_rl", message="%(prog)s %(version)s")
def _group() -> None:
    """Train, evaluate and compare memory models in reinforcement learning."""


@_group.command(
    "completion",
    short_help="Print a script that completes memax-rl in a shell.",
    epilog="\b\n" + "\n".join(_SOURCES.values()),
)
@click.argument("shell", type=click.Choice(list(_SOURCES)))
def _completion(shell: str) -> int:
    """Print a script by which a shell completes commands, fields, environments, memories and presets."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    print(found(_group, {}, _NAME, "_MEMAX_RL_COMPLETE").source())
    return 0


for _command in (train, evaluate, icl, inspect, export, play, collect, listing, study, probe, tune, compare):
    _group.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A name of a file may be in no encoding; work that is done must not end as an error when it is printed.
        sys.stdout.reconfigure(errors="backslashreplace")
    message = "stopped"
    if arguments[:1] == ["train"]:
        message = "stopped before the first update; a run folder that was made is continued with --resume"
    with signals.exit_at_once(message):
        try:
            status = _group.main(arguments, prog_name=_NAME, standalone_mode=False)
        except click.ClickException as error:
            text = error.format_message()
            return fail(" ".join((text[:1].lower() + text[1:]).split()))
        except click.Abort:
            return 130
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
