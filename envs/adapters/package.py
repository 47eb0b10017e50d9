"""What the adapters of other packages' environments, written in JAX, have in common.

The package's own automatic reset is never used: it hides the last observation of an episode. Here an episode is
begun by the package's reset, and a reset is computed only at a step at which an episode of the batch ends, so that one
that is costly, such as generating a world, does not slow down every step.
"""

import abc
import functools
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray, UInt32

from memax_rl.envs.base import Environment, EnvParams, Step, lenient, strong
from memax_rl.envs.batching import replace_where
from memax_rl.envs.checking import as_declared


class PackageState(eqx.Module):
    """The package's state and what its adapter adds.

    Attributes:
        inner: The package's state.
        time: Steps of the open episode.
        truncated: Whether the last step was cut by a time limit.
        action_mask: Which actions are legal, where the package says so.
    """

    inner: Any
    time: Int32[Array, ""]
    truncated: Bool[Array, ""]
    action_mask: Bool[Array, " actions"] | None = None


class Outcome(eqx.Module):
    """What a step of the package gave: as the package types it."""

    observation: Any
    state: Any
    reward: Any
    terminated: Any
    truncated: Any


class PackageEnvironment(Environment):
    """An environment of another package; a subclass says how its interface is used.

    Attributes:
        env_id: What messages call it.
        inner: The environment as the package makes it.
    """

    def __init__(self, env_id: str, inner: Any):
        self.env_id, self.inner = env_id, inner

    @abc.abstractmethod
    def begin(self, key: UInt32[Array, " 2"], params: Any) -> tuple[Any, Any]:
        """The first observation and the package's state."""

    @abc.abstractmethod
    def advance(
        self, key: UInt32[Array, " 2"], state: Any, action: Any, time: Int32[Array, ""], params: Any
    ) -> Outcome:
        """One transition of the package, without an automatic reset; `time` counts this step too."""

    def legal_actions(self, observation: Any) -> Bool[Array, " actions"] | None:
        """Which actions are legal, by an observation of the package; None, unless overridden."""
        return None

    def action_mask(self, state: PackageState, params: Any) -> Bool[Array, " actions"] | None:
        """What the package says of the actions that are legal now."""
        return state.action_mask

    @property
    def default_params(self) -> Any:
        """Unused, unless overridden: most packages take their parameters at construction."""
        return EnvParams()

    def is_truncated(self, state: PackageState, params: Any) -> Bool[Array, ""]:
        """Whether the step that led here was cut by a time limit."""
        return state.truncated

    def reset_env(self, key: PRNGKeyArray, params: Any) -> tuple[Any, PackageState]:
        """Begin an episode."""
        with lenient():
            observation, inner = self.begin(_plain_key(key), params)
            mask = self.legal_actions(observation)
            state = PackageState(strong(inner), jnp.zeros((), jnp.int32), jnp.zeros((), bool), mask)
            return self.cast(observation, params), state

    def step_env(
        self, key: PRNGKeyArray, state: PackageState, action: Any, params: Any
    ) -> tuple[Any, PackageState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """One transition."""
        with lenient():
            action = jnp.asarray(action, self.action_space(params).dtype)
            time = state.time + 1
            # A copy, because some packages write into the dicts of the state that they are given.
            inner = jax.tree.map(lambda x: x, state.inner)
            after = self.advance(_plain_key(key), inner, action, time, params)
            terminated = jnp.asarray(after.terminated, bool)
            truncated = jnp.asarray(after.truncated, bool) & ~terminated
            mask = self.legal_actions(after.observation)
            kept = PackageState(self._like_first(after.state, params), time, truncated, mask)
            reward = jnp.asarray(after.reward, jnp.float32)
            if reward.shape != ():
                raise ValueError(f"{self.env_id}: expected one reward a step, got an array of shape {reward.shape}")
            return self.cast(after.observation, params), kept, reward, terminated, {}

    @partial(jax.jit, static_argnames=("self",))
    def step(self, key: PRNGKeyArray, state: PackageState, action: Any, params: Any = None) -> Step:
        """One transition, followed by a reset where it ended the episode (see the base class)."""
        if params is None:
            params = self.default_params
        step_key, reset_key = jax.random.split(key)
        final, after, reward, terminated, info = self.step_env(step_key, state, action, params)
        truncated = self.is_truncated(after, params)
        if after.action_mask is not None:
            info = {**info, "final_action_mask": after.action_mask}
        observation, after = replace_where(
            terminated | truncated, self.reset_env, reset_key, _arrays(params), (final, after)
        )
        return observation, after, reward, terminated, truncated, {**info, "final_observation": final}

    def reset_if(
        self, active: Bool[Array, ""], key: PRNGKeyArray, obs: Any, state: Any, params: Any
    ) -> tuple[Any, Any]:
        """A new episode where `active`."""
        return replace_where(active, self.reset_env, key, _arrays(params), (obs, state))

    def cast(self, observation: Any, params: Any) -> Any:
        """Give every array of an observation the dtype of its space."""
        return as_declared(self.env_id, self.observation_space(params), observation)

    @functools.cached_property
    def first_shapes(self) -> tuple[Any, Any]:
        """Shapes and dtypes of the first observation and of the package's state after a reset."""
        with lenient():
            return jax.eval_shape(self.begin, jax.ShapeDtypeStruct((2,), jnp.uint32), self.default_params)

    def _like_first(self, state: Any, params: Any) -> Any:
        """Give the arrays of a state the dtypes of those after a reset; another structure is for `check` to report."""
        like = self.first_shapes[1]
        if jax.tree.structure(state) != jax.tree.structure(like):
            return strong(state)
        return jax.tree.map(lambda x, s: jax.lax.convert_element_type(jnp.asarray(x), s.dtype), state, like)


def _plain_key(key: PRNGKeyArray) -> UInt32[Array, " 2"]:
    """A key in JAX's old form, an array of two numbers: packages that keep keys in their states expect this one."""
    return jax.random.bits(key, (2,), jnp.uint32)


def _arrays(params: Any) -> Any:
    return jax.tree.map(jnp.asarray, params)
