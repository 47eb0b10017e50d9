"""Logs beside metrics.csv: what they need is looked for before anything is made; each seed has its own place."""

import importlib
import json
import struct
import sys

import pytest

from memax_rl.cli import main
from memax_rl.runs import Run, RunError, make_config
from memax_rl.runs.loggers import check_logs, open_logs


@pytest.mark.parametrize(
    ("arguments", "package", "message"),
    [
        (["--wandb", "x"], "wandb", "pip install 'memax_rl[wandb]'"),
        (["--tensorboard"], "tensorboardX", "pip install 'memax_rl[tensorboard]'"),
    ],
)
def test_a_missing_package_of_a_log_leaves_no_folder(arguments, package, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["train", "--out", str(tmp_path / "run"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def wandb():
    """The package as at a process's start: it reads its environment once."""
    package = pytest.importorskip("wandb")
    package.teardown()
    yield package
    package.teardown()


@pytest.mark.usefixtures("wandb")
def test_wandb_without_a_login_leaves_no_folder(tmp_path, monkeypatch, capsys):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    assert main(["train", "--out", str(tmp_path / "run"), "--wandb", "x"]) == 2
    assert "wandb is 'x', but: No API key configured" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def _row(update, seed, **metrics):
    return {"update": update, "seed": seed, "env_steps": 100.0 * update, "seconds": 1.0} | metrics


def _write(config, run, updates):
    """Open the logs of a run, write rows of both seeds, and close them."""
    check_logs(config)
    rows = [_row(update, seed, loss=update + seed / 10) for update in updates for seed in (3, 4)]
    evaluated = [_row(updates[-1], seed, mean_return=seed + 0.5) for seed in (3, 4)]
    for log in open_logs(config, run, progress=False):
        with log:
            log.write(rows)
            log.write_evaluations(evaluated)
    run.append_metrics(rows)


def _events(folder):
    """Return the events of TensorBoard files, oldest file first."""
    event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")

    events = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return events


def test_each_seed_has_a_tensorboard_folder_and_a_resumed_run_hides_what_it_makes_again(tmp_path):
    pytest.importorskip("tensorboardX")
    config = make_config({"tensorboard": True, "seed": 3, "num_seeds": 2})
    run = Run.create(tmp_path / "run", config)
    _write(config, run, [1, 2, 3])
    run.drop_metrics_after(2)
    _write(config, run, [3])
    folders = sorted(path.name for path in (run.folder / "tensorboard").iterdir())
    assert folders == ["seed3", "seed4"]
    events = _events(run.folder / "tensorboard" / "seed4")
    points = [(e.step, round(v.simple_value, 3)) for e in events for v in e.summary.value if v.tag == "loss"]
    assert points == [(100, 1.4), (200, 2.4), (300, 3.4), (300, 3.4)]
    tags = {(v.tag, e.step, v.simple_value) for e in events for v in e.summary.value if "eval" in v.tag}
    assert tags == {("eval/mean_return", 300, 4.5), ("eval/seconds", 300, 1.0)}
    # A session that starts at a step hides what came at or behind it before.
    assert [e.step for e in events if e.HasField("session_log")] == [201]


@pytest.mark.usefixtures("wandb")
def test_two_folders_of_one_name_are_not_one_run_at_wandb_and_a_resumed_one_is(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = make_config({"wandb": "project", "seed": 3, "num_seeds": 2})
    ids = []
    for parent in ("a", "b"):
        run = Run.create(tmp_path / parent / "lru", config)
        _write(config, run, [1, 2])
        ids.append(json.loads((run.folder / "wandb.json").read_text()))
    assert ids[0]["group"] != ids[1]["group"]
    assert len({run_id for content in ids for run_id in content["ids"].values()}) == 4
    _write(config, run, [3])
    assert json.loads((run.folder / "wandb.json").read_text()) == ids[1]
    written = [path.stem.removeprefix("run-") for path in (run.folder / "wandb").glob("offline-run-*/run-*.wandb")]
    assert set(written) == set(ids[1]["ids"].values())
    content = b"".join(path.read_bytes() for path in (run.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert ids[1]["group"].encode() in content
    assert b"eval/mean_return" in content


def test_the_console_shows_an_evaluation(capsys):
    log = open_logs(make_config({}), Run("nowhere"), progress=True)[0]
    with log:
        log.write_evaluations([_row(2, seed, mean_return=float(seed)) for seed in (3, 4)])
        log.write_evaluations([])
    assert capsys.readouterr().err.splitlines()[1:] == ["         200 steps: evaluation return 3.500, mean of 2 seeds"]


def test_a_damaged_file_of_wandb_ids_is_named(tmp_path):
    pytest.importorskip("wandb")
    config = make_config({"wandb": "project"})
    run = Run.create(tmp_path / "run", config)
    for content in ("", "[]", '{"group": "g", "ids": {"0": "../x"}}', '{"group": "g", "ids": {"0": 1}}'):
        (run.folder / "wandb.json").write_text(content)
        with pytest.raises(RunError, match="does not hold a group and an id for each seed; delete it"):
            open_logs(config, run, progress=False)
