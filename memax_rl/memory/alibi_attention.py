"""Softmax attention over a sliding window of the episode, with a penalty linear in the distance (ALiBi).

Press et al. 2021, Train Short, Test Long, https://arxiv.org/abs/2108.12409.

    q, k, v = W_q x, W_k x, W_v x, split into heads
    p = softmax over the last `window` steps j of the episode of q_t . k_j / sqrt(head_size) - slope (t - j)
    y = W_o (sum_j p_j v_j)

The slope of head 1, 2, ..., H is 2^(-8/H), 2^(-16/H), ..., 2^-8, and is not trained. Where H is no power of two, the
first heads have the slopes of the power of two P below, and the rest every other slope of 2 P heads: 2^(-4/P),
2^(-12/P), ..., as in the authors' code and in Bloom.
State: rings of the last window - 1 keys and values, [window - 1, heads, head_size] each. Reset: the rings are
emptied.
"""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import check_size, state_dtype
from memax_rl.memory.layers.window import Heads, Ring, attend_scan, attend_step, empty_rings

State = tuple[Ring, Ring]


def _slopes(heads: int) -> np.ndarray:
    """Return the penalty a step of each head."""
    whole = 2 ** (heads.bit_length() - 1)
    exponents = np.concatenate([8 / whole * np.arange(1, whole + 1), 4 / whole * (2 * np.arange(heads - whole) + 1)])
    return np.exp2(-exponents)


class AlibiAttention(Memory):
    """Multi-head softmax attention over a window, with a penalty that grows with the distance (ALiBi).

    Each head prefers the recent at its own scale. For exact recall within the window, where when something was seen
    matters.

    Args:
        window: steps seen, the present one included.
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: features of a head.
    """

    family: ClassVar[str] = "attention"
    paper: ClassVar[str] = "https://arxiv.org/abs/2108.12409"
    verified: ClassVar[str] = (
        "torch's scaled_dot_product_attention with Bloom's slopes; of other than 2^n heads: read against"
    )

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

    def _bias(self) -> Float[Array, "heads window"]:
        """Return what is added to the score of the key that lies 0, 1, ..., window - 1 steps back."""
        dtype = state_dtype(self.heads.w_q)
        return -jnp.asarray(_slopes(self.heads.heads), dtype)[:, None] * jnp.arange(self.window, dtype=dtype)[None]

    def initial_state(self) -> State:
        return empty_rings(self.heads, self.window)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        return attend_step(self.heads, state, x, start, bias=self._bias())

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """All steps by `ops.window_attention`, one call a head."""
        return attend_scan(self.heads, state, xs, starts, self.window, bias=self._bias())
