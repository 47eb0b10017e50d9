"""Long short-term memory with a forget gate.

Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735; forget gate of Gers et al. 2000,
https://doi.org/10.1162/089976600300015015, its bias started at 1.

    i, f, o = sigmoid(W x + b + U h) each with its own W, b, U
    g = tanh(W_g x + b_g + U_g h)
    c = f o c + i o g,    h = o o tanh(c),    y = h

State: h, c [out_size].
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import normal, orthogonal, select, state_zeros
from memax_rl.ops import linear, nonlinear_recurrence, nonlinear_step

State = tuple[Float[Array, " out_size"], ...]


def _cell(gates, state):
    i, f, o, g = gates
    _, c = state
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _product(weights, h):
    return tuple(linear(h, u) for u in weights)


class LSTM(Memory):
    """Long short-term memory with orthogonal recurrent matrices and forget bias 1. Gates are in the order i, f, o, g.

    Counts and keeps values longer than a GRU, at twice the state; sequential in time.
    """

    family: ClassVar[str] = "nonlinear"
    paper: ClassVar[str] = "https://doi.org/10.1162/neco.1997.9.8.1735"
    verified: ClassVar[str] = "torch.lstm_cell"

    in_size: int
    out_size: int
    w: tuple[Float[Array, "in_size out_size"], ...]
    b: tuple[Float[Array, " out_size"], ...]
    u: tuple[Float[Array, "out_size out_size"], ...]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray):
        self.in_size, self.out_size = in_size, out_size
        keys = jax.random.split(key, 8)
        self.w = tuple(normal(k, in_size, out_size) for k in keys[:4])
        self.u = tuple(orthogonal(k, out_size) for k in keys[4:])
        self.b = (jnp.zeros(out_size), jnp.ones(out_size), jnp.zeros(out_size), jnp.zeros(out_size))

    def _inputs(self, x):
        return tuple(linear(x, w) + b for w, b in zip(self.w, self.b, strict=True))

    def initial_state(self) -> State:
        return state_zeros(self.b[0], self.out_size), state_zeros(self.b[0], self.out_size)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        state = select(start, self.initial_state(), state)
        state = nonlinear_step(_cell, _product, self.u, self._inputs(x), state)
        return state, state[0]

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        return nonlinear_recurrence(_cell, _product, self.u, jax.vmap(self._inputs)(xs), state, starts)
