"""Units of a fixed number of steps (mini-batches, segments), counted from the episode's start."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def unit_begins(
    phase: Int[Array, ""], starts: Bool[Array, " T"], size: int
) -> tuple[Bool[Array, " T"], Int[Array, ""]]:
    """Return where a unit of `size` steps begins within an episode, start flags aside, and the last phase.

    The phase is the number of steps in the unit so far: 0 before an episode's first step, else 1 to `size`.
    """
    time = jnp.arange(starts.shape[0])
    last_start = jax.lax.cummax(jnp.where(starts, time, -1))
    position = jnp.where(last_start >= 0, time - last_start, time + phase)
    begins = ~starts & (position > 0) & (position % size == 0)
    return begins, (position[-1] % size + 1).astype(phase.dtype)
