"""An actor-critic: a policy and a value function with memory, for policy gradient methods."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from memax_rl.envs import spaces
from memax_rl.networks.actions import ActionDistribution, action_outputs, check_action_space
from memax_rl.networks.encoder import AgentInput, Dense, Space
from memax_rl.networks.torso import NetworkConfig, Torso, make_torso, on_slots

# Bounds of the logarithm of a standard deviation that depends on the state, as soft actor-critics have it.
_LOG_STD = (-5.0, 2.0)


class Outputs(NamedTuple):
    """What an actor-critic makes of a batch of rows.

    Attributes:
        carry: The carry after the rows.
        distribution: Over the actions of each slot.
        value: Of each slot.
        features: Of each slot, from which the policy is read: the memory's output, normalized.
    """

    carry: tuple[Any, ...]
    distribution: ActionDistribution
    value: Float[Array, "rows slots"]
    features: Float[Array, "rows slots width"]


class ActorCritic(eqx.Module):
    """A policy and a value function, on one shared torso or on separate ones.

    Attributes:
        torso: Encoder and memories of the policy, and of the value unless it has its own.
        value_torso: Those of the value, or None.
        policy_head, value_head: The last layers.
        log_std: For a Box: the logarithm of the standard deviation of each component. Else None.
    """

    action_space: Any = eqx.field(static=True)
    torso: Torso
    value_torso: Torso | None
    policy_head: Dense
    value_head: Dense
    log_std: Float[Array, " outputs"] | None

    def initial_state(self) -> tuple[Any, ...]:
        """Return the initial carry of the torso, or of both."""
        if self.value_torso is None:
            return (self.torso.initial_state(),)
        return (self.torso.initial_state(), self.value_torso.initial_state())

    def step(self, state: tuple[Any, ...], inputs: AgentInput) -> tuple[tuple[Any, ...], ActionDistribution, Array]:
        """Return the next carry, the distribution over actions, and the value, a scalar, for one step."""
        new, features = self.torso.step(state[0], inputs)
        if self.value_torso is None:
            return (new,), self._policy(features, inputs.action_mask), self._value(features)
        new_value, value_features = self.value_torso.step(state[1], inputs)
        return (new, new_value), self._policy(features, inputs.action_mask), self._value(value_features)

    def act(self, state: tuple[Any, ...], inputs: AgentInput) -> tuple[tuple[Any, ...], ActionDistribution]:
        """Return the next carry and the distribution over actions, for one step.

        The carry of a separate value torso is left unchanged: acting does not need it.
        """
        new, features = self.torso.step(state[0], inputs)
        return (new, *state[1:]), self._policy(features, inputs.action_mask)

    def scan(self, state: tuple[Any, ...], inputs: AgentInput) -> Outputs:
        """Return the last memories, and what the network makes of each slot of a batch of rows."""
        new, features = self.torso.scan(state[0], inputs)
        carry, value_features = (new,), features
        if self.value_torso is not None:
            new_value, value_features = self.value_torso.scan(state[1], inputs)
            carry = (new, new_value)
        policy = on_slots(self._policy, features, inputs.action_mask)
        return Outputs(carry, policy, on_slots(self._value, value_features), features)

    def observe(self, observation: PyTree[Array], valid: Bool[Array, "rows slots"]) -> "ActorCritic":
        """Return the network after its running statistics, if it has any, have seen the valid slots of a tape."""
        torsos = [torso for torso in (self.torso, self.value_torso) if torso is not None]
        seen = [torso.encoder.observe(observation, valid) for torso in torsos]
        if self.value_torso is None:
            return eqx.tree_at(lambda n: n.torso.encoder, self, seen[0])
        return eqx.tree_at(lambda n: (n.torso.encoder, n.value_torso.encoder), self, tuple(seen))

    def _policy(self, features: Float[Array, " width"], mask: Bool[Array, " outputs"] | None) -> ActionDistribution:
        raw, log_std = self.policy_head(features), self.log_std
        if log_std is not None and len(raw) > len(log_std):
            # The standard deviation depends on the state: the parameter, which it begins with, and what the head says.
            raw, change = jnp.split(raw, 2)
            log_std = jnp.clip(log_std + change, *_LOG_STD)
        return ActionDistribution(self.action_space, raw, log_std, mask)

    def _value(self, features: Float[Array, " width"]) -> Float[Array, ""]:
        return self.value_head(features)[0]


def make_actor_critic(
    config: NetworkConfig, observation_space: Space, action_space: Space, *, key: PRNGKeyArray
) -> ActorCritic:
    """Return an actor-critic for the spaces. Raises `ValueError` for a space or memory it cannot handle."""
    check_action_space(action_space)
    policy_key, value_key, policy_head_key, value_head_key = jax.random.split(key, 4)
    outputs, continuous = action_outputs(action_space), isinstance(action_space, spaces.Box)
    if config.state_dependent_std and not continuous:
        raise ValueError(
            f"network.state_dependent_std is for continuous actions, and the action space is {action_space!r}; set it "
            "to false"
        )
    return ActorCritic(
        action_space=action_space,
        torso=make_torso(config, observation_space, action_space, key=policy_key),
        value_torso=(
            make_torso(config, observation_space, action_space, key=value_key) if config.separate_value else None
        ),
        # A small gain makes the first policy nearly uniform.
        policy_head=Dense(config.width, (1 + config.state_dependent_std) * outputs, 0.01, key=policy_head_key),
        value_head=Dense(config.width, 1, key=value_head_key),
        log_std=jnp.zeros(outputs) if continuous else None,
    )
