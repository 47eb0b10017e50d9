"""minGRU: a GRU whose gates see the input only, so that the state follows a linear recurrence.

Feng et al. 2024, Were RNNs All We Needed?, https://arxiv.org/abs/2410.01201, in real space rather than log space.

    z = sigmoid(W_z x + b_z),    c = g(W_h x + b_h),    g(u) = u + 0.5 where u >= 0, else sigmoid(u)
    h = (1 - z) o h + z o c,     y = h

State: h [out_size].
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from memax_rl.memory.bases import DiagonalMemory
from memax_rl.memory.layers.weights import normal, state_zeros
from memax_rl.ops import linear

State = Float[Array, " out_size"]


class MinGRU(DiagonalMemory):
    """GRU whose gates see the input only: a diagonal linear recurrence.

    Parallel in time, at a GRU's size of state; what is written cannot depend on the state.
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "https://arxiv.org/abs/2410.01201"
    verified: ClassVar[str] = "lucidrains/minGRU-pytorch, form in log space"

    in_size: int
    out_size: int
    w_z: Float[Array, "in_size out_size"]
    b_z: Float[Array, " out_size"]
    w_h: Float[Array, "in_size out_size"]
    b_h: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray):
        self.in_size, self.out_size = in_size, out_size
        key_z, key_h = jax.random.split(key)
        self.w_z, self.b_z = normal(key_z, in_size, out_size), jnp.zeros(out_size)
        self.w_h, self.b_h = normal(key_h, in_size, out_size), jnp.zeros(out_size)

    def gates(self, x: Float[Array, " in_size"]) -> tuple[State, State]:
        """Return the decay 1 - z and the write z o c."""
        # One product for the two: it reads the inputs once, and so does its gradient.
        u, z = jnp.split(linear(x, jnp.concatenate([self.w_h, self.w_z], axis=1)), 2, axis=-1)
        u, z = u + self.b_h, jax.nn.sigmoid(z + self.b_z)
        candidate = jnp.where(u >= 0, u + 0.5, jax.nn.sigmoid(u))
        return 1 - z, z * candidate

    def initial_state(self) -> State:
        return state_zeros(self.b_z, self.out_size)
