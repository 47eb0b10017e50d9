"""Checks of the arguments that all recurrences share. They look at shapes and dtypes only, so they cost nothing."""

import jax.numpy as jnp
from jaxtyping import Array


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
