"""Gated recurrent unit, with the reset gate after the recurrent product as in cuDNN.

Cho et al. 2014, https://arxiv.org/abs/1406.1078 (version 3 for the place of the reset gate).

    z = sigmoid(W_z x + b_z + U_z h)
    r = sigmoid(W_r x + b_r + U_r h)
    n = tanh(W_n x + b_n + r o (U_n h + c_n))
    h = (1 - z) o n + z o h,    y = h

State: h [out_size].
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from memax_rl.memory.bases import NonlinearMemory
from memax_rl.memory.layers.weights import normal, orthogonal, state_zeros
from memax_rl.ops import linear

State = tuple[Float[Array, " out_size"], ...]


class GRU(NonlinearMemory):
    """Gated recurrent unit with orthogonal recurrent matrices. `u` holds U_z, U_r and U_n side by side.

    The default of recurrent reinforcement learning: small state, robust, and sequential in time.
    """

    family: ClassVar[str] = "nonlinear"
    paper: ClassVar[str] = "https://arxiv.org/abs/1406.1078"
    verified: ClassVar[str] = "torch.gru_cell"

    in_size: int
    out_size: int
    w_z: Float[Array, "in_size out_size"]
    w_r: Float[Array, "in_size out_size"]
    w_n: Float[Array, "in_size out_size"]
    b_z: Float[Array, " out_size"]
    b_r: Float[Array, " out_size"]
    b_n: Float[Array, " out_size"]
    u: Float[Array, "out_size gates"]
    c_n: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray):
        self.in_size, self.out_size = in_size, out_size
        keys = jax.random.split(key, 6)
        self.w_z, self.w_r, self.w_n = (normal(k, in_size, out_size) for k in keys[:3])
        self.u = jnp.concatenate([orthogonal(k, out_size) for k in keys[3:]], axis=1)
        self.b_z, self.b_r, self.b_n, self.c_n = (jnp.zeros(out_size) for _ in range(4))

    def inputs(self, x: Float[Array, " in_size"]) -> Any:
        z, r = linear(x, self.w_z) + self.b_z, linear(x, self.w_r) + self.b_r
        return z, r, linear(x, self.w_n) + self.b_n, None

    def initial_state(self) -> State:
        return (state_zeros(self.b_z, self.out_size),)

    def weights(self) -> Any:
        return self.u, self.c_n

    @staticmethod
    def product(weights, h):
        u, c = weights
        z, r, n = jnp.split(linear(h, u), 3, axis=-1)
        return z, r, None, n + c

    @staticmethod
    def cell(gates, state):
        z, r, n_x, n_h = gates
        (h,) = state
        z = jax.nn.sigmoid(z)
        n = jnp.tanh(n_x + jax.nn.sigmoid(r) * n_h)
        return ((1 - z) * n + z * h,)
