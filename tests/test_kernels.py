"""The kernels in Pallas' interpreter against plain loops in float64: values and all gradients; and lowered for CUDA."""

import functools

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from memax_rl import memory, ops
from memax_rl.ops import _nonlinear_recurrence, kernels
from memax_rl.ops.kernels import _choice, _chunks, _delta_rule, _diagonal, _gates, _linear_attention, _selective


def _with(function, flags):
    """Return the op or the loop as a function of numbers alone."""
    return lambda *arrays: function(*arrays, flags)


def _starts(rng, kind, *shape):
    return rng.random(shape) < {"none": 0.0, "random": 0.2, "all": 1.0}[kind]


def _value_and_gradients(function, arrays):
    """Return all values of `function(*arrays)`, and the gradients of a sum of them with weights."""

    def total(arrays):
        values = function(*arrays)
        leaves = jax.tree.leaves(values)
        weights = [np.cos(0.7 * np.arange(leaf.size)).reshape(leaf.shape) for leaf in leaves]
        parts = [jnp.sum((leaf * w).real + 0.5 * (leaf * w).imag) for leaf, w in zip(leaves, weights, strict=True)]
        return sum(parts), values

    (_, values), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(arrays)
    return [*jax.tree.leaves(values), *jax.tree.leaves(gradients)]


def _check(fast, slow, arrays, *, tolerance=3e-6, grad_tolerance=2e-5):
    """`fast` in float32 by kernels agrees with `slow` in float64, to a share of the largest entry of each result."""
    with jax.enable_x64(True):
        wanted = [np.asarray(w) for w in _value_and_gradients(slow, jax.tree.map(jnp.asarray, arrays))]
    with kernels.use("interpret"):
        single = jax.tree.map(lambda x: jnp.asarray(x, jnp.complex64 if np.iscomplexobj(x) else jnp.float32), arrays)
        got = _value_and_gradients(fast, single)
    values = len(got) - len(jax.tree.leaves(arrays))
    for i, (g, w) in enumerate(zip(got, wanted, strict=True)):
        error = np.max(np.abs(np.asarray(g) - w)) / max(np.max(np.abs(w)), 1e-3)
        assert error < (tolerance if i < values else grad_tolerance), f"result {i}: {error:.1e}"


