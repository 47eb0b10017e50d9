"""What surrounds the recurrences of several models: the short convolution, and rematerialized row-wise parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import memory
from memax_rl.memory.layers.conv import ShortConvolution
from memax_rl.memory.layers.heads import each_row, gated_norm, head_norm, rms_norm, unit

WIDTH = 6


def _agree(got, want, tolerance=2e-5):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        scale = np.max(np.abs(w)) + 1e-6
        assert np.max(np.abs(np.asarray(g) - np.asarray(w))) < tolerance * scale


def _then(bias, y):
    """Two results of one output, one of them normalized."""
    y = jax.nn.silu(y + bias)
    return unit(y.reshape(2, -1)), y[:2]


# One block; several and a rest of one step; whole blocks.
@pytest.mark.parametrize("length", [1, 2, 100, 257, 384])
def test_convolution_is_its_steps(length):
    conv = ShortConvolution(WIDTH, key=jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4)
    state, xs = jax.random.normal(keys[0], (3, WIDTH)), jax.random.normal(keys[1], (length, WIDTH))
    bias = jax.random.normal(keys[2], (WIDTH,))
    # Next to each other, around one edge of blocks of 128 and not around the other, and near the end, so that part
    # of the state is gone.
    starts = jnp.isin(jnp.arange(length), jnp.array([5, 6, 90, 255, 256, length - 2]))
    if length == 2:
        starts = jnp.zeros(2, bool)

    def scanned(conv, state, xs, bias):
        return conv.scan(state, xs, starts, _then, bias)

    def stepped(conv, state, xs, bias):
        def step(state, now):
            state, y = conv.step(state, *now)
            return state, _then(bias, y)

        return jax.lax.scan(step, state, (xs, starts))

    def loss(run, *arrays):
        last, (ys, some) = run(*arrays)
        weights = jnp.cos(jnp.arange(ys.size)).reshape(ys.shape)
        return jnp.sum(ys * weights) + jnp.sum(jnp.sin(some)) + jnp.sum(jnp.sin(last))

    arrays = conv, state, xs, bias
    _agree(scanned(*arrays), stepped(*arrays))
    got, want = (jax.grad(functools.partial(loss, run), argnums=(0, 1, 2, 3))(*arrays) for run in (scanned, stepped))
    _agree(got, want)


@pytest.mark.parametrize("length", [1, 100, 257])
@pytest.mark.parametrize("gated", [False, True])
def test_each_row_is_vmap(length, gated):
    keys = jax.random.split(jax.random.key(2), 4)
    weight = jax.random.normal(keys[0], (WIDTH,))
    inputs = tuple(jax.random.normal(k, (3, length, WIDTH)) for k in keys[1 : 3 if gated else 2])
    body = functools.partial(gated_norm if gated else head_norm, 2)

    def loss(run, weight, inputs):
        return jnp.sum(jnp.sin(jax.vmap(functools.partial(run, weight))(*inputs)))

    def blocks(weight, *inputs):
        return each_row(body, inputs, weight)

    def plain(weight, *inputs):
        return jax.vmap(functools.partial(body, weight))(*inputs)

    runs = [jax.value_and_grad(functools.partial(loss, run), argnums=(0, 1)) for run in (blocks, plain)]
    got, want = (run(weight, inputs) for run in runs)
    _agree(got, want)


def test_each_row_keeps_its_inputs_alone():
    """Of a part that forms many arrays on the way, the backward pass keeps the inputs, and a block of the rest."""
    rows = jnp.ones((16 * 128, 64))

    def many(x):
        for _ in range(20):
            x = unit(jnp.tanh(x))
        return x

    def kept(run):
        compiled = jax.jit(jax.grad(lambda x: jnp.sum(run(x)))).lower(rows).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes / rows.nbytes

    assert kept(lambda x: each_row(many, (x,))) < 6
    assert kept(jax.vmap(many)) > 12


def test_norms_over_heads():
    x = jax.random.normal(jax.random.key(3), (5, 2, 3))
    with jax.enable_x64(True):
        wide = np.asarray(x, np.float64)
        np.testing.assert_allclose(unit(x), wide / np.linalg.norm(wide, axis=-1, keepdims=True), atol=1e-5)
        weight = np.arange(6.0)
        want = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(
            jax.vmap(lambda row: rms_norm(row, jnp.asarray(weight)))(jnp.asarray(wide)), want.reshape(5, 6) * weight
        )


@pytest.mark.parametrize("function", [unit, lambda x: rms_norm(x, jnp.ones(6))])
def test_norms_differentiate_as_they_should(function):
    """Their derivative is written by hand: against the difference quotient in float64, and finite at zero."""
    with jax.enable_x64(True):
        x, direction = (jnp.asarray(np.random.default_rng(i).normal(size=(2, 3))) for i in (0, 1))

        def loss(x):
            return jnp.sum(jnp.sin(function(x)))

        slope = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(x), direction), slope, rtol=1e-7)
        assert bool(jnp.all(jnp.isfinite(jax.grad(loss)(0 * x))))


@pytest.mark.parametrize(
    ("name", "argument", "sizes"),
    [
        ("ffm", "out_size", {"out_size": 1}),
        ("mlstm", "head_size", {"out_size": 4, "head_size": 1}),
        ("rwkv7", "head_size", {"out_size": 4, "head_size": 1}),
        ("ttt_linear", "head_size", {"out_size": 4, "head_size": 1}),
    ],
)
def test_the_norm_of_a_single_number_is_refused(name, argument, sizes):
    with pytest.raises(ValueError, match=f"{argument} must be 2 or more, got 1: the layer norm of a single number"):
        memory.make(name, in_size=3, key=jax.random.key(0), **sizes)
