"""Running mean and variance, and the normalization of observations by them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memax_rl.envs import spaces


class RunningMeanStd(eqx.Module):
    """`count`, `mean` and `variance`, element by element, of all arrays of a `shape` passed to `update`.

    Initially 0, 0 and 1.
    """

    count: Float[Array, ""]
    mean: Float[Array, "*shape"]
    variance: Float[Array, "*shape"]

    def __init__(self, shape: tuple[int, ...] = ()):
        self.count = jnp.zeros(())
        self.mean = jnp.zeros(shape)
        self.variance = jnp.ones(shape)

    def update(self, x: Float[Array, "n ..."], valid: Bool[Array, " n"]) -> "RunningMeanStd":
        """Return the statistics updated with the valid ones of n arrays.

        Chan, Golub and LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances,
        equation 2.1, with means instead of sums.
        """
        mask = valid.reshape(valid.shape + (1,) * (x.ndim - 1))
        n = jnp.sum(valid).astype(jnp.float32)
        total = jnp.maximum(self.count + n, 1)
        mean = jnp.sum(jnp.where(mask, x, 0), axis=0) / jnp.maximum(n, 1)
        variance = jnp.sum(jnp.where(mask, (x - mean[None]) ** 2, 0), axis=0) / jnp.maximum(n, 1)
        difference = mean - self.mean
        share, old_share = n / total, self.count / total
        new = (
            self.count + n,
            self.mean + share * difference,
            old_share * self.variance + share * variance + old_share * share * difference**2,
        )
        # Without any valid array the statistics stay as they are.
        new = jax.tree.map(lambda a, b: jnp.where(n > 0, a, b), new, (self.count, self.mean, self.variance))
        return eqx.tree_at(lambda r: (r.count, r.mean, r.variance), self, new)


class NormalizedBox(spaces.Box):
    """A Box of real numbers that the network normalizes by running statistics.

    Attributes:
        box: The Box as it was.
        clip: Normalized components are clipped to plus and minus this.
    """

    def __init__(self, box: spaces.Box, clip: float):
        super().__init__(box.low, box.high, box.shape, box.dtype)
        self.box, self.clip = box, clip

    def __eq__(self, other: object) -> bool:
        # It is part of the networks, whose structure must be the same for two calls.
        return isinstance(other, NormalizedBox) and self.box is other.box and self.clip == other.clip

    def __hash__(self) -> int:
        return hash((id(self.box), self.clip))


def mark_normalized(leaves: list[Any], clip: float | None) -> list[Any]:
    """Return the leaf spaces, with Boxes of real numbers that are no images as `NormalizedBox` unless `clip` is None.

    Args:
        leaves: The leaf spaces, of `leaf_spaces`.
        clip: That of `NormalizedBox`.

    Raises:
        ValueError: If there is none to mark.
    """
    if clip is None:
        return leaves
    real = [
        isinstance(x, spaces.Box) and bool(jnp.issubdtype(x.dtype, jnp.floating)) and len(x.shape) < 3 for x in leaves
    ]
    if not any(real):
        shown = ", ".join(map(spaces.describe, leaves))
        raise ValueError(f"network.normalize_observation needs a Box of real numbers to observe, got {shown}")
    return [NormalizedBox(x, clip) if is_real else x for x, is_real in zip(leaves, real, strict=True)]


class RunningNormalizer(eqx.Module):
    """(x - mean) / standard deviation over all x passed to `update`, clipped. Before the first `update`, x clipped.

    No gradient flows into the statistics, so an optimizer does not change them.

    Attributes:
        moments: Mean and variance.
        clip: The result is clipped to plus and minus this.
    """

    moments: RunningMeanStd
    clip: float = eqx.field(static=True)

    def __init__(self, space: NormalizedBox):
        self.moments = RunningMeanStd(space.shape)
        self.clip = space.clip

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Normalize one observation."""
        mean, variance = jax.lax.stop_gradient((self.moments.mean, self.moments.variance))
        return jnp.clip((x - mean) * jax.lax.rsqrt(variance + 1e-8), -self.clip, self.clip)

    def update(self, x: Float[Array, "n ..."], valid: Bool[Array, " n"]) -> "RunningNormalizer":
        """Return the normalizer after it has seen the valid ones of n observations."""
        return eqx.tree_at(lambda r: r.moments, self, self.moments.update(x, valid))
