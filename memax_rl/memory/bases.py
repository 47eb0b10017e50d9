"""Abstract bases for models that share a recurrence and differ in what they compute from the input.

Each has `step` and `scan`; a model adds its parameters, its initial state and the abstract methods.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import select
from memax_rl.ops import linear_recurrence, nonlinear_recurrence, nonlinear_step


class DiagonalMemory(Memory):
    """h = decay o h + write, y = h, with a decay and a write that depend on the input alone. Reset: h = 0."""

    @abc.abstractmethod
    def gates(self, x: Float[Array, " in_size"]) -> tuple[Float[Array, " out_size"], Float[Array, " out_size"]]:
        """Return decay and write."""

    def step(
        self, state: Float[Array, " out_size"], x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[Float[Array, " out_size"], Float[Array, " out_size"]]:
        decay, write = self.gates(x)
        h = decay * jnp.where(start, 0, state) + write
        return h, h

    def scan(
        self, state: Float[Array, " out_size"], xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[Float[Array, " out_size"], Float[Array, "T out_size"]]:
        decay, write = jax.vmap(self.gates)(xs)
        hs = linear_recurrence(decay, write, state, starts)
        return hs[-1], hs


class NonlinearMemory(Memory):
    """s = cell(inputs(x) + product(weights, h), s), y = h, the first element of the tuple s. Reset: s = 0."""

    @abc.abstractmethod
    def weights(self) -> Any:
        """Return the parameters of `product`."""

    @abc.abstractmethod
    def inputs(self, x: Float[Array, " in_size"]) -> Any:
        """Return the input's share of each gate, None where it has none."""

    @staticmethod
    @abc.abstractmethod
    def product(weights: Any, h: Float[Array, " out_size"]) -> Any:
        """Return the state's share of each gate, None where it has none."""

    @staticmethod
    @abc.abstractmethod
    def cell(gates: Any, state: Any) -> Any:
        """Return the next state from the gates, both shares summed, and the state: element by element."""

    def step(
        self, state: tuple[Array, ...], x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[tuple[Array, ...], Float[Array, " out_size"]]:
        state = select(start, self.initial_state(), state)
        state = nonlinear_step(self.cell, self.product, self.weights(), self.inputs(x), state)
        return state, state[0]

    def scan(
        self, state: tuple[Array, ...], xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[tuple[Array, ...], Float[Array, "T out_size"]]:
        inputs = jax.vmap(self.inputs)(xs)
        return nonlinear_recurrence(self.cell, self.product, self.weights(), inputs, state, starts)
