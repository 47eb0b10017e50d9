"""The examples run as they stand, with few steps."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from memax_rl.memory import registry

EXAMPLES = Path(__file__).parent.parent / "examples"


def _main(name: str):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_every_example_is_tested_and_named():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    here = Path(__file__).read_text()
    assert all(f'_main("{name}")' in here for name in names)
    assert all(f"({name}.py)" in (EXAMPLES / "README.md").read_text() for name in names)


@pytest.mark.slow
def test_own_loop():
    returns = _main("own_loop")(2, 2)
    assert np.isfinite(returns).all()
    assert returns[0] != returns[1]


@pytest.mark.slow
def test_own_memory(tmp_path):
    try:
        found = _main("own_memory")("5k", tmp_path)
    finally:
        registry._ENTRIES.pop("traces", None)
    assert set(found) == {"traces", "lru"}
    assert np.isfinite(list(found.values())).all()


@pytest.mark.slow
def test_which_memory(tmp_path):
    table = _main("which_memory")("2k", 1, tmp_path / "study", ["min_gru", "mlp"])
    assert set(table.index) == {"min_gru", "mlp"}
    assert (table["count"] == 1).all()


@pytest.mark.slow
def test_policy_in_a_loop(tmp_path):
    lengths = _main("policy_in_a_loop")("2k", tmp_path / "run", 2)
    assert len(lengths) == 2
    assert min(lengths) >= 8, "a cart-pole cannot fall sooner"


@pytest.mark.slow
def test_learn_in_context(tmp_path):
    found = _main("learn_in_context")("5k", tmp_path / "run", 32)
    assert {"agent", "wiped memory", "random", "Gittins index"} <= set(found)
    assert all(len(payouts) == 4 for payouts in found.values())
    assert found["Gittins index"][-1] > found["random"][-1] + 1, "of ten pulls"


@pytest.mark.slow
def test_told_or_found(tmp_path):
    found = _main("told_or_found")("5k", tmp_path, ["min_gru"], 20)
    assert np.isfinite(found["min_gru"]).all()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_says_how_it_is_run(path):
    assert f"python examples/{path.name}" in path.read_text()
