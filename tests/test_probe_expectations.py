"""What theory expects of memories on probes: every row can be run, and the documentation has them all."""

import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import memory
from memax_rl.probes import tasks
from memax_rl.probes.expectations import BASE, BEYOND, EXPECTATIONS, SOLVED, Expectation, study
from memax_rl.studies import make_study

PAGE = Path(__file__).parents[1] / "docs" / "probes.md"
_CLAIMS = {"yes": True, "no": False, "–": None}


def test_every_row_is_a_probe_that_is_tested_beyond_its_length():
    cells = make_study(study()).cells()
    assert len(cells) == len(EXPECTATIONS) > 20
    for row, cell in zip(EXPECTATIONS, cells, strict=True):
        config = cell.config
        assert config.network.memory == row.memory
        assert dict(row.options).items() <= config.network.memory_options.items()
        assert config.test_lengths == (1, BEYOND)
        assert config.network.feed_forward == BASE["network.feed_forward"]
        assert (row.trained, row.beyond) != (None, None), "a row without a claim cannot be refuted"


@pytest.mark.parametrize(
    ("trained", "beyond", "scores", "agrees"),
    [
        (True, True, (SOLVED, 1.0), True),
        (True, True, (SOLVED - 0.01, 1.0), False),
        (True, True, (1.0, 0.9), False),
        (None, False, (1.0, 0.9), True),
        (None, False, (0.2, SOLVED), False),
        (False, None, (0.2, 1.0), True),
        (False, None, (1.0, 0.2), False),
    ],
)
def test_a_claim_is_compared_with_the_scores(trained, beyond, scores, agrees):
    row = Expectation("parity", "gru", {}, trained, beyond, "")
    assert row.agrees(*scores) is agrees


def test_the_page_has_every_row_with_its_claims_and_what_was_measured():
    text = PAGE.read_text().split("### Expectation against measurement")[1].split("\n##")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| " in line][1:]
    assert len(rows) == len(EXPECTATIONS)
    for cells, row in zip(rows, EXPECTATIONS, strict=True):
        probe, memory, why, trained, beyond, *measured, agrees = cells
        assert (probe, memory.split()[0], why) == (row.probe, row.memory, row.why)
        assert all(f"{name}: {str(value).lower()}" in memory for name, value in row.options.items())
        assert (_CLAIMS[trained], _CLAIMS[beyond]) == (row.trained, row.beyond)
        assert agrees == ("yes" if row.agrees(*map(float, measured)) else "**no**")
    assert re.search(r"benchmarks/probe_expectations\.py", text)


def _swaps(permutation: np.ndarray) -> list[tuple[int, int]]:
    """Return swaps of points, the first one applied first, that make up a permutation: fewer than it has points."""
    now, swaps = np.arange(len(permutation)), []
    for x in range(len(now)):
        a, b = now[x], permutation[x]
        if a != b:
            swaps.append((a, b))
            now = np.where(now == a, b, np.where(now == b, a, now))
    return swaps


@pytest.mark.parametrize(("points", "substeps", "holds"), [(3, 2, True), (5, 4, True), (3, 1, False), (5, 3, False)])
def test_as_many_reflections_as_swaps_track_permutations(points, substeps, holds):
    """By parameters written down, not learned: a swap of two points is the reflection along their difference.

    The state, from the identity on, is then the matrix of the product so far; with a reflection less it is not.
    """
    task: Any = tasks.make("permutations", {"points": points, "length": 200})
    table, size = task.table(), (1 + 2 * substeps) * points
    options = {"heads": 1, "head_size": points, "substeps": substeps, "gated": False}
    model: Any = memory.make("delta_product", in_size=len(table), out_size=points, key=jax.random.key(0), **options)
    # silu of these is 0.2 and -0.2, so that keys are differences of two points; queries and values are zero.
    keys = np.zeros((len(table), 1 + 2 * substeps, points), np.float32)
    for number, permutation in enumerate(table):
        for place, (a, b) in enumerate(_swaps(permutation)[:substeps]):
            keys[number, 1 + place, [a, b]] = 0.34206, -0.54488
    weights = jnp.zeros_like(model.conv.weights).at[0].set(1)
    model = eqx.tree_at(
        lambda m: (m.w_qkv, m.conv.weights, m.w_beta, m.b_beta),
        model,
        (jnp.asarray(keys.reshape(-1, size)), weights, jnp.zeros_like(model.w_beta), jnp.full(substeps, 20.0)),
    )
    drawn = jax.vmap(task.sample)(jax.random.split(jax.random.key(1), 8))
    state = jnp.eye(points)[None], model.conv.initial_state()
    scan = jax.vmap(lambda inputs: model.scan(state, jax.nn.one_hot(inputs, len(table)), jnp.zeros(200, bool))[0][0][0])
    want = np.zeros((8, points, points))
    for one, target in zip(want, drawn.targets[:, -1], strict=True):
        one[table[target], np.arange(points)] = 1
    assert np.allclose(eqx.filter_jit(scan)(drawn.inputs), want, atol=0.05) is holds