def _shape(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Fewer steps at once, so that programs are small and short sequences have whole chunks and a rest."""
    monkeypatch.setattr(_diagonal, "_ROWS", 12)
    monkeypatch.setattr(_selective, "_CHUNK", 4)
    monkeypatch.setattr(_selective, "_STEPS", 2)
    monkeypatch.setattr(_linear_attention, "_CHUNK", 16)
    monkeypatch.setattr(_linear_attention, "_KEYS", 16)
    monkeypatch.setattr(_linear_attention, "_VALUES", 16)
    monkeypatch.setattr(_chunks, "_COLUMNS", 16)
    monkeypatch.setattr(_delta_rule, "_CHUNK", 16)
    monkeypatch.setattr(_delta_rule, "_VALUES", 16)


def _linear_loop(a, b, h0, starts):
    def step(h, now):
        a, b, start = now
        h = jnp.where(start, 0, a * h) + b
        return h, h

    return jax.lax.scan(step, h0, (jnp.broadcast_to(a, b.shape), b, starts))[1]


def _complex_loop(re, im, b, h0, starts):
    hs = _linear_loop(re + 1j * im, b[:, 0] + 1j * b[:, 1], h0[0] + 1j * h0[1], starts)
    return jnp.stack([hs.real, hs.imag], axis=1)


def _numbers(rng, kind, *shape):
    real = rng.uniform(-1, 1, shape)
    return real if kind == "real" else 0.8 * (real + 0.7j * rng.uniform(-1, 1, shape))


@pytest.mark.parametrize(
    ("decay", "state", "constant"),
    [
        ("real", "real", False),
        ("real", "real", True),
        ("complex", "complex", False),
        ("complex", "complex", True),
        ("real", "complex", False),
    ],
)
# Lengths below, at and beside a multiple of the steps at once; widths below, at and beside one of the lanes.
@pytest.mark.parametrize(("length", "shape", "starts"), [(1, (1,), "none"), (8, (32,), "all"), (11, (5, 7), "random")])
def test_linear_recurrence(decay, state, constant, length, shape, starts):
    rng = np.random.default_rng(length)
    flags = jnp.asarray(_starts(rng, starts, length))
    a = _numbers(rng, decay, *(() if constant else (length,)), *shape)
    arrays = a, _numbers(rng, state, length, *shape), _numbers(rng, state, *shape)
    _check(_with(ops.linear_recurrence, flags), _with(_linear_loop, flags), arrays)


@pytest.mark.parametrize(("length", "width", "starts"), [(1, 1, "all"), (11, 37, "random")])
def test_complex_diagonal_recurrence(length, width, starts):
    rng = np.random.default_rng(length)
    flags = jnp.asarray(_starts(rng, starts, length))
    arrays = (*rng.uniform(-0.7, 0.7, (2, width)), rng.normal(size=(length, 2, width)), rng.normal(size=(2, width)))

    _check(_with(ops.complex_diagonal_recurrence, flags), _with(_complex_loop, flags), arrays)


@pytest.mark.parametrize("in_axes", [(None, 0, 0), (0, 0, 0), (None, 1, 1)])
def test_linear_recurrence_in_a_batch_of_batches(in_axes):
    rng = np.random.default_rng(0)
    flags = jnp.asarray(_starts(rng, "random", 3, 2, 9))
    flags = jnp.moveaxis(flags, 1, 2) if in_axes[2] else flags
    a = rng.uniform(-1, 1, (3, 4) if in_axes[0] is None else (3, 2, 4))
    b, h0 = rng.normal(size=(3, 9, 2, 4) if in_axes[1] else (3, 2, 9, 4)), rng.normal(size=4)

    def batch(run):
        inner = jax.vmap(run, in_axes=(in_axes[0], in_axes[1], None, in_axes[2]))
        return lambda a, b, h0: jax.vmap(inner, in_axes=(0, 0, None, 0))(a, b, h0, flags)

    _check(batch(ops.linear_recurrence), batch(_linear_loop), (a, b, h0))


def test_few_long_sequences_take_the_tree(monkeypatch):
    monkeypatch.setattr(_diagonal, "_LONG", 20)
    rng = np.random.default_rng(0)
    flags = jnp.asarray(_starts(rng, "random", 2, 21))
    shapes = _shape(2, 21, 3), _shape(2, 21, 3), _shape(2, 3)
    for length, names in ((21, []), (20, ["diagonal_forward"])):

        def short(a, b, h0, length=length):
            return jax.vmap(ops.linear_recurrence)(a[:, :length], b[:, :length], h0, flags[:, :length])

        with kernels.use("interpret"):
            assert kernels.names(jax.make_jaxpr(short)(*shapes)) == names
    run, loop = (_with(jax.vmap(f), flags) for f in (ops.linear_recurrence, _linear_loop))
    for decay in ("real", "complex"):
        for a in (_numbers(rng, decay, 2, 21, 3), _numbers(rng, decay, 2, 3)):
            _check(run, loop, (a, _numbers(rng, decay, 2, 21, 3), _numbers(rng, decay, 2, 3)))
    run, loop = (_with(jax.vmap(f), flags) for f in (ops.complex_diagonal_recurrence, _complex_loop))
    _check(run, loop, (*rng.uniform(-0.7, 0.7, (2, 2, 3)), rng.normal(size=(2, 21, 2, 3)), rng.normal(size=(2, 2, 3))))


def test_nan_does_not_cross_a_start():
    b = jnp.array([[1.0], [jnp.nan], [1.0], [1.0]])
    starts = jnp.array([False, False, True, False])
    with kernels.use("interpret"):
        hs, pull_back = jax.vjp(lambda b: ops.linear_recurrence(jnp.ones((4, 1)), b, jnp.zeros(1), starts), b)
    assert np.isnan(hs[1, 0])
    assert hs[2:, 0].tolist() == [1.0, 2.0]
    db = pull_back(jnp.array([[1.0], [1.0], [jnp.nan], [1.0]]))[0]
    assert db[:2, 0].tolist() == [2.0, 1.0]


def _cell(gates, state):
    """Two gates with an input, two with a product, one of them with both; a state of two parts."""
    h, c = state
    x, both, v = gates
    c = jax.nn.sigmoid(both) * c + jnp.tanh(x) * jnp.tanh(h)
    return jnp.tanh(c + v) * jax.nn.sigmoid(both), c


def _product(weights, h):
    matrix, bias = weights
    both, v = jnp.split(ops.linear(h, matrix), 2, axis=-1)
    return None, both, v + bias


def _gates_loop(cell, product, weights, inputs, state, starts):
    def step(state, now):
        x, start = now
        state = jax.tree.map(lambda s: jnp.where(start, 0, s), state)
        both = zip(x, product(weights, state[0]), strict=True)
        sums = tuple(sum(part for part in parts if part is not None) for parts in both)
        state = cell(sums, state)
        return state, state[0]

    return jax.lax.scan(step, state, (inputs, starts))


def _gates_arrays(rng, length, width, *batch):
    weights = rng.normal(size=(width, 2 * width)) * width**-0.5, rng.normal(size=width)
    inputs = (*rng.normal(size=(2, *batch, length, width)), None)
    return weights, inputs, tuple(rng.normal(size=(2, *batch, width)))


@pytest.mark.parametrize(
    ("length", "width", "starts"), [(1, 1, "none"), (9, 16, "all"), (9, 16, "random"), (6, 37, "random")]
)
def test_nonlinear_recurrence(length, width, starts):
    rng = np.random.default_rng(width)
    flags = jnp.asarray(_starts(rng, starts, length))
    arrays = _gates_arrays(rng, length, width)
    run, loop = (functools.partial(f, _cell, _product) for f in (ops.nonlinear_recurrence, _gates_loop))
    _check(_with(run, flags), _with(loop, flags), arrays)


def _division_cell(gates, state):
    """Where gates and state are zero, as beyond the width, this is nan; elsewhere it is not."""
    (h,) = state
    x, v = gates
    return (jnp.tanh((h + x) / (x + v)),)


def test_nonlinear_recurrence_keeps_what_is_beyond_the_width_out():
    rng = np.random.default_rng(0)
    flags = jnp.zeros(4, bool)
    arrays = np.eye(5) * 0.1, (2 + rng.random((4, 5)), None), (rng.random(5),)

    def product(weights, h):
        return None, ops.linear(h, weights)

    run, loop = (functools.partial(f, _division_cell, product) for f in (ops.nonlinear_recurrence, _gates_loop))
    _check(_with(run, flags), _with(loop, flags), arrays)


@pytest.mark.parametrize("resident", [1, 2])
def test_nonlinear_recurrence_in_a_batch(resident, monkeypatch):
    """With all matrices in registers, and with one that is read in each step."""
    monkeypatch.setattr(_gates, "_RESIDENT", resident * 16**2)
    monkeypatch.setattr(_gates, "_RESIDENT_BACKWARD", resident * 16**2)
    rng = np.random.default_rng(0)
    flags = jnp.asarray(_starts(rng, "random", 5, 7))
    weights, inputs, state = _gates_arrays(rng, 7, 11, 5)

    def batch(function):
        run = functools.partial(function, _cell, _product)
        return lambda *x: jax.vmap(run, in_axes=(None, 0, 0, 0))(*x, flags)

    _check(batch(ops.nonlinear_recurrence), batch(_gates_loop), (weights, inputs, state))


@pytest.mark.parametrize("seeds_first", [True, False])
def test_nonlinear_recurrence_over_seeds_and_batch(seeds_first):
    rng = np.random.default_rng(0)
    flags = jnp.asarray(_starts(rng, "random", 3, 5))
    made = [_gates_arrays(rng, 5, 4, 3) for _ in range(2)]
    weights, inputs, state = jax.tree.map(lambda *x: np.stack(x), *made)

    def batch(function):
        run = functools.partial(function, _cell, _product)
        if seeds_first:
            inner = jax.vmap(run, in_axes=(None, 0, 0, 0))
            return lambda *x: jax.vmap(inner, in_axes=(0, 0, 0, None))(*x, flags)
        inner = jax.vmap(run, in_axes=(0, 0, 0, None))
        return lambda *x: jax.vmap(inner, in_axes=(None, 1, 1, 0))(*x, flags)

    _check(batch(ops.nonlinear_recurrence), batch(_gates_loop), (weights, inputs, state))


@pytest.mark.parametrize(("length", "states", "channels", "starts"), [(1, 1, 1, "none"), (9, 3, 33, "random")])
def test_selective_scan(length, states, channels, starts):
    rng = np.random.default_rng(length)
    flags = jnp.asarray(_starts(rng, starts, 2, length))
    dt, u = np.log1p(np.exp(rng.normal(size=(2, length, channels)))), rng.normal(size=(2, length, channels))
    b, c = rng.normal(size=(2, 2, length, states))
    a, state = -rng.exponential(size=(states, channels)), rng.normal(size=(2, states, channels))

    def loop(dt, u, b, c, a, state, starts):
        def step(h, now):
            dt, u, b, c, start = now
            h = jnp.where(start, 0, jnp.exp(dt[None] * a) * h) + b[:, None] * (dt * u)[None]
            return h, c @ h

        return jax.lax.scan(step, state, (dt, u, b, c, starts))

    def batch(run):
        return lambda *x: jax.vmap(run, in_axes=(0, 0, 0, 0, None, 0, 0))(*x, flags)

    _check(batch(ops.selective_scan), batch(loop), (dt, u, b, c, a, state))


def _attention_loop(q, k, v, log_decay, state, starts):
    def step(s, now):
        q, k, v, log_decay, start = now
        s = jnp.where(start, 0, s)
        if log_decay is not None:
            s = jnp.exp(jnp.maximum(log_decay, -80)).reshape(-1, 1) * s
        s = s + k[:, None] * v[None, :]
        return s, q @ s

    return jax.lax.scan(step, state, (q, k, v, log_decay, starts))


def _attention_arrays(rng, decay, length, keys, values, *batch):
    q, k = rng.normal(size=(2, *batch, length, keys)) * keys**-0.5
    v, state = rng.normal(size=(*batch, length, values)), rng.normal(size=(*batch, keys, values))
    shape = {"none": None, "step": (*batch, length), "channel": (*batch, length, keys)}[decay]
    if shape is None:
        return q, k, v, None, state
    # Large sums are exact only where there is one decay a step.
    sizes = [0.02, 1, 100 if decay == "step" else 1]
    return q, k, v, -rng.exponential(size=shape) * rng.choice(sizes, shape), state


@pytest.mark.parametrize("decay", ["none", "step", "channel"])
@pytest.mark.parametrize(
    ("length", "keys", "values", "starts"), [(1, 1, 1, "all"), (35, 20, 49, "random"), (32, 16, 16, "none")]
)
def test_linear_attention(decay, length, keys, values, starts):
    """One chunk with a rest, three with one and two without; tiles with a rest on both sides and without."""
    rng = np.random.default_rng(length)
    flags = jnp.asarray(_starts(rng, starts, length))
    arrays = _attention_arrays(rng, decay, length, keys, values)
    _check(_with(ops.linear_attention, flags), _with(_attention_loop, flags), arrays)


@pytest.mark.parametrize("decay", ["none", "step", "channel"])
def test_linear_attention_resets_in_every_step(decay):
    rng = np.random.default_rng(0)
    arrays = _attention_arrays(rng, decay, 35, 5, 7)
    _check(_with(ops.linear_attention, jnp.ones(35, bool)), _with(_attention_loop, jnp.ones(35, bool)), arrays)


def test_linear_attention_with_long_chunks():
    rng = np.random.default_rng(0)
    flags = jnp.asarray(rng.random(70) < 0.02)
    arrays = _attention_arrays(rng, "step", 70, 5, 7)
    run = functools.partial(ops.linear_attention, chunk=64)
    _check(_with(run, flags), _with(_attention_loop, flags), arrays)


def test_linear_attention_in_a_batch_of_heads_that_share_keys():
    rng = np.random.default_rng(0)
    flags = jnp.asarray(_starts(rng, "random", 3, 20))
    q, k, v, log_decay, state = _attention_arrays(rng, "step", 20, 4, 5, 3, 2)
    assert log_decay is not None
    arrays = q[:, 0], k[:, 0], np.moveaxis(v, 1, 2), np.moveaxis(log_decay, 1, 2), state[:, :1]

    def batch(run):
        heads = jax.vmap(run, in_axes=(None, None, 1, 1, None, None), out_axes=(0, 1))
        return lambda q, k, v, log_decay, state: jax.vmap(heads)(q, k, v, log_decay, state[:, 0], flags)

    _check(batch(ops.linear_attention), batch(_attention_loop), arrays)


@pytest.mark.parametrize("op", [ops.linear_attention, ops.delta_rule])
def test_float32_where_float64_is_the_default(op):
    rng = np.random.default_rng(0)
    arrays = _delta_arrays(rng, "step", 18, 3, 5)
    arrays = arrays if op is ops.delta_rule else (*arrays[:3], *arrays[4:])
    arrays = tuple(jnp.asarray(x, jnp.float32) for x in arrays)
    with kernels.use("interpret"):
        run = _with(op, jnp.arange(18) == 7)
        expected = _value_and_gradients(run, arrays)
        with jax.enable_x64(True):
            got = _value_and_gradients(run, arrays)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == e.dtype == jnp.float32
        np.testing.assert_allclose(g, e, atol=1e-5)


@pytest.mark.parametrize(("op", "decay"), [("attention", "none"), ("attention", "channel"), ("delta", "step")])
def test_a_program_with_kernels_runs_the_plain_form_on_a_cpu(op, decay):
    """Forward and backward, with what the kernels would have kept for it."""
    rng = np.random.default_rng(0)
    run = _with(ops.linear_attention if op == "attention" else ops.delta_rule, jnp.arange(37) == 7)
    arrays = (_attention_arrays if op == "attention" else _delta_arrays)(rng, decay, 37, 3, 5)
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)
    with kernels.use("1"):
        got = _value_and_gradients(run, arrays)
    for g, e in zip(got, _value_and_gradients(run, arrays), strict=True):
        np.testing.assert_allclose(g, e, atol=2e-5)


def test_linear_attention_forgets_exactly():
    """Log decays that add up to hundreds in a chunk leave those in between as they are."""
    q = k = v = jnp.ones((16, 1))
    log_decay = jnp.where(jnp.arange(16) % 2 == 0, -80.0, -0.1)
    with kernels.use("interpret"):
        ys = ops.linear_attention(q, k, v, log_decay, jnp.zeros((1, 1)), jnp.zeros(16, bool))[1]
    np.testing.assert_allclose(ys[1::2, 0], 1 + np.exp(-0.1), rtol=1e-6)


def _delta_loop(q, k, v, beta, log_decay, state, starts):
    every = len(k) // len(q)

    def step(s, now):
        q, k, v, beta, log_decay, start = now
        s = jnp.where(start, 0, s)
        if log_decay is not None:
            s = jnp.exp(jnp.maximum(log_decay, -80)) * s
        s = s + (beta * k)[:, None] * (v - k @ s)[None, :]
        return s, q @ s

    last, ys = jax.lax.scan(step, state, (jnp.repeat(q, every, axis=0), k, v, beta, log_decay, starts))
    return last, ys[every - 1 :: every]


def _delta_arrays(rng, decay, length, keys, values, *batch, every=1):
    q, k, v, log_decay, state = _attention_arrays(rng, decay, length, keys, values, *batch)
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    return q[..., every - 1 :: every, :], k, v, 2 * rng.random((*batch, length)), log_decay, state


@pytest.mark.parametrize("decay", ["none", "step"])
@pytest.mark.parametrize(
    ("length", "keys", "values", "starts"), [(1, 1, 1, "all"), (35, 20, 49, "random"), (32, 16, 16, "none")]
)
def test_delta_rule(decay, length, keys, values, starts):
    rng = np.random.default_rng(length)
    flags = jnp.asarray(_starts(rng, starts, length))
    arrays = _delta_arrays(rng, decay, length, keys, values)
    _check(_with(ops.delta_rule, flags), _with(_delta_loop, flags), arrays)


@pytest.mark.parametrize("every", [1, 2])
def test_delta_rule_in_a_batch_of_heads(every):
    """With resets in most steps, keys that come again, and outputs for each step or for every other one."""
    rng = np.random.default_rng(0)
    flags = jnp.asarray(rng.random((2, 34)) < np.array([[0.9], [0.05]]))
    q, k, v, beta, log_decay, state = _delta_arrays(rng, "step", 34, 4, 5, 2, 3, every=every)
    k[..., 1::2, :] = k[..., ::2, :]
    assert log_decay is not None
    arrays = *(np.moveaxis(x, 1, 2) for x in (q, k, v, beta, log_decay)), state

    def batch(run):
        heads = jax.vmap(run, in_axes=(1, 1, 1, 1, 1, 0, None), out_axes=(0, 1))
        return lambda *x: jax.vmap(heads)(*x, flags)

    _check(batch(ops.delta_rule), batch(_delta_loop), arrays)


def _memory_gradient(name, length, batch, width, **options):
    """Return the gradient of a memory's scan over a batch as a function of shapes, and these."""
    model = memory.make(name, in_size=width, out_size=width, key=jax.random.key(0), **options)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, xs, starts):
        model = eqx.combine(params, static)
        run = jax.vmap(lambda x, s: model.scan(model.initial_state(), x, s)[1])
        return jnp.mean(run(xs, starts) ** 2)

    shapes = jax.tree.map(lambda x: _shape(*x.shape), params)
    return jax.grad(loss, (0, 1)), (shapes, _shape(batch, length, width), _shape(batch, length, dtype=jnp.bool_))


