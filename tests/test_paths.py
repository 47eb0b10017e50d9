"""The home folder as `~`, which a shell leaves as it is in quotes and behind an equals sign."""

from pathlib import Path

import pytest

import memax_rl
from memax_rl.cli import main
from memax_rl.paths import expanded
from memax_rl.runs import Run, RunError, make_config
from memax_rl.studies.results import find_runs

_SMALL = ["--env", "popgym/RepeatFirstEasy", "--memory", "mlp", "--total-steps", "1", "--eval-episodes", "0"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.slow
def test_what_is_written_lands_in_the_home_folder(home, capsys):
    collect = ["collect", "--env", "popgym/RepeatFirstEasy", "--episodes", "2", "--out", "~/x.npz"]
    assert main(collect) == 0, capsys.readouterr().err
    assert main(["train", *_SMALL, "--out=~/run"]) == 0, capsys.readouterr().err
    assert main(["evaluate", "~/run", "--episodes", "2"]) == 0, capsys.readouterr().err
    assert main(["train", *_SMALL, "--start-from=~/run", "--out", "~/other"]) == 0, capsys.readouterr().err
    assert {path.name for path in home.iterdir()} == {"x.npz", "run", "other"}


def test_from_python_too(home):
    memax_rl.collect(env="popgym/RepeatFirstEasy", episodes=2, out="~/x.npz")
    memax_rl.train(env="popgym/RepeatFirstEasy", network={"memory": "mlp"}, total_steps=1, eval_episodes=0, out="~/run")
    assert Run("~/run").folder == home / "run"
    assert find_runs("~") == [home / "run"]
    with pytest.raises(RunError, match=str(home)):
        find_runs("~/none")
    data = make_config({"agent": "bc", "bc": {"data": "~/x.npz"}}).settings.model_dump()["data"]
    assert data == str(home / "x.npz")


def test_a_user_that_there_is_not_is_told_in_one_line(home, capsys):
    del home
    for command in (
        ["train", "--out", "~no_such_user/run"],
        ["train", "--agent", "bc", "--bc.data", "~no_such_user/x.npz"],
        ["train", "--start-from", "~no_such_user/run"],
        ["evaluate", "~no_such_user/run"],
    ):
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert "~no_such_user/" in error
        assert "in the home folder of a user that there is not" in error
        assert error.count("\n") == 1
    with pytest.raises(ValueError, match=r"write \./~no_such_user"):
        expanded("~no_such_user")
    assert expanded("./~x") == Path("~x")
