"""Every model runs in float64 and in bfloat16, and its state has the dtype of the parameters, float32 at least."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import memory
from memax_rl.memory import testing as laws

LENGTH = 19


def _make(name: str) -> memory.Memory:
    return memory.make(name, in_size=4, out_size=8, key=jax.random.key(0))


def _inputs() -> tuple[jax.Array, jax.Array]:
    return jax.random.normal(jax.random.key(1), (LENGTH, 4)), jnp.arange(LENGTH) % 7 == 5


def _floats(tree) -> list[jax.Array]:
    return jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))


def _as(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


@eqx.filter_jit
def _both(model, xs, starts):
    """Return outputs and last state of `scan` and of `step` in a loop, and the gradients of `scan`."""

    def total(differentiable):
        model, xs = differentiable
        last, ys = model.scan(model.initial_state(), xs, starts)
        return jnp.sum(jnp.sin(ys.astype(jnp.promote_types(ys.dtype, jnp.float32)))), (ys, last)

    gradients, by_scan = eqx.filter_grad(total, has_aux=True)((model, xs))
    last, ys = laws.loop(model, model.initial_state(), xs, starts)
    return by_scan, (ys, last), gradients


def _dtypes(state) -> list[str]:
    return [str(x.dtype) for x in jax.tree.leaves(state)]


def _largest_difference(got, want) -> float:
    """Return the largest difference of arrays relative to their size, where `want` is finite."""
    worst = 0.0
    for g, w in zip(_floats(got), _floats(want), strict=True):
        g, w = np.asarray(g), np.asarray(w)
        finite = np.isfinite(w)
        assert np.array_equal(g[~finite], w[~finite])
        worst = max(worst, float(np.max(np.abs(g - w)[finite], initial=0) / (1 + np.max(np.abs(w[finite]), initial=0))))
    return worst


@pytest.mark.parametrize("name", memory.names())
def test_scan_equals_steps_in_float64(name):
    with jax.enable_x64(True):
        model, (xs, starts) = _make(name), _inputs()
        state = model.initial_state()
        assert {x.dtype for x in _floats(model)} == {jnp.dtype(jnp.float64)}
        assert {x.real.dtype for x in _floats(state)} <= {jnp.dtype(jnp.float64)}
        by_scan, by_step, gradients = _both(model, xs, starts)
        assert _dtypes(by_scan) == _dtypes(by_step) == ["float64", *_dtypes(state)]
        assert _largest_difference(by_scan, by_step) < 1e-9
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in _floats(gradients))


@pytest.mark.parametrize("name", memory.names())
def test_bfloat16_parameters_and_inputs_differ_by_rounding_alone(name):
    xs, starts = _inputs()
    half, xs = _as(_make(name), jnp.bfloat16), xs.astype(jnp.bfloat16)
    state = half.initial_state()
    assert {x.real.dtype for x in _floats(state)} <= {jnp.dtype(jnp.float32)}
    by_scan, by_step, gradients = _both(half, xs, starts)
    assert _dtypes(by_scan) == _dtypes(by_step)
    assert _dtypes(by_scan[1]) == _dtypes(state)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in _floats(gradients))
    # The same numbers in float32: what is left is the rounding within a step.
    full = eqx.filter_jit(laws.loop)(_as(half, jnp.float32), state, xs.astype(jnp.float32), starts)[::-1]
    for got in (by_scan, by_step):
        assert _largest_difference(_as(got, jnp.complex64), _as(full, jnp.complex64)) < 0.03


@pytest.mark.parametrize("name", memory.names())
def test_float32_stays_float32_where_float64_is_on(name):
    model, (xs, starts) = _make(name), _inputs()
    with jax.enable_x64(True):
        arrays, rest = eqx.partition(model, eqx.is_array)
        for run in (lambda model, *inputs: model.scan(*inputs), laws.loop):

            def outputs(arrays, xs, run=run):
                model = eqx.combine(arrays, rest)
                return run(model, model.initial_state(), xs, starts)

            floats = [
                x for x in jax.tree.leaves(jax.eval_shape(outputs, arrays, xs)) if jnp.issubdtype(x.dtype, jnp.inexact)
            ]
            assert {jnp.finfo(x.dtype).dtype for x in floats} == {jnp.dtype(jnp.float32)}
