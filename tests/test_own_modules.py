"""One's own module from the command line: `--import`."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from memax_rl.cli import common, main
from memax_rl.envs import trust
from memax_rl.envs.registry import _OWN
from memax_rl.memory.registry import _ENTRIES
from memax_rl.runs import Run, RunError

MODULE = """
import jax.numpy as jnp

from memax_rl import envs, memory
from memax_rl.envs import spaces
from memax_rl.envs.base import Environment


class Room(Environment):
    @property
    def default_params(self):
        return None

    def action_space(self, params):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Discrete(3)

    def max_episode_steps(self, params):
        return 2

    def fixed_length(self, params):
        return 2

    def truncates(self, params):
        return False

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    def reset_env(self, key, params):
        return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

    def step_env(self, key, state, action, params):
        return state + 1, state + 1, 1.0 * (action == 1), state == 1, {}


envs.register("own/ImportedRoom", Room)
memory.register("own_gru", memory.spec("gru"))
"""
FIELDS = ["--env", "own/ImportedRoom", "--memory", "own_gru", "--width", "8", "--total-steps", "200"]
FIELDS += ["--ppo.num-envs", "8", "--ppo.rollout-length", "8", "--eval-episodes", "4"]


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder, as its user does."""
    command = [sys.executable, "-m", "memax_rl", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def memax(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder in this process, which knows no module of one's own before, nor after."""
    assert "own/ImportedRoom" not in _OWN
    place, found, modules = os.getcwd(), [*sys.path], {*sys.modules}
    out, error = io.StringIO(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = main(list(arguments))
    finally:
        os.chdir(place)
        sys.path[:] = found
        _OWN.pop("own/ImportedRoom", None)
        _ENTRIES.pop("own_gru", None)
        for name in {"own_room", "calendar"} - modules:
            sys.modules.pop(name, None)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a module and a run that was trained with it."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "own_room.py").write_text(MODULE)
    done = start(folder, "train", "--import", "own_room", *FIELDS, "--out", "run")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_keeps_the_name_of_the_module(home):
    assert Run.open(home / "run").fields()["imports"] == ["own_room"]
    assert len(Run.open(home / "run").metrics()) > 0, "results need no module"


@pytest.mark.parametrize("command", [["evaluate", "run"], ["train", "--resume", "run"]], ids=" ".join)
def test_a_run_is_used_with_the_module_that_the_user_names(home, command):
    assert memax(home, *command, "--import", "own_room").returncode == 0
    assert memax(home, *command, "--trust").returncode == 0
    refused = memax(home, *command)
    assert refused.returncode == 2
    assert "add --import own_room or --trust" in refused.stderr.splitlines()[-1]


def test_a_module_beside_the_configuration_file_is_found(home, tmp_path):
    done = memax(tmp_path, "train", "--check", "--import", "own_room", "--config", str(home / "run" / "config.yaml"))
    assert done.returncode == 2, "the run folder is not its home"
    assert "there is no module own_room" in done.stderr
    (home / "my.yaml").write_text((home / "run" / "config.yaml").read_text())
    done = memax(tmp_path, "train", "--check", "--import", "own_room", "--config", str(home / "my.yaml"))
    assert done.returncode == 0, done.stderr
    assert memax(tmp_path, "train", "--check", "--config", str(home / "my.yaml")).returncode == 2
    assert memax(tmp_path, "train", "--check", "--trust", "--config", str(home / "my.yaml")).returncode == 0


def test_lists_show_what_a_module_registers(home):
    assert "own/ImportedRoom" in memax(home, "list", "envs", "--import", "own_room").stdout.split()
    assert "own_gru" in memax(home, "list", "memories", "--import", "own_room").stdout.split()


def test_a_file_in_place_of_a_module_and_a_module_that_hides_ones_own_are_told(home, tmp_path):
    done = memax(home, "list", "envs", "--import", "own_room.py")
    assert done.returncode == 2
    assert "named without folder and ending: own_room; it is looked for" in done.stderr
    # Python has a module of this name itself, and finds it first.
    (tmp_path / "calendar.py").write_text(MODULE)
    done = memax(tmp_path, "list", "envs", "--import", "calendar")
    assert done.returncode == 2
    assert "Python has another module of this name" in done.stderr
    assert "rename yours" in done.stderr


def test_cells_of_a_study_keep_the_name_of_the_module(home, tmp_path, capsys):
    folder = str(tmp_path / "study")
    fields = [*FIELDS[: FIELDS.index("--eval-episodes")], "--eval-episodes", "0"]
    done = memax(home, "study", "--import", "own_room", *fields, "--out", folder, "--cell", "0")
    assert done.returncode == 0, done.stderr
    (cell,) = (tmp_path / "study").glob("*/*/seed0")
    assert Run.open(cell).fields()["imports"] == ["own_room"]
    assert main(["study", folder]) == 2
    assert "add --import own_room or --trust" in capsys.readouterr().err
    assert main(["evaluate", folder]) == 2
    error = capsys.readouterr().err
    assert str(cell) in error
    assert "add --import own_room or --trust" in error
    assert main(["inspect", folder]) == 2
    assert "it is a study, whose runs are below, such as " in capsys.readouterr().err


@pytest.mark.parametrize("modules", ["x", [1], {"a": 1}, None], ids=str)
def test_imports_of_another_type_are_one_line(home, tmp_path, modules):
    fields = yaml.safe_load((home / "run" / "config.yaml").read_text()) | {"imports": modules}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises((RunError, ValueError)):
        Run.open(tmp_path / "run").config()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('raise ValueError("two\\nlines")', "raised ValueError: two lines (broken.py, line 1)"),
        ("import sys\nsys.exit(3)", "raised SystemExit: 3 (broken.py, line 2)"),
        ("def (", "raised SyntaxError: invalid syntax (broken.py, line 1)\n"),
        ("import no_such_package", "no_such_package"),
        ("from json import nothing", "cannot be imported: cannot import name 'nothing' from 'json'"),
    ],
    ids=["ValueError", "exit", "syntax", "package", "name"],
)
@pytest.mark.parametrize("form", ["--import {}", "--env jax/{}:Room", "--env gym/{}:Room-v0"])
def test_a_module_that_raises_is_told_in_one_line(content, message, form, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["train", "--check", *form.format("broken").split()]) == 2
    error = capsys.readouterr().err
    assert "broken" in error
    assert message in error
    assert error.count("\n") == 1


def test_a_module_of_ones_own_is_not_an_installed_one(tmp_path, monkeypatch):
    """Where the project's folder is that of its environment of Python, or has a name that begins like it."""
    (tmp_path / "env").mkdir()
    (tmp_path / "env_project").mkdir()
    monkeypatch.setattr(trust, "_INSTALLED", {tmp_path / "env"})
    assert trust.is_installed(str(tmp_path / "env" / "lib.py"))
    assert not trust.is_installed(str(tmp_path / "env_project" / "own.py"))
    (tmp_path / "env" / "own_of_env.py").touch()
    monkeypatch.chdir(tmp_path / "env")
    monkeypatch.syspath_prepend(tmp_path / "env")
    common.import_own(["own_of_env"])


def test_a_package_that_is_hidden_by_another_module_is_told(tmp_path, monkeypatch):
    (tmp_path / "calendar").mkdir()
    (tmp_path / "calendar" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ValueError, match=r"takes it before calendar/__init__\.py of this folder"):
        common.import_own(["calendar"])
