"""Precision of products: what is rounded, and what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import ops
from memax_rl.evaluation.export import export
from memax_rl.precision import describe, products_in
from memax_rl.runs import make_config
from memax_rl.training import check, train


def _rounded(x: jax.Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32), np.float64)


def test_factors_are_rounded_to_bfloat16_and_sums_are_not(key):
    x, w = jax.random.normal(key, (300, 70)), jax.random.normal(jax.random.fold_in(key, 1), (70, 50))

    def values(precision):
        with products_in(precision):
            y, pull = jax.jit(lambda x, w: jax.vjp(ops.linear, x, w))(x, w)
            return y, *jax.jit(lambda pull, dy: pull(dy))(pull, y)

    exact, got = values("highest"), values("bfloat16")
    assert all(a.dtype == jnp.float32 for a in got)
    dy = got[0]
    expected = [_rounded(x) @ _rounded(w), _rounded(dy) @ _rounded(w).T, _rounded(x).T @ _rounded(dy)]
    for a, b, plain in zip(got, expected, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
        assert np.abs(np.asarray(a) - np.asarray(plain)).max() > 1e-3, "it was rounded"


def test_a_vmapped_product_is_rounded_alike(key):
    xs, ws = jax.random.normal(key, (3, 8, 5)), jax.random.normal(key, (3, 5, 4))
    with products_in("bfloat16"):
        together = jax.jit(jax.vmap(ops.linear))(xs, ws)
        single = jnp.stack([jax.jit(ops.linear)(x, w) for x, w in zip(xs, ws, strict=True)])
    np.testing.assert_allclose(together, single, rtol=1e-6, atol=1e-6)
    assert np.abs(np.asarray(together) - np.einsum("bij,bjk->bik", xs, ws)).max() > 1e-3


def test_other_precisions_are_float32_on_a_cpu(key):
    x, w = jax.random.normal(key, (30, 70)), jax.random.normal(key, (70, 50))
    with products_in("highest"):
        exact = jax.jit(ops.linear)(x, w)
    with products_in("tensorfloat32"):
        np.testing.assert_array_equal(jax.jit(ops.linear)(x, w), exact)
    assert "because a CPU has no tensorfloat32" in describe("tensorfloat32")


SMALL = {
    "env": "popgym/RepeatFirstEasy",
    "network": {"memory": "min_gru", "width": 8},
    "total_steps": 1000,
    "ppo": {"num_envs": 4, "num_minibatches": 1},
    "eval_episodes": 4,
}


@pytest.mark.slow
def test_a_run_is_trained_in_its_precision_and_says_so(tmp_path, capsys):
    runs = {
        name: train(**SMALL, precision=name, out=tmp_path / name, progress=True) for name in ("highest", "bfloat16")
    }
    told = capsys.readouterr().err
    for name in runs:
        assert f"precision {name}: " in told
        assert f'"precision": "{name}"' in (tmp_path / name / "summary.json").read_text()
        assert any(f"precision {name}: " in line for line in check(make_config(SMALL | {"precision": name})))
    losses = [run.metrics()[0]["loss"] for run in runs.values()]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    # A policy outside of the run multiplies as the run did.
    for name, run in runs.items():
        exported = export(run.folder, out=tmp_path / f"{name}.policy", greedy=True)
        program = jax.export.deserialize(bytearray((exported / "policy.stablehlo").read_bytes()))
        assert ("bf16" in program.mlir_module()) == (name == "bfloat16")
