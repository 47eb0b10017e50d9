"""A short causal convolution with resets, put before queries, keys and values by several models."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

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

    def scan(self, state: Streams, xs: Streams, starts: Bool[Array, " T"]) -> tuple[Streams, Streams]:
        """Return the last state and all outputs, [T, width] each: sums of shifted and masked copies."""
        length = starts.shape[0]
        flags = jnp.concatenate([jnp.zeros(_TAPS - 1, bool), starts])
        same = [jnp.ones(length, bool)]
        for begin in reversed(range(_TAPS - 1)):
            # The step `lag` back counts if none of the steps after it, up to now, is a start.
            same.append(same[-1] & ~flags[begin + 1 : begin + 1 + length])
        started_later = jnp.cumsum(flags[::-1][: _TAPS - 2]) > 0
        kept = jnp.concatenate([~started_later[::-1], jnp.ones(1, bool)])

        def one(weight: Array, tail: Array, x: Array) -> tuple[Array, Array]:
            history = jnp.concatenate([tail, x])
            shifted = (history[_TAPS - 1 - lag :][:length] for lag in range(_TAPS))
            y = sum(w[None] * jnp.where(s[:, None], u, 0) for w, s, u in zip(weight, same, shifted, strict=True))
            return jnp.where(kept[:, None], history[length:], 0), jnp.asarray(y)

        tails, ys = zip(*map(one, self.weights, state, xs), strict=True)
        return tails, ys
