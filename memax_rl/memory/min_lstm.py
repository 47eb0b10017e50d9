"""minLSTM: an LSTM whose gates see the input only, so that the state follows a linear recurrence.

Feng et al. 2024, Were RNNs All We Needed?, https://arxiv.org/abs/2410.01201, in real space rather than log
space.

    f = sigmoid(W_f x + b_f),    i = sigmoid(W_i x + b_i),    c = g(W_h x + b_h)
    g(u) = u + 0.5 where u >= 0, else sigmoid(u)
    h = f / (f + i) o h + i / (f + i) o c,    y = h

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


class MinLSTM(DiagonalMemory):
    """LSTM whose gates see the input only, with forget and input gates that sum to one.

    Parallel in time; close to MinGRU, with separate control of forgetting and writing.
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "https://arxiv.org/abs/2410.01201"
    verified: ClassVar[str] = "lucidrains' minLSTM, form in log space"

    in_size: int
    out_size: int
    w_f: Float[Array, "in_size out_size"]
    b_f: Float[Array, " out_size"]
    w_i: Float[Array, "in_size out_size"]
    b_i: Float[Array, " out_size"]
    w_h: Float[Array, "in_size out_size"]
    b_h: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray):
        self.in_size, self.out_size = in_size, out_size
        keys = jax.random.split(key, 3)
        self.w_f, self.w_i, self.w_h = (normal(k, in_size, out_size) for k in keys)
        self.b_f, self.b_i, self.b_h = (jnp.zeros(out_size) for _ in range(3))

    def gates(self, x: Float[Array, " in_size"]) -> tuple[State, State]:
        """Return the decay f / (f + i) and the write i / (f + i) o c."""
        f = jax.nn.log_sigmoid(linear(x, self.w_f) + self.b_f)
        i = jax.nn.log_sigmoid(linear(x, self.w_i) + self.b_i)
        u = linear(x, self.w_h) + self.b_h
        candidate = jnp.where(u >= 0, u + 0.5, jax.nn.sigmoid(u))
        # f / (f + i) in logarithms: both gates may be too small to divide.
        return jax.nn.sigmoid(f - i), jax.nn.sigmoid(i - f) * candidate

    def initial_state(self) -> State:
        return state_zeros(self.b_f, self.out_size)
