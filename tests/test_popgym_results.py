"""The results page of POPGym says what its file of runs says, and the file what the runs did."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "results"


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("popgym_results")


def _row(task, seed, value):
    return {"task": task, "memory": "gru", "seed": seed, "steps": 400_000, "return": value, "last": value} | {
        "best_epoch": value + 0.1,
        "seconds": 60,
    }


def test_rows_hold_mean_and_interval_of_the_seeds(results):
    rows = [_row("RepeatFirstEasy", 0, 0.9), _row("RepeatFirstEasy", 1, 1.0)]
    cells = results.line("RepeatFirstEasy", 1.0, rows).split(" | ")
    # Student's 97.5 % quantile of one degree of freedom is 12.706; the standard error is 0.05.
    assert cells[3:8] == ["2", "0.950 ± 0.635", "0.950 ± 0.635", "1.050 ± 0.635", "-0.500"]
    assert "±" not in results.line("RepeatFirstEasy", 1.0, rows[:1])
    assert "not run" in results.line("RepeatFirstEasy", 1.0, [])
    # From -0.5, chance, to 1: 1.4 and 1.5 of 1.5.
    assert results.normalized(rows) == pytest.approx([14 / 15, 1])


def test_over_tasks_it_says_what_a_comparison_says(results):
    # Of six runs one is dropped at each end.
    assert results.over_tasks([np.array([x]) for x in (0.0, 1, 3, 10, 20, 100)], "iqm") == "8.500"
    two = [np.array([0.0, 1.0])]
    # Student's interval of the mean of two, here too.
    value, low, high = re.findall(r"-?[\d.]+", results.over_tasks(two, "mean"))
    assert float(value) == 0.5
    assert float(high) - 0.5 == pytest.approx(0.5 - float(low))
    assert float(high) - 0.5 == pytest.approx(12.706 * 0.5, rel=0.05)


def test_the_last_epoch_weighs_episodes_that_ended_in_it(results):
    metrics = [
        {"env_steps": 10_000, "episode/count": 9, "episode/return": 5.0},
        {"env_steps": 80_000, "episode/count": 3, "episode/return": 1.0},
        {"env_steps": 90_000, "episode/count": 0, "episode/return": float("nan")},
        {"env_steps": 100_000, "episode/count": 1, "episode/return": 2.0},
    ]
    assert results.last_epoch(metrics) == 1.25
    assert results.last_epoch(metrics[2:3]) != results.last_epoch(metrics[2:3])


def test_a_task_and_seed_that_are_there_twice_are_told(results):
    cells = [("popgym/A", 0, Path("x")), ("popgym/A", 1, Path("y")), ("popgym/B", 0, Path("z"))]
    assert results.twice(cells) is None
    assert results.twice([*cells, ("popgym/A", 1, Path("w"))]) == "y and w are both popgym/A with seed 1; leave one out"
