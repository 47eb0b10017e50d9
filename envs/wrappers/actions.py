"""Wrappers that change what the agent chooses among."""

import math
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.base import Environment, Step
from memax_rl.envs.wrappers.base import Wrapper, WrapperConfig

# A head of the network has an output for each combination.
_MOST_COMBINATIONS = 2**16


class JointAction(Wrapper):
    """Makes one choice among all combinations of a MultiDiscrete action, numbered with the last component fastest."""

    def action_space(self, params: Any) -> spaces.Discrete:
        """Discrete, with a value for each combination."""
        return spaces.Discrete(math.prod(self._counts(params)))

    def inner_action(self, action: Int32[Array, ""], params: Any) -> Int32[Array, " components"]:
        """The components of a combination."""
        return jnp.stack(jnp.unravel_index(action, self._counts(params))).astype(jnp.int32)

    def action_mask(self, state: Any, params: Any) -> Bool[Array, " actions"] | None:
        """The combinations of which every component is legal."""
        mask = self.inner.action_mask(state, params)
        return None if mask is None else self.show_action_mask(mask, params)

    def step_if(self, active: Bool[Array, ""], key: PRNGKeyArray, state: Any, action: Any, params: Any) -> Step:
        """One transition by the components of the action."""
        taken = self.inner_action(action, params)
        obs, state, reward, terminated, truncated, info = self.inner.step_if(active, key, state, taken, params)
        if info.get("final_action_mask") is not None:
            info = {**info, "final_action_mask": self.show_action_mask(info["final_action_mask"], params)}
        return obs, state, reward, terminated, truncated, info

    def show_action_mask(self, mask: Bool[Array, " values"], params: Any) -> Bool[Array, " actions"]:
        """The combinations of which every component is legal."""
        space = self.inner.action_space(params)
        joint = jnp.ones((1,), bool)
        for part in spaces.by_component(space, spaces.usable_mask(space, mask)):
            joint = (joint[:, None] & part[None, :]).reshape(-1)
        return joint

    def _counts(self, params: Any) -> tuple[int, ...]:
        return spaces.value_counts(self.inner.action_space(params))


class JointActionConfig(WrapperConfig):
    """A MultiDiscrete action becomes one Discrete choice among all combinations of its components.

    Independent components cannot say "this cell or that one" of a grid without meaning two others too.
    """

    changes_task: ClassVar[bool] = False
    name: Literal["joint_action"] = "joint_action"

    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Put the wrapper around the environment."""
        space = env.action_space(params)
        if not isinstance(space, spaces.MultiDiscrete):
            raise ValueError(
                f"env_wrappers: joint_action is for MultiDiscrete actions, and those of {env_id} are {space!r}; leave "
                "it out"
            )
        combinations = math.prod(space.nvec)
        if combinations > _MOST_COMBINATIONS:
            raise ValueError(
                f"env_wrappers: joint_action would make {combinations} actions of {space!r} of {env_id}, more than "
                f"{_MOST_COMBINATIONS}; leave it out"
            )
        return JointAction(env), params