KERNELS = {
    "lru": "diagonal",
    "s5": "diagonal",
    "min_gru": "diagonal",
    "s6": "selective",
    "gru": "gates",
    "lstm": "gates",
    "mgu": "gates",
    "elman": "gates",
    "slstm": "gates",
    "linear_transformer": "linear_attention",
    "fwp": "linear_attention",
    "gla": "linear_attention",
    "mamba2": "linear_attention",
    "mlstm": "linear_attention",
    "mesa_net": "linear_attention",
    "delta_net": "delta_rule",
    "gated_delta_net": "delta_rule",
    "delta_product": "delta_rule",
}
_CHUNKED = "gradients", "outputs", "state_gradients", "states"
PASSES = {
    "linear_attention": [*_CHUNKED, "value_gradients"],
    "delta_rule": sorted((*_CHUNKED, "error_gradients", "solution_gradients", "solutions")),
}


@pytest.mark.parametrize("name", KERNELS)
def test_lowered_for_cuda_at_the_size_of_the_benchmark(name, monkeypatch):
    """On a machine with a CPU alone: a primitive that Triton has not fails here. For a CPU it is the plain form."""
    monkeypatch.undo()
    function, shapes = _memory_gradient(name, 1024, 64, 128)
    with kernels.use("1"):
        traced = jax.jit(function).trace(*shapes)
    passes = PASSES.get(KERNELS[name], ("backward", "forward"))
    assert kernels.names(traced.jaxpr) == [f"{KERNELS[name]}_{part}" for part in passes]
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = (text.count(call) for call in ("stablehlo.custom_call @__gpu$xla.gpu.triton", "triton_kernel_call"))
    assert len(passes) in calls
    assert "triton" not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_exported():
    """Without kernels, which `jax.export` refuses to write; a program lowered for a CPU has none."""
    model = memory.make("min_gru", in_size=3, out_size=3, key=jax.random.key(0))

    def run(xs, starts):
        return model.scan(model.initial_state(), xs, starts)[1]

    def export(mode, *platforms):
        with kernels.use(mode):
            return jax.export.export(jax.jit(functools.partial(run)), platforms=platforms)(xs, starts)

    xs, starts = jnp.cos(jnp.arange(15.0)).reshape(5, 3), jnp.arange(5) == 2
    with pytest.raises(ValueError, match="custom calls whose targets have no compatibility guarantees"):
        export("1", "cuda")
    for exported in (export("1", "cpu"), export("0", "cpu", "cuda")):
        assert "triton" not in exported.mlir_module()
        np.testing.assert_allclose(exported.call(xs, starts), run(xs, starts), atol=1e-6)


