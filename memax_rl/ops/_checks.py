"""Checks of the arguments that all recurrences share. They look at shapes and dtypes only, so they cost nothing."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

T = TypeVar("T", bound=PyTree[Array])


def check_starts(starts: Array, length: int) -> None:
    """Raise `ValueError` unless `starts` is a boolean array of shape `[length]`."""
    if starts.dtype != jnp.bool_:
        raise ValueError(
            f"starts must be a boolean array, got dtype {starts.dtype}; convert it with `starts.astype(bool)`"
        )
    if starts.shape != (length,):
        raise ValueError(
            f"starts must have shape [{length}], one flag a step, got {list(starts.shape)}; "
            "for a batch of sequences wrap the call in `jax.vmap`"
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
