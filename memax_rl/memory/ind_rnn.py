"""IndRNN: an RNN with diagonal recurrent weights.

Li et al. 2018, Independently Recurrent Neural Network, https://arxiv.org/abs/1803.04831.

    h = relu(W x + b + u o h),    y = h,    |u| <= 2^(1 / horizon)

State: h [out_size]. Reset: h = 0. `scan` is a loop on a CPU and an associative scan elsewhere, which is exact: a step
is a map h -> clip(m h + c, low, high), and the composition of two such maps,

    clip(m' clip(m h + c, low, high) + c', low', high'),

has the slope m' m; its bounds are the images of the first map's bounds under the second, swapped where m' is negative.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import check_size, normal, select, state_zeros
from memax_rl.ops import Maps, elementwise_recurrence, linear

State = tuple[Float[Array, " out_size"]]


def _cell(u, x, state):
    (h,) = state
    return (jax.nn.relu(x + u * h),)


def _lift(u, x):
    return u, x, jnp.zeros_like(x), jnp.full_like(x, jnp.inf)


def _constant(state):
    (h,) = state
    return jnp.zeros_like(h), h, h, h


def _affine(m, c, bound):
    # 0 times an infinite bound: a map of slope 0 has one value.
    return jnp.where(m == 0, c, m * bound + c)


def _combine(earlier, later):
    m, c, low, high = earlier
    m_2, c_2, low_2, high_2 = later
    a, b = _affine(m_2, c_2, low), _affine(m_2, c_2, high)
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    return m_2 * m, m_2 * c + c_2, jnp.clip(low, low_2, high_2), jnp.clip(high, low_2, high_2)


def _value(element):
    _, c, low, high = element
    return (jnp.clip(c, low, high),)


_MAPS = Maps(_lift, _constant, _combine, _value)


class IndRNN(Memory):
    """Rectified linear units, each with one recurrent weight.

    Can hold a sum for thousands of steps where the weight is near 1; units do not see each other's states.

    Args:
        horizon: steps over which a state may at most double: |u| <= 2^(1 / horizon).
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "https://arxiv.org/abs/1803.04831"
    verified: ClassVar[str] = "Sunnydreamrain/IndRNN_pytorch"

    in_size: int
    out_size: int
    horizon: int
    w: Float[Array, "in_size out_size"]
    b: Float[Array, " out_size"]
    u: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray, horizon: int = 1024):
        self.in_size, self.out_size = in_size, out_size
        self.horizon = check_size("horizon", horizon)
        key_w, key_u = jax.random.split(key)
        self.w, self.b = normal(key_w, in_size, out_size), jnp.zeros(out_size)
        self.u = jax.random.uniform(key_u, (out_size,))

    def _recurrent(self):
        bound = 2 ** (1 / self.horizon)
        return jnp.clip(self.u, -bound, bound)

    def initial_state(self) -> State:
        return (state_zeros(self.u, self.out_size),)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        state = select(start, self.initial_state(), state)
        state = _cell(self._recurrent(), linear(x, self.w) + self.b, state)
        return state, state[0]

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """All input products at once, then `ops.elementwise_recurrence`."""
        (hs,) = elementwise_recurrence(
            _cell, self._recurrent(), linear(xs, self.w) + self.b[None], state, starts, maps=_MAPS
        )
        return (hs[-1],), hs