@pytest.mark.parametrize("name", ["gru", "lru"])
def test_on_two_devices(name):
    """Each device has its own sequences."""
    model = memory.make(name, in_size=3, out_size=3, key=jax.random.key(0))

    def run(xs, starts):
        return jax.vmap(lambda x, s: model.scan(model.initial_state(), x, s)[1])(xs, starts)

    xs, starts = jnp.cos(jnp.arange(60.0)).reshape(4, 5, 3), jnp.arange(20).reshape(4, 5) % 7 == 2
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    rows = PartitionSpec("devices")
    shared = jax.shard_map(run, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False)
    with kernels.use("interpret"):
        got = jax.jit(shared)(xs, starts)
    np.testing.assert_allclose(got, run(xs, starts), atol=1e-6)


def test_the_choice(monkeypatch):
    def run(a, b, h0):
        return ops.linear_recurrence(a, b, h0, jnp.zeros(4, bool))

    def traced(dtype=jnp.float32, **options):
        shapes = _shape(4, 2, dtype=dtype), _shape(4, 2, dtype=dtype), _shape(2, dtype=dtype)
        return kernels.names(jax.make_jaxpr(functools.partial(run, **options))(*shapes))

    assert kernels.mode() == "auto"
    assert traced() == []
    for mode, names in {"0": [], "auto": [], "1": ["diagonal_forward"], "interpret": ["diagonal_forward"]}.items():
        monkeypatch.setenv("MEMAX_RL_KERNELS", mode)
        assert kernels.mode() == mode
        assert traced() == names
        assert traced(jnp.bfloat16) == names
        with kernels.use("0"):
            assert traced() == []
    with jax.enable_x64(True):
        assert traced(jnp.float64) == []
    monkeypatch.setenv("MEMAX_RL_KERNELS", "yes")
    with pytest.raises(ValueError, match="MEMAX_RL_KERNELS must be one of auto, 0, 1, interpret, got 'yes'"):
        traced()


