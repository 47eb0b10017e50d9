"""The results of run folders as tables, and `memax-rl compare`."""

import importlib
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from memax_rl.cli import main
from memax_rl.runs import Run, RunError, make_config
from memax_rl.studies import curves, results


def write(folder, memory, seed, value=None, seeds=1, updates=3, finite=1, **fields):
    config = make_config(
        {"seed": seed, "num_seeds": seeds, "total_steps": 10 * updates, "network": {"memory": memory}} | fields
    )
    run = Run.create(folder, config)
    for update in range(1, updates + 1):
        for s in range(seed, seed + seeds):
            row = {"update": update, "seed": s, "seconds": update, "env_steps": 10 * update, "finite": finite}
            run.append_metrics([row | {"episode/return": math.nan if update == 1 else update / 10}])
    if value is not None:
        evaluation = {
            "seeds": list(range(seed, seed + seeds)),
            "mean_return_per_seed": [value + s for s in range(seeds)],
        }
        about = {"seconds": 5.0, "parameters": 99, "update_bytes": None, "device": "cpu:0"}
        run.write_summary(about | {"evaluation": evaluation | {"episodes_per_seed": 8, "best": 1.0}})
    return run


def test_a_row_a_run_and_seed(tmp_path):
    write(tmp_path / "a/deep/gru", "gru", 3, 0.5, seeds=2, ppo={"gamma": 0.9})
    write(tmp_path / "lru", "lru", 0)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    table = results(tmp_path)
    assert list(table["memory"]) == ["gru", "gru", "lru"]
    assert list(table["seed"]) == [3, 4, 0]
    assert list(table["status"]) == ["finished", "finished", "unfinished"]
    np.testing.assert_equal(list(table["final_return"]), [0.5, 1.5, math.nan])
    assert list(table["best_return"]) == [0.3] * 3
    assert list(table["steps"]) == [30] * 3
    assert list(table["ppo.gamma"])[:2] == [0.9, 0.9]
    assert "ppo.learning_rate" not in table
    np.testing.assert_equal(list(table["parameters"]), [99, 99, math.nan])
    assert np.isnan(table["update_bytes"].to_numpy()).all()
    assert list(table["device"]) == ["cpu:0", "cpu:0", ""]
    drawn = curves(tmp_path)
    assert len(drawn) == 9
    assert list(drawn["env_steps"][drawn["memory"] == "lru"]) == [10, 20, 30]


def test_a_diverged_seed_is_not_finished(tmp_path):
    write(tmp_path / "x", "gru", 0, 0.5, finite=0)
    assert list(results(tmp_path)["status"]) == ["diverged"]


def test_what_is_no_run_or_damaged_is_named(tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        results(tmp_path)
    with pytest.raises(RunError, match="missing is no folder"):
        results(tmp_path / "missing")
    run = write(tmp_path / "x", "gru", 0, 0.5)
    run.summary_path.write_text("{")
    with pytest.raises(RunError, match=r"summary\.json cannot be read"):
        results(tmp_path)
    run.summary_path.write_text(json.dumps({"evaluation": {"seeds": [0], "mean_return_per_seed": []}}))
    with pytest.raises(RunError, match="damaged"):
        results(tmp_path)


def test_a_row_cut_short_is_left_out(tmp_path):
    run = write(tmp_path / "x", "gru", 0)
    with run.metrics_path.open("a") as file:
        file.write("4,0,4")
    assert len(curves(tmp_path)) == 3


def test_compare_prints_a_sentence_and_writes_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for seed in range(3):
        write(tmp_path / f"runs/gru{seed}", "gru", seed, 0.1 * seed)
        write(tmp_path / f"runs/lru{seed}", "lru", seed, 0.1 * seed + 5)
        write(tmp_path / f"runs/lrufast{seed}", "lru", seed, 0.1 * seed + 5, ppo={"gamma": 0.5})
    assert main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "lru (ppo.gamma=0.99) and lru (ppo.gamma=0.5) are each better than gru (ppo.gamma=0.99)" in shown
    assert "cannot be told apart with 3 seeds" in shown
    assert "repeat" not in shown
    assert (tmp_path / "out/results.csv").read_text().count("\n") == 10
    assert (tmp_path / "out/curves.csv").read_text().count("\n") == 28


def test_compare_of_nothing_is_one_line(tmp_path, capsys):
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "script",
    [
        "table",
        "fill",
        "repeat_previous",
        "popgym_results",
        "in_context",
        "endless_tmaze",
        "probe_table",
        "probe_expectations",
    ],
)
def test_scripts_that_print_studies_say_what_is_none(script, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", [script, *(["--out"] if script == "probe_expectations" else []), str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(script).main()
    assert stopped.value.code == 2
    assert re.search("error: .*(no run folder|not a study's folder)", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
