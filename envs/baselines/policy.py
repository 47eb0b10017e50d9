"""The interface of scripted policies, which have a known strength to compare agents with."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from memax_rl.envs import spaces


class PolicyInput(NamedTuple):
    """What a policy is shown at a step. The agents' `AgentInput` has the same fields, and serves as well.

    Attributes:
        observation: The observation now.
        previous_action: The action of the step before; zeros where `start`.
        previous_reward: The reward of the step before; 0 where `start`.
        start: Whether an episode starts (in the meta suite: a trial), and nothing came before.
        action_mask: Which actions are legal, None where all always are.
    """

    observation: PyTree[Array]
    previous_action: PyTree[Array]
    previous_reward: Float[Array, ""]
    start: Bool[Array, ""]
    action_mask: Bool[Array, " actions"] | None = None


class Policy(eqx.Module):
    """A scripted policy: it acts on what an agent is shown, and keeps a carry. Unbatched; vmap it."""

    @abc.abstractmethod
    def initial_carry(self, task: PyTree[Array] = None) -> Any:
        """Return the carry at the start of an episode or trial, a pytree of arrays.

        Args:
            task: The hidden task of a trial, which only an oracle looks at; None where there is none.
        """

    @abc.abstractmethod
    def act(self, carry: Any, inputs: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        """Choose an action.

        Args:
            carry: The carry, which does not know `inputs` yet.
            inputs: A `PolicyInput`, or the `AgentInput` of a stream.
            key: A fresh random key.

        Returns:
            The carry after the step, and the action.
        """


class RandomPolicy(Policy):
    """Actions drawn uniformly from those of the action space that are legal."""

    action_space: Any = eqx.field(static=True)

    def initial_carry(self, task: PyTree[Array] = None) -> None:
        """Return None: there is nothing to remember."""
        return None

    def act(self, carry: None, inputs: Any, key: PRNGKeyArray) -> tuple[None, Array]:
        """Choose any action that is legal."""
        if inputs.action_mask is None:
            return None, self.action_space.sample(key)
        uniform = jax.random.uniform(key, (len(spaces.value_counts(self.action_space)),))
        return None, spaces.draw_action(self.action_space, uniform, inputs.action_mask)
