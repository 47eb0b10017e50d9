"""Minimal gated unit: one gate forgets and resets.

Zhou et al. 2016, Minimal Gated Unit for Recurrent Neural Networks, https://arxiv.org/abs/1603.09420, with the
gate behind the recurrent product rather than before it, so that both products of a step are made at once.

    f = sigmoid(W_f x + b_f + U_f h)
    n = tanh(W_n x + b_n + f o (U_n h + c_n))
    h = (1 - f) o h + f o n,    y = h

State: h [out_size]. Reset: h = 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from memax_rl.memory._contract import Memory
from memax_rl.memory._layers import matrix, orthogonal, select
from memax_rl.ops import nonlinear_recurrence, project


def _cell(x, v, state):
    (h,) = state
    f = jax.nn.sigmoid(x[0] + v[0])
    n = jnp.tanh(x[1] + f * v[1])
    return ((1 - f) * h + f * n,)


def _product(weights, h):
    u, c = weights
    return (project(h, u.T) + c).reshape(2, -1)


class MGU(Memory):
    """GRU with one gate, with orthogonal recurrent matrices. `u` holds U_f and U_n, one below the other."""

    in_size: int
    out_size: int
    w_f: Float[Array, "out_size in_size"]
    w_n: Float[Array, "out_size in_size"]
    b_f: Float[Array, " out_size"]
    b_n: Float[Array, " out_size"]
    u: Float[Array, "gates out_size"]
    c_n: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray):
        self.in_size, self.out_size = in_size, out_size
        keys = jax.random.split(key, 4)
        self.w_f, self.w_n = (matrix(k, in_size, out_size) for k in keys[:2])
        self.u = jnp.concatenate([orthogonal(k, out_size) for k in keys[2:]])
        self.b_f, self.b_n, self.c_n = (jnp.zeros(out_size) for _ in range(3))

    def _inputs(self, x):
        return project(x, self.w_f.T) + self.b_f, project(x, self.w_n.T) + self.b_n

    def _recurrent(self):
        return self.u, jnp.concatenate([jnp.zeros(self.out_size), self.c_n])

    def initial_state(self):
        """Return h = 0."""
        return (jnp.zeros(self.out_size),)

    def step(self, state, x, start):
        """Reset if asked, then one cell."""
        state = select(start, self.initial_state(), state)
        state = _cell(self._inputs(x), _product(self._recurrent(), state[0]), state)
        return state, state[0]

    def scan(self, state, xs, starts):
        """All input products at once, then the sequential recurrence."""
        return nonlinear_recurrence(_cell, _product, self._recurrent(), jax.vmap(self._inputs)(xs), state, starts)
