"""Fast and forgetful memory.

Morad et al. 2023, Reinforcement Learning with Fast and Forgetful Memory, https://arxiv.org/abs/2310.04128.

    u = (W_p x + b_p) o sigmoid(W_i x + b_i)
    S = gamma o S + u 1^T,    gamma_jk = exp(-|decay_j| + i frequency_k)
    g = sigmoid(W_g x + b_g)
    y = layer_norm((W_m [Re S, Im S] + b_m) o g) + (W_s x + b_s) o (1 - g)

State: S complex [trace_size, context_size]. Reset: S = 0. At the start decay is spread evenly over [1e-6,
0.5] and the frequencies are 2 pi over periods spread evenly over [1, max_period].
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.heads import check_norm, each_row
from memax_rl.memory.layers.weights import as_complex, check_size, normal, state_zeros
from memax_rl.ops import complex_diagonal_recurrence, linear

State = Complex[Array, "trace_size context_size"]

_EPS = 1e-5


class FFM(Memory):
    """Traces of the gated input that decay at several rates and oscillate at several frequencies.

    Made for reinforcement learning: few parameters, and the trace's phase tells how long ago something was seen.

    Args:
        trace_size: traces, each with a rate of decay.
        context_size: frequencies of each trace.
        max_period: longest period at the start, steps.
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "https://arxiv.org/abs/2310.04128"
    verified: ClassVar[str] = "proroklab/ffm"

    in_size: int
    out_size: int
    decay: Float[Array, " trace_size"]
    frequency: Float[Array, " context_size"]
    w_p: Float[Array, "in_size trace_size"]
    b_p: Float[Array, " trace_size"]
    w_i: Float[Array, "in_size trace_size"]
    b_i: Float[Array, " trace_size"]
    w_m: Float[Array, "2*trace_size*context_size out_size"]
    b_m: Float[Array, " out_size"]
    w_g: Float[Array, "in_size out_size"]
    b_g: Float[Array, " out_size"]
    w_s: Float[Array, "in_size out_size"]
    b_s: Float[Array, " out_size"]

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        trace_size: int = 32,
        context_size: int = 4,
        max_period: int = 1024,
    ):
        self.in_size, self.out_size = in_size, out_size
        check_norm("out_size", out_size)
        trace, context = check_size("trace_size", trace_size), check_size("context_size", context_size)
        check_size("max_period", max_period)
        keys = jax.random.split(key, 5)
        self.decay = jnp.linspace(1e-6, 0.5, trace)
        self.frequency = 2 * math.pi / jnp.linspace(1, max_period, context)
        self.w_p, self.b_p = normal(keys[0], in_size, trace), jnp.zeros(trace)
        self.w_i, self.b_i = normal(keys[1], in_size, trace), jnp.zeros(trace)
        self.w_m, self.b_m = normal(keys[2], 2 * trace * context, out_size), jnp.zeros(out_size)
        self.w_g, self.b_g = normal(keys[3], in_size, out_size), jnp.zeros(out_size)
        self.w_s, self.b_s = normal(keys[4], in_size, out_size), jnp.zeros(out_size)

    def _gamma(self) -> Complex[Array, "trace_size context_size"]:
        modulus, phase = jnp.exp(-jnp.abs(self.decay))[:, None], self.frequency[None]
        return as_complex(modulus * jnp.cos(phase), modulus * jnp.sin(phase))

    def _write(self, x):
        """Return u, which every context gets."""
        return (linear(x, self.w_p) + self.b_p) * jax.nn.sigmoid(linear(x, self.w_i) + self.b_i)

    def _read(self, s, x):
        """Return y from the real parts of S, then its imaginary parts, in one vector."""
        return _gated(*self._biases(), *self._projections(s, x))

    def _projections(self, s, x):
        return linear(s, self.w_m), linear(x, self.w_g), linear(x, self.w_s)

    def _biases(self):
        return self.b_m, self.b_g, self.b_s

    def initial_state(self) -> State:
        zeros = state_zeros(self.decay, (self.decay.shape[0], self.frequency.shape[0]))
        return as_complex(zeros, zeros)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        s = self._gamma() * jnp.where(start, 0, state) + self._write(x)[:, None]
        return s, self._read(jnp.concatenate([s.real, s.imag]).reshape(-1), x)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        gamma = self._gamma().reshape(-1)
        us = jnp.repeat(jax.vmap(self._write)(xs), self.frequency.shape[0], axis=1)
        writes = jnp.stack([us, jnp.zeros_like(us)], axis=1)
        first = jnp.stack([state.real.reshape(-1), state.imag.reshape(-1)])
        hs = complex_diagonal_recurrence(gamma.real, gamma.imag, writes, first, starts)
        ys = each_row(_gated, self._projections(hs.reshape(len(xs), -1), xs), *self._biases())
        return jax.lax.complex(*hs[-1]).reshape(state.shape), ys


def _gated(b_m, b_g, b_s, m, g, s):
    """Return layer_norm((m + b_m) o g) + (s + b_s) o (1 - g) with g = sigmoid(g + b_g)."""
    g = jax.nn.sigmoid(g + b_g)
    gated = (m + b_m) * g
    centred = gated - jnp.mean(gated)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2) + _EPS)
    return normed + (s + b_s) * (1 - g)
