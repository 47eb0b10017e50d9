"""Gated linear recurrent layer, the baseline cell of the parallel-scan paper.

Martin and Cundy 2018, Parallelizing Linear Recurrent Neural Nets Over Sequence Length,
https://arxiv.org/abs/1709.04057, section 3.1 with a tanh candidate.

    g = sigmoid(W_g x + b_g),    i = tanh(W_i x + b_i)
    h = g o h + (1 - g) o i,     y = h

State: h [out_size]. Reset: h = 0.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from memax_rl.memory.bases import DiagonalMemory
from memax_rl.memory.layers.weights import normal, state_zeros
from memax_rl.ops import linear

State = Float[Array, " out_size"]


class LRNN(DiagonalMemory):
    """Exponential moving average of a candidate, whose rate depends on the input.

    The smallest gated linear recurrence: parallel in time, with learned forgetting.
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "https://arxiv.org/abs/1709.04057"
    verified: ClassVar[str] = "fla, naive HGRN (the recurrence)"

    in_size: int
    out_size: int
    w_g: Float[Array, "in_size out_size"]
    b_g: Float[Array, " out_size"]
    w_i: Float[Array, "in_size out_size"]
    b_i: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray):
        self.in_size, self.out_size = in_size, out_size
        key_g, key_i = jax.random.split(key)
        self.w_g, self.b_g = normal(key_g, in_size, out_size), jnp.zeros(out_size)
        self.w_i, self.b_i = normal(key_i, in_size, out_size), jnp.zeros(out_size)

    def gates(self, x: Float[Array, " in_size"]) -> tuple[State, State]:
        """Return the decay g and the write (1 - g) o i."""
        pre_g = linear(x, self.w_g) + self.b_g
        return jax.nn.sigmoid(pre_g), jax.nn.sigmoid(-pre_g) * jnp.tanh(linear(x, self.w_i) + self.b_i)

    def initial_state(self) -> State:
        return state_zeros(self.b_g, self.out_size)
