"""Decaying log-sum-exp: a smooth maximum over the past, which fades.

A leaky sum of positive features in log space. The recurrence is the one commonly given; it could not be confirmed
against a paper.

    u = W_u x + b_u,    h = logaddexp(h + log gamma, u),    log gamma = -softplus(rate)
    y = W_y h + b_y

h grows with the logarithm of the number of steps, up to about log(1 / (1 - gamma)), at most 9 at initialization: it
encodes time as well. W_y is initialized at a quarter of the usual scale, so that y stays near 1.

State: h [state_size]. Reset: h = -inf, the logarithm of an empty sum; after a step h is finite. `scan` is a loop on a
CPU and elsewhere an associative scan over pairs (sum of log gamma, logarithm of the sum), which compose as (g, a) then
(g', a') to (g + g', logaddexp(a + g', a')).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import check_size, normal, select, state_dtype
from memax_rl.ops import Maps, elementwise_recurrence, linear

State = tuple[Float[Array, " state_size"]]


def _cell(log_gamma, u, state):
    (h,) = state
    return (jnp.logaddexp(h + log_gamma, u),)


def _lift(log_gamma, u):
    return log_gamma, u


def _constant(state):
    (h,) = state
    return jnp.full_like(h, -jnp.inf), h


def _combine(earlier, later):
    (g, a), (g_2, a_2) = earlier, later
    return g + g_2, jnp.logaddexp(a + g_2, a_2)


def _value(element):
    return (element[1],)


_MAPS = Maps(_lift, _constant, _combine, _value)


class DLSE(Memory):
    """Log-sum-exp over the past with a decay for each unit, between 0.9 and 0.9999 at the start.

    A smooth maximum, for "did this ever happen, and how strongly"; it also counts repetitions and encodes time.

    Args:
        state_size: state variables. None: out_size.
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "no paper"
    verified: ClassVar[str] = "torch.logcumsumexp (the recurrence; no paper is known to give the form)"

    in_size: int
    out_size: int
    rate: Float[Array, " state_size"]
    w_u: Float[Array, "in_size state_size"]
    b_u: Float[Array, " state_size"]
    w_y: Float[Array, "state_size out_size"]
    b_y: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray, state_size: int | None = None):
        self.in_size, self.out_size = in_size, out_size
        size = out_size if state_size is None else check_size("state_size", state_size)
        keys = jax.random.split(key, 3)
        # 1 - gamma is spread evenly in its logarithm; softplus(rate) = -log(gamma) inverts to log(1 / gamma -
        # 1).
        forget = 10 ** jax.random.uniform(keys[0], (size,), minval=-4.0, maxval=-1.0)
        self.rate = jnp.log(forget) - jnp.log1p(-forget)
        self.w_u, self.b_u = normal(keys[1], in_size, size), jnp.zeros(size)
        self.w_y, self.b_y = normal(keys[2], size, out_size, scale=0.25), jnp.zeros(out_size)

    def initial_state(self) -> State:
        return (jnp.full(self.rate.shape, -jnp.inf, state_dtype(self.rate)),)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        state = select(start, self.initial_state(), state)
        state = _cell(-jax.nn.softplus(self.rate), linear(x, self.w_u) + self.b_u, state)
        return state, linear(state[0], self.w_y) + self.b_y

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        log_gamma, us = -jax.nn.softplus(self.rate), linear(xs, self.w_u) + self.b_u[None]
        initial = self.initial_state()
        (hs,) = elementwise_recurrence(_cell, log_gamma, us, state, starts, initial=initial, maps=_MAPS)
        return (hs[-1],), linear(hs, self.w_y) + self.b_y[None]
