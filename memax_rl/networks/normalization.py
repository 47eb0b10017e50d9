"""Running mean and variance."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
