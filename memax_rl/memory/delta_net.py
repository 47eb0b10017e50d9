"""DeltaNet: a matrix memory that replaces the value stored under a key instead of adding to it.

Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule over Sequence Length,
https://arxiv.org/abs/2406.06484; the rule is that of Schlag et al. 2021, https://arxiv.org/abs/2102.11174.
Negative eigenvalues: Grazzi et al. 2024, https://arxiv.org/abs/2411.12537.

    q, k, v = unit(silu(conv(W_q x))), unit(silu(conv(W_k x))), silu(conv(W_v x))
    beta = sigmoid(W_beta x + b_beta)
    S = S + beta k (v - S^T k)^T,    y = W_o rms_norm(S^T q)

With `negative_eigenvalues`, beta = 2 sigmoid(...): at beta = 2 a step reflects the state, which parity and
other state tracking need. State: per head S [head_size, head_size], and the last three inputs of the
convolution; a start zeroes all.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.conv import ShortConvolution
from memax_rl.memory.layers.heads import (
    activated_qkv,
    check_flag,
    check_heads,
    delta_step,
    each_head,
    each_row,
    head_norm,
    rms_norm,
)
from memax_rl.memory.layers.weights import normal, state_zeros
from memax_rl.ops import delta_rule, linear

State = tuple[Float[Array, "heads head_size head_size"], Float[Array, "lags width"]]


class DeltaNet(Memory):
    """Matrix memory that overwrites the value stored under a key (delta rule), without decay.

    For associative recall where the value of a key changes over the episode; what is stored stays until it is
    overwritten.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
        negative_eigenvalues: let a step reflect the state, for parity and state tracking.
    """

    family: ClassVar[str] = "delta"
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.06484"
    verified: ClassVar[str] = "fla (flash-linear-attention), delta rule"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    negative_eigenvalues: bool
    w_qkv: Float[Array, "in_size width"]
    conv: ShortConvolution
    w_beta: Float[Array, "in_size heads"]
    b_beta: Float[Array, " heads"]
    norm: Float[Array, " inner"]
    w_o: Float[Array, "inner out_size"]

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        heads: int | None = None,
        head_size: int = 32,
        negative_eigenvalues: bool = False,
    ):
        self.in_size, self.out_size = in_size, out_size
        self.heads, self.head_size = check_heads(out_size, heads, head_size)
        self.negative_eigenvalues = check_flag("negative_eigenvalues", negative_eigenvalues)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 4)
        self.w_qkv = normal(keys[0], in_size, 3 * inner)
        self.conv = ShortConvolution(3 * inner, key=keys[1])
        self.w_beta, self.b_beta = normal(keys[2], in_size, self.heads), jnp.zeros(self.heads)
        self.norm = jnp.ones(inner)
        self.w_o = normal(keys[3], inner, out_size)

    def _beta(self, x):
        beta = jax.nn.sigmoid(linear(x, self.w_beta) + self.b_beta)
        return 2 * beta if self.negative_eigenvalues else beta

    def initial_state(self) -> State:
        return state_zeros(self.norm, (self.heads, self.head_size, self.head_size)), self.conv.initial_state()

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        s, tail = state
        tail, qkv = self.conv.step(tail, linear(x, self.w_qkv), start)
        q, k, v = activated_qkv(self.heads, qkv)
        s = delta_step(jnp.where(start, 0, s), k, v, self._beta(x))
        return (s, tail), linear(rms_norm(jnp.einsum("hk,hkv->hv", q, s), self.norm), self.w_o)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        s, tail = state
        activated = functools.partial(activated_qkv, self.heads)
        tail, qkv = self.conv.scan(tail, linear(xs, self.w_qkv), starts, activated)
        s, reads = each_head(delta_rule, (*qkv, jax.vmap(self._beta)(xs), None), s, starts)
        ys = each_row(functools.partial(head_norm, self.heads), (reads.reshape(len(xs), -1),), self.norm)
        return (s, tail), linear(ys, self.w_o)
