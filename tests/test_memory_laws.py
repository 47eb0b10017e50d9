"""The laws of the memory contract, over every registered model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from memax_rl import memory
from memax_rl.memory import laws


def _make(name, key, in_size=5, out_size=8):
    model = memory.make(name, in_size=in_size, out_size=out_size, key=key)
    # Perturbed: zeros at the start (biases) and special values hide mistakes.
    leaves, treedef = jax.tree.flatten(model)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        treedef,
        [
            leaf + 0.1 * jax.random.normal(k, leaf.shape, leaf.dtype) if eqx.is_inexact_array(leaf) else leaf
            for leaf, k in zip(leaves, keys, strict=True)
        ],
    )


@pytest.mark.parametrize("name", memory.names())
def test_scan_equals_steps(name, key):
    model = _make(name, key)
    keys = jax.random.split(key, 3)
    xs = jax.random.normal(keys[0], (70, 5))
    starts = jax.random.bernoulli(keys[1], 0.08, (70,))
    laws.scan_equals_steps(model, laws.reachable_state(model, keys[2]), xs, starts)


@pytest.mark.parametrize("name", memory.names())
@pytest.mark.parametrize("start", [False, True])
def test_one_step_is_a_scan_too(name, start, key):
    model = _make(name, key)
    state, x = laws.reachable_state(model, key), jax.random.normal(key, (1, 5))
    last, ys = model.scan(state, x, jnp.array([start]))
    want, y = model.step(state, x[0], jnp.array(start))
    assert jnp.allclose(ys[0], y, atol=1e-5)
    for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(want), strict=True):
        assert jnp.allclose(a, b, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", memory.names())
def test_resets(name, key):
    model = _make(name, key)
    laws.resets(model, laws.reachable_state(model, key), jax.random.normal(key, (21, 5)))


@pytest.mark.parametrize("name", memory.names())
def test_gradients_stop_at_starts(name, key):
    model = _make(name, key)
    laws.gradients_stop_at_starts(model, laws.reachable_state(model, key), jax.random.normal(key, (21, 5)))


@pytest.mark.parametrize("name", memory.names())
def test_step_does_not_keep_nan(name, key):
    laws.step_does_not_keep_nan(_make(name, key), jax.random.normal(key, (5,)))


@pytest.mark.parametrize("name", memory.names())
def test_under_vmap_with_time_first(name, key):
    model = _make(name, key)
    xs = jax.random.normal(key, (17, 3, 5))
    starts = jax.random.bernoulli(key, 0.2, (17, 3))
    state = jax.vmap(lambda _: model.initial_state())(jnp.arange(3))
    last, ys = eqx.filter_jit(eqx.filter_vmap(model.scan, in_axes=(0, 1, 1), out_axes=(0, 1)))(state, xs, starts)
    scan = eqx.filter_jit(model.scan)
    for i in range(3):
        one_last, one_ys = scan(model.initial_state(), xs[:, i], starts[:, i])
        assert jnp.allclose(ys[:, i], one_ys, atol=1e-5)
        for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(one_last), strict=True):
            assert jnp.allclose(a[i], b, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", memory.names())
def test_finite_gradients_at_zero_input(name, key):
    model = memory.make(name, in_size=5, out_size=8, key=key)

    def total(model, xs):
        return jnp.sum(model.scan(model.initial_state(), xs, jnp.zeros(9, bool))[1])

    grads = eqx.filter_jit(eqx.filter_grad(total))(model, jnp.zeros((9, 5)))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", memory.names())
def test_sizes_and_dtypes(name, key):
    model = memory.make(name, in_size=3, out_size=16, key=key)
    assert (model.in_size, model.out_size) == (3, 16)
    state, y = model.step(model.initial_state(), jnp.ones(3), jnp.array(True))
    assert y.shape == (16,)
    assert y.dtype == jnp.float32
    before = jax.tree.map(lambda s: (s.shape, s.dtype), model.initial_state())
    assert jax.tree.map(lambda s: (s.shape, s.dtype), state) == before
