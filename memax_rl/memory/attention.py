"""Softmax attention over a sliding window of the episode, without position encoding.

Vaswani et al. 2017, Attention Is All You Need, https://arxiv.org/abs/1706.03762, section 3.2, over the last
`window` steps as in Beltagy et al. 2020, Longformer, https://arxiv.org/abs/2004.05150, section 3.1.

    q, k, v = W_q x, W_k x, W_v x, split into heads
    p = softmax over the last `window` steps j of the episode of q . k_j / sqrt(head_size)
    y = W_o (sum_j p_j v_j)

State: rings of the last window - 1 keys and values, [window - 1, heads, head_size] each. Reset: the rings are
emptied.
"""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from memax_rl.memory._contract import Memory
from memax_rl.memory._layers import check_size
from memax_rl.memory._window import Heads, empty_ring
from memax_rl.ops import window_attention


class Attention(Memory):
    """Multi-head attention over a window. It sees a set: what came when is lost within the window."""

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
        scores = jnp.einsum("hd,whd->hw", q, k) * self.heads.head_size**-0.5
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

        ys = jax.vmap(attend, in_axes=1, out_axes=1)(q, k, v, past_k.rows, past_v.rows)
        return (past_k.extend(k, starts), past_v.extend(v, starts)), self.heads.merge(ys)
