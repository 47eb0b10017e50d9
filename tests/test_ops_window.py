"""Window attention against dense masked attention, and element-wise recurrences against a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import ops


def _dense(q, k, v, starts, window, past_k, past_v, past_valid, bias):
    """Attention as one masked T x (P + T) matrix."""
    past = past_k.shape[0]
    length, dk = q.shape
    episode = jnp.concatenate([jnp.where(past_valid, 0, -1), jnp.cumsum(starts)])
    back = past + jnp.arange(length)[:, None] - jnp.arange(past + length)[None]
    seen = (back >= 0) & (back < window) & (episode[past:, None] == episode[None])
    scores = q @ jnp.concatenate([past_k, k]).T / np.sqrt(dk) + bias[jnp.clip(back, 0, window - 1)]
    weights = jnp.where(seen, jnp.exp(scores - jnp.max(scores)), 0)
    return (weights / jnp.sum(weights, axis=1, keepdims=True)) @ jnp.concatenate([past_v, v])


def _agree(got, want, tolerance=2e-5):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * (1 + np.max(np.abs(w))))


@pytest.mark.parametrize(
    ("length", "window", "block"), [(1, 3, None), (63, 5, 8), (63, 40, 16), (500, 20, None), (500, 100, None)]
)
def test_equals_dense_attention_with_all_gradients(length, window, block, key):
    keys = jax.random.split(key, 9)
    q, k, v, weight = (jax.random.normal(a, (length, d)) for a, d in zip(keys, (4, 4, 3, 3), strict=False))
    past = window + 2
    past_k, past_v = jax.random.normal(keys[4], (past, 4)), jax.random.normal(keys[5], (past, 3))
    bias = jax.random.normal(keys[6], (window,))
    valid = jnp.arange(past) >= 3
    # Starts at a block's first and last step, and inside, but late enough for the past to count for a while.
    starts = jnp.isin(jnp.arange(length), jnp.array([11, 15, 16, 17, 127, 128, 300, 301]))

    def blocked(q, k, v, past_k, past_v, bias):
        ys = ops.window_attention(
            q, k, v, starts, window, past_k=past_k, past_v=past_v, past_valid=valid, bias=bias, block=block
        )
        return jnp.sum(ys * weight), ys

    def dense(q, k, v, past_k, past_v, bias):
        ys = _dense(q, k, v, starts, window, past_k, past_v, valid, bias)
        return jnp.sum(ys * weight), ys

    args = (q, k, v, past_k, past_v, bias)
    got, want = (jax.jit(jax.value_and_grad(f, argnums=range(6), has_aux=True))(*args) for f in (blocked, dense))
    _agree(got, want)


def test_empty_past_and_nan_in_it_do_not_matter(key):
    q, k, v = jax.random.normal(key, (3, 21, 4))
    starts = jnp.zeros(21, bool)
    nan = jnp.full((6, 4), jnp.nan)
    none = jnp.zeros(6, bool)
    got = ops.window_attention(q, k, v, starts, 7, past_k=nan, past_v=nan, past_valid=none)
    _agree(got, ops.window_attention(q, k, v, starts, 7))


def test_large_scores_stay_finite(key):
    q, k, v = 1e3 * jax.random.normal(key, (3, 40, 4))
    starts = jnp.arange(40) == 13
    run = jax.jit(jax.value_and_grad(lambda q: jnp.sum(ops.window_attention(q, k, v, starts, 9))))
    ys, grads = run(q)
    assert bool(jnp.isfinite(ys) & jnp.all(jnp.isfinite(grads)))


def test_memory_does_not_hold_a_window_for_each_step():
    length, window, d = 2048, 128, 64
    x = jax.ShapeDtypeStruct((length, d), jnp.float32)
    starts = jnp.zeros(length, bool)

    def total(q, k, v):
        return jnp.sum(ops.window_attention(q, k, v, starts, window))

    memory = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < length * window * d * 4 / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window must be"),
        ({"block": 0}, "block must be"),
        ({"starts": jnp.zeros(5)}, "boolean"),
        ({"past_k": jnp.zeros((2, 4))}, "past_v"),
    ],
)
def test_bad_arguments(change, message):
    x = jnp.zeros((5, 4))
    arguments = {"q": x, "k": x, "v": x, "starts": jnp.zeros(5, bool), "window": 3, **change}
    with pytest.raises((ValueError, TypeError), match=message if "starts" not in change else "."):
        ops.window_attention(**arguments)


def _gru(w, x, state):
    (h,) = state
    z = jax.nn.sigmoid(w[0] * h + x[0])
    return ((1 - z) * h + z * jnp.tanh(w[1] * h + x[1]),)


def _lstm(w, x, state):
    h, c = state
    f = jax.nn.sigmoid(w[0] * h + w[1] * c + x[0])
    c = f * c + (1 - f) * jnp.tanh(x[1] + w[2] * h)
    return jax.nn.sigmoid(x[2] + w[3] * c) * jnp.tanh(c), c


@pytest.mark.parametrize("method", ["sequential", "newton"])
@pytest.mark.parametrize(("cell", "parts"), [(_gru, 1), (_lstm, 2)])
def test_elementwise_recurrence_equals_a_loop_with_all_gradients(cell, parts, method, key):
    keys = jax.random.split(key, 4)
    # Recurrent weights far from a contraction, so that Newton's method has to work.
    w = 2 * jax.random.normal(keys[0], (4, 3))
    xs = tuple(jax.random.normal(keys[1], (3, 63, 3)))
    state = tuple(jax.random.normal(keys[2], (parts, 3)))
    starts = jnp.isin(jnp.arange(63), jnp.array([20, 21, 62]))

    def objective(hs):
        return sum(jnp.sum(jnp.cos(jnp.arange(h.size).reshape(h.shape)) * h) for h in hs), hs

    def loop(w, xs, state):
        def step(state, now):
            x, start = now
            state = cell(w, x, tuple(jnp.where(start, 0, s) for s in state))
            return state, state

        return objective(jax.lax.scan(step, state, (xs, starts))[1])

    def fast(w, xs, state):
        return objective(ops.elementwise_recurrence(cell, w, xs, state, starts, method=method))

    got, want = (jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(w, xs, state) for f in (fast, loop))
    _agree(got, want, 1e-5)


def test_newton_is_exact_for_a_chaotic_cell():
    """No iteration count fixed in advance would do: each iteration secures one more step."""

    def logistic(r, x, state):
        (h,) = state
        return (r * h * (1 - h) + x,)

    xs, starts = jnp.zeros((24, 1)), jnp.arange(24) == 0
    run = functools.partial(ops.elementwise_recurrence, logistic, jnp.array([3.9]), xs, (jnp.zeros(1),), starts)
    initial = (jnp.array([0.3]),)
    (newton,), (loop,) = (run(initial=initial, method=m) for m in ("newton", "sequential"))
    np.testing.assert_allclose(newton, loop, atol=1e-2)


def test_elementwise_recurrence_rejects_unknown_methods():
    with pytest.raises(ValueError, match="maps"):
        ops.elementwise_recurrence(
            _gru, jnp.ones(2), (jnp.ones(3),) * 2, (jnp.ones(()),), jnp.zeros(3, bool), method="associative"
        )
