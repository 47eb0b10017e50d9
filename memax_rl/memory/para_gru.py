"""ParaGRU: a GRU with diagonal recurrent weights, which Newton's method solves in parallel.

Danieli et al. 2025, ParaRNN, https://arxiv.org/abs/2510.21450; the recurrence of the authors' code
(https://github.com/apple/ml-pararnn), without the block around it.

    z = sigmoid(W_z x + b_z + a_z o h)
    r = sigmoid(W_r x + b_r + a_r o h)
    n = tanh(W_n x + b_n + a_n o h o r)
    h = (1 - z) o h + z o n,    y = h

State: h [out_size]. Reset: h = 0. `scan` is a loop on a CPU, where that is faster, and Newton's method elsewhere.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import normal, select, state_zeros
from memax_rl.ops import elementwise_recurrence, linear

State = tuple[Float[Array, " out_size"]]


def _cell(a, x, state):
    (h,) = state
    z = jax.nn.sigmoid(x[0] + a[0] * h)
    r = jax.nn.sigmoid(x[1] + a[1] * h)
    n = jnp.tanh(x[2] + a[2] * h * r)
    return ((1 - z) * h + z * n,)


class ParaGRU(Memory):
    """GRU with diagonal recurrent weights. Gates are in the order z, r, n.

    Nonlinear in the state and still parallel in time, by Newton's method on accelerators.

    Args:
        solver: 'sequential' or 'newton'. None: sequential on a CPU, Newton's method elsewhere.

    Raises:
        ValueError: If `solver` is none of its values.
    """

    family: ClassVar[str] = "nonlinear"
    paper: ClassVar[str] = "https://arxiv.org/abs/2510.21450"
    verified: ClassVar[str] = "apple/ml-pararnn, recurrence_step, by both solvers"

    in_size: int
    out_size: int
    solver: str | None
    w: tuple[Float[Array, "in_size out_size"], ...]
    b: tuple[Float[Array, " out_size"], ...]
    a: tuple[Float[Array, " out_size"], ...]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray, solver: str | None = None):
        self.in_size, self.out_size = in_size, out_size
        if solver not in (None, "sequential", "newton"):
            raise ValueError(f"solver must be 'sequential', 'newton' or None (by backend), got {solver!r}")
        self.solver = solver
        keys = jax.random.split(key, 6)
        self.w = tuple(normal(k, in_size, out_size) for k in keys[:3])
        self.b = tuple(jnp.zeros(out_size) for _ in range(3))
        self.a = tuple(jax.random.normal(k, (out_size,)) for k in keys[3:])

    def _inputs(self, x):
        return tuple(linear(x, w) + b for w, b in zip(self.w, self.b, strict=True))

    def initial_state(self) -> State:
        return (state_zeros(self.b[0], self.out_size),)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        state = select(start, self.initial_state(), state)
        state = _cell(self.a, self._inputs(x), state)
        return state, state[0]

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """All input products at once, then `ops.elementwise_recurrence`."""
        inputs = jax.vmap(self._inputs)(xs)
        (hs,) = elementwise_recurrence(_cell, self.a, inputs, state, starts, method=self.solver)
        return (hs[-1],), hs
