"""Bistable memory recurrent unit: units of +1 or -1 that hold their value until a sufficiently strong input.

https://arxiv.org/abs/2601.09495, implemented from the recurrence alone. Whether alpha depends on the input could not be
confirmed; here it is a trained vector. The authors state pending patents and an evaluation-only licence for their own
code.

    c = W_c x + b_c,    beta = W_beta x + b_beta
    z = H(|c| - |beta|)
    h = z (sign(c) + eps h) + (1 - z) h
    y = W_o (alpha o h) + b_o

H is the unit step, whose derivative is replaced by a / (1 + (pi a u)^2), and that of the sign by twice this
(a = `surrogate`). State: h [state_size]. Reset: the sign of a trained vector. `eps` is 0 for the unit proper
and 1 for its cumulative form.
"""

import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import check_between, check_size, normal, state_dtype
from memax_rl.ops import linear, linear_recurrence

State = Float[Array, " state_size"]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sign(u: Float[Array, "..."], slope: float) -> Float[Array, "..."]:
    """Return -1 below 0 and 1 from 0 on, with a smooth bump for a derivative."""
    return jnp.where(u < 0, -1.0, 1.0).astype(u.dtype)


@_sign.defjvp
def _sign_jvp(slope, primals, tangents):
    (u,), (du,) = primals, tangents
    return _sign(u, slope), 2 * slope / (1 + (math.pi * slope * u) ** 2) * du


class BMRU(Memory):
    """Bistable units: each holds +1 or -1 until an input above its threshold overwrites it.

    For a few discrete facts that must be kept for any number of steps without fading. Gradients are surrogates.

    Args:
        state_size: state variables. None: out_size.
        eps: share of the old value that a write keeps: 0 the unit proper, 1 its cumulative form.
        surrogate: steepness of the derivative that replaces that of the unit step.
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "https://arxiv.org/abs/2601.09495"
    verified: ClassVar[str] = "from the paper's text only"

    in_size: int
    out_size: int
    eps: float
    surrogate: float
    first: Float[Array, " state_size"]
    w_c: Float[Array, "in_size state_size"]
    b_c: Float[Array, " state_size"]
    w_beta: Float[Array, "in_size state_size"]
    b_beta: Float[Array, " state_size"]
    alpha: Float[Array, " state_size"]
    w_o: Float[Array, "state_size out_size"]
    b_o: Float[Array, " out_size"]

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        state_size: int | None = None,
        eps: float = 0.0,
        surrogate: float = 1.0,
    ):
        self.in_size, self.out_size = in_size, out_size
        size = out_size if state_size is None else check_size("state_size", state_size)
        self.eps = check_between("eps", eps, 0, 1)
        self.surrogate = check_between("surrogate", surrogate, 1e-6, 1e6)
        keys = jax.random.split(key, 4)
        self.first = jax.random.normal(keys[0], (size,))
        self.w_c, self.b_c = normal(keys[1], in_size, size), jnp.zeros(size)
        self.w_beta, self.b_beta = normal(keys[2], in_size, size), jnp.ones(size)
        self.alpha = jnp.ones(size)
        self.w_o, self.b_o = normal(keys[3], size, out_size), jnp.zeros(out_size)

    def _gates(self, x):
        """Return z and sign(c)."""
        c, beta = linear(x, self.w_c) + self.b_c, linear(x, self.w_beta) + self.b_beta
        return (_sign(jnp.abs(c) - jnp.abs(beta), self.surrogate) + 1) / 2, _sign(c, self.surrogate)

    def _read(self, h):
        return linear(self.alpha * h, self.w_o) + self.b_o

    def initial_state(self) -> State:
        return _sign(self.first.astype(state_dtype(self.first)), self.surrogate)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        h = jnp.where(start, self.initial_state(), state)
        z, write = self._gates(x)
        h = z * (write + self.eps * h) + (1 - z) * h
        return h, self._read(h)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """The recurrence is linear in h: `ops.linear_recurrence`, the trained signs as a write at a start."""
        zs, writes = jax.vmap(self._gates)(xs)
        decays, writes = 1 - zs + self.eps * zs, zs * writes
        writes = jnp.where(starts[:, None], decays * self.initial_state()[None], 0) + writes
        hs = linear_recurrence(decays, writes, state, starts)
        return hs[-1], jax.vmap(self._read)(hs)
