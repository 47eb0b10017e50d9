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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from memax_rl.memory._contract import Memory
from memax_rl.memory._layers import check_size, normal
from memax_rl.ops import linear_recurrence

_EPS = 1e-5


class FFM(Memory):
    """Traces of the gated input that fade at several rates and turn at several frequencies."""

    in_size: int
    out_size: int
    decay: Float[Array, " trace_size"]
    frequency: Float[Array, " context_size"]
    w_p: Float[Array, "in_size trace_size"]
    b_p: Float[Array, " trace_size"]
    w_i: Float[Array, "in_size trace_size"]
    b_i: Float[Array, " trace_size"]
    w_m_re: Float[Array, "trace_size context_size out_size"]
    w_m_im: Float[Array, "trace_size context_size out_size"]
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
        trace, context = check_size("trace_size", trace_size), check_size("context_size", context_size)
        check_size("max_period", max_period)
        keys = jax.random.split(key, 6)
        self.decay = jnp.linspace(1e-6, 0.5, trace)
        self.frequency = 2 * math.pi / jnp.linspace(1, max_period, context)
        self.w_p, self.b_p = normal(keys[0], in_size, trace), jnp.zeros(trace)
        self.w_i, self.b_i = normal(keys[1], in_size, trace), jnp.zeros(trace)
        mix = (normal(k, 2 * trace * context, out_size) for k in keys[2:4])
        self.w_m_re, self.w_m_im = (m[::2].reshape(trace, context, out_size) for m in mix)
        self.w_g, self.b_g = normal(keys[4], in_size, out_size), jnp.zeros(out_size)
        self.w_s, self.b_s = normal(keys[5], in_size, out_size), jnp.zeros(out_size)
        self.b_m = jnp.zeros(out_size)

    def _gamma(self) -> Complex[Array, "trace_size context_size"]:
        modulus, phase = jnp.exp(-jnp.abs(self.decay))[:, None], self.frequency[None]
        return jax.lax.complex(modulus * jnp.cos(phase), modulus * jnp.sin(phase))

    def _write(self, x):
        """Return u, which every context gets."""
        u = (x @ self.w_p + self.b_p) * jax.nn.sigmoid(x @ self.w_i + self.b_i)
        return jnp.broadcast_to(u[:, None], (*u.shape, self.frequency.shape[0]))

    def _read(self, s, x):
        g = jax.nn.sigmoid(x @ self.w_g + self.b_g)
        out = self.b_g.shape
        mix = s.real.reshape(-1) @ self.w_m_re.reshape(-1, *out) + s.imag.reshape(-1) @ self.w_m_im.reshape(-1, *out)
        gated = (mix + self.b_m) * g
        centred = gated - jnp.mean(gated)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred**2) + _EPS)
        return normed + (x @ self.w_s + self.b_s) * (1 - g)

    def initial_state(self):
        """Return S = 0."""
        return jnp.zeros((self.decay.shape[0], self.frequency.shape[0]), jnp.complex64)

    def step(self, state, x, start):
        """One step of the recurrence, as in the paper."""
        s = self._gamma() * jnp.where(start, 0, state) + self._write(x)
        return s, self._read(s, x)

    def scan(self, state, xs, starts):
        """The recurrence over all steps by `ops.linear_recurrence`, on flat states."""
        us = jax.vmap(self._write)(xs).reshape(xs.shape[0], -1)
        hs = linear_recurrence(self._gamma().reshape(-1), us, state.reshape(-1), starts)
        return hs[-1].reshape(state.shape), jax.vmap(self._read)(hs, xs)
