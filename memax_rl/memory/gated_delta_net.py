"""Gated DeltaNet: the delta rule on a state that first decays.

Yang et al. 2024, Gated Delta Networks: Improving Mamba2 with Delta Rule, https://arxiv.org/abs/2412.06464.

    q, k, v = unit(silu(conv(W_q x))), unit(silu(conv(W_k x))), silu(conv(W_v x))
    beta = sigmoid(W_beta x + b_beta),    log_decay = -exp(a_log) softplus(W_a x + dt_bias)
    S = exp(log_decay) S,    S = S + beta k (v - S^T k)^T
    y = W_o (rms_norm(S^T q / sqrt(head_size)) o silu(W_g x))

exp(a_log) ~ U(0, 16) and softplus(dt_bias) log-uniform in [0.001, 0.1] at the start. `negative_eigenvalues`
doubles beta, as in DeltaNet. State: per head S [head_size, head_size], and the last three inputs of the
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
    decay_rates,
    delta_step,
    each_head,
    each_row,
    gated_norm,
)
from memax_rl.memory.layers.weights import normal, state_zeros
from memax_rl.ops import delta_rule, linear

State = tuple[Float[Array, "heads head_size head_size"], Float[Array, "lags width"]]


class GatedDeltaNet(Memory):
    """Matrix memory with the delta rule and a decay for each head and step.

    For associative recall where old associations must be both overwritten one by one and forgotten all at once.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
        negative_eigenvalues: let a step reflect the state, for parity and state tracking.
    """

    family: ClassVar[str] = "delta"
    paper: ClassVar[str] = "https://arxiv.org/abs/2412.06464"
    verified: ClassVar[str] = "fla; transformers' Qwen3NextGatedDeltaNet, whole layer"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    negative_eigenvalues: bool
    w_qkv: Float[Array, "in_size width"]
    conv: ShortConvolution
    w_beta: Float[Array, "in_size heads"]
    b_beta: Float[Array, " heads"]
    w_a: Float[Array, "in_size heads"]
    a_log: Float[Array, " heads"]
    dt_bias: Float[Array, " heads"]
    w_g: Float[Array, "in_size inner"]
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
        keys = jax.random.split(key, 7)
        self.w_qkv = normal(keys[0], in_size, 3 * inner)
        self.conv = ShortConvolution(3 * inner, key=keys[1])
        self.w_beta, self.b_beta = normal(keys[2], in_size, self.heads), jnp.zeros(self.heads)
        self.w_a = normal(keys[3], in_size, self.heads)
        self.a_log, self.dt_bias = decay_rates(keys[4], self.heads, smallest=0.0)
        self.w_g = normal(keys[5], in_size, inner)
        self.norm = jnp.ones(inner)
        self.w_o = normal(keys[6], inner, out_size)

    def _gates(self, x):
        """Return beta and log_decay [heads]."""
        beta = jax.nn.sigmoid(linear(x, self.w_beta) + self.b_beta)
        log_decay = -jnp.exp(self.a_log) * jax.nn.softplus(linear(x, self.w_a) + self.dt_bias)
        return 2 * beta if self.negative_eigenvalues else beta, log_decay

    def _read(self, reads, x):
        return linear(gated_norm(self.heads, self.norm, reads.reshape(-1), linear(x, self.w_g)), self.w_o)

    def initial_state(self) -> State:
        return state_zeros(self.norm, (self.heads, self.head_size, self.head_size)), self.conv.initial_state()

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        s, tail = state
        tail, qkv = self.conv.step(tail, linear(x, self.w_qkv), start)
        q, k, v = activated_qkv(self.heads, qkv)
        beta, log_decay = self._gates(x)
        s = delta_step(jnp.exp(log_decay)[:, None, None] * jnp.where(start, 0, s), k, v, beta)
        return (s, tail), self._read(jnp.einsum("hk,hkv->hv", q, s), x)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        s, tail = state
        activated = functools.partial(activated_qkv, self.heads)
        tail, qkv = self.conv.scan(tail, linear(xs, self.w_qkv), starts, activated)
        s, reads = each_head(delta_rule, (*qkv, *jax.vmap(self._gates)(xs)), s, starts)
        normed = functools.partial(gated_norm, self.heads)
        ys = each_row(normed, (reads.reshape(len(xs), -1), linear(xs, self.w_g)), self.norm)
        return (s, tail), linear(ys, self.w_o)
