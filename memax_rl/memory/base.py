"""The interface of all memory models."""

import abc
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Bool, Float, PyTree

State = PyTree[Array]


class Memory(eqx.Module):
    """A map from a sequence of inputs to a sequence of outputs that carries a state of fixed size.

    Unbatched: wrap calls in `jax.vmap`. `starts[t]` is true on the first input of an episode; the state is reset before
    that input is consumed, so outputs and gradients never cross from one episode into the next. The incoming state
    counts until the first start flag. `scan` equals `step` in a loop: outputs, last state and gradients.

    A state has the dtype of the parameters, but at least float32: with parameters and inputs in bfloat16, states and
    outputs are float32.

    `memax_rl.memory.spec` describes a subclass from its class variables and its options, which are the keyword
    arguments of its constructor other than `in_size`, `out_size` and `key`. The section `Args:` of the class docstring
    documents each option with its unit. Where the default is None the line ends with its meaning, as in "None:
    out_size".

    Attributes:
        family: how it computes: "none", "diagonal", "matrix", "delta", "attention", "nonlinear" or "own".
        paper: a link, or "no paper".
        verified: against which code or equation its values, steps and gradients were compared; "read against" where the
            code was read and not run.
        in_size: size of an input.
        out_size: size of an output.
    """

    family: ClassVar[str] = "own"
    paper: ClassVar[str] = "no paper"
    verified: ClassVar[str] = ""

    in_size: eqx.AbstractVar[int]
    out_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def initial_state(self) -> Any:
        """Return the state before anything was seen, a pytree of arrays whose size does not depend on time."""

    @abc.abstractmethod
    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[Any, Float[Array, " out_size"]]:
        """Return the next state and the output for one input. The readable reference, used for acting."""

    @abc.abstractmethod
    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[Any, Float[Array, "T out_size"]]:
        """Return the last state and all outputs for T >= 1 inputs. The fast form, used for learning."""
