"""Minimal gated unit: one gate forgets and resets.

Zhou et al. 2016, Minimal Gated Unit for Recurrent Neural Networks, https://arxiv.org/abs/1603.09420, with the gate
after the recurrent product rather than before it, so that a step has one matrix product.

    f = sigmoid(W_f x + b_f + U_f h)
    n = tanh(W_n x + b_n + f o (U_n h + c_n))
    h = (1 - f) o h + f o n,    y = h

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


class MGU(NonlinearMemory):
    """Minimal gated unit: a GRU with one gate. `u` holds U_f and U_n side by side.

    Two thirds of the weights of a GRU; sequential in time.
    """

    family: ClassVar[str] = "nonlinear"
    paper: ClassVar[str] = "https://arxiv.org/abs/1603.09420"
    verified: ClassVar[str] = "torch.gru_cell with tied gates, but for the deviation that its file states"

    in_size: int
    out_size: int
    w_f: Float[Array, "in_size out_size"]
    w_n: Float[Array, "in_size out_size"]
    b_f: Float[Array, " out_size"]
    b_n: Float[Array, " out_size"]
    u: Float[Array, "out_size gates"]
    c_n: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray):
        self.in_size, self.out_size = in_size, out_size
        keys = jax.random.split(key, 4)
        self.w_f, self.w_n = (normal(k, in_size, out_size) for k in keys[:2])
        self.u = jnp.concatenate([orthogonal(k, out_size) for k in keys[2:]], axis=1)
        self.b_f, self.b_n, self.c_n = (jnp.zeros(out_size) for _ in range(3))

    def inputs(self, x: Float[Array, " in_size"]) -> Any:
        return linear(x, self.w_f) + self.b_f, linear(x, self.w_n) + self.b_n, None

    def initial_state(self) -> State:
        return (state_zeros(self.b_f, self.out_size),)

    def weights(self) -> Any:
        return self.u, self.c_n

    @staticmethod
    def product(weights, h):
        u, c = weights
        f, n = jnp.split(linear(h, u), 2, axis=-1)
        return f, None, n + c

    @staticmethod
    def cell(gates, state):
        f, n_x, n_h = gates
        (h,) = state
        f = jax.nn.sigmoid(f)
        return ((1 - f) * h + f * jnp.tanh(n_x + f * n_h),)
