"""S5: a multi-input multi-output diagonal state space model.

Smith et al. 2022, Simplified State Space Layers for Sequence Modeling, https://arxiv.org/abs/2208.04933.

    lam = exp(Lam dt)
    h = lam o h + (lam - 1) / Lam o (B x),    y = 2 Re(C h) + D x

Lam starts as the eigenvalues of the normal part of the HiPPO-LegS matrix (those of positive imaginary part:
each stands for a conjugate pair), with B and C in the basis of the eigenvectors; log dt is uniform in [log
dt_min, log dt_max]; the real part of Lam is kept at -1e-4 or below.
State: h complex [state_size / 2]. Reset: h = 0. D is diagonal where the sizes of input and output agree, else
a matrix.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import as_complex, check_between, check_size, normal, state_zeros
from memax_rl.ops import complex_diagonal_recurrence, linear

State = Complex[Array, " half"]


def _hippo(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and eigenvectors of the normal part of HiPPO-LegS, one of each conjugate pair."""
    p = np.sqrt(1 + 2 * np.arange(size))
    skew = np.tril(np.outer(p, p), -1) / 2
    skew = skew.T - skew
    # The normal part is skew - I / 2; -i skew is Hermitian, with real eigenvalues in pairs of either sign.
    values, vectors = np.linalg.eigh(-1j * skew)
    return -0.5 + 1j * values[size // 2 :], vectors[:, size // 2 :]


class S5(Memory):
    """Diagonal complex state space model, started from HiPPO, with a step size for each state variable.

    For long dependencies and smooth signals; parallel in time. Its decays do not depend on the input.

    Args:
        state_size: state variables, even: conjugate pairs. None: out_size, rounded up to even.
        dt_min: smallest step size at the start.
        dt_max: largest step size at the start.

    Raises:
        ValueError: If a number is out of its range, or `state_size` is odd.
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "https://arxiv.org/abs/2208.04933"
    verified: ClassVar[str] = "lindermanlab/S5 (zero-order hold, clipped eigenvalues)"

    in_size: int
    out_size: int
    lam_re: Float[Array, " half"]
    lam_im: Float[Array, " half"]
    log_dt: Float[Array, " half"]
    b_re: Float[Array, "in_size half"]
    b_im: Float[Array, "in_size half"]
    c_re: Float[Array, "half out_size"]
    c_im: Float[Array, "half out_size"]
    d: Float[Array, " out_size"] | Float[Array, "in_size out_size"]

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        state_size: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ):
        self.in_size, self.out_size = in_size, out_size
        size = 2 * -(-out_size // 2) if state_size is None else check_size("state_size", state_size, 2)
        if size % 2:
            raise ValueError(f"state_size must be even, because the states are conjugate pairs, got {size}")
        dt_min, dt_max = check_between("dt_min", dt_min, 1e-6, 10), check_between("dt_max", dt_max, 1e-6, 10)
        if not dt_min < dt_max:
            raise ValueError(f"dt_min must be below dt_max, got dt_min={dt_min:g} and dt_max={dt_max:g}")
        keys = jax.random.split(key, 5)
        values, vectors = _hippo(size)
        self.lam_re = jnp.asarray(np.real(values))
        self.lam_im = jnp.asarray(np.imag(values))
        self.log_dt = jax.random.uniform(keys[0], (size // 2,), minval=math.log(dt_min), maxval=math.log(dt_max))
        v_re, v_im = (jnp.asarray(part(vectors)) for part in (np.real, np.imag))
        b = normal(keys[1], in_size, size)
        # V^-1 is the conjugate transpose of V, because the matrix is normal.
        self.b_re, self.b_im = b @ v_re, -(b @ v_im)
        c_re, c_im = (normal(k, size, out_size, 2**-0.5) for k in keys[2:4])
        self.c_re, self.c_im = v_re.T @ c_re - v_im.T @ c_im, v_re.T @ c_im + v_im.T @ c_re
        square = in_size == out_size
        self.d = jax.random.normal(keys[4], (out_size,)) if square else normal(keys[4], in_size, out_size)

    def _discrete(self) -> tuple[Complex[Array, " half"], Complex[Array, " half"]]:
        """Return lam and the factor (lam - 1) / Lam of the input."""
        continuous = as_complex(jnp.minimum(self.lam_re, -1e-4), self.lam_im)
        lam = jnp.exp(continuous * jnp.exp(self.log_dt))
        return lam, (lam - 1) / continuous

    def _write(self, x, scale):
        return as_complex(linear(x, self.b_re), linear(x, self.b_im)) * scale

    def _read(self, h, x):
        skip = x * self.d if self.d.ndim == 1 else linear(x, self.d)
        return 2 * (linear(h.real, self.c_re) - linear(h.imag, self.c_im)) + skip

    def initial_state(self) -> State:
        zeros = state_zeros(self.lam_re, self.lam_re.shape)
        return as_complex(zeros, zeros)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        lam, scale = self._discrete()
        h = lam * jnp.where(start, 0, state) + self._write(x, scale)
        return h, self._read(h, x)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        lam, scale = self._discrete()
        # B is scaled once, instead of every write.
        b_re, b_im, re, im = self.b_re, self.b_im, scale.real[None], scale.imag[None]
        writes = linear(xs, jnp.concatenate([re * b_re - im * b_im, re * b_im + im * b_re], axis=1))
        first = jnp.stack([state.real, state.imag])
        hs = complex_diagonal_recurrence(lam.real, lam.imag, writes.reshape(len(xs), 2, -1), first, starts)
        skip = xs * self.d[None] if self.d.ndim == 1 else linear(xs, self.d)
        ys = linear(hs.reshape(len(xs), -1), 2 * jnp.concatenate([self.c_re, -self.c_im])) + skip
        return jax.lax.complex(*hs[-1]), ys
