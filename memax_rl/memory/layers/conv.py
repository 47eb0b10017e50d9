"""A short causal convolution with resets, put before queries, keys and values by several models."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from memax_rl.memory.layers.weights import state_zeros
from memax_rl.ops._chunks import rematerialized

_TAPS = 4


class ShortConvolution(eqx.Module):
    """y_t = sum_j w_j o x_{t-j} for j = 0 .. 3; inputs from before the episode's start count as zero.

    State: the last three inputs, oldest first.
    """

    weights: Float[Array, "taps width"]

    def __init__(self, width: int, *, key: PRNGKeyArray):
        self.weights = jax.random.uniform(key, (_TAPS, width), minval=-0.5, maxval=0.5)

    def initial_state(self) -> Float[Array, "lags width"]:
        """Return three inputs of zero."""
        return state_zeros(self.weights, (_TAPS - 1, self.weights.shape[1]))

    def step(
        self, state: Float[Array, "lags width"], x: Float[Array, " width"], start: Bool[Array, ""]
    ) -> tuple[Float[Array, "lags width"], Float[Array, " width"]]:
        """Return the new state and the output for one input."""
        window = jnp.concatenate([jnp.where(start, 0, state), x[None]])
        return window[1:], jnp.sum(self.weights * window[::-1], axis=0)

    def scan(
        self,
        state: Float[Array, "lags width"],
        xs: Float[Array, "T width"],
        starts: Bool[Array, " T"],
        then: Callable,
        *params: Array,
    ) -> tuple[Float[Array, "lags width"], PyTree[Float[Array, "T ..."]]]:
        """Return the last state and `then(*params, y)` of the output y of each step.

        `then` closes over no arrays. It and the convolution are rematerialized in the backward pass, so that only the
        inputs are stored. First derivatives only.
        """
        length = len(starts)
        flags = jnp.concatenate([jnp.zeros(_TAPS - 2, bool), starts])
        # How many steps back belong to the episode, at most three; all of the state does, if nothing started.
        reach = jnp.full(length, _TAPS - 1)
        for lag in reversed(range(_TAPS - 1)):
            reach = jnp.where(flags[_TAPS - 2 - lag :][:length], lag, reach)
        body = functools.partial(_convolve, then)
        ys = rematerialized(body, _befores, state, (xs, reach), self.weights, params)
        kept = jnp.arange(_TAPS - 1)[::-1] <= reach[-1]
        return jnp.where(kept[:, None], jnp.concatenate([state, xs])[length:], 0), ys


def _convolve(then, weights, params, tail, xs, reach):
    """Return the last three inputs and `then` of the outputs of some steps."""
    length = len(reach)
    history = jnp.concatenate([tail, xs])
    shifted = (jnp.where((reach >= lag)[:, None], history[_TAPS - 1 - lag :][:length], 0) for lag in range(_TAPS))
    ys = sum(w[None] * x for w, x in zip(weights, shifted, strict=True))
    return history[length:], jax.vmap(functools.partial(then, *params))(ys)


def _befores(tail, inputs):
    """Return the last three inputs before each block."""
    xs, _ = inputs
    return jnp.concatenate([tail[None], xs[:-1, 1 - _TAPS :]]) if len(xs) > 1 else tail[None]
