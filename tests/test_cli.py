"""The command line: help by topic, completion, and what is said to a mistake."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest

from memax_rl.cli import catalog, main
from memax_rl.cli.common import answers, report
from memax_rl.cli.make_catalog import build


def test_the_catalog_is_that_of_the_models():
    written = json.loads(catalog.PATH.read_text())
    assert written == json.loads(json.dumps(build())), "run python -m memax_rl.cli.make_catalog"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["train", "--help-all"], ["list", "agents", "-v"], ["list", "envs"]],
    ids=" ".join,
)
def test_help_and_lists_import_nothing_heavy(arguments):
    """They answer in a fraction of a second because JAX is not imported."""
    code = f"import sys\nfrom memax_rl.cli import main\nassert main({arguments}) == 0\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_name_in_no_encoding_is_printed(monkeypatch):
    """What was done and written must not end as an error because its folder's name cannot be encoded."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert main(["completion", "bash"]) == 0
    print("written: \udcff", flush=True)


def test_a_device_without_memory_is_one_line_and_json_has_no_nan(capsys):
    def exhausted():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 40 bytes.\nmore")

    assert answers(exhausted)() == 2
    assert re.fullmatch("memax-rl: error: there is not enough memory.*40 bytes.*\n", capsys.readouterr().err)
    report({"return": [math.nan, {"low": -math.inf}, 1.5]}, True, lambda result: None)
    assert json.loads(capsys.readouterr().out) == {"return": [None, {"low": None}, 1.5]}


def test_help_shows_the_main_fields_and_all_of_them_where_asked(capsys):
    assert main(["train", "--help"]) == 0
    short = capsys.readouterr().out
    assert main(["train", "--agent", "dqn", "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert "--agent [ppo|dqn|pqn|sac|bc]" in short
    assert "memax-rl train --resume" in short, "an example"
    assert "--network.depth" not in short
    assert "--network.depth" in whole
    assert "--dqn.buffer-size" in whole
    assert "--ppo.clip-eps" not in whole, "the fields of another agent"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--sed", "3"], "unknown field --sed; did you mean '--seed'"),
        (["train", "--seed"], "--seed needs a value"),
        (["train", "--ppo.gama=1"], "unknown field --ppo.gama; did you mean '--ppo.gamma'"),
        (["train", "--agent", "dqn", "--ppo.gamma=1"], "--ppo.gamma is a field of agent 'ppo', and the agent is 'dqn'"),
        (["train", "--env", "popgym/RepeatFirst"], "unknown environment 'popgym/RepeatFirst'; did you mean"),
        (["train", "stray"], "unexpected extra argument (stray)"),
        (["trian"], "no such command 'trian'"),
        (["list", "things"], "'things' is not one of 'memories', 'envs'"),
        (["evaluate"], "missing argument 'RUNS...'"),
        (["evaluate", "nowhere", "--episodes", "many"], "'many' is not a valid integer"),
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
        (["train", "--resume", "x", "--seed", "1"], "--resume continues a run as it is configured"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_status_2(arguments, says, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("memax-rl: error: ")
    assert says in line


def test_fields_are_set_in_every_form(capsys):
    fields = ["--memory=GRU", "--network.width", "16", "--total-steps", "2.5k", "--no-ppo.normalize-advantages"]
    fields += [
        "--network.start",
        "false",
        "--network.separate-value",
        "--env",
        "meta/EndlessTMaze",
        "--env-options.length=3",
    ]
    assert main(["train", "--check", *fields, "--seed", "1", "--seed", "2"]) == 0
    assert capsys.readouterr().out.startswith("ppo on meta/EndlessTMaze, memory gru, 2,500 steps a seed")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["train", "--env", "popgym/Rep"],
            (
                "popgym/RepeatFirstEasy",
                "popgym/RepeatPreviousHard",
            ),
        ),
        (
            ["train", "--memory", "min"],
            (
                "min_gru",
                "min_lstm",
            ),
        ),
        (
            ["train", "--ppo.ro"],
            (
                "--ppo.rollout",
                "--ppo.rollout-length",
            ),
        ),
        (["train", "--config", "dqn/"], ("dqn/repeat_previous_easy",)),
        (["li"], ("list",)),
    ],
    ids=str,
)
def test_a_shell_completes(words, expected):
    if not shutil.which("bash"):
        pytest.skip("needs bash")
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    script = f"""
        eval "$(memax-rl completion bash)"
        COMP_WORDS=(memax-rl {" ".join(words)}); COMP_CWORD={len(words)}
        _memax_rl_completion memax-rl
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.split())
    assert set(expected) <= found
    assert all(word.startswith(words[-1]) for word in found)
