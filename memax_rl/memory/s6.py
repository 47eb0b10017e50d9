"""S6: the selective state space of Mamba, with its convolution and gate.

Gu and Dao 2023, Mamba, https://arxiv.org/abs/2312.00752, algorithm 2 and figure 3. The whole layer, as transformers'
MambaMixer.

    u, z = W_u x, W_z x;    u = silu(conv(u) + b_conv)
    dt = softplus(W_up (W_down u) + dt_bias),    B, C = W_b u, W_c u,    A = -exp(a_log)
    h = exp(dt A) o h + (dt o u) B^T,    y = W_y ((h C + D o u) o silu(z))

h is [inner, state_size], dt, u, D [inner], B, C [state_size], conv a causal convolution of 4 taps for each
channel. At the start A is -1, ..., -state_size and softplus(dt_bias) log-uniform in [dt_min, dt_max].
The paper puts no norm behind the gate, and unit inputs leave about .2 there: W_y starts five times as large as usual.
State: h and the last three inputs of the convolution. Reset: both zero.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.conv import ShortConvolution
from memax_rl.memory.layers.weights import check_between, check_size, normal, state_zeros
from memax_rl.ops import linear, selective_scan

State = tuple[Float[Array, "inner state_size"], Float[Array, "lags inner"]]


class S6(Memory):
    """The Mamba layer: a diagonal state space model whose step size, input and output maps depend on the input.

    For selective memory: it can ignore noise for long and keep what matters.

    Args:
        state_size: state variables of each channel.
        expand: channels for each output.
        dt_min: smallest step size at the start.
        dt_max: largest step size at the start.

    Raises:
        ValueError: If a number is out of its range.
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "https://arxiv.org/abs/2312.00752"
    verified: ClassVar[str] = "transformers' MambaMixer, whole layer"

    in_size: int
    out_size: int
    w_u: Float[Array, "in_size inner"]
    w_z: Float[Array, "in_size inner"]
    conv: ShortConvolution
    b_conv: Float[Array, " inner"]
    w_down: Float[Array, "inner rank"]
    w_up: Float[Array, "rank inner"]
    dt_bias: Float[Array, " inner"]
    w_b: Float[Array, "inner state_size"]
    w_c: Float[Array, "inner state_size"]
    a_log: Float[Array, "inner state_size"]
    d: Float[Array, " inner"]
    w_y: Float[Array, "inner out_size"]

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        state_size: int = 16,
        expand: int = 2,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ):
        self.in_size, self.out_size = in_size, out_size
        state = check_size("state_size", state_size)
        inner = check_size("expand", expand) * out_size
        dt_min, dt_max = check_between("dt_min", dt_min, 1e-6, 10), check_between("dt_max", dt_max, 1e-6, 10)
        if not dt_min < dt_max:
            raise ValueError(f"dt_min must be below dt_max, got dt_min={dt_min:g} and dt_max={dt_max:g}")
        rank = max(1, out_size // 16)
        keys = jax.random.split(key, 9)
        self.w_u, self.w_z = (normal(k, in_size, inner) for k in keys[:2])
        self.conv, self.b_conv = ShortConvolution(inner, key=keys[2]), jnp.zeros(inner)
        self.w_down, self.w_up = normal(keys[3], inner, rank), normal(keys[4], rank, inner)
        dt = jnp.exp(jax.random.uniform(keys[5], (inner,), minval=math.log(dt_min), maxval=math.log(dt_max)))
        # The inverse of softplus.
        self.dt_bias = dt + jnp.log(-jnp.expm1(-dt))
        self.w_b, self.w_c = (normal(k, inner, state) for k in keys[6:8])
        self.a_log = jnp.broadcast_to(jnp.log(jnp.arange(1.0, state + 1)), (inner, state))
        self.d = jnp.ones(inner)
        self.w_y = normal(keys[8], inner, out_size, scale=5.0)

    def _selection(self, u):
        """Return dt, B and C from the inputs after the convolution."""
        dt = jax.nn.softplus(linear(linear(u, self.w_down), self.w_up) + self.dt_bias)
        return dt, linear(u, self.w_b), linear(u, self.w_c)

    def initial_state(self) -> State:
        return state_zeros(self.d, self.a_log.shape), self.conv.initial_state()

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        h, tail = state
        tail, u = self.conv.step(tail, linear(x, self.w_u), start)
        u = _activated(self.b_conv, u)
        dt, b, c = self._selection(u)
        decay = jnp.exp(-dt[:, None] * jnp.exp(self.a_log))
        h = decay * jnp.where(start, 0, h) + (dt * u)[:, None] * b[None, :]
        return (h, tail), linear((h @ c + self.d * u) * jax.nn.silu(linear(x, self.w_z)), self.w_y)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """All products with weights at once, then the recurrence by `ops.selective_scan`."""
        h, tail = state
        tail, us = self.conv.scan(tail, linear(xs, self.w_u), starts, _activated, self.b_conv)
        dts, bs, cs = jax.vmap(self._selection)(us)

        h, reads = selective_scan(dts, us, bs, cs, -jnp.exp(self.a_log).T, h.T, starts)
        ys = linear((reads + self.d[None] * us) * jax.nn.silu(linear(xs, self.w_z)), self.w_y)
        return (h.T, tail), ys


def _activated(bias, u):
    return jax.nn.silu(u + bias)
