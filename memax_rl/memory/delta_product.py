"""DeltaProduct: several delta-rule steps on each input, whose product is a product of reflections.

Siems et al. 2025, DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products,
https://arxiv.org/abs/2502.10297.

    q = unit(silu(conv(W_q x)))
    k_j = unit(silu(conv(W_kj x))),    v_j = silu(conv(W_vj x)),    beta_j = 2 sigmoid(W_beta x + b_beta)_j
    S = exp(log_decay) S    (if gated, as in Gated DeltaNet)
    for j = 1 .. substeps:    S = S + beta_j k_j (v_j - S^T k_j)^T
    y = W_o (rms_norm(S^T q / sqrt(head_size)) o silu(W_g x))

Without `negative_eigenvalues`, beta is sigmoid(...) and no step reflects. State: per head S [head_size,
head_size], and the last three inputs of the convolution; a start zeroes all, before the first sub-step.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.conv import ShortConvolution
from memax_rl.memory.layers.heads import (
    check_flag,
    check_heads,
    decay_rates,
    delta_step,
    each_head,
    each_row,
    gated_norm,
    unit,
)
from memax_rl.memory.layers.weights import check_size, normal, state_zeros
from memax_rl.ops import delta_rule, linear

State = tuple[Float[Array, "heads head_size head_size"], Float[Array, "lags width"]]


class DeltaProduct(Memory):
    """Matrix memory with several delta-rule steps on each input.

    For state tracking that one reflection a step cannot do, such as permutations; costs `substeps` times a DeltaNet.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
        substeps: keys and values an input.
        gated: decay before each input.
        negative_eigenvalues: let a sub-step reflect the state.
    """

    family: ClassVar[str] = "delta"
    paper: ClassVar[str] = "https://arxiv.org/abs/2502.10297"
    verified: ClassVar[str] = "fla, gated delta product"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    substeps: int
    gated: bool
    negative_eigenvalues: bool
    w_qkv: Float[Array, "in_size width"]
    conv: ShortConvolution
    w_beta: Float[Array, "in_size substeps*heads"]
    b_beta: Float[Array, " substeps*heads"]
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
        substeps: int = 2,
        gated: bool = True,
        negative_eigenvalues: bool = True,
    ):
        self.in_size, self.out_size = in_size, out_size
        self.heads, self.head_size = check_heads(out_size, heads, head_size)
        self.substeps = check_size("substeps", substeps)
        self.gated = check_flag("gated", gated)
        self.negative_eigenvalues = check_flag("negative_eigenvalues", negative_eigenvalues)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 7)
        self.w_qkv = normal(keys[6], in_size, (1 + 2 * substeps) * inner)
        self.conv = ShortConvolution((1 + 2 * substeps) * inner, key=keys[0])
        self.w_beta = normal(keys[1], in_size, substeps * self.heads)
        self.b_beta = jnp.zeros(substeps * self.heads)
        self.w_a = normal(keys[2], in_size, self.heads)
        self.a_log, self.dt_bias = decay_rates(keys[3], self.heads, smallest=0.0)
        self.w_g = normal(keys[4], in_size, inner)
        self.norm = jnp.ones(inner)
        self.w_o = normal(keys[5], inner, out_size)

    def _gates(self, x):
        """Return beta [substeps, heads] and log_decay [heads]."""
        beta = jax.nn.sigmoid(linear(x, self.w_beta) + self.b_beta).reshape(self.substeps, self.heads)
        log_decay = -jnp.exp(self.a_log) * jax.nn.softplus(linear(x, self.w_a) + self.dt_bias)
        log_decay = log_decay if self.gated else jnp.zeros_like(log_decay)
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
        q, ks, vs = _activated(self.substeps, self.heads, qkv)
        betas, log_decay = self._gates(x)
        s = jnp.exp(log_decay)[:, None, None] * jnp.where(start, 0, s)
        for k, v, beta in zip(ks, vs, betas, strict=True):
            s = delta_step(s, k, v, beta)
        return (s, tail), self._read(jnp.einsum("hk,hkv->hv", q, s), x)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """One `ops.delta_rule` a head over all sub-steps, which reads after the last one of each input."""
        s, tail = state
        activated = functools.partial(_activated, self.substeps, self.heads)
        tail, (q, k, v) = self.conv.scan(tail, linear(xs, self.w_qkv), starts, activated)
        beta, log_decay = jax.vmap(self._gates)(xs)
        first = jnp.arange(self.substeps) == 0

        def only_first(x):
            """Return x at the first sub-step of each input and zero at the others, [T * substeps, ...]."""
            at_first = first.reshape(1, -1, *[1] * (x.ndim - 1))
            return jnp.where(at_first, x[:, None], jnp.zeros_like(x)[:, None]).reshape(-1, *x.shape[1:])

        k, v, beta = (u.reshape(-1, *u.shape[2:]) for u in (k, v, beta))
        s, reads = each_head(delta_rule, (q, k, v, beta, only_first(log_decay)), s, only_first(starts))
        normed = functools.partial(gated_norm, self.heads)
        ys = each_row(normed, (reads.reshape(len(xs), -1), linear(xs, self.w_g)), self.norm)
        return (s, tail), linear(ys, self.w_o)


def _activated(substeps, heads, qkv):
    """Return q [heads, size], k and v [substeps, heads, size] from q, all k and all v concatenated."""
    q, k, v = jnp.split(jax.nn.silu(qkv).reshape(1 + 2 * substeps, heads, -1), [1, 1 + substeps])
    return unit(q[0]), unit(k), v
