"""What every wrapper is: an environment around another one, and the settings that put it there."""

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray
from pydantic import BaseModel, ConfigDict

from memax_rl.envs.base import Environment, Step, has_action_mask, host_of


class Wrapper(Environment):
    """An environment around another one, `inner`. A subclass says what it changes."""

    def __init__(self, inner: Environment):
        self.inner = inner

    @property
    def default_params(self) -> Any:
        """The inner environment's."""
        return self.inner.default_params

    @property
    def host(self) -> Any:
        """The inner environment's."""
        return host_of(self.inner)

    def action_space(self, params: Any) -> Any:
        """The inner environment's, unless overridden."""
        return self.inner.action_space(params)

    def observation_space(self, params: Any) -> Any:
        """The inner environment's, unless overridden."""
        return self.inner.observation_space(params)

    def max_episode_steps(self, params: Any) -> int | None:
        """The inner environment's, unless overridden."""
        return self.inner.max_episode_steps(params)

    def fixed_length(self, params: Any) -> int | None:
        """The inner environment's, unless overridden."""
        return self.inner.fixed_length(params)

    def truncates(self, params: Any) -> bool:
        """The inner environment's, unless overridden."""
        return self.inner.truncates(params)

    def action_mask(self, state: Any, params: Any) -> Bool[Array, " actions"] | None:
        """The inner environment's, for a wrapper whose state is the inner one's."""
        return self.inner.action_mask(state, params)

    def inner_action(self, action: Any, params: Any) -> Any:
        """What `inner` is given for an action of the agent. The action itself, unless overridden.

        For a policy outside of this environment.
        """
        return action

    def reset(self, key: PRNGKeyArray, params: Any = None) -> tuple[Any, Any]:
        """Begin an episode; the inner environment's, unless overridden."""
        return self.inner.reset(key, params)

    def step(self, key: PRNGKeyArray, state: Any, action: Any, params: Any = None) -> Step:
        """One transition (see the base class)."""
        return self.step_if(jnp.ones((), bool), key, state, action, params)

    def step_if(self, active: Bool[Array, ""], key: PRNGKeyArray, state: Any, action: Any, params: Any) -> Step:
        """The inner environment's, unless overridden."""
        return self.inner.step_if(active, key, state, action, params)

    def reset_if(
        self, active: Bool[Array, ""], key: PRNGKeyArray, obs: Any, state: Any, params: Any
    ) -> tuple[Any, Any]:
        """A new episode where `active`, for a wrapper whose state is the inner one's and whose observation is too."""
        return self.inner.reset_if(active, key, obs, state, params)

    def show(self, obs: Any, params: Any) -> Any:
        """What the agent sees of an observation of `inner` that came from elsewhere, but for what is random.

        The observation itself, unless overridden. For a policy outside of this environment.
        """
        return obs

    def show_action_mask(self, mask: Bool[Array, " values"], params: Any) -> Bool[Array, " actions"]:
        """Which actions of the agent are legal, of a mask of `inner`. The mask itself, unless overridden."""
        return mask

    def show_reward(self, reward: Array) -> Array:
        """What the agent sees of a reward of `inner` that came from elsewhere. The reward itself, unless overridden."""
        return reward


class WrapperConfig(BaseModel, abc.ABC):
    """Options of a wrapper."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    changes_task: ClassVar[bool] = True
    """Whether chance and the best known score are others with the wrapper than without."""

    name: str

    @abc.abstractmethod
    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Return the environment and its parameters with the wrapper in place.

        Raises:
            ValueError: If it does not fit the environment.
        """


def use_key(key: PRNGKeyArray, use: int) -> PRNGKeyArray:
    """Return a key for the wrapper itself; the inner environment gets the original key.

    Args:
        use: A number for each use that a wrapper makes of the key.
    """
    return jax.random.fold_in(key, 2**31 - 1 - use)


def refuse_masks(name: str, env: Environment, params: Any, env_id: str) -> None:
    """Raise `ValueError` if some actions of the environment are not legal.

    Args:
        name: Of the wrapper, for the message.
    """
    if has_action_mask(env, params):
        raise ValueError(
            f"env_wrappers: {name} takes actions again, and in {env_id} they may no longer be legal then; leave it out"
        )


def layers(env: Any) -> list[Any]:
    """The environment without its wrappers, and these, the innermost first."""
    return [*layers(env.inner), env] if isinstance(env, Wrapper) else [env]
