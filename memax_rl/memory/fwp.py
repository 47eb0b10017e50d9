"""Fast weight programmer: a matrix written by outer products, the linear transformer without its normalizer.

Schlag, Irie and Schmidhuber 2021, Linear Transformers Are Secretly Fast Weight Programmers,
https://arxiv.org/abs/2102.11174, the purely additive rule of its section 3.

    q, k, v = W_q x, W_k x, W_v x,    phi(u) = 1 + elu(u)
    S = S + phi(k) v^T,    y = W_o rms_norm(S^T phi(q))

S is not bounded, so what is read is divided by its root mean square. State: per head S [head_size, head_size]; a start
zeroes it.
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


class FWP(Memory):
    """Linear attention without normalizer and decay: a matrix to which each step adds an outer product.

    The simplest associative memory; stored values pile up and interfere in long episodes.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
    """

    family: ClassVar[str] = "matrix"
    paper: ClassVar[str] = "https://arxiv.org/abs/2102.11174"
    verified: ClassVar[str] = "fla, linear attention without normalization"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    w_q: Float[Array, "in_size inner"]
    w_k: Float[Array, "in_size inner"]
    w_v: Float[Array, "in_size inner"]
    norm: Float[Array, " inner"]
    w_o: Float[Array, "inner out_size"]

    def __init__(
        self, *, in_size: int, out_size: int, key: PRNGKeyArray, heads: int | None = None, head_size: int = 32
    ):
        self.in_size, self.out_size = in_size, out_size
        self.heads, self.head_size = check_heads(out_size, heads, head_size)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 4)
        self.w_q, self.w_k, self.w_v = (normal(k, in_size, inner) for k in keys[:3])
        self.norm = jnp.ones(inner)
        self.w_o = normal(keys[3], inner, out_size)

    def _project(self, x):
        """Return phi(q), phi(k) and v, each [heads, head_size]."""
        q, k, v = (linear(x, w).reshape(self.heads, self.head_size) for w in (self.w_q, self.w_k, self.w_v))
        return 1 + jax.nn.elu(q), 1 + jax.nn.elu(k), v

    def _read(self, reads):
        return linear(rms_norm(reads, self.norm), self.w_o)

    def initial_state(self) -> State:
        return state_zeros(self.norm, (self.heads, self.head_size, self.head_size))

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        q, k, v = self._project(x)
        s = jnp.where(start, 0, state) + k[:, :, None] * v[:, None, :]
        return s, self._read(jnp.einsum("hk,hkv->hv", q, s))

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        q, k, v = jax.vmap(self._project)(xs)
        s, reads = each_head(linear_attention, (q, k, v, None), state, starts)
        return s, jax.vmap(self._read)(reads)
