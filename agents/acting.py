"""What of an agent is needed to act: no environment, and nothing to learn with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from memax_rl.agents.epsilon_greedy import epsilon_greedy
from memax_rl.networks import ActorCritic, NetworkConfig, QNetwork, make_actor_critic, make_q_network
from memax_rl.networks.soft_actor_critic import SoftActor, make_soft_actor_critic
from memax_rl.rollout.streams import Act


class Acting(NamedTuple):
    """How an agent acts.

    Attributes:
        make_network: (observation space, action space, key) -> network.
        act: (network, greedy) -> how it plays, as `Agent.act`.
        evaluates_greedily: Whether it takes its best actions unless told otherwise.
    """

    make_network: Callable[[Any, Any, PRNGKeyArray], Any]
    act: Callable[[Any, bool], Act]
    evaluates_greedily: bool


# How it is made: (settings, network settings) -> how the agent acts.
MakeActing = Callable[[Any, Any], Acting]


def plays_greedily(agent: Any, greedy: bool | None) -> bool:
    """Return whether an agent takes its best actions.

    Args:
        agent: It, or its `Acting`.
        greedy: What it was told; None: what is usual for it.

    Raises:
        ValueError: If `greedy` is anything else, such as a text.
    """
    if greedy is not None and not isinstance(greedy, bool | np.bool_):
        raise ValueError(f"greedy must be True, False or None, got {repr(greedy)[:100]}")
    return bool(agent.evaluates_greedily if greedy is None else greedy)


def follow_policy(network: ActorCritic, greedy: bool = False) -> Act:
    """Return how the policy plays: (carry, inputs, key) -> (carry, action, log-probability)."""

    def act(carry, inputs, key):
        carry, distribution = network.act(carry, inputs)
        if greedy:
            action = distribution.mode()
            return carry, action, distribution.log_prob(action)
        return carry, *distribution.sample(key)

    return act


def follow_values(network: QNetwork) -> Act:
    """Return how the network plays by its best action values: as epsilon-greedily with 0, but nothing is drawn."""

    def act(carry, inputs, key):
        carry, q = network.step(carry, inputs)
        return carry, q.mode(), jnp.zeros(())

    return act


def acting_by_policy(settings: Any, network: NetworkConfig) -> Acting:
    """Return how an actor-critic acts: by actions drawn from its policy, or the most likely ones."""

    def make(observation_space, action_space, key):
        return make_actor_critic(network, observation_space, action_space, key=key)

    return Acting(make, follow_policy, evaluates_greedily=False)


def acting_as_taught(settings: Any, network: NetworkConfig) -> Acting:
    """Return how a cloned policy acts: by its most likely actions, or ones drawn from it."""
    return acting_by_policy(settings, network)._replace(evaluates_greedily=True)


def acting_by_values(settings: Any, network: NetworkConfig) -> Acting:
    """Return how Q-learning acts: by the best action values, or exploring a little, `settings.epsilon_end`."""

    def make(observation_space, action_space, key):
        return make_q_network(network, observation_space, action_space, dueling=settings.dueling, key=key)

    def act(network, greedy):
        if greedy:
            return follow_values(network)
        return epsilon_greedy(network, network.action_space, settings.epsilon_end)

    return Acting(make, act, evaluates_greedily=True)


def follow_soft_policy(network: SoftActor, greedy: bool = False) -> Act:
    """Return how the policy plays: (carry, inputs, key) -> (carry, action, 0); log-probabilities are not computed."""

    def act(carry, inputs, key):
        carry, distribution = network.act(carry, inputs)
        return carry, distribution.mode() if greedy else distribution.sample(key)[0], jnp.zeros(())

    return act


def acting_by_soft_policy(settings: Any, network: NetworkConfig) -> Acting:
    """Return how soft actor-critic acts: by its most likely actions, or ones drawn from its policy."""

    def make(observation_space, action_space, key):
        return make_soft_actor_critic(network, observation_space, action_space, separate=False, key=key)[0]

    return Acting(make, follow_soft_policy, evaluates_greedily=True)
