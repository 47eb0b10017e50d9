"""Checks of the arguments that all recurrences share. They look at shapes and dtypes only, so they cost nothing."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

T = TypeVar("T", bound=PyTree[Array])


def check_starts(starts: Array, length: int) -> None:
    """Raise `ValueError` unless `starts` is a boolean array of shape `[length]`, with one step or more."""
    if length < 1:
        raise ValueError("a sequence must have at least one step, got none")
    if starts.dtype != jnp.bool_:
        raise ValueError(
            f"starts must be a boolean array, got dtype {starts.dtype}; convert it with `starts.astype(bool)`"
        )
    if starts.shape != (length,):
        raise ValueError(
            f"starts must have shape [{length}], one flag a step, got {list(starts.shape)}; "
            "for a batch of sequences wrap the call in `jax.vmap`"
        )


def check_matrix_state(
    state: Array, length: int, *, keys: Mapping[str, Array | None], values: Array, numbers: Mapping[str, Array | None]
) -> None:
    """Raise `ValueError` unless the arguments of a recurrence on a matrix have the shapes that its state asks for.

    A kernel would read beyond the end of an array that is too short, where a plain form fails.

    Args:
        state: [dk, dv].
        length: Steps of the sequence.
        keys: Arrays [T, dk] by name.
        values: v, [T, dv].
        numbers: Arrays [T] by name.
    """
    if state.ndim != 2:
        raise ValueError(f"state must have shape [dk, dv], got {list(state.shape)}; for a batch use `jax.vmap`")
    dk, dv = state.shape
    expected = [(name, x, (length, dk)) for name, x in keys.items()]
    expected += [("v", values, (length, dv)), *((name, x, (length,)) for name, x in numbers.items())]
    for name, x, shape in expected:
        if x is not None and x.shape != shape:
            raise ValueError(
                f"{name} must have shape {list(shape)} beside a state of {[dk, dv]} and {length} steps, got "
                f"{list(x.shape)}"
            )


def check_chunk(chunk: int) -> None:
    """Raise `ValueError` unless `chunk` is a whole number of at least 1."""
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be a whole number of at least 1, got {chunk!r}")


def is_reference(method: str | None) -> bool:
    """Return whether the plain form is asked for. Raise `ValueError` unless `method` is `"reference"` or None."""
    if method is not None and method != "reference":
        raise ValueError(f"method must be 'reference' (a plain loop over time) or None (the fast form), got {method!r}")
    return method is not None


def widened(arrays: T) -> T:
    """Return all arrays in the dtype that they promote to, float32 at least, so that a loop's carry keeps its dtype."""
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(arrays)), jnp.float32)
    return jax.tree.map(lambda x: x.astype(dtype), arrays)
