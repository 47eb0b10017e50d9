"""Mamba-2: a state space model with one decay per head, computed as linear attention.

Dao and Gu 2024, Transformers are SSMs, https://arxiv.org/abs/2405.21060. The whole layer, as transformers'
Mamba2Mixer with one group of B and C and no limits on dt.

    x', B, C = silu(conv(W_x x, W_B x, W_C x) + b_conv),    dt = softplus(W_dt x + dt_bias),    z = W_z x
    S = exp(-exp(a_log) dt) S + B (dt x')^T,    y = W_o rms_norm((S^T C + d o x') o silu(z))

x' has [heads, head_size] entries; B and C [state_size] are shared by the heads; dt, a_log and d have one entry per
head. At the start b_conv is zero, exp(a_log) ~ U(1, 16) and softplus(dt_bias) log-uniform in [0.001, 0.1]. State: per
head S [state_size, head_size], and the last three inputs of the convolution; a start zeroes all.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.conv import ShortConvolution
from memax_rl.memory.layers.heads import check_heads, decay_rates, rms_norm
from memax_rl.memory.layers.weights import check_size, normal, state_zeros
from memax_rl.ops import linear, linear_attention

State = tuple[Float[Array, "heads state_size head_size"], Float[Array, "lags width"]]


class Mamba2(Memory):
    """State space model with one decay for each head and step; the heads share keys and queries.

    A large state at low cost: for long episodes with much to remember.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: columns of a head's state.
        state_size: rows of a head's state.
    """

    family: ClassVar[str] = "matrix"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.21060"
    verified: ClassVar[str] = "transformers' Mamba2Mixer, whole layer; the bias of the convolution: read against it"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    state_size: int
    w_xbc: Float[Array, "in_size width"]
    conv: ShortConvolution
    b_conv: Float[Array, " width"]
    w_dt: Float[Array, "in_size heads"]
    dt_bias: Float[Array, " heads"]
    a_log: Float[Array, " heads"]
    d: Float[Array, " heads"]
    w_z: Float[Array, "in_size inner"]
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
        state_size: int = 64,
    ):
        self.in_size, self.out_size = in_size, out_size
        self.heads, self.head_size = check_heads(out_size, heads, head_size)
        self.state_size = check_size("state_size", state_size)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 6)
        self.w_xbc = normal(keys[0], in_size, inner + 2 * self.state_size)
        self.conv = ShortConvolution(inner + 2 * self.state_size, key=keys[1])
        self.b_conv = jnp.zeros(inner + 2 * self.state_size)
        self.w_dt = normal(keys[2], in_size, self.heads)
        self.a_log, self.dt_bias = decay_rates(keys[3], self.heads, smallest=1.0)
        self.d = jnp.ones(self.heads)
        self.w_z = normal(keys[4], in_size, inner)
        self.norm = jnp.ones(inner)
        self.w_o = normal(keys[5], inner, out_size)

    def _gates(self, x):
        """Return dt and log_decay [heads]."""
        dt = jax.nn.softplus(linear(x, self.w_dt) + self.dt_bias)
        return dt, -jnp.exp(self.a_log) * dt

    def _read(self, reads, u, x):
        y = (reads + self.d[:, None] * u).reshape(1, -1) * jax.nn.silu(linear(x, self.w_z))[None]
        return linear(rms_norm(y, self.norm), self.w_o)

    def initial_state(self) -> State:
        return state_zeros(self.norm, (self.heads, self.state_size, self.head_size)), self.conv.initial_state()

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        s, tail = state
        tail, xbc = self.conv.step(tail, linear(x, self.w_xbc), start)
        u, b, c = _activated(self.heads, self.head_size, self.b_conv, xbc)
        dt, log_decay = self._gates(x)
        write = b[None, :, None] * (dt[:, None] * u)[:, None, :]
        s = jnp.exp(log_decay)[:, None, None] * jnp.where(start, 0, s) + write
        return (s, tail), self._read(jnp.einsum("n,hnp->hp", c, s), u, x)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        s, tail = state
        activated = functools.partial(_activated, self.heads, self.head_size)
        tail, (u, b, c) = self.conv.scan(tail, linear(xs, self.w_xbc), starts, activated, self.b_conv)
        dt, log_decay = jax.vmap(self._gates)(xs)
        run = jax.vmap(linear_attention, in_axes=(None, None, 1, 1, 0, None), out_axes=(0, 1))
        s, reads = run(c, b, dt[:, :, None] * u, log_decay, s, starts)
        return (s, tail), jax.vmap(self._read)(reads, u, xs)


def _activated(heads, head_size, bias, xbc):
    """Return x' [heads, head_size], B and C [state_size] from the three concatenated."""
    x, bc = jnp.split(jax.nn.silu(xbc + bias), [heads * head_size])
    return x.reshape(heads, head_size), *jnp.split(bc, 2)
