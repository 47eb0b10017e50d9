"""The results page of learning in context says what its file of runs says."""

import argparse
import importlib
from pathlib import Path

import pytest

from memax_rl.runs import Run, make_config

FOLDER = Path(__file__).parents[1] / "docs" / "results"


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("in_context")


def _rows(memory, seed, **players):
    about = {"task": "DarkRoom, size 5", "memory": memory, "seed": str(seed), "steps": "1000", "seconds": "60"}
    return [about | {"trials": "8", "who": who.replace("_", " "), "returns": text} for who, text in players.items()]


def test_the_share_of_the_best_lies_between_random_actions_and_the_best_strategy(results):
    known = {"random": "1 1", "searcher": "1 3", "oracle": "4 4"}
    rows = _rows("gru", 10, agent="2 3", memory_wiped="2 2", **known) + _rows(
        "lru", 10, agent="0 2", memory_wiped="0 0", **known
    )
    assert results.strategies_of(rows, "DarkRoom, size 5") == ["oracle", "searcher", "random"]
    # Of a whole trial: random 2, the oracle 8.
    assert results.share(rows, "DarkRoom, size 5", "gru") == pytest.approx([3 / 6])
    assert results.share(rows, "DarkRoom, size 5", "lru") == pytest.approx([0])
    cells = results.tables(rows).splitlines()[2].split(" | ")
    assert cells == ["| DarkRoom, size 5", "gru", "0.0M", "2.00", "3.00", "2.00", "0.50", "1.0 |"]


def test_runs_that_were_not_evaluated_at_their_end_are_measured_all_the_same(results, tmp_path, capsys):
    table = importlib.import_module("table")
    run = Run.create(tmp_path / "study/gru/seed0", make_config({"env": "meta/DarkRoom"}))
    run.write_summary({"seconds": 1.0})
    parser = argparse.ArgumentParser()
    ((_, (found,)),) = table.read_groups(parser, [tmp_path], evaluated=False)
    assert found.folder == run.folder
    with pytest.raises(SystemExit):
        table.read_groups(parser, [tmp_path])
    assert "was not evaluated at its end" in capsys.readouterr().err


def test_tasks_are_told_apart_by_what_sets_their_presets_apart(results):
    assert results.task_of({"env": "meta/DarkRoom", "env_options": {"size": 7, "episodes": 8}}) == "DarkRoom, size 7"
    assert results.task_of({"env": "meta/PointMass", "env_options": {}}) == "PointMass"
