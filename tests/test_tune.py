"""Search for settings: what is refused, what a score is, and that processes share, lose and take up trials."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import memax_rl
from memax_rl.cli import main
from memax_rl.runs import Run, load_config
from memax_rl.runs.yaml_text import parse_yaml
from memax_rl.studies import load_space, make_space, make_study
from memax_rl.studies.space import FIRST_SEED, dump_space
from memax_rl.studies.tuning import _Pruned, _Reports, score, tune

BASE = {
    "total_steps": 1_000,
    "network": {"width": 8, "memory": "min_gru"},
    "ppo": {"num_envs": 4, "rollout_length": 51, "num_minibatches": 2},
}
SPACE = {
    "base": BASE,
    "space": {"ppo.learning_rate": {"float": [1e-4, 1e-2], "log": True}, "ppo.gamma": [0.0, 0.9]},
    "seeds": 1,
    "pruner": "nop",
}


def _optuna():
    return pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'memax_rl[tune]'")


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({}, "space: field required"),
        ({"space": {}}, "the space is empty"),
        ({"space": {"ppo.gama": [0.5]}}, "unknown field ppo.gama; did you mean 'ppo.gamma'"),
        ({"space": {"ppo": {"gamma": {"float": [0.5, 1.5]}}}}, "ppo.gamma: input should be less than or equal to 1"),
        ({"space": {"ppo.gamma": {"float": [0.9, 0.5]}}}, "space.ppo.gamma: expected LOW < HIGH, got [0.9, 0.5]"),
        ({"space": {"ppo.gamma": {"float": [0, 0.5], "log": True}}}, "expected 0 < LOW < HIGH"),
        ({"space": {"width": {"int": [8, 16.5]}}}, "expected two whole numbers, got [8, 16.5]"),
        ({"space": {"width": {"int": [8, 16], "float": [1, 2]}}}, "expected one of float, int and choice"),
        ({"space": {"width": {"int": [8, 16], "lgo": True}}}, "there is no such part; there are float, int, choice"),
        ({"space": {"width": [8, 8]}}, "expected different choices"),
        ({"space": {"width": 8}}, "expected a list of choices, {float: [LOW, HIGH]}"),
        ({"space": {"memory": ["gru", "gruu"]}}, "unknown memory 'gruu'"),
        ({"space": {"seed": [1, 2]}}, "seed is set by tune itself"),
        ({"base": {"width": 8}, "space": {"width": [8, 16]}}, "network.width stands in base and in space"),
        ({"space": {"width": [8, 16], "network.width": [4, 32]}}, "network.width is given twice"),
        (
            {"base": {"memory": "gru", "network.memory": "lru"}, "space": {"width": [8]}},
            "network.memory is given twice",
        ),
        ({"space": {"width": [8, 16]}, "sampler": "cma"}, "sampler: "),
        ({"space": {"width": [8, 16]}, "trails": 3}, "trails: there is no such part; there are base, space, trials"),
    ],
    ids=str,
)
def test_a_wrong_space_is_one_line(parts, says):
    with pytest.raises(ValueError, match=r"\w") as caught:
        make_space(parts).check()
    assert says.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ppo", "dqn", "pqn", "sac"])
def test_the_shipped_spaces_are_right(name):
    space = load_space(Path(name))
    space.check()
    assert make_space(parse_yaml(dump_space(space))) == space
    assert space.trial_config({}).agent == name


def test_trials_have_seeds_that_nothing_has_by_default():
    space = make_space(SPACE | {"seeds": 3})
    assert (space.trial_config({}).seed, space.trial_config({}).num_seeds) == (FIRST_SEED, 3)
    assert (space.config({}).seed, space.config({}).num_seeds) == (0, 1)


def test_a_score_is_the_mean_over_seeds_of_the_last_tenth():
    rows = [
        {"seed": seed, "env_steps": float(steps), "x": value}
        for seed, values in ((0, [9, 9, 1, 2]), (1, [9, 9, math.nan, 5]))
        for steps, value in zip((500, 900, 950, 1000), values, strict=True)
    ]
    assert score(rows, "x", 1000, 1000) == (1.5 + 5) / 2
    assert score(rows, "x", 1000, 900) == 9
    assert math.isnan(score(rows, "x", 1000, 400))


def _row(steps: float, value: float) -> dict[str, float]:
    return {"seed": 0.0, "env_steps": steps, "episode/return": value}


def test_reports_are_made_once_for_each_part_and_end_a_trial():
    optuna = _optuna()
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(lower=0.0), direction="maximize")
    trial = study.ask()
    reports = _Reports(trial, make_space(SPACE), 1000, [_row(40, 0.5), _row(90, 0.5)], {1})
    reports.report([_row(140, 1.0), _row(200, 1.0)])
    assert study.trials[0].intermediate_values == {2: 0.5, 3: 0.75, 4: 1.0}
    with pytest.raises(_Pruned):
        reports.report([_row(300, -9.0)])
    with pytest.raises(ValueError, match="no column 'episode/return'; it has seed"):
        reports.report([{"seed": 0.0}])


def test_a_trial_below_the_others_is_pruned_and_the_best_is_a_preset(tmp_path):
    optuna = _optuna()
    space = make_space(SPACE | {"base": BASE | {"total_steps": 4_000}, "pruner": "median", "trials": 5})
    out = tmp_path / "search"
    # Five trials of another process that did better than any can.
    (out / "trials").mkdir(parents=True)
    (out / "tune.yaml").write_text(dump_space(space))
    journal = optuna.storages.journal
    path = str(out / "journal.log")
    storage = optuna.storages.JournalStorage(journal.JournalFileBackend(path, journal.JournalFileOpenLock(path)))
    study = optuna.create_study(storage=storage, study_name="tune", direction="maximize")
    made = {name: part.distribution() for name, part in space.space.items()}
    values = {"ppo.learning_rate": 3e-3, "ppo.gamma": 0.9}
    for _ in range(5):
        steps = dict.fromkeys(range(1, 20), 10.0)
        study.add_trial(optuna.create_trial(params=values, distributions=made, value=10.0, intermediate_values=steps))
    ended = memax_rl.tune(out, trials=6)
    assert ended.counts == {"complete": 5, "pruned": 1, "failed": 0, "running": 0}
    run = Run.open(out / "trials" / "0005")
    assert not run.summary_path.exists()
    assert ended.best
    config = load_config(ended.best)
    assert (config.seed, config.num_seeds, config.model_dump()["ppo"]["gamma"]) == (0, 1, 0.9)
    assert f"Tuning seeds: {FIRST_SEED} to {FIRST_SEED}" in ended.best.read_text()
    (cell,) = make_study({"base": {"preset": str(ended.best)}, "grid": {"ppo.learning_rate": [3e-3]}}).cells()
    assert cell.config.model_copy(update={"total_steps": 4_000}) == config, "a study begins with it, with seed 0"
    assert memax_rl.tune(out).counts == ended.counts, "there are enough"
    said: list[str] = []
    tune(out, trials=3, say=said.append)
    assert said == [f"trials=3 changes nothing: the search in {out} has 6, and can only get more"]
    for changed, says in ((SPACE, r"base\.total_steps"), (space.model_dump() | {"seeds": 2}, "seeds differs")):
        with pytest.raises(ValueError, match=says):
            memax_rl.tune(changed, out=out)


def _start(file: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "memax_rl", "tune", str(file), "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_two_processes_share_a_search_and_take_up_what_a_killed_one_left(tmp_path):
    _optuna()
    file, out = tmp_path / "space.yaml", tmp_path / "search"
    base = BASE | {"total_steps": 12_000, "checkpoint_interval": 0}
    file.write_text(dump_space(make_space(SPACE | {"base": base, "trials": 4})))
    first = _start(file, out)
    begun = Run(out / "trials" / "0000")
    _wait_for(begun.saved_updates)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not begun.summary_path.exists(), "it was killed in the middle"
    processes = [_start(file, out) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    counts = {"complete": 4, "pruned": 0, "failed": 0, "running": 0}
    ended = memax_rl.tune(out)
    assert ended.counts == counts
    done = [re.findall(r"trials/(\d+): ", errors) for _, errors in said]
    assert sorted(done[0] + done[1]) == ["0000", "0001", "0002", "0003"]
    assert all(done), "both worked"
    scores = {}
    for path in sorted((out / "trials").iterdir()):
        rows = Run.open(path).metrics()
        assert [row["update"] for row in rows] == list(range(1, len(rows) + 1)), "no row is lost or doubled"
        assert load_config(path / "config.yaml").seed == FIRST_SEED
        scores[path.name] = score(rows, "episode/return", 12_000, rows[-1]["env_steps"])
    assert ended.value == max(scores.values())
    rates = {Run.open(path).fields()["ppo"]["learning_rate"] for path in (out / "trials").iterdir()}
    assert len(rates) == 4, "no two draw the same"


def test_failing_trials_are_recorded_and_end_a_search_that_has_no_others(tmp_path, capsys):
    _optuna()
    space = {"base": {"agent": "dqn", "env": "popgym/PositionOnlyPendulumEasy"}, "space": {"width": {"int": [8, 64]}}}
    file = tmp_path / "space.yaml"
    file.write_text(dump_space(make_space(space)))
    assert main(["tune", str(file), "--out", str(tmp_path / "search")]) == 2
    *lines, last = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [[f"trials/{i:04d}", lines[i].split(": ")[1]] for i in range(5)]
    assert "the first 5 trials failed" in last
    assert "dqn cannot act" in last
    recorded = json.loads((tmp_path / "search" / "failures" / "0004.json").read_text())
    assert "dqn cannot act" in recorded["message"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "'nowhere' is no file, nor one that is shipped; known: dqn, ppo, pqn, sac"),
        (["ppo"], "needs a folder"),
        (["ppo", "--ppo.gama", "3", "--out", "x"], "unknown field ppo.gama"),
        (["ppo", "--trials", "0", "--out", "x"], "invalid value for '--trials'"),
        ([], "missing argument"),
        (["."], "has no tune.yaml"),
    ],
    ids=str,
)
def test_a_mistake_on_the_command_line_is_one_line_and_makes_nothing(arguments, says, capsys, tmp_path, monkeypatch):
    _optuna()
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not list(tmp_path.iterdir())
