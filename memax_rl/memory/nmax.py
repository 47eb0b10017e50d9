"""Decaying maximum: each unit remembers the largest value that it has seen, which fades.

A leaky sum in max-plus algebra. The recurrence is the one commonly given; it could not be confirmed against a paper.

    u = W_u x + b_u,    h = max(decay o h, u),    decay = sigmoid(logit)
    y = W_y h + b_y

State: h [state_size]. Reset: h = 0, so that h is never negative. `scan` is a loop on a CPU and elsewhere an associative
scan over pairs (product of decays, maximum), which compose as (d, m) then (d', m') to (d' d, max(d' m, m')), for any
decay >= 0.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import check_size, normal, select, state_zeros
from memax_rl.ops import Maps, elementwise_recurrence, linear

State = tuple[Float[Array, " state_size"]]


def _cell(decay, u, state):
    (h,) = state
    return (jnp.maximum(decay * h, u),)


def _lift(decay, u):
    return decay, u


def _constant(state):
    (h,) = state
    return jnp.zeros_like(h), h


def _combine(earlier, later):
    (d, m), (d_2, m_2) = earlier, later
    return d_2 * d, jnp.maximum(d_2 * m, m_2)


def _value(element):
    return (element[1],)


_MAPS = Maps(_lift, _constant, _combine, _value)


class NMax(Memory):
    """Maximum over the past with a decay for each unit, between 0.9 and 0.9999 at the start.

    For "did this ever happen": a peak is kept exactly, however often smaller inputs follow.

    Args:
        state_size: state variables. None: out_size.
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "no paper"
    verified: ClassVar[str] = "torch.cummax (the recurrence; no paper is known to give the form)"

    in_size: int
    out_size: int
    logit: Float[Array, " state_size"]
    w_u: Float[Array, "in_size state_size"]
    b_u: Float[Array, " state_size"]
    w_y: Float[Array, "state_size out_size"]
    b_y: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray, state_size: int | None = None):
        self.in_size, self.out_size = in_size, out_size
        size = out_size if state_size is None else check_size("state_size", state_size)
        keys = jax.random.split(key, 3)
        # 1 - decay is spread evenly in its logarithm.
        forget = 10 ** jax.random.uniform(keys[0], (size,), minval=-4.0, maxval=-1.0)
        self.logit = jnp.log1p(-forget) - jnp.log(forget)
        self.w_u, self.b_u = normal(keys[1], in_size, size), jnp.zeros(size)
        self.w_y, self.b_y = normal(keys[2], size, out_size), jnp.zeros(out_size)

    def initial_state(self) -> State:
        return (state_zeros(self.logit, self.logit.shape),)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        state = select(start, self.initial_state(), state)
        state = _cell(jax.nn.sigmoid(self.logit), linear(x, self.w_u) + self.b_u, state)
        return state, linear(state[0], self.w_y) + self.b_y

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        decay, us = jax.nn.sigmoid(self.logit), linear(xs, self.w_u) + self.b_u[None]
        (hs,) = elementwise_recurrence(_cell, decay, us, state, starts, maps=_MAPS)
        return (hs[-1],), linear(hs, self.w_y) + self.b_y[None]
