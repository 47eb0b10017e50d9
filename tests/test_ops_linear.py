"""ops.linear is `x @ w`: values, derivatives, any nesting of vmap; and its gradient stays a product of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl.ops import linear

X = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
W = jax.random.normal(jax.random.key(1), (2, 4, 6))


def _same(run, plain, *args):
    for f in (lambda g: g, lambda g: jax.grad(lambda *a: jnp.sum(jnp.sin(g(*a))), argnums=(0, 1))):
        for ours, theirs in zip(jax.tree.leaves(f(run)(*args)), jax.tree.leaves(f(plain)(*args)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def _both(wrap):
    return wrap(linear), wrap(lambda x, w: x @ w)


@pytest.mark.parametrize(
    ("wrap", "x", "w"),
    [
        (lambda f: f, X[0, 0, 0], W[0]),
        (lambda f: f, X, W[0]),
        (lambda f: jax.vmap(f, (0, None)), X, W[0]),
        (lambda f: jax.vmap(jax.vmap(f, (0, None)), (1, None)), X[0], W[0]),
        # Seeds, of which there may be one.
        (jax.vmap, X, W),
        (jax.vmap, X[:1], W[:1]),
        (lambda f: jax.vmap(jax.vmap(f, (0, None)), (0, 0)), X, W),
        (lambda f: jax.vmap(f, (None, 0)), X[0], W),
        (lambda f: jax.vmap(f, (1, 2)), X[0, :, :2], jnp.moveaxis(W, 0, 2)),
        # The gradient on a CPU depends on which side is longer, and on the number of rows.
        (lambda f: f, X[..., :3], W[0, :3, :2]),
        (lambda f: f, jax.random.normal(jax.random.key(2), (2100, 4)) / 50, W[0]),
        (lambda f: f, jax.random.normal(jax.random.key(2), (2100, 4)) / 50, W[0, :, :2]),
    ],
)
def test_values_and_gradients_are_those_of_a_matrix_product(wrap, x, w):
    _same(*_both(wrap), x, w)


def test_gradients_of_each_example_and_second_derivatives():
    def per_example(f):
        return lambda x, w: jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.sin(f(x, w)))), (None, 0))(w, x)

    def of_the_gradient(f):
        return lambda x, w: jax.grad(lambda x: jnp.sum(jnp.sin(f(x, w))))(x)

    for make in (per_example, of_the_gradient):
        _same(*_both(make), X[0, 0], W[0])


def test_the_gradient_of_the_weights_contracts_one_axis():
    def lowered(f):
        rows = jax.vmap(jax.vmap(f, (0, None)), (0, None))
        return jax.jit(jax.grad(lambda w: jnp.sum(rows(X[0], w) ** 2))).lower(W[0]).as_text()

    several = "contracting_dims = [0, 1]"
    assert several in lowered(lambda x, w: x @ w)
    assert several not in lowered(linear)


def test_sizes_that_do_not_fit_are_said():
    with pytest.raises(ValueError, match=r"x must have the shape \[..., n\] and w \[n, m\], got \[5, 4\] and \[6, 4\]"):
        linear(X[0, 0], W[0].T)