def test_products_of_tf32_numbers_need_a_gpu_that_has_them(monkeypatch):
    monkeypatch.setattr(_choice, "_on_nvidia", lambda: True)
    for capability, chosen in ((7.5, None), (8.0, "cuda"), (12.1, "cuda")):
        monkeypatch.setattr(_choice, "_capability", lambda capability=capability: capability)
        assert kernels.chosen(tf32=True) == chosen
        assert kernels.chosen() == "cuda"
        with kernels.use("1"):
            assert kernels.chosen(tf32=True) == "cuda"


def test_sizes_that_have_no_kernel():
    """A state of too many rows, and chunks that are not those of a kernel."""

    def traced(run, keys, **options):
        shapes = _shape(40, keys), _shape(40, keys), _shape(40, 3)
        with kernels.use("1"):
            return kernels.names(jax.make_jaxpr(functools.partial(run, **options))(*shapes)) != []

    def attention(q, k, v, channels=False, **options):
        decay = -jnp.ones(k.shape if channels else 40)
        return ops.linear_attention(q, k, v, decay, jnp.zeros((k.shape[1], 3)), jnp.zeros(40, bool), **options)

    def delta(q, k, v, **options):
        ones = jnp.ones(40)
        return ops.delta_rule(q, k, v, ones, -ones, jnp.zeros((k.shape[1], 3)), jnp.zeros(40, bool), **options)

    assert traced(attention, 128)
    assert traced(attention, 8, chunk=64)
    assert traced(attention, 8, chunk=16, channels=True)
    assert traced(delta, 128)
    assert traced(delta, 8, chunk=32)
    assert not traced(attention, 129)
    assert not traced(attention, 8, chunk=24)
    assert not traced(attention, 8, chunk=32, channels=True)
    assert not traced(delta, 129)
    assert not traced(delta, 8, chunk=64)


def test_too_many_units_have_no_kernel():
    """Their matrices do not fit next to a multiprocessor."""
    for width, names in ((128, ["gates_backward", "gates_forward"]), (129, [])):
        function, shapes = _memory_gradient("gru", 4, 2, width)
        with kernels.use("1"):
            assert kernels.names(jax.make_jaxpr(function)(*shapes)) == names


def test_matrices_are_exact():
    """Whatever the precision of other products: the unit matrix would be multiplied in tensor cores."""
    weights = (jnp.asarray(np.random.default_rng(0).normal(size=(5, 10)), jnp.float32), jnp.full(5, 1e3))
    matrices, biases = _nonlinear_recurrence._affine(_product, weights, 5)
    assert jnp.array_equal(jnp.concatenate([matrices[0], matrices[1]], axis=1), weights[0])
    assert jnp.array_equal(biases, jnp.stack([jnp.zeros(5), weights[1]]))
    text = str(jax.make_jaxpr(functools.partial(_nonlinear_recurrence._affine, _product, width=5))(weights))
    assert "dot_general" in text
    assert "linear" not in text
    assert text.count("dot_general") == text.count("Precision.HIGHEST, Precision.HIGHEST")
