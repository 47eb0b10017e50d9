"""Long short-term memory with a forget gate.

Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735; forget gate of Gers et al. 2000,
https://doi.org/10.1162/089976600300015015, its bias started at 1.

    i, f, o = sigmoid(W x + b + U h) each with its own W, b, U
    g = tanh(W_g x + b_g + U_g h)
    c = f o c + i o g,    h = o o tanh(c),    y = h

State: h, c [out_size].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import matrix, orthogonal, select, state_zeros
from memax_rl.ops import linear, nonlinear_recurrence, nonlinear_step


def _cell(gates, state):
    i, f, o, g = gates
    _, c = state
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _product(weights, h):
    return tuple(linear(h, u.T) for u in weights)


class LSTM(Memory):
    """LSTM with orthogonal recurrent matrices and forget bias 1. Gates are in the order i, f, o, g."""

    in_size: int
    out_size: int
    w: tuple[Float[Array, "out_size in_size"], ...]
    b: tuple[Float[Array, " out_size"], ...]
    u: tuple[Float[Array, "out_size out_size"], ...]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray):
        self.in_size, self.out_size = in_size, out_size
        keys = jax.random.split(key, 8)
        self.w = tuple(matrix(k, in_size, out_size) for k in keys[:4])
        self.u = tuple(orthogonal(k, out_size) for k in keys[4:])
        self.b = (jnp.zeros(out_size), jnp.ones(out_size), jnp.zeros(out_size), jnp.zeros(out_size))

    def _inputs(self, x):
        return tuple(linear(x, w.T) + b for w, b in zip(self.w, self.b, strict=True))

    def initial_state(self):
        """Return h = c = 0."""
        return state_zeros(self.b[0], self.out_size), state_zeros(self.b[0], self.out_size)

    def step(self, state, x, start):
        """Reset if asked, then one cell."""
        state = select(start, self.initial_state(), state)
        state = nonlinear_step(_cell, _product, self.u, self._inputs(x), state)
        return state, state[0]

    def scan(self, state, xs, starts):
        """All input products at once, then the sequential recurrence."""
        return nonlinear_recurrence(_cell, _product, self.u, jax.vmap(self._inputs)(xs), state, starts)
