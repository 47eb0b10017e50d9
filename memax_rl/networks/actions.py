"""Action distributions of a policy, and the mapping of its actions to those of the environment."""

from typing import Any, cast

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.networks.encoder import flat_size

# The exponential of it is 0, and unlike minus infinity it has no gradient or product that is nan.
_NEVER = -1e9


def only_legal(values: Float[Array, " outputs"], action_mask: Bool[Array, " outputs"] | None) -> Array:
    """Return the logits or values of actions [outputs], with those that are not legal far below all others."""
    return values if action_mask is None else jnp.where(action_mask, values, _NEVER)


class ActionDistribution(eqx.Module):
    """A distribution over the actions of a space. `raw` is the policy head's output for one step.

    Discrete: a categorical with logits `raw`, over the legal actions where a mask says which these are. MultiDiscrete:
    independent categoricals. Box: a normal with independent components, mean `raw` and standard deviation exp(log_std).
    Components with finite bounds are scaled to [-1, 1]. The learner uses the action as sampled; `to_environment` clips
    and rescales it for the environment.
    """

    space: Any = eqx.field(static=True)
    raw: Float[Array, " outputs"]
    log_std: Float[Array, " outputs"] | None
    action_mask: Bool[Array, " outputs"] | None = None

    def logits(self) -> list[Float[Array, " values"]]:
        """Return the logits of each component of a discrete action, with those of illegal values next to never."""
        return spaces.by_component(self.space, only_legal(self.raw, self.action_mask))

    def _distribution(self) -> distrax.DistributionLike:
        if self.log_std is not None:
            return distrax.MultivariateNormalDiag(self.raw, jnp.exp(self.log_std))
        if isinstance(self.space, spaces.MultiDiscrete):
            return distrax.Joint([distrax.Categorical(logits) for logits in self.logits()])
        return distrax.Categorical(self.logits()[0])

    # distrax relies on implicit rank promotion, which callers may have forbidden: hence `numpy_rank_promotion`.

    def sample(self, key: PRNGKeyArray) -> tuple[Array, Float[Array, ""]]:
        """Return a random action and its log-probability."""
        with jax.numpy_rank_promotion("allow"):
            action, log_prob = self._distribution().sample_and_log_prob(seed=key)
        return self._pack(action), cast(Array, log_prob)

    def mode(self) -> Array:
        """Return the most likely action."""
        with jax.numpy_rank_promotion("allow"):
            return self._pack(self._distribution().mode())

    def log_prob(self, action: Array) -> Float[Array, ""]:
        """Return the log-probability (density for a Box) of an action."""
        parts = list(action) if isinstance(self.space, spaces.MultiDiscrete) else action
        # A Box of shape () has one component.
        parts = action.reshape(-1) if self.log_std is not None else parts
        with jax.numpy_rank_promotion("allow"):
            return cast(Array, self._distribution().log_prob(parts))

    def entropy(self) -> Float[Array, ""]:
        """Return the entropy in nats."""
        with jax.numpy_rank_promotion("allow"):
            return cast(Array, self._distribution().entropy())

    def _pack(self, action: Any) -> Array:
        if self.log_std is not None:
            return action.reshape(self.space.shape)
        if isinstance(self.space, spaces.MultiDiscrete):
            return jnp.stack(action).astype(jnp.int32)
        return action.astype(jnp.int32)


def check_action_space(space: Any) -> None:
    """Raise `ValueError` unless a policy head can be made for the action space."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return
    known = "expected Discrete, MultiDiscrete or a Box of real numbers of at most one axis"
    if isinstance(space, spaces.Box):
        if not jnp.issubdtype(space.dtype, jnp.floating):
            raise ValueError(
                f"cannot act in the action space {space!r} of dtype {jnp.dtype(space.dtype)}; {known}. State "
                "whole-number actions as Discrete or MultiDiscrete"
            )
        if len(space.shape) <= 1:
            return
    raise ValueError(f"cannot act in the action space {space!r}; {known}")


def action_outputs(space: Any) -> int:
    """Return the output size of a policy head for the action space."""
    return flat_size(space)


def _bounds(space: Any) -> tuple[Array, Array, Array]:
    """Return lower and upper bounds of a Box, and for which components both are finite."""
    low, high = (jnp.broadcast_to(jnp.asarray(x, jnp.float32), space.shape) for x in (space.low, space.high))
    return low, high, jnp.isfinite(low) & jnp.isfinite(high)


def to_environment(space: Any, action: Array) -> Array:
    """Return the policy's action as the environment takes it.

    For the policy, a component of a Box with two finite bounds is in [-1, 1], so that neither the initial standard
    deviation nor the learning rate depends on the unit of the action. It is clipped to [-1, 1] and mapped affinely to
    [low, high]. Every other component is clipped to the bound that it has. Discrete actions are unchanged.
    """
    if not isinstance(space, spaces.Box):
        return action
    low, high, bounded = _bounds(space)
    share = (jnp.clip(action, -1, 1) + 1) / 2
    # Not low + share * (high - low), which overflows for bounds near the largest numbers.
    mapped = jnp.where(bounded, low, 0) * (1 - share) + jnp.where(bounded, high, 0) * share
    # Rounding must not leave the box.
    return jnp.clip(jnp.where(bounded, mapped, action), low, high).astype(space.dtype)


def from_environment(space: Any, action: Array) -> Array:
    """Return the policy's action for one of the environment, of the same shape: the inverse of `to_environment`."""
    if not isinstance(space, spaces.Box):
        return action
    low, high, bounded = _bounds(space)
    width = jnp.where(bounded & (high > low), high - low, 1)
    return jnp.where(bounded, 2 * (action - jnp.where(bounded, low, 0)) / width - 1, action)
