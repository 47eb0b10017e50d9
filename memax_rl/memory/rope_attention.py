"""Softmax attention over a sliding window of the episode, with rotary position embedding.

Su et al. 2021, RoFormer, https://arxiv.org/abs/2104.09864, section 3.2.2.

    q, k, v = W_q x, W_k x, W_v x, split into heads
    p = softmax over the last `window` steps j of the episode of (R_t q_t) . (R_j k_j) / sqrt(head_size)
    y = W_o (sum_j p_j v_j)

R_t turns the pair of features (i, i + head_size / 2) by the angle t 10000^(-2 i / head_size). Only t - j
matters, so that the position on the tape does as well as that in the episode, and the keys are kept as they
were before turning. State: rings of the last window - 1 keys and values, [window - 1, heads, head_size] each.
Reset: the rings are emptied.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from memax_rl.memory._contract import Memory
from memax_rl.memory._layers import check_size
from memax_rl.memory._window import Heads, attend_scan, attend_step, empty_rings

_BASE = 10_000.0
_FINE = 64


def _rotations(first: int, count: int, head_size: int) -> tuple[Array, Array]:
    """Return cos and sin [count, head_size / 2] of the angles at positions first, first + 1, ...

    From two small tables in double precision and the sum of angles: an angle of a million radians has no
    digits left in float32 after the point.
    """
    frequency = _BASE ** (-2 * np.arange(head_size // 2) / head_size)
    fine = np.arange(_FINE)[None, :, None] * frequency
    coarse = (first + _FINE * np.arange(-(-count // _FINE)))[:, None, None] * frequency
    cos_f, sin_f, cos_c, sin_c = (jnp.asarray(f(a), jnp.float32) for a in (fine, coarse) for f in (np.cos, np.sin))
    cos, sin = cos_c * cos_f - sin_c * sin_f, sin_c * cos_f + cos_c * sin_f
    shape = (-1, head_size // 2)
    return cos.reshape(shape)[:count], sin.reshape(shape)[:count]


def _turn(x: Float[Array, "T heads head_size"], first: int) -> Float[Array, "T heads head_size"]:
    """Return R_t x_t, where t is `first` for the first row."""
    cos, sin = (a[:, None, :] for a in _rotations(first, x.shape[0], x.shape[-1]))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class RopeAttention(Memory):
    """Multi-head attention over a window that sees how far back each key lies."""

    in_size: int
    out_size: int
    window: int
    heads: Heads

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        window: int = 64,
        heads: int | None = None,
        head_size: int = 32,
    ):
        self.in_size, self.out_size = in_size, out_size
        self.window = check_size("window", window)
        self.heads = Heads(in_size, out_size, heads, head_size, key)
        if head_size % 2:
            raise ValueError(f"head_size must be even, because features turn in pairs, got {head_size}")

    def initial_state(self):
        """Return empty rings of keys and values."""
        return empty_rings(self.heads, self.window)

    def step(self, state, x, start):
        """Push the new key and value, then attend to all in the rings."""
        return attend_step(self.heads, state, x, start, turn=_turn)

    def scan(self, state, xs, starts):
        """All steps by `ops.window_attention`, one call a head."""
        return attend_scan(self.heads, state, xs, starts, self.window, turn=_turn)
