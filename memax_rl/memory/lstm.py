"""Long short-term memory with a forget gate.

Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735; forget gate of Gers et al. 2000,
https://doi.org/10.1162/089976600300015015, its bias started at 1.

    i, f, o = sigmoid(W x + b + U h) each with its own W, b, U
    g = tanh(W_g x + b_g + U_g h)
    c = f o c + i o g,    h = o o tanh(c),    y = h

State: h, c [out_size].
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from memax_rl.memory.bases import NonlinearMemory
from memax_rl.memory.layers.weights import normal, orthogonal, state_zeros
from memax_rl.ops import linear

State = tuple[Float[Array, " out_size"], ...]


class LSTM(NonlinearMemory):
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

    def inputs(self, x: Float[Array, " in_size"]) -> Any:
        return tuple(linear(x, w) + b for w, b in zip(self.w, self.b, strict=True))

    def initial_state(self) -> State:
        return state_zeros(self.b[0], self.out_size), state_zeros(self.b[0], self.out_size)

    def weights(self) -> Any:
        return self.u

    @staticmethod
    def product(weights, h):
        return tuple(linear(h, u) for u in weights)

    @staticmethod
    def cell(gates, state):
        i, f, o, g = gates
        _, c = state
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c
