"""Gated linear attention: a matrix state whose rows decay at rates that depend on the input.

Yang et al. 2024, Gated Linear Attention Transformers with Hardware-Efficient Training,
https://arxiv.org/abs/2312.06635.

    q, k, v = W_q x, W_k x, W_v x
    log_decay = log_sigmoid(W_2 W_1 x + b) / 16    (one a key channel, W_1 of rank 16)
    S = diag(exp(log_decay)) S + k v^T,    y = W_o (rms_norm(S^T q / sqrt(head_size)) o silu(W_g x + b_g))

State: per head S [head_size, head_size]; a start zeroes it.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.heads import check_heads, each_head, rms_norm
from memax_rl.memory.layers.weights import normal, state_zeros
from memax_rl.ops import linear, linear_attention

State = Float[Array, "heads head_size head_size"]

_RANK = 16
_TEMPERATURE = 16


class GLA(Memory):
    """Linear attention with a decay for each key channel that depends on the input.

    For associative recall with learned forgetting.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
    """

    family: ClassVar[str] = "matrix"
    paper: ClassVar[str] = "https://arxiv.org/abs/2312.06635"
    verified: ClassVar[str] = "fla, naive gated linear attention"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    w_q: Float[Array, "in_size inner"]
    w_k: Float[Array, "in_size inner"]
    w_v: Float[Array, "in_size inner"]
    w_1: Float[Array, "in_size rank"]
    w_2: Float[Array, "rank inner"]
    b: Float[Array, " inner"]
    w_g: Float[Array, "in_size inner"]
    b_g: Float[Array, " inner"]
    norm: Float[Array, " inner"]
    w_o: Float[Array, "inner out_size"]

    def __init__(
        self, *, in_size: int, out_size: int, key: PRNGKeyArray, heads: int | None = None, head_size: int = 32
    ):
        self.in_size, self.out_size = in_size, out_size
        self.heads, self.head_size = check_heads(out_size, heads, head_size)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 7)
        self.w_q, self.w_k, self.w_v, self.w_g = (normal(k, in_size, inner) for k in keys[:4])
        self.w_1, self.w_2 = normal(keys[4], in_size, _RANK), normal(keys[5], _RANK, inner)
        self.b, self.b_g, self.norm = jnp.zeros(inner), jnp.zeros(inner), jnp.ones(inner)
        self.w_o = normal(keys[6], inner, out_size)

    def _project(self, x):
        """Return q, k, v and log_decay, each [heads, head_size]."""
        log_decay = jax.nn.log_sigmoid(linear(linear(x, self.w_1), self.w_2) + self.b) / _TEMPERATURE
        q = linear(x, self.w_q) * self.head_size**-0.5
        return tuple(
            u.reshape(self.heads, self.head_size) for u in (q, linear(x, self.w_k), linear(x, self.w_v), log_decay)
        )

    def _read(self, reads, x):
        return linear(rms_norm(reads, self.norm) * jax.nn.silu(linear(x, self.w_g) + self.b_g), self.w_o)

    def initial_state(self) -> State:
        return state_zeros(self.norm, (self.heads, self.head_size, self.head_size))

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        q, k, v, log_decay = self._project(x)
        s = jnp.exp(log_decay)[:, :, None] * jnp.where(start, 0, state) + k[:, :, None] * v[:, None, :]
        return s, self._read(jnp.einsum("hk,hkv->hv", q, s), x)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        q, k, v, log_decay = jax.vmap(self._project)(xs)
        s, reads = each_head(linear_attention, (q, k, v, log_decay), state, starts)
        return s, jax.vmap(self._read)(reads, xs)
