"""A short causal convolution with resets, put before queries, keys and values by several models."""

from collections.abc import Sequence
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

_TAPS = 4
# Steps at a time in the backward pass.
_BLOCK = 32

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
            return jnp.where(kept[:, None], history[length:], 0), cast(Array, _convolve(weight, history, tuple(same)))

        tails, ys = zip(*map(one, self.weights, state, xs), strict=True)
        return tails, ys


@jax.custom_vjp
def _convolve(weight: Array, history: Array, same: tuple[Array, ...]) -> Array:
    """Return y_t = sum_j w_j o history_{t+3-j} where same_j: [T, width] from [T + 3, width].

    With its own derivative, because plain differentiation keeps a masked copy of the inputs for each tap.
    """
    shifted = (_from(history, _TAPS - 1 - lag, len(same[0])) for lag in range(_TAPS))
    y = sum(w[None] * jnp.where(s[:, None], u, 0) for w, s, u in zip(weight, same, shifted, strict=True))
    return jnp.asarray(y)


def _convolve_fwd(weight, history, same):
    return _convolve(weight, history, same), (weight, history, same)


def _convolve_bwd(residuals, dy):
    weight, history, same = residuals
    size = len(history)
    padded = jnp.pad(dy, ((_TAPS - 1, _TAPS - 1), (0, 0)))
    flags = [jnp.pad(s, _TAPS - 1) for s in same]
    dhistory = sum(
        w[None] * jnp.where(_from(s, lag, size)[:, None], _from(padded, lag, size), 0)
        for lag, (w, s) in enumerate(zip(weight, flags, strict=True))
    )

    # Block by block: one sum over all of T with its mask and shift inside takes XLA on a CPU five times as long.
    def add(i, dweight):
        t = i * _BLOCK
        # The padding makes whole blocks; zeros in dy take no part.
        dy, h = (jax.lax.dynamic_slice_in_dim(x, t, n) for x, n in ((blocks, _BLOCK), (past, _BLOCK + _TAPS - 1)))
        seen = (jax.lax.dynamic_slice_in_dim(s, t, _BLOCK) for s in masks)
        terms = (
            jnp.sum(jnp.where(s[:, None], dy * _from(h, _TAPS - 1 - lag, _BLOCK), 0), axis=0)
            for lag, s in enumerate(seen)
        )
        return dweight + jnp.stack(list(terms))

    rest = -len(dy) % _BLOCK
    blocks, past = (jnp.pad(x, ((0, rest), (0, 0))) for x in (dy, history))
    masks = [jnp.pad(s, (0, rest)) for s in same]
    dweight = jax.lax.fori_loop(0, len(blocks) // _BLOCK, add, jnp.zeros_like(weight))
    return dweight, dhistory, None


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _from(x: Array, begin: int, length: int) -> Array:
    return x[begin : begin + length]
