"""ParaLSTM: an LSTM with diagonal recurrent weights, which Newton's method solves in parallel.

Danieli et al. 2025, ParaRNN, https://arxiv.org/abs/2510.21450; the recurrence of the authors' code
(https://github.com/apple/ml-pararnn), without the block around it.

    f = sigmoid(W_f x + b_f + a_f o h + p_f o c)
    n = tanh(W_n x + b_n + a_n o h)
    c = f o c + (1 - f) o n
    o = sigmoid(W_o x + b_o + a_o o h + p_o o c)    with the new c
    h = o o tanh(c),    y = h

y is h, a gate times the tanh of a running average, of a size of about 0.15 for unit inputs at initialization, like that
of an LSTM: no output matrix could scale it, because h feeds back.

State: h, c [out_size]. Reset: h = c = 0. The Jacobian of a step is a 2 x 2 matrix for each unit. `scan` is a loop on a
CPU, where that is faster, and Newton's method elsewhere.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import normal, select, state_zeros
from memax_rl.ops import elementwise_recurrence, linear

State = tuple[Float[Array, " out_size"], Float[Array, " out_size"]]


def _cell(weights, x, state):
    (a_f, a_n, a_o), (p_f, p_o) = weights
    h, c = state
    f = jax.nn.sigmoid(x[0] + a_f * h + p_f * c)
    n = jnp.tanh(x[1] + a_n * h)
    c = f * c + (1 - f) * n
    o = jax.nn.sigmoid(x[2] + a_o * h + p_o * c)
    return o * jnp.tanh(c), c


class ParaLSTM(Memory):
    """LSTM with diagonal recurrent weights, coupled gates and peepholes.

    Nonlinear in the state and still parallel in time, by Newton's method on accelerators. Gates are in the order f, n,
    o; the forget bias starts at 1.

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
    p: tuple[Float[Array, " out_size"], ...]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray, solver: str | None = None):
        self.in_size, self.out_size = in_size, out_size
        if solver not in (None, "sequential", "newton"):
            raise ValueError(f"solver must be 'sequential', 'newton' or None (by backend), got {solver!r}")
        self.solver = solver
        keys = jax.random.split(key, 8)
        self.w = tuple(normal(k, in_size, out_size) for k in keys[:3])
        self.b = jnp.ones(out_size), jnp.zeros(out_size), jnp.zeros(out_size)
        self.a = tuple(jax.random.normal(k, (out_size,)) for k in keys[3:6])
        self.p = tuple(jax.random.normal(k, (out_size,)) for k in keys[6:])

    def _inputs(self, x):
        return tuple(linear(x, w) + b for w, b in zip(self.w, self.b, strict=True))

    def initial_state(self) -> State:
        return state_zeros(self.b[0], self.out_size), state_zeros(self.b[0], self.out_size)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        state = select(start, self.initial_state(), state)
        state = _cell((self.a, self.p), self._inputs(x), state)
        return state, state[0]

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """All input products at once, then `ops.elementwise_recurrence`."""
        inputs = jax.vmap(self._inputs)(xs)
        hs, cs = elementwise_recurrence(_cell, (self.a, self.p), inputs, state, starts, method=self.solver)
        return (hs[-1], cs[-1]), hs
