"""Epsilon-greedy exploration on action values."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memax_rl.envs import spaces
from memax_rl.networks import QNetwork
from memax_rl.rollout.streams import Act


def epsilon_greedy(
    network: QNetwork, space: spaces.Discrete | spaces.MultiDiscrete, epsilon: Float[Array, ""] | float
) -> Act:
    """Return how the network plays with a probability of epsilon for an action drawn evenly from all that are legal."""
    counts = spaces.value_counts(space)

    def act(carry, inputs, key):
        carry, q = network.step(carry, inputs)
        # One call for all draws, because the hashing of a key is what they cost.
        uniform = jax.random.uniform(key, (1 + len(counts),))
        drawn = spaces.draw_action(space, uniform[1:], inputs.action_mask)
        best = q.mode()
        action = jnp.where(uniform[0] < epsilon, drawn, best)
        chosen = jnp.where(jnp.all(action == best), 1 - epsilon, 0)
        return carry, action, jnp.log(chosen + epsilon / _number(space, inputs.action_mask))

    return act


def _number(space: spaces.Discrete | spaces.MultiDiscrete, mask: Bool[Array, " actions"] | None) -> Array:
    """Return how many actions are legal."""
    if mask is None:
        return jnp.prod(jnp.array(spaces.value_counts(space)))
    return jnp.prod(jnp.stack([jnp.sum(part) for part in spaces.by_component(space, mask)]))


def per_environment(epsilon: Float[Array, " num_envs"]) -> Float[Array, " num_envs"]:
    """Return another epsilon for each environment, some that explore and some that exploit.

    Horgan et al. 2018, https://arxiv.org/abs/1803.00933, section 4.1.
    """
    num_envs = len(epsilon)
    return epsilon ** (1 + 7 * jnp.arange(num_envs) / max(num_envs - 1, 1))
