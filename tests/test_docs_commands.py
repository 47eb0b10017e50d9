"""Every command of memax-rl in README and docs is understood: its options exist, and its fields make a configuration.

None is run here. Pages whose commands are run as they stand have tests of their own (test_own_environment.py and more).
"""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from memax_rl import training
from memax_rl.cli import _group, main
from memax_rl.studies import load_study

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def _commands() -> dict[str, list[str]]:
    """Return the arguments of each command, by its line."""
    found = {}
    for page in PAGES:
        blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
        for block in (block for language, block in blocks if language in ("", "sh", "bash", "console")):
            for line in block.replace("\\\n", " ").splitlines():
                match = re.search(r"(?:^|&& |\$ |JAX_\w+=\S+ )\s*(?:\S*/)?memax-rl (.*)", line)
                if match:
                    words = shlex.split(match[1], comments=True)
                    # What a shell does with its output, and what another command would.
                    end = next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "&")), len(words))
                    found.setdefault(" ".join(words[:end]), words[:end])
    return found


COMMANDS = _commands()
# What only the reader has: files and folders of earlier commands, packages of one's own.
_READERS = re.compile(r"\.yaml|--import|--resume|my_|your_|beacon:")


def test_there_are_commands_of_every_kind():
    assert len(COMMANDS) > 80
    assert {words[0] for words in COMMANDS.values()} >= set(_group.commands) - {"completion"}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_docs_is_understood(line, monkeypatch, capsys):
    name, *arguments = COMMANDS[line]
    command = _group.commands[name]
    if {"--help", "--help-all", "-h"} & set(arguments):
        return
    # What trains in several processes would wait for the others.
    if name != "train" or _READERS.search(line) or "--distributed" in arguments:
        with command.make_context(name, arguments):
            pass
        if name == "study" and arguments[0] in _shipped():
            assert load_study(Path(arguments[0])).cells()
        return
    trained = []

    def only_look(config=None, **_):
        trained.append(config)
        return SimpleNamespace(folder="nowhere")

    monkeypatch.setattr(training, "train", only_look)
    monkeypatch.setattr(training, "check", lambda config: trained.append(config) or [])
    assert main([name, *arguments]) == 0, capsys.readouterr().err
    assert len(trained) == 1


def _shipped() -> set[str]:
    return {path.stem for path in (ROOT / "configs" / "studies").glob("*.yaml")}
