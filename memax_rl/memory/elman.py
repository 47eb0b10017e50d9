"""Elman's simple recurrent network.

Elman 1990, Finding Structure in Time, https://doi.org/10.1207/s15516709cog1402_1.

    h = tanh(W x + b + U h),    y = h

State: h [out_size]. Reset: h = 0.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import normal, orthogonal, select, state_zeros
from memax_rl.ops import linear, nonlinear_recurrence, nonlinear_step

State = tuple[Float[Array, " out_size"], ...]


def _cell(gate, state):
    del state
    return (jnp.tanh(gate),)


def _product(u, h):
    return linear(h, u)


class Elman(Memory):
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

    def initial_state(self) -> State:
        return (state_zeros(self.b, self.out_size),)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        state = select(start, self.initial_state(), state)
        state = nonlinear_step(_cell, _product, self.u, linear(x, self.w) + self.b, state)
        return state, state[0]

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        return nonlinear_recurrence(_cell, _product, self.u, linear(xs, self.w) + self.b[None], state, starts)
