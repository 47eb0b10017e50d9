"""Second derivatives are right or refused in words, never wrong in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import memory

ELEMENTWISE = ("dlse", "ind_rnn", "nmax", "para_gru", "para_lstm")
XS = jax.random.normal(jax.random.key(1), (5, 3))
STARTS = jnp.array([False, False, True, False, False])


def _second_derivative(name: str, by_scan: bool):
    """Return the gradient of a memory's outputs by its inputs, and that of the gradient's square."""
    model = memory.make(name, in_size=3, out_size=4, key=jax.random.key(0))

    def total(xs):
        state = model.initial_state()
        if by_scan:
            ys = model.scan(state, xs, STARTS)[1]
        else:
            ys = jax.lax.scan(lambda s, now: model.step(s, *now), state, (xs, STARTS))[1]
        return jnp.sum(jnp.sin(ys))

    gradient = jax.grad(total)
    return gradient, jax.grad(lambda xs: jnp.sum(gradient(xs) ** 2))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_second_derivative_of_an_elementwise_recurrence_is_refused_by_name(name):
    _, second = _second_derivative(name, by_scan=True)
    with pytest.raises(ValueError, match=r"ops.elementwise_recurrence has no second derivative: .* `step`"):
        second(XS)


@pytest.mark.parametrize("name", ["dlse", "para_gru", "gru", "lru"])
def test_a_scan_over_steps_is_the_way_out(name):
    gradient, second = _second_derivative(name, by_scan=False)
    step = 1e-2 * jax.random.normal(jax.random.key(2), gradient(XS).shape)
    # The second derivative along a direction, by central differences.
    ahead, behind = (jnp.sum(gradient(XS + s * step) ** 2) for s in (1, -1))
    np.testing.assert_allclose(jnp.sum(second(XS) * step), (ahead - behind) / 2, rtol=0.02, atol=1e-5)
