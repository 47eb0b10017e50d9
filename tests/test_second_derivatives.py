"""Second derivatives and forward mode: right by the reference form, elsewhere right or refused in words."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from memax_rl import memory, networks, ops
from memax_rl.envs import spaces
from memax_rl.networks.encoder import AgentInput
from memax_rl.ops import _first_order

LENGTH = 5
STARTS = jnp.array([False, False, True, False, False])


def _cell(weights, x, state):
    (h,) = state
    return (jnp.tanh(weights * h + x),)


def _gates_cell(gates, state):
    del state
    return (jnp.tanh(gates),)


def _product(weights, h):
    return h @ weights


def _elementwise(weights, x, state, *, method=None):
    return ops.elementwise_recurrence(_cell, weights, x, (state,), STARTS, method=method)[0]


def _nonlinear(weights, x, state, *, method=None):
    return ops.nonlinear_recurrence(_gates_cell, _product, weights, x, (state,), STARTS, method=method)[1]


def _attention(q, k, v, past_k, past_v, bias, *, method=None):
    return ops.window_attention(q, k, v, STARTS, 3, past_k=past_k, past_v=past_v, bias=bias, method=method)


def _of(op, *, last: bool):
    """Return the op without its flags, as a function of numbers; with `last` it also returns the last state."""

    def run(*arrays, **options):
        out = op(*arrays, STARTS, **options)
        return out[1] + jnp.sum(out[0]) if last else out

    return run


def _solve(q, k, beta, log_decay, regularizer, state, *, method=None):
    state = state @ state.T
    last, xs = ops.regularized_solve(
        q, k, beta**2, -(log_decay**2), 1 + regularizer**2, state, STARTS, iterations=9, method=method
    )
    return xs + jnp.sum(last)


T, N = LENGTH, 3
# Each op as a function of numbers alone, and their shapes.
OPS = {
    "linear_recurrence": (_of(ops.linear_recurrence, last=False), [(T, N), (T, N), (N,)]),
    "complex_diagonal_recurrence": (_of(ops.complex_diagonal_recurrence, last=False), [(N,), (N,), (T, 2, N), (2, N)]),
    "selective_scan": (_of(ops.selective_scan, last=True), [(T, N), (T, N), (T, 2), (T, 2), (2, N), (2, N)]),
    "linear_attention": (_of(ops.linear_attention, last=True), [(T, N), (T, N), (T, 2), (T,), (N, 2)]),
    "delta_rule": (_of(ops.delta_rule, last=True), [(T, N), (T, N), (T, 2), (T,), (T,), (N, 2)]),
    "generalized_delta_rule": (
        _of(ops.generalized_delta_rule, last=True),
        [(T, N), (T, N), (T, 2), (T, N), (T, N), (T, N), (N, 2)],
    ),
    "elementwise_recurrence": (_elementwise, [(N,), (T, N), (N,)]),
    "nonlinear_recurrence": (_nonlinear, [(N, N), (T, N), (N,)]),
    "window_attention": (_attention, [(T, N), (T, N), (T, 2), (4, N), (4, 2), (3,)]),
    "regularized_solve": (_solve, [(T, N), (T, N), (T,), (T,), (N,), (N, N)]),
}
# The others have derivatives of the first order that are plain JAX.
WRITTEN_BY_HAND = tuple(sorted(set(OPS) - {"window_attention", "regularized_solve"}))


def _numbers(shapes):
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return [0.5 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _total(run, arrays):
    return jnp.sum(jnp.sin(run(*arrays)))


def _agrees_with_differences(total, numbers) -> None:
    """Check the Hessian-vector product, and the derivative in forward mode, of a function of a pytree."""
    flat, back = ravel_pytree(numbers)
    direction = jax.random.normal(jax.random.key(2), flat.shape)
    # Less than any number that a derivative jumps near: the least decay of ffm is 1e-6.
    step = 1e-7

    @jax.jit
    def derivatives(x):
        def of(x):
            return total(back(x))

        around = jax.vmap(lambda s: jax.grad(of)(x + s * direction))(step * jnp.array([-1.0, 0.0, 1.0]))
        return around, jax.jvp(jax.grad(of), (x,), (direction,))[1], jax.jvp(of, (x,), (direction,))[1]

    (behind, gradient, ahead), curvature, slope = map(np.asarray, derivatives(flat))
    differences = (ahead - behind) / (2 * step)
    scale = np.max(np.abs(differences))
    assert scale > 1e-3
    np.testing.assert_allclose(curvature, differences, rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(slope, gradient @ np.asarray(direction), rtol=1e-9)


@pytest.mark.parametrize("name", OPS)
def test_the_reference_of_an_op_is_the_same_function_with_every_derivative(name):
    with jax.enable_x64(True):
        op, shapes = OPS[name]
        numbers = _numbers(shapes)
        reference = functools.partial(op, method="reference")
        np.testing.assert_allclose(op(*numbers), reference(*numbers), rtol=0, atol=1e-9)
        _agrees_with_differences(functools.partial(_total, reference), numbers)


@pytest.mark.parametrize("name", memory.names())
def test_the_reference_of_a_memory_has_every_derivative(name):
    with jax.enable_x64(True):
        model = memory.make(name, in_size=3, out_size=4, key=jax.random.key(0), method="reference")
        xs = jax.random.normal(jax.random.key(1), (LENGTH, 3))
        floats, rest = eqx.partition(model, eqx.is_inexact_array)

        def total(differentiable):
            floats, xs = differentiable
            model = eqx.combine(floats, rest)
            return _total(lambda xs: model.scan(model.initial_state(), xs, STARTS)[1], (xs,))

        if name == "bmru":
            # The derivative of its sign is a stand-in, which no difference shows.
            run = jax.jit(lambda x, v: jax.jvp(jax.grad(total), (x,), (v,))[1])
            assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(run((floats, xs), (floats, xs))))
        else:
            _agrees_with_differences(total, (floats, xs))


@pytest.mark.parametrize("name", WRITTEN_BY_HAND)
def test_an_op_refuses_what_its_derivative_cannot_do_by_name(name):
    op, shapes = OPS[name]
    numbers = _numbers(shapes)
    gradient = jax.grad(functools.partial(_total, op))
    with pytest.raises(ValueError, match=rf"ops\.{name} has no second derivative.*method='reference'"):
        jax.grad(lambda x: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(x))))(numbers)
    with pytest.raises(ValueError, match=rf"ops\.{name} has no second derivative"):
        jax.jvp(gradient, (numbers,), (numbers,))
    _refuses_forward_mode(name)


def _refuses_forward_mode(name: str) -> None:
    op, shapes = OPS[name]
    total, numbers = functools.partial(_total, op), _numbers(shapes)
    match = rf"ops\.{name} has no derivative in forward mode.*method='reference'"
    with pytest.raises(ValueError, match=match):
        jax.jvp(total, (numbers,), (numbers,))
    with pytest.raises(ValueError, match=match):
        jax.jit(jax.jacfwd(total))(numbers)


@pytest.mark.slow
def test_window_attention_refuses_forward_mode_alone():
    _refuses_forward_mode("window_attention")
    op, shapes = OPS["window_attention"]
    numbers = _numbers(shapes)
    fast, plain = (
        jax.jvp(jax.grad(functools.partial(_total, run)), (numbers,), (numbers,))[1]
        for run in (op, functools.partial(op, method="reference"))
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), fast, plain)


def test_a_second_derivative_by_what_only_the_cotangent_holds_is_refused():
    op, shapes = OPS["linear_recurrence"]
    numbers = _numbers(shapes)

    def squared(weight):
        gradient = jax.grad(lambda x: weight * _total(op, x))(numbers)
        return sum(jnp.sum(g**2) for g in gradient)

    with pytest.raises(ValueError, match=r"ops\.linear_recurrence has no second derivative"):
        jax.grad(squared)(1.0)


def test_the_parallel_linear_recurrence_has_second_derivatives():
    op, shapes = OPS["linear_recurrence"]
    numbers = _numbers(shapes)
    tree, plain = (
        jax.jvp(jax.grad(functools.partial(_total, functools.partial(op, method=m))), (numbers,), (numbers,))[1]
        for m in ("associative", "reference")
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), tree, plain)


@pytest.mark.parametrize("name", OPS)
def test_the_guards_leave_no_trace_in_a_program(name, monkeypatch):
    def program():
        op, shapes = OPS[name]
        return jax.jit(jax.grad(functools.partial(_total, op))).lower(_numbers(shapes)).as_text()

    guarded = program()
    monkeypatch.setattr(_first_order, "_on_floats", lambda primitive, op, arrays: arrays)
    assert program() == guarded


@pytest.mark.parametrize("name", ["gru", "delta_net", "s5", "para_gru", "slstm"])
def test_the_scan_of_a_memory_is_refused_in_words(name):
    model = memory.make(name, in_size=3, out_size=4, key=jax.random.key(0))
    xs = jnp.ones((LENGTH, 3))

    def total(xs):
        return jnp.sum(model.scan(model.initial_state(), xs, STARTS)[1])

    with pytest.raises(ValueError, match=r"has no second derivative.*network\.scan: reference"):
        jax.jvp(jax.grad(total), (xs,), (xs,))
    with pytest.raises(ValueError, match=r"has no derivative in forward mode.*network\.scan: reference"):
        jax.jvp(total, (xs,), (xs,))


@pytest.mark.slow
def test_a_network_with_reference_scans_has_second_derivatives():
    box = spaces.Box(-1.0, 1.0, (3,), jnp.float32)
    inputs = AgentInput(
        jnp.ones((1, LENGTH, 3)), jnp.zeros((1, LENGTH), jnp.int32), jnp.ones((1, LENGTH)), STARTS[None]
    )

    def curvature(scan):
        config = networks.NetworkConfig(memory="gru", width=4, depth=2, scan=scan)
        network = networks.make_actor_critic(config, box, spaces.Discrete(2), key=jax.random.key(0))
        floats, rest = eqx.partition(network, eqx.is_inexact_array)
        state = jax.tree.map(lambda s: s[None], network.initial_state())

        def total(floats):
            return jnp.sum(eqx.combine(floats, rest).scan(state, inputs)[2] ** 2)

        return jax.jvp(jax.grad(total), (floats,), (floats,))[1], total(floats)

    gradients, value = curvature("reference")
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients))
    assert float(value) > 0
    with pytest.raises(ValueError, match=r"network\.scan: reference"):
        curvature("fast")


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method must be 'reference' .* got 'plain'"):
        memory.make("gru", in_size=3, out_size=4, key=jax.random.key(0), method="plain")
