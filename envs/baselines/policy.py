"""What a scripted policy is."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, PRNGKeyArray


class Policy(eqx.Module):
    """A policy that sees observations only and keeps a memory through an episode. Unbatched; vmap it."""

    @abc.abstractmethod
    def initial_memory(self) -> Any:
        """The memory at the start of an episode, a pytree of arrays."""

    @abc.abstractmethod
    def act(self, key: PRNGKeyArray, memory: Any, obs: Any) -> tuple[Any, Array]:
        """Choose an action.

        Args:
            key: A fresh random key.
            memory: The memory, which does not know `obs` yet.
            obs: The observation now.

        Returns:
            The memory after the observation and the action, and the action.
        """
