"""Counts of environment steps beyond 2**31, which int32 cannot hold and JAX has by default no wider type for."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

_UNIT = 2**30
# A whole run must have fewer updates, and fewer gradient steps, than int32 counts.
_MOST_UPDATES = 2**31 - 1


class StepCount(eqx.Module):
    """A count in two int32 numbers: `high * 2**30 + low`, with `low` below 2**30.

    `reached` is exact and `fraction_of` as exact as float32: both are computed from the parts.
    """

    high: Int[Array, "*axes"]
    low: Int[Array, "*axes"]

    @classmethod
    def of(cls, value: int = 0) -> "StepCount":
        """Return the count of a Python integer."""
        return cls(jnp.asarray(value // _UNIT, jnp.int32), jnp.asarray(value % _UNIT, jnp.int32))

    def add(self, steps: Int[Array, "*axes"]) -> "StepCount":
        """Return the count after `steps` more, which must be at least 0 and at most 2**30."""
        low = self.low + steps
        over = low >= _UNIT
        return StepCount(jnp.where(over, self.high + 1, self.high), jnp.where(over, low - _UNIT, low))

    def reached(self, total: "int | StepCount") -> Bool[Array, "*axes"]:
        """Return whether the count is at least `total`."""
        high, low = divmod(total, _UNIT) if isinstance(total, int) else (total.high, total.low)
        return (self.high > high) | ((self.high == high) & (self.low >= low))

    def fraction_of(self, total: int) -> Float[Array, "*axes"]:
        """Return the count divided by `total`, in float32."""
        low = self.low.astype(jnp.float32) / jnp.float32(total)
        return low + self.high.astype(jnp.float32) * jnp.float32(_UNIT / total)

    def to_numpy(self) -> np.ndarray:
        """Return the count as an int64 array. Not under `jit`."""
        return np.asarray(np.asarray(self.high, np.int64) * _UNIT + np.asarray(self.low, np.int64))


def check_counts(total_steps: int, steps: int, gradient_steps: int, largest: str) -> None:
    """Raise `ValueError` if an update of `steps` steps, or all updates of a run, cannot be counted.

    Args:
        steps, gradient_steps: The most in one update.
        largest: The settings that `steps` is the product of.
    """
    if steps > _UNIT:
        raise ValueError(f"{largest} is {steps:,} steps an update, and it can have at most {_UNIT:,}; set them lower")
    updates = total_steps // steps * max(gradient_steps, 1)
    if updates > _MOST_UPDATES:
        raise ValueError(
            f"total_steps={total_steps:,} at {steps:,} steps an update ({largest}) makes {updates:,} updates, and a "
            f"run can have at most {_MOST_UPDATES:,}; set total_steps lower or {largest} higher"
        )
