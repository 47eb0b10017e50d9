"""Linear recurrent unit.

Orvieto et al. 2023, Resurrecting Recurrent Neural Networks for Long Sequences, https://arxiv.org/abs/2303.06349.

    lam = exp(-exp(nu_log) + i exp(theta_log))
    h = lam o h + exp(gamma_log) o (B x),    y = Re(C h) + D x

State: h complex [state_size]. B and C are complex and kept as real and imaginary parts; D is diagonal where the sizes
of input and output agree, as in the paper, and a matrix otherwise. At the start |lam|^2 is uniform in
[r_min^2, r_max^2], the phase uniform in [0, max_phase] and exp(gamma_log) = sqrt(1 - |lam|^2).
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import as_complex, check_between, check_size, normal, state_zeros
from memax_rl.ops import complex_diagonal_recurrence, linear

State = Complex[Array, " state_size"]


class LRU(Memory):
    """Diagonal complex linear recurrence with fixed (input-independent) decays.

    For long dependencies at regular delays; parallel in time. The defaults of `r_min`, `r_max` and `max_phase` remember
    for ten to a thousand steps: with them RepeatPreviousHard is learned several times faster than with r_min = 0.5.

    Args:
        state_size: complex state variables. None: out_size.
        r_min: smallest modulus of the decay at the start.
        r_max: largest modulus of the decay at the start.
        max_phase: largest phase of the decay at the start, radians.

    Raises:
        ValueError: If a number is out of its range.
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "https://arxiv.org/abs/2303.06349"
    verified: ClassVar[str] = "NicolasZucchet/minimal-LRU"

    in_size: int
    out_size: int
    nu_log: Float[Array, " state_size"]
    theta_log: Float[Array, " state_size"]
    gamma_log: Float[Array, " state_size"]
    b_re: Float[Array, "in_size state_size"]
    b_im: Float[Array, "in_size state_size"]
    c_re: Float[Array, "state_size out_size"]
    c_im: Float[Array, "state_size out_size"]
    d: Float[Array, " out_size"] | Float[Array, "in_size out_size"]

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        state_size: int | None = None,
        r_min: float = 0.9,
        r_max: float = 0.999,
        max_phase: float = math.pi,
    ):
        self.in_size, self.out_size = in_size, out_size
        size = out_size if state_size is None else check_size("state_size", state_size)
        r_min, r_max = check_between("r_min", r_min, 0, 1), check_between("r_max", r_max, 0, 1)
        if not r_min < r_max:
            raise ValueError(f"r_min must be below r_max, got r_min={r_min:g} and r_max={r_max:g}")
        max_phase = check_between("max_phase", max_phase, 1e-6, 2 * math.pi)
        keys = jax.random.split(key, 7)
        # Open at both ends: a modulus of exactly 0 or 1, or a phase of 0, has no logarithm.
        u, v = jax.random.uniform(keys[0], (2, size), minval=1e-4, maxval=1 - 1e-4)
        modulus_squared = r_min**2 + u * (r_max**2 - r_min**2)
        self.nu_log = jnp.log(-0.5 * jnp.log(modulus_squared))
        self.theta_log = jnp.log(max_phase * v)
        self.gamma_log = 0.5 * jnp.log1p(-modulus_squared)
        self.b_re, self.b_im = (normal(k, in_size, size, 2**-0.5) for k in keys[1:3])
        self.c_re, self.c_im = (normal(k, size, out_size) for k in keys[3:5])
        square = in_size == out_size
        self.d = jax.random.normal(keys[5], (out_size,)) if square else normal(keys[5], in_size, out_size)

    def _decay(self) -> Complex[Array, " state_size"]:
        return jnp.exp(as_complex(-jnp.exp(self.nu_log), jnp.exp(self.theta_log)))

    def _write(self, x):
        scale = jnp.exp(self.gamma_log)
        return as_complex(linear(x, self.b_re) * scale, linear(x, self.b_im) * scale)

    def _read(self, h, x):
        skip = x * self.d if self.d.ndim == 1 else linear(x, self.d)
        return linear(h.real, self.c_re) - linear(h.imag, self.c_im) + skip

    def initial_state(self) -> State:
        zeros = state_zeros(self.nu_log, self.nu_log.shape)
        return as_complex(zeros, zeros)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        h = self._decay() * jnp.where(start, 0, state) + self._write(x)
        return h, self._read(h, x)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        into = jnp.concatenate([self.b_re, self.b_im], axis=1) * jnp.tile(jnp.exp(self.gamma_log), 2)[None]
        writes = linear(xs, into).reshape(len(xs), 2, -1)
        decay = self._decay()
        hs = complex_diagonal_recurrence(decay.real, decay.imag, writes, jnp.stack([state.real, state.imag]), starts)
        skip = xs * self.d[None] if self.d.ndim == 1 else linear(xs, self.d)
        ys = linear(hs.reshape(len(xs), -1), jnp.concatenate([self.c_re, -self.c_im])) + skip
        return jax.lax.complex(*hs[-1]), ys
