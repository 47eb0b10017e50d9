"""What the agents do with a gradient: it is clipped, and the step size falls."""

from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

T = TypeVar("T", bound=PyTree[Array])

Schedule = Literal["constant", "linear", "cosine"]


def clip(gradient: T, norm: Float[Array, ""], max_norm: float) -> T:
    """Return the gradient, whose global norm is given, scaled down to `max_norm` if that is smaller.

    As `optax.clip_by_global_norm`, for a gradient of which other devices may hold a part.
    """
    factor = jnp.where(norm < max_norm, 1, max_norm / norm)
    return jax.tree.map(lambda g: factor * g, gradient)


def make_schedule(kind: Schedule, learning_rate: float) -> optax.Schedule:
    """Return fraction of the run's environment steps -> step size; "linear" and "cosine" end at zero."""
    schedules = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, 1),
        "cosine": optax.cosine_decay_schedule(learning_rate, 1),
    }
    return schedules[kind]
