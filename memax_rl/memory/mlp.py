"""No memory: y_t depends on x_t alone. The baseline that every comparison of memories needs.

y = W_2 gelu(W_1 x + b_1) + b_2
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import normal
from memax_rl.ops import linear

State = tuple[()]


class MLP(Memory):
    """Two dense layers, applied to each step by itself.

    No memory: the baseline that shows how far a task can be solved without one.
    """

    family: ClassVar[str] = "none"
    paper: ClassVar[str] = "no paper"
    verified: ClassVar[str] = "a linear layer and its activation by torch"

    in_size: int
    out_size: int
    w_1: Float[Array, "in_size out_size"]
    b_1: Float[Array, " out_size"]
    w_2: Float[Array, "out_size out_size"]
    b_2: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray):
        self.in_size, self.out_size = in_size, out_size
        key_1, key_2 = jax.random.split(key)
        self.w_1, self.b_1 = normal(key_1, in_size, out_size), jnp.zeros(out_size)
        self.w_2, self.b_2 = normal(key_2, out_size, out_size), jnp.zeros(out_size)

    def _apply(self, x):
        return linear(jax.nn.gelu(linear(x, self.w_1) + self.b_1), self.w_2) + self.b_2

    def initial_state(self) -> State:
        return ()

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        del start
        return state, self._apply(x)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        del starts
        return state, jax.vmap(self._apply)(xs)
