"""The laws of the memory contract, over every registered model."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import memory
from memax_rl.memory import testing

# Longer than a chunk of 64 steps, so that the forms that work in chunks cross a border. One length for all laws of a
# model: its two programs, of `scan` and of `step` in a loop, are compiled once.
LENGTH = 70


@functools.cache
def _make(name):
    model = memory.make(name, in_size=5, out_size=8, key=jax.random.key(0))
    # Perturbed: zeros at the start (biases) and special values hide mistakes.
    rng = np.random.default_rng(0)

    def perturb(leaf):
        return leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype) if eqx.is_inexact_array(leaf) else leaf

    return model, jax.tree.map(perturb, model)


@pytest.mark.parametrize("name", memory.names())
def test_laws(name):
    fresh, model = _make(name)
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.normal(size=(LENGTH, 5)), jnp.float32)
    starts = jnp.asarray(rng.random(LENGTH) < 0.08)
    state = testing.reachable_state(model, jax.random.key(1), steps=LENGTH)
    testing.scan_equals_steps(model, state, xs, starts)
    testing.resets(model, state, xs)
    testing.gradients_stop_at_starts(model, state, xs)
    # At inputs of zero a norm without epsilon, or a square root, has a gradient of nan.
    silence, no_start = jnp.zeros((LENGTH, 5)), jnp.zeros(LENGTH, bool)
    _, (by_model, _, by_xs) = testing.values_and_gradients(fresh, fresh.initial_state(), silence, no_start)
    for leaf in jax.tree.leaves((by_model, by_xs)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", memory.names())
def test_one_step(name):
    """A scan of one step is `step`; and `step` does not keep nan."""
    _, model = _make(name)
    step, scan = eqx.filter_jit(model.step), eqx.filter_jit(model.scan)
    rng = np.random.default_rng(2)
    state, xs = model.initial_state(), jnp.asarray(rng.normal(size=(4, 1, 5)), jnp.float32)
    for x, start in zip(xs, [False, False, True, False], strict=True):
        last, ys = scan(state, x, jnp.array([start]))
        state, y = step(state, x[0], jnp.array(start))
        np.testing.assert_allclose(ys[0], y, atol=1e-5)
        for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    testing.step_does_not_keep_nan(model, xs[0, 0])


@pytest.mark.parametrize("name", memory.names())
def test_under_vmap_with_time_first(name):
    _, model = _make(name)
    rng = np.random.default_rng(3)
    xs = jnp.asarray(rng.normal(size=(LENGTH, 3, 5)), jnp.float32)
    starts = jnp.asarray(rng.random((LENGTH, 3)) < 0.2)
    initial = model.initial_state()
    state = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), initial)
    last, ys = eqx.filter_jit(eqx.filter_vmap(model.scan, in_axes=(0, 1, 1), out_axes=(0, 1)))(state, xs, starts)
    for i in range(3):
        (one_last, one_ys), _ = testing.values_and_gradients(model, initial, xs[:, i], starts[:, i])
        np.testing.assert_allclose(ys[:, i], one_ys, atol=1e-5)
        for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(one_last), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-5)


@pytest.mark.parametrize("name", memory.names())
def test_sizes_and_dtypes(name, key):
    def run():
        model = memory.make(name, in_size=3, out_size=16, key=key)
        assert (model.in_size, model.out_size) == (3, 16)
        before = model.initial_state()
        return before, *model.step(before, jnp.ones(3), jnp.array(True))

    before, after, y = jax.eval_shape(run)
    assert (y.shape, y.dtype) == ((16,), jnp.float32)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), after) == jax.tree.map(lambda s: (s.shape, s.dtype), before)
