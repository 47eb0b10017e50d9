"""A short causal convolution with resets, put before queries, keys and values by several models."""

import functools
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.ops._chunks import BLOCK, loop_chunks

_TAPS = 4

Streams = tuple[Float[Array, "..."], ...]


class ShortConvolution(eqx.Module):
    """y_t = sum_j w_j o x_{t-j} for j = 0 .. 3; inputs from before the episode's start count as zero.

    Works on a tuple of inputs (q, k, v), each with its own weights. State: the last three inputs of each,
    oldest first.
    """

    weights: tuple[Float[Array, "taps width"], ...]

    def __init__(self, widths: Sequence[int], *, key: PRNGKeyArray):
        keys = jax.random.split(key, len(widths))
        self.weights = tuple(
            jax.random.uniform(k, (_TAPS, width), minval=-0.5, maxval=0.5)
            for k, width in zip(keys, widths, strict=True)
        )

    def initial_state(self) -> Streams:
        """Return three inputs of zero."""
        return tuple(jnp.zeros((_TAPS - 1, w.shape[1])) for w in self.weights)

    def step(self, state: Streams, xs: Streams, start: Bool[Array, ""]) -> tuple[Streams, Streams]:
        """Return the new state and the output for one input, [width] each."""
        windows = [
            jnp.concatenate([x[None], jnp.where(start, 0, tail)[::-1]]) for tail, x in zip(state, xs, strict=True)
        ]
        ys = tuple(jnp.sum(w * window, axis=0) for w, window in zip(self.weights, windows, strict=True))
        return tuple(window[:-1][::-1] for window in windows), ys

    def scan(
        self, state: Streams, xs: Streams, starts: Bool[Array, " T"], then: Callable, *params: Array
    ) -> tuple[Streams, Streams]:
        """Return the last state and `then(*params, *ys)`, a tuple, of the outputs ys of each step; xs are [T, width].

        `then` closes over no arrays. It and the convolution are formed again in the backward pass: the inputs are all
        that is kept. First derivatives only.
        """
        length = len(starts)
        block = min(BLOCK, length)
        flags = jnp.concatenate([jnp.zeros(_TAPS - 2, bool), starts])
        # How many steps back belong to the episode, at most three; all of the state does, if nothing started.
        reach = jnp.full(length, _TAPS - 1)
        for lag in reversed(range(_TAPS - 1)):
            reach = jnp.where(flags[_TAPS - 2 - lag :][:length], lag, reach)

        body = functools.partial(_convolve, then)
        _, ys = loop_chunks(body, state, (xs, reach), length, block, self.weights, params)
        kept = (jnp.arange(_TAPS - 1)[::-1] <= reach[-1])[:, None]
        tails = (jnp.concatenate([tail, x])[length:] for tail, x in zip(state, xs, strict=True))
        return tuple(jnp.where(kept, tail, 0) for tail in tails), ys


def _convolve(then, weights, params, tails, xs, reach):
    """Return the last three inputs and the outputs of some steps."""
    length = len(reach)
    counts = [(reach >= lag)[:, None] for lag in range(_TAPS)]
    histories = [jnp.concatenate([tail, x]) for tail, x in zip(tails, xs, strict=True)]
    ys = (
        sum(w[None] * jnp.where(counts[j], h[_TAPS - 1 - j :][:length], 0) for j, w in enumerate(weight))
        for weight, h in zip(weights, histories, strict=True)
    )
    return tuple(h[length:] for h in histories), jax.vmap(functools.partial(then, *params))(*ys)
