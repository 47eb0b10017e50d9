"""`delta_rule`, `generalized_delta_rule` and `linear_attention` against plain loops over time in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import ops

DK, DV = 6, 5


def _delta_loop(q, k, v, beta, log_decay, state, starts):
    def step(s, now):
        q, k, v, beta, log_decay, start = now
        s = jnp.exp(log_decay) * jnp.where(start, 0, s)
        s = s + beta * jnp.outer(k, v - k @ s)
        return s, q @ s

    return jax.lax.scan(step, state, (q, k, v, beta, log_decay, starts))


def _attention_loop(q, k, v, log_decay, state, starts):
    decay = jnp.exp(log_decay) if log_decay.ndim == 2 else jnp.exp(log_decay)[:, None]

    def step(s, now):
        q, k, v, decay, start = now
        s = decay[:, None] * jnp.where(start, 0, s) + jnp.outer(k, v)
        return s, q @ s

    return jax.lax.scan(step, state, (q, k, v, jnp.broadcast_to(decay, k.shape), starts))


def _generalized_loop(q, k, v, a, b, log_decay, state, starts):
    def step(s, now):
        q, k, v, a, b, log_decay, start = now
        s = jnp.where(start, 0, s)
        s = jnp.exp(log_decay)[:, None] * s + jnp.outer(b, a @ s) + jnp.outer(k, v)
        return s, q @ s

    return jax.lax.scan(step, state, (q, k, v, a, b, log_decay, starts))


def _inputs(length, kind, *, decay_scale=0.3):
    """Return (arrays, starts) in float64. Start flags are in mid-chunk and at chunk edges, not at 0."""
    rng = np.random.default_rng(length)
    q, k, a = (rng.normal(size=(length, DK)) for _ in range(3))
    k, a = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (k, a))
    v, beta = rng.normal(size=(length, DV)), rng.uniform(0, 2, length)
    shape = (length,) if kind in ("scalar", "delta") else (length, DK)
    log_decay = -decay_scale * rng.exponential(size=shape)
    state = rng.normal(size=(DK, DV))
    starts = np.isin(np.arange(length), [5, 13, 32, 33, 63, 64, 200, 256])
    if kind == "delta":
        return (q, k, v, beta, log_decay, state), starts
    if kind == "generalized":
        return (q, k, v, a, -a * rng.uniform(0, 1, (length, DK)), log_decay, state), starts
    return (q, k, v, log_decay, state), starts


CASES = {
    "delta": (ops.delta_rule, _delta_loop),
    "scalar": (ops.linear_attention, _attention_loop),
    "channel": (ops.linear_attention, _attention_loop),
    "generalized": (ops.generalized_delta_rule, _generalized_loop),
}


def _value_and_grads(function, arrays, starts):
    def objective(arrays):
        last, ys = function(*arrays, starts)
        weights = np.cos(0.7 * np.arange(ys.size)).reshape(ys.shape)
        return jnp.sum(ys * weights) + jnp.sum(jnp.sin(last)), (last, ys)

    (_, values), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(arrays)
    return *values, *grads


def _check(kind, arrays, starts, *, tolerance=5e-6, grad_tolerance=5e-5, **options):
    fast, loop = CASES[kind]
    with jax.enable_x64(True):
        want = _value_and_grads(loop, tuple(map(jnp.asarray, arrays)), jnp.asarray(starts))
        want = [np.asarray(w) for w in want]
    single = tuple(jnp.asarray(x, jnp.float32) for x in arrays)
    got = _value_and_grads(functools.partial(fast, **options), single, jnp.asarray(starts))
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        error = np.max(np.abs(np.asarray(g) - w)) / np.max(np.abs(w))
        assert error < (tolerance if i < 2 else grad_tolerance), f"result {i}: {error:.1e}"


@pytest.mark.parametrize("length", [63, 500])
@pytest.mark.parametrize("kind", CASES)
def test_values_and_gradients(kind, length):
    _check(kind, *_inputs(length, kind))


@pytest.mark.parametrize(("kind", "chunk"), [("delta", 7), ("scalar", 1), ("channel", 16), ("generalized", 7)])
def test_any_chunk(kind, chunk):
    _check(kind, *_inputs(37, kind), chunk=chunk)


@pytest.mark.parametrize("kind", ["delta", "scalar"])
def test_weak_decay_after_a_strong_one_is_exact(kind):
    # The running sum of log decays reaches -210 within a chunk: its rounding must not reach the weights.
    arrays, starts = _inputs(31, kind)
    *rest, log_decay, state = arrays
    log_decay = np.where(np.isin(np.arange(31), [2, 14, 16]), -70.0, 0.1 * log_decay)
    _check(kind, (*rest, log_decay, state), starts & False, tolerance=1e-6)


def test_strong_decay_of_channels():
    _check("channel", *_inputs(63, "channel", decay_scale=2.0))


@pytest.mark.parametrize("kind", ["delta", "scalar"])
def test_equal_keys_stay_exact(kind):
    # Equal keys make the powers of the triangular matrix grow like binomials: their sum would fail.
    arrays, starts = _inputs(64, kind)
    q, k, v, *rest = arrays
    _check(kind, (q, np.broadcast_to(k[:1], k.shape).copy(), v, *rest), starts, tolerance=2e-5)


@pytest.mark.parametrize("kind", CASES)
def test_bfloat16_inputs_accumulate_in_float32(kind):
    arrays, starts = _inputs(63, kind)
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays[:-1]]
    state = jnp.asarray(arrays[-1], jnp.float32)
    fast, _ = CASES[kind]
    last, ys = fast(*half, state, jnp.asarray(starts))
    want, want_ys = fast(*(x.astype(jnp.float32) for x in half), state, jnp.asarray(starts))
    assert last.dtype == jnp.float32
    assert ys.dtype == jnp.bfloat16
    assert bool(jnp.all(last == want))
    assert bool(jnp.all(ys == want_ys.astype(jnp.bfloat16)))


@pytest.mark.parametrize("kind", CASES)
def test_no_gradient_crosses_a_start(kind):
    arrays, _ = _inputs(50, kind)
    at = 37  # in the middle of the second chunk
    fast, _ = CASES[kind]

    def later(arrays):
        return jnp.sum(jnp.sin(fast(*arrays, jnp.arange(50) == at)[1][at:]))

    *grads, state_grad = jax.jit(jax.grad(later))(tuple(jnp.asarray(x, jnp.float32) for x in arrays))
    assert all(bool(jnp.all(g[:at] == 0)) for g in grads)
    assert bool(jnp.all(state_grad == 0))
    assert all(bool(jnp.any(g[at:] != 0)) for g in grads)


@pytest.mark.parametrize(("every", "chunk"), [(2, None), (3, 8), (5, 1)])
def test_reads_at_every_rth_step(every, chunk):
    """Fewer queries than keys read what the same queries at every r-th step read, with the same gradients."""
    length = 60
    arrays, starts = _inputs(length, "delta")
    q, *rest = (jnp.asarray(x, jnp.float32) for x in arrays)
    read, starts = slice(every - 1, None, every), jnp.asarray(starts)
    arrays = q[read], *rest

    def fewer(q, k, v, beta, log_decay, state):
        return ops.delta_rule(q, k, v, beta, log_decay, state, starts, chunk=chunk)

    def all_steps(q, k, v, beta, log_decay, state):
        padded = jnp.zeros((length, DK)).at[read].set(q)
        last, ys = ops.delta_rule(padded, k, v, beta, log_decay, state, starts)
        return last, ys[read]

    def values_and_gradients(run):
        def loss(arrays):
            last, ys = run(*arrays)
            return jnp.sum(jnp.sin(ys)) + jnp.sum(jnp.cos(last)), (last, ys)

        (_, values), gradients = jax.value_and_grad(loss, has_aux=True)(arrays)
        return *values, *gradients

    for got, want in zip(values_and_gradients(fewer), values_and_gradients(all_steps), strict=True):
        assert float(jnp.max(jnp.abs(got - want))) < 2e-5 * float(jnp.max(jnp.abs(want)))


def test_queries_that_do_not_divide_the_steps():
    arrays, starts = _inputs(10, "delta")
    q, k, v, beta, log_decay, state = (jnp.asarray(x, jnp.float32) for x in arrays)
    with pytest.raises(ValueError, match="q must have a row for each of the 10 keys"):
        ops.delta_rule(q[:4], k, v, beta, log_decay, state, jnp.asarray(starts))


def test_no_states_of_all_steps():
    """The temporaries of a backward pass are a few times the inputs, far below one state a step."""
    length, size = 2048, 64
    q = jnp.zeros((length, size))
    beta, state, starts = jnp.zeros(length), jnp.zeros((size, size)), jnp.zeros(length, bool)

    def total(q, k, v, beta):
        return jnp.sum(ops.delta_rule(q, k, v, beta, -beta, state, starts)[1])

    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3))).lower(q, q, q, beta).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < length * size * size * 4 / 4


@pytest.mark.parametrize("kind", CASES)
def test_bad_arguments(kind):
    arrays, starts = _inputs(10, kind)
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
    fast, _ = CASES[kind]
    with pytest.raises(ValueError, match="chunk must be a whole number"):
        fast(*arrays, jnp.asarray(starts), chunk=0)
