"""The recurrences against naive loops: values and all gradients, resets anywhere, odd lengths, nonzero states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl.ops import (
    complex_diagonal_recurrence,
    delta_rule,
    kernels,
    linear_attention,
    linear_recurrence,
    nonlinear_recurrence,
    selective_scan,
)


def _starts(seed, length, rate=0.15):
    return jnp.asarray(np.random.default_rng(seed).random(length) < rate)


def _compare(fast, slow, arguments, tolerance=1e-4):
    """Values and the gradients by every argument agree, to a tolerance relative to the size of each array."""

    def objective(f):
        def total(*arguments):
            leaves = jax.tree.leaves(f(*arguments))
            weights = [jnp.cos(0.7 * jnp.arange(leaf.size)).reshape(leaf.shape) for leaf in leaves]
            return sum(jnp.sum((leaf * w).real + (leaf * w).imag) for leaf, w in zip(leaves, weights, strict=True))

        return total

    numbers = tuple(range(len(arguments)))
    got = (fast(*arguments), jax.jit(jax.grad(objective(fast), numbers))(*arguments))
    want = (slow(*arguments), jax.jit(jax.grad(objective(slow), numbers))(*arguments))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, atol=tolerance * (1 + float(jnp.max(jnp.abs(w)))))


@pytest.mark.parametrize("method", ["sequential", "associative"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("length", [1, 2, 63])
def test_linear_recurrence(method, dtype, length, key):
    starts = _starts(length, length)
    keys = jax.random.split(key, 6)
    a, b = (jax.random.uniform(k, (length, 3), minval=-1.0) for k in keys[:2])
    h0 = jax.random.normal(keys[2], (3,))
    if dtype == jnp.complex64:
        a, b = (x + 1j * jax.random.normal(k, x.shape) * 0.3 for x, k in zip((a, b), keys[3:5], strict=True))
        h0 = h0 + 1j * jax.random.normal(keys[5], (3,))

    def naive(a, b, h0):
        def step(h, now):
            a, b, start = now
            h = jnp.where(start, 0, a * h) + b
            return h, h

        return jax.lax.scan(step, h0, (a, b, starts))[1]

    _compare(lambda *x: linear_recurrence(*x, starts=starts, method=method), naive, (a, b, h0))


@pytest.mark.parametrize("method", ["sequential", "associative"])
@pytest.mark.parametrize("length", [1, 2, 63])
def test_linear_recurrence_with_one_decay_for_all_steps(method, length, key):
    starts = _starts(length, length)
    keys = jax.random.split(key, 4)
    a, b, h0 = (
        1j * jax.random.normal(keys[0], (3,)),
        jax.random.normal(keys[1], (length, 3)),
        jnp.ones(3, jnp.complex64),
    )
    a = 0.5 * (a + jax.random.normal(keys[2], (3,)))

    def broadcast(a, b, h0):
        return linear_recurrence(jnp.broadcast_to(a, b.shape), b, h0, starts, method="associative")

    _compare(lambda *x: linear_recurrence(*x, starts=starts, method=method), broadcast, (a, b + 0j, h0))


@pytest.mark.parametrize("method", ["sequential", "associative"])
@pytest.mark.parametrize("length", [1, 2, 63])
def test_complex_diagonal_recurrence(method, length, key):
    starts = _starts(length, length)
    keys = jax.random.split(key, 4)
    re, im = jax.random.uniform(keys[0], (2, 3), minval=-0.7, maxval=0.7)
    b, h0 = jax.random.normal(keys[1], (length, 2, 3)), jax.random.normal(keys[2], (2, 3))

    def complex_numbers(re, im, b, h0):
        def step(h, now):
            b, start = now
            h = jnp.where(start, 0, jax.lax.complex(re, im) * h) + b
            return h, h

        hs = jax.lax.scan(step, jax.lax.complex(*h0), (jax.lax.complex(b[:, 0], b[:, 1]), starts))[1]
        return jnp.stack([hs.real, hs.imag], axis=1)

    _compare(lambda *x: complex_diagonal_recurrence(*x, starts=starts, method=method), complex_numbers, (re, im, b, h0))


@pytest.mark.parametrize("in_axes", [(None, 0, 0), (0, 0, 0), (None, 1, 1)])
def test_recurrences_in_a_batch_of_batches(in_axes, key):
    """Rows are put in place under any number of `vmap`s, wherever the batch lies and whatever has one."""
    starts = jnp.asarray(np.random.default_rng(1).random((2, 3, 9)) < 0.2)
    a = jax.random.uniform(key, (2, 3, 4))[(0, 0) if in_axes[0] is None else (slice(None), slice(None))]
    b = jax.random.normal(key, (2, 3, 9, 4))
    want = jnp.stack(
        [
            jnp.stack(
                [linear_recurrence(a[i, j] if a.ndim == 3 else a, b[i, j], jnp.ones(4), starts[i, j]) for j in range(3)]
            )
            for i in range(2)
        ]
    )
    moved = [jnp.moveaxis(x, (0, 1), (1, 2)) if in_axes[1] else x for x in (b, starts)]
    inner = jax.vmap(lambda a, b, s: linear_recurrence(a, b, jnp.ones(4), s), in_axes=in_axes)
    outer = jax.vmap(inner, in_axes=(in_axes[0], in_axes[1], in_axes[2]))
    np.testing.assert_allclose(outer(a, *moved), want, atol=1e-6)


def test_linear_recurrence_with_real_decay_and_complex_state(key):
    starts = _starts(0, 17)
    a = jax.random.uniform(key, (17, 2))
    b = jax.random.normal(key, (17, 2)) + 1j * jax.random.normal(key, (17, 2))
    h0 = jnp.ones(2, jnp.complex64)
    mixed = linear_recurrence(a, b, h0, starts)
    np.testing.assert_allclose(mixed, linear_recurrence(a.astype(jnp.complex64), b, h0, starts), atol=1e-6)
    grad = jax.grad(lambda a: jnp.sum(jnp.abs(linear_recurrence(a, b, h0, starts)) ** 2))(a)
    assert grad.dtype == jnp.float32


@pytest.mark.parametrize("method", ["sequential", "associative"])
def test_nan_does_not_cross_a_start(method):
    b = jnp.array([[1.0], [jnp.nan], [1.0], [1.0]])
    starts = jnp.array([False, False, True, False])
    hs = linear_recurrence(jnp.ones((4, 1)), b, jnp.zeros(1), starts, method=method)
    assert jnp.isnan(hs[1, 0])
    assert hs[2:, 0].tolist() == [1.0, 2.0]


def test_bfloat16_accumulates_in_float32():
    ones = jnp.ones((1000, 1), jnp.bfloat16)
    hs = linear_recurrence(ones, ones, jnp.zeros(1, jnp.bfloat16), jnp.zeros(1000, bool))
    # In bfloat16 the sum would stop growing at 256.
    assert hs.dtype == jnp.bfloat16
    assert hs[-1, 0] == 1000


@pytest.mark.parametrize("decay", [None, "scalar", "channel"])
@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (7, 3), (63, 16), (130, 64)])
def test_linear_attention(decay, length, chunk, key):
    starts = _starts(length, length, 0.1)
    keys = jax.random.split(key, 5)
    q, k = (jax.random.normal(key, (length, 4)) for key in keys[:2])
    v, state = jax.random.normal(keys[2], (length, 5)), jax.random.normal(keys[3], (4, 5))
    shape = {None: None, "scalar": (length,), "channel": (length, 4)}[decay]
    log_decay = None if shape is None else -jax.random.exponential(keys[4], shape)

    def naive(q, k, v, state, log_decay=None):
        gates = jnp.zeros(length) if log_decay is None else log_decay
        gates = jnp.broadcast_to(gates.reshape(length, -1), (length, 4))

        def step(s, now):
            q, k, v, g, start = now
            s = jnp.where(start, 0, jnp.exp(g)[:, None] * s) + k[:, None] * v[None, :]
            return s, q @ s

        return jax.lax.scan(step, state, (q, k, v, gates, starts))

    def fast(q, k, v, state, log_decay=None):
        return linear_attention(q, k, v, log_decay, state, starts, chunk=chunk)

    arguments = (q, k, v, state) if log_decay is None else (q, k, v, state, log_decay)
    _compare(fast, naive, arguments)


@pytest.mark.parametrize("method", ["sequential", "associative"])
@pytest.mark.parametrize("length", [1, 16, 45])
def test_selective_scan(method, length, key):
    starts = _starts(length, length)
    keys = jax.random.split(key, 6)
    dt = jax.nn.softplus(jax.random.normal(keys[0], (length, 5)))
    u = jax.random.normal(keys[1], (length, 5))
    b, c = (jax.random.normal(k, (length, 3)) for k in keys[2:4])
    a = -jax.random.exponential(keys[4], (3, 5))
    state = jax.random.normal(keys[5], (3, 5))

    def naive(dt, u, b, c, a, state):
        def step(h, now):
            dt, u, b, c, start = now
            h = jnp.where(start, 0, jnp.exp(dt[None] * a) * h) + b[:, None] * (dt * u)[None]
            return h, c @ h

        return jax.lax.scan(step, state, (dt, u, b, c, starts))

    def fast(dt, u, b, c, a, state):
        return selective_scan(dt, u, b, c, a, state, starts, method=method)

    _compare(fast, naive, (dt, u, b, c, a, state))


def test_strong_decay_stays_finite(key):
    q = k = v = jax.random.normal(key, (64, 4))
    log_decay = jnp.full(64, -50.0)

    def total(log_decay):
        state, ys = linear_attention(q, k, v, log_decay, jnp.ones((4, 4)), jnp.zeros(64, bool))
        return jnp.sum(ys) + jnp.sum(state)

    assert jnp.isfinite(total(log_decay))
    assert jnp.all(jnp.isfinite(jax.grad(total)(log_decay)))


def _cell(gates, state):
    h, c = state
    c = jax.nn.sigmoid(gates[0]) * c + jnp.tanh(gates[1]) * jnp.tanh(h)
    return jnp.tanh(c) * jax.nn.sigmoid(gates[1]), c


def _product(weights, h):
    return h @ weights, None


def _wide_product(weights, h):
    v = jnp.split(h @ weights, 3)
    return v[0], v[1], v[2]


def _gated_cell(gates, state):
    h, c = state
    c = jax.nn.sigmoid(gates[0]) * c + jnp.tanh(gates[1]) * gates[2]
    return jnp.tanh(c + h), c


@pytest.mark.parametrize(("cell", "product", "gates"), [(_cell, _product, 1), (_gated_cell, _wide_product, 3)])
@pytest.mark.parametrize("length", [1, 63])
def test_nonlinear_recurrence(cell, product, gates, length, key):
    starts = _starts(1, length)
    keys = jax.random.split(key, 5)
    weights = jax.random.normal(keys[0], (4, 4 * gates))
    inputs = tuple(jax.random.normal(k, (length, 4)) for k in keys[1:3]) + (None,) * (gates == 3)
    state = tuple(jax.random.normal(k, (4,)) for k in keys[3:5])

    def naive(weights, inputs, state):
        def step(state, now):
            x, start = now
            state = jax.tree.map(lambda s: jnp.where(start, 0, s), state)
            added = product(weights, state[0])
            sums = [sum(part for part in both if part is not None) for both in zip(x, added, strict=True)]
            state = cell(sums, state)
            return state, state[0]

        return jax.lax.scan(step, state, (inputs, starts))

    def fast(weights, inputs, state):
        return nonlinear_recurrence(cell, product, weights, inputs, state, starts)

    _compare(fast, naive, (weights, inputs, state))


def test_the_weight_gradient_is_one_product(key):
    """Neither the backward loop nor the batch may hold a weight gradient: that is what the op is for."""
    weights = jax.random.normal(key, (16, 16))
    inputs = (jax.random.normal(key, (3, 11, 16)),) * 2
    state = (jnp.zeros((3, 16)),) * 2
    starts = jnp.zeros((3, 11), bool)

    def total(weights):
        run = jax.vmap(lambda x, s, f: nonlinear_recurrence(_cell, _product, weights, x, s, f)[1])
        return jnp.sum(run(inputs, state, starts))

    text = str(jax.make_jaxpr(jax.grad(total))(weights))
    assert "f32[3,16,16]" not in text
    assert "f32[11,16,16]" not in text


@pytest.mark.parametrize("mode", ["0", "interpret"])
def test_shapes_that_do_not_fit_are_named_also_where_a_kernel_would_read_beyond_them(mode):
    q, v, state, starts = jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.ones((3, 2)), jnp.zeros(4, bool)
    with kernels.use(mode):
        for name, arguments in {
            "k": (q, q[:, :2], v, None, state),
            "q": (q, q, v, None, state.T),
            "v": (q, q, v[:3], None, state),
            "log_decay": (q, q, v, q[:, :2], state),
        }.items():
            with pytest.raises(ValueError, match=f"^{name} must have shape"):
                linear_attention.__wrapped__(*arguments, starts)
        for name, arguments in {
            "beta": (q, q, v, jnp.ones(3), None, state),
            "log_decay": (q, q, v, jnp.ones(4), q, state),
            "q and k": (q[:, :2], q, v, jnp.ones(4), None, state),
        }.items():
            with pytest.raises(ValueError, match=f"^{name} must have"):
                delta_rule.__wrapped__(*arguments, starts)
        with pytest.raises(ValueError, match="at least one step"):
            linear_attention.__wrapped__(q[:0], q[:0], v[:0], None, state, starts[:0])


def test_bad_arguments_are_named():
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"starts must be a boolean array, got dtype float32"):
        linear_recurrence.__wrapped__(x, x, x[0], jnp.zeros(4))
    with pytest.raises(ValueError, match=r"method must be"):
        linear_recurrence.__wrapped__(x, x, x[0], jnp.zeros(4, bool), method="fast")
    with pytest.raises(ValueError, match=r"h0 \[4, 2\]"):
        linear_recurrence.__wrapped__(x, x, x, jnp.zeros(4, bool))
    with pytest.raises(ValueError, match=r"got \[2\], \[2\], \[4, 2\] and \[2\]"):
        complex_diagonal_recurrence.__wrapped__(x[0], x[0], x, x[0], jnp.zeros(4, bool))
    with pytest.raises(ValueError, match=r"b must have the shape \[4, 3\] beside an a of \[3, 2\], got \[4, 2\]"):
        selective_scan.__wrapped__(x, x, x, x, jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.zeros(4, bool))
    with pytest.raises(ValueError, match=r"must have the shape of the hidden state: \[2\], got \[3\]"):
        nonlinear_recurrence.__wrapped__(_cell, _product, jnp.ones((2, 3)), (x, x), (x[0], x[0]), jnp.zeros(4, bool))
    with pytest.raises(ValueError, match=r"chunk must be a whole number of at least 1, got 0"):
        linear_attention(x, x, x, None, jnp.ones((2, 2)), jnp.zeros(4, bool), chunk=0)
