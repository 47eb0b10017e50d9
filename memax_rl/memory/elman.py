"""Elman's simple recurrent network.

Elman 1990, Finding Structure in Time, https://doi.org/10.1207/s15516709cog1402_1.

    h = tanh(W x + b + U h),    y = h

State: h [out_size]. Reset: h = 0.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from memax_rl.memory.bases import NonlinearMemory
from memax_rl.memory.layers.weights import normal, orthogonal, state_zeros
from memax_rl.ops import linear

State = tuple[Float[Array, " out_size"], ...]


class Elman(NonlinearMemory):
    """The plain recurrent network, tanh units with an orthogonal recurrent matrix.

    A baseline: gradients vanish over some tens of steps.
    """

    family: ClassVar[str] = "nonlinear"
    paper: ClassVar[str] = "https://doi.org/10.1207/s15516709cog1402_1"
    verified: ClassVar[str] = "torch's rnn_tanh_cell"

    in_size: int
    out_size: int
    w: Float[Array, "in_size out_size"]
    b: Float[Array, " out_size"]
    u: Float[Array, "out_size out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray):
        self.in_size, self.out_size = in_size, out_size
        key_w, key_u = jax.random.split(key)
        self.w, self.b = normal(key_w, in_size, out_size), jnp.zeros(out_size)
        self.u = orthogonal(key_u, out_size)

    def inputs(self, x: Float[Array, " in_size"]) -> Any:
        return linear(x, self.w) + self.b

    def initial_state(self) -> State:
        return (state_zeros(self.b, self.out_size),)

    def weights(self) -> Any:
        return self.u

    @staticmethod
    def product(weights, h):
        return linear(h, weights)

    @staticmethod
    def cell(gates, state):
        del state
        return (jnp.tanh(gates),)
