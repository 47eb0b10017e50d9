"""MesaNet: each step solves a least-squares problem over all past keys and values, and reads with its solution.

von Oswald et al. 2025, MesaNet: Sequence Modeling by Locally Optimal Test-Time Training,
https://arxiv.org/abs/2506.05233. The recurrence is the paper's, and so are the convolution of q and k and the norm of
each head; the rest of its block is left out.

    q, k = unit(silu(conv(W_q x))), unit(silu(conv(W_k x))),    v = W_v x
    beta = sigmoid(W_beta x + b_beta),    gamma = sigmoid(W_gamma x + b_gamma)
    Lam = diag(softplus(lam) + 0.25)
    H = gamma H + beta k k^T,    G = gamma G + beta k v^T,    y = W_o rms_norm(G^T (H + Lam)^{-1} q)

The system is solved by `iterations` steps of conjugate gradients, in `scan` for all steps of a chunk at once,
materializing H between chunks only. Gradients are those of the exact solution. State: per head H and G [head_size,
head_size], and the last three inputs of the convolution; a start zeroes all.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.conv import ShortConvolution
from memax_rl.memory.layers.heads import check_heads, rms_norm, unit
from memax_rl.memory.layers.weights import check_size, normal, state_zeros
from memax_rl.ops import conjugate_gradients, linear, linear_attention, regularized_solve

State = tuple[
    Float[Array, "heads head_size head_size"], Float[Array, "heads head_size head_size"], Float[Array, "lags width"]
]


class MesaNet(Memory):
    """Reads by regularized least squares over the decayed past.

    The best linear prediction of values from keys, for associative recall with similar keys and in-context regression;
    costs `iterations` products with the state at each step.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
        iterations: steps of conjugate gradients.
    """

    family: ClassVar[str] = "matrix"
    paper: ClassVar[str] = "https://arxiv.org/abs/2506.05233"
    verified: ClassVar[str] = "fla, naive_mesa_net_exact"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    iterations: int
    w_qk: Float[Array, "in_size width"]
    w_v: Float[Array, "in_size inner"]
    conv: ShortConvolution
    w_beta: Float[Array, "in_size heads"]
    b_beta: Float[Array, " heads"]
    w_gamma: Float[Array, "in_size heads"]
    b_gamma: Float[Array, " heads"]
    lam: Float[Array, "heads head_size"]
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
        iterations: int = 30,
    ):
        self.in_size, self.out_size = in_size, out_size
        self.heads, self.head_size = check_heads(out_size, heads, head_size)
        self.iterations = check_size("iterations", iterations)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 6)
        self.w_qk, self.w_v = normal(keys[0], in_size, 2 * inner), normal(keys[1], in_size, inner)
        self.conv = ShortConvolution(2 * inner, key=keys[2])
        self.w_beta, self.b_beta = normal(keys[3], in_size, self.heads), jnp.zeros(self.heads)
        self.w_gamma, self.b_gamma = normal(keys[4], in_size, self.heads), jnp.linspace(3.0, 6.0, self.heads)
        # Lam is 1 at the start.
        self.lam = jnp.full((self.heads, self.head_size), jnp.log(jnp.expm1(0.75)))
        self.norm = jnp.ones(inner)
        self.w_o = normal(keys[5], inner, out_size)

    def _gates(self, x):
        """Return beta and log gamma [heads]."""
        beta = jax.nn.sigmoid(linear(x, self.w_beta) + self.b_beta)
        return beta, jax.nn.log_sigmoid(linear(x, self.w_gamma) + self.b_gamma)

    def _regularizer(self):
        return jax.nn.softplus(self.lam) + 0.25

    def _read(self, reads):
        return linear(rms_norm(reads, self.norm), self.w_o)

    def initial_state(self) -> State:
        zeros = state_zeros(self.norm, (self.heads, self.head_size, self.head_size))
        return zeros, zeros, self.conv.initial_state()

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        h, g, tail = state
        tail, qk = self.conv.step(tail, linear(x, self.w_qk), start)
        q, k = _activated(self.heads, qk)
        v = linear(x, self.w_v).reshape(self.heads, self.head_size)
        beta, log_gamma = self._gates(x)
        gamma, write = jnp.exp(log_gamma)[:, None, None], (beta[:, None] * k)[:, :, None]
        h = gamma * jnp.where(start, 0, h) + write * k[:, None, :]
        g = gamma * jnp.where(start, 0, g) + write * v[:, None, :]
        p = conjugate_gradients(lambda p: jnp.einsum("hk,hkj->hj", p, h), self._regularizer(), q, self.iterations)
        return (h, g, tail), self._read(jnp.einsum("hk,hkv->hv", p, g))

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """All solutions first, then they query G by `ops.linear_attention`, one call a head."""
        h, g, tail = state
        tail, (q, k) = self.conv.scan(tail, linear(xs, self.w_qk), starts, functools.partial(_activated, self.heads))
        v = linear(xs, self.w_v).reshape(-1, self.heads, self.head_size).astype(g.dtype)
        beta, log_gamma = jax.vmap(self._gates)(xs)

        def run(q, k, v, beta, log_gamma, regularizer, h, g):
            h, p = regularized_solve(q, k, beta, log_gamma, regularizer, h, starts, iterations=self.iterations)
            return h, *linear_attention(p, beta[:, None] * k, v, log_gamma, g, starts)

        h, g, reads = jax.vmap(run, in_axes=(1, 1, 1, 1, 1, 0, 0, 0), out_axes=(0, 0, 1))(
            q, k, v, beta, log_gamma, self._regularizer(), h, g
        )
        return (h, g, tail), jax.vmap(self._read)(reads)


def _activated(heads, qk):
    """Return unit(silu(q)) and unit(silu(k)) for each head, from both concatenated."""
    q, k = unit(jax.nn.silu(qk).reshape(2, heads, -1))
    return q, k
