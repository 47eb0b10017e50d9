"""A network of action values with memory, for Q-learning."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from memax_rl.envs import spaces
from memax_rl.networks.actions import action_outputs, only_legal
from memax_rl.networks.encoder import AgentInput, Dense, Space, one_hot
from memax_rl.networks.torso import NetworkConfig, Torso, make_torso, on_slots


class QValues(eqx.Module):
    """Action values of one step, from `raw`: one number for each value of each component of an action.

    Discrete: `raw` holds the values themselves. MultiDiscrete: the value of an action is the sum of the numbers of its
    components, so that the best action is the best value of each component (the branches of Tavakoli et al. 2018,
    https://arxiv.org/abs/1711.08946, with one value for the whole action, as in Sunehag et al. 2018,
    https://arxiv.org/abs/1706.05296).
    """

    space: Any = eqx.field(static=True)
    raw: Float[Array, " outputs"]
    action_mask: Bool[Array, " outputs"] | None = None

    def _legal(self) -> list[Float[Array, " values"]]:
        return spaces.by_component(self.space, only_legal(self.raw, self.action_mask))

    def of(self, action: Array) -> Float[Array, ""]:
        """Return the value of an action."""
        return jnp.sum(one_hot(self.space, action) * self.raw)

    def max(self) -> Float[Array, ""]:
        """Return the value of the best action that is legal."""
        return jnp.sum(jnp.stack([jnp.max(values) for values in self._legal()]))

    def mode(self) -> Array:
        """Return the best action that is legal: [] of a Discrete space, [components] of a MultiDiscrete one."""
        best = jnp.stack([jnp.argmax(values) for values in self._legal()]).astype(jnp.int32)
        return best if isinstance(self.space, spaces.MultiDiscrete) else best[0]


class QNetwork(eqx.Module):
    """Action values on a torso. With a `value_head` it is a dueling network.

    Wang et al. 2016, https://arxiv.org/abs/1511.06581, equation 9: Q(s, a) = V(s) + A(s, a) - mean of A(s, .).

    Attributes:
        torso: Encoder and memories.
        head: The last layer: values of the actions, or with `value_head` their advantages.
    """

    action_space: Any = eqx.field(static=True)
    torso: Torso
    head: Dense
    value_head: Dense | None

    def initial_state(self) -> tuple[Any, ...]:
        """Return the initial carry."""
        return self.torso.initial_state()

    def step(self, state: tuple[Any, ...], inputs: AgentInput) -> tuple[tuple[Any, ...], QValues]:
        """Return the next carry and the action values of one step."""
        state, features = self.torso.step(state, inputs)
        return state, self._values(features, inputs.action_mask)

    def scan(self, state: tuple[Any, ...], inputs: AgentInput) -> tuple[tuple[Any, ...], QValues]:
        """Return the last carries, and the action values [rows, slots] of a batch of rows."""
        state, features = self.torso.scan(state, inputs)
        return state, on_slots(self._values, features, inputs.action_mask)

    def observe(self, observation: PyTree[Array], valid: Bool[Array, "rows slots"]) -> "QNetwork":
        """Return the network after its running statistics, if it has any, have seen the valid slots of a tape."""
        return eqx.tree_at(lambda n: n.torso.encoder, self, self.torso.encoder.observe(observation, valid))

    def _values(self, features: Float[Array, " width"], mask: Bool[Array, " outputs"] | None) -> QValues:
        raw = self.head(features)
        if self.value_head is None:
            return QValues(self.action_space, raw, mask)
        components = spaces.by_component(self.action_space, raw)
        # The value is divided by the number of components, so that it counts once in their sum.
        value = self.value_head(features) / len(components)
        return QValues(self.action_space, jnp.concatenate([value + a - jnp.mean(a) for a in components]), mask)


def check_discrete(space: Any, agent: str) -> None:
    """Raise `ValueError`, naming the agent, unless the actions can be counted, as action values need."""
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        raise ValueError(
            f"{agent} cannot act in the action space {space!r}; expected Discrete or MultiDiscrete. "
            "For continuous actions set agent to 'ppo', 'sac' or 'bc'"
        )


def make_q_network(
    config: NetworkConfig, observation_space: Space, action_space: Space, *, dueling: bool, key: PRNGKeyArray
) -> QNetwork:
    """Return a network of action values. Raises `ValueError` for a space, memory or setting it cannot handle.

    Args:
        dueling: Whether values are split into that of the state and the advantages of the actions.
    """
    check_discrete(action_space, "a network of action values")
    if (setting := config.of_actor_critics()) is not None:
        raise ValueError(f"network.{setting} is for actor-critics as ppo's; with agent 'dqn' or 'pqn' set it to false")
    torso_key, head_key, value_key = jax.random.split(key, 3)
    outputs = action_outputs(action_space)
    return QNetwork(
        action_space=action_space,
        torso=make_torso(config, observation_space, action_space, key=torso_key),
        # Small gains make the initial values, and so the first targets, nearly zero.
        head=Dense(config.width, outputs, 0.01, key=head_key),
        value_head=Dense(config.width, 1, 0.01, key=value_key) if dueling else None,
    )
