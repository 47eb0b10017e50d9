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

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from memax_rl.memory._contract import Memory
from memax_rl.memory._layers import check_size
from memax_rl.memory._rotary import turn
from memax_rl.memory._window import Heads, empty_ring
from memax_rl.ops import window_attention

_BASE = 10_000.0


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
        shape = (self.window - 1, self.heads.heads, self.heads.head_size)
        return empty_ring(*shape), empty_ring(*shape)

    def step(self, state, x, start):
        """Push the new key and value, then attend to all in the rings."""
        q, k, v = self.heads.split(x)
        past_k, past_v = (ring.reset(start) for ring in state)
        seen = jnp.append(past_k.valid(), True)
        past_k, k = past_k.push(k)
        past_v, v = past_v.push(v)
        # Position 0 is now: q stays as it is.
        scores = jnp.einsum("hd,whd->hw", q, turn(k, 1 - self.window, _BASE)) * self.heads.head_size**-0.5
        weights = jax.nn.softmax(jnp.where(seen[None], scores, -jnp.inf), axis=-1)
        return (past_k, past_v), self.heads.merge(jnp.einsum("hw,whd->hd", weights, v))

    def scan(self, state, xs, starts):
        """All steps by `ops.window_attention`, one call a head."""
        q, k, v = self.heads.split(xs)
        past_k, past_v = state
        valid = past_k.valid()

        def attend(q, k, v, past_k, past_v):
            past = {"past_k": past_k, "past_v": past_v, "past_valid": valid}
            return window_attention(q, k, v, starts, self.window, **past)

        each = jax.vmap(attend, in_axes=1, out_axes=1)
        ys = each(turn(q, 0, _BASE), turn(k, 0, _BASE), v, turn(past_k.rows, 1 - self.window, _BASE), past_v.rows)
        return (past_k.extend(k, starts), past_v.extend(v, starts)), self.heads.merge(ys)
