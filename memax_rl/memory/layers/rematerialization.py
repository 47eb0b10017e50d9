"""A scan over chunks of time that stores one state per chunk for the gradient and rematerializes the rest."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

State = TypeVar("State", bound=PyTree)


def scan_chunks(
    body: Callable[[State, PyTree], tuple[State, Array]], state: State, inputs: PyTree, chunk: int
) -> tuple[State, Array]:
    """Return the last state and all outputs of `body`, which is called with `chunk` steps at a time.

    `body` maps (state, inputs of some steps) to (state, outputs of these steps); inputs and outputs have time
    first.
    """
    body = jax.checkpoint(body)
    length = jax.tree.leaves(inputs)[0].shape[0]
    whole = length // chunk
    outputs = []
    if whole:
        chunked = jax.tree.map(lambda x: x[: whole * chunk].reshape(whole, chunk, *x.shape[1:]), inputs)
        state, ys = jax.lax.scan(body, state, chunked)
        outputs.append(ys.reshape(-1, *ys.shape[2:]))
    if length % chunk:
        state, ys = body(state, jax.tree.map(lambda x: x[whole * chunk :], inputs))
        outputs.append(ys)
    return state, jnp.concatenate(outputs)
