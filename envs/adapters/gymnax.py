"""gymnax's environments with the interface of `memax_rl.envs.base`.

Source: https://github.com/RobertTLange/gymnax, version 1.0.1. The dynamics are gymnax's to the bit. What
changes: some of its environments return other (weak) types from `step` than from `reset`, integer rewards, or
observations of another dtype than their space's; some rely on implicit rank promotion.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnax
import gymnax.environments.environment
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.base import Environment, EnvironmentFailure, lenient, strong
from memax_rl.envs.checking import as_declared, call_for


def _time_limit(env: Any, params: Any) -> int:
    """gymnax truncates at the first step count that is not below this limit, which may be a float."""
    return math.ceil(params.max_steps_in_episode)


# Episodes of these ids cannot end early: they end at a given step, whatever is done. Others may.
FIXED_LENGTHS: dict[str, Callable[[Any, Any], int]] = {
    "Pendulum-v1": _time_limit,
    "Freeway-MinAtar": _time_limit,
    "Catch-bsuite": lambda env, params: env.rows - 1,
    "DeepSea-bsuite": lambda env, params: env.size,
    "MemoryChain-bsuite": lambda env, params: params.memory_length + 1,
    "UmbrellaChain-bsuite": lambda env, params: params.chain_length,
    "DiscountingChain-bsuite": _time_limit,
    "MNISTBandit-bsuite": lambda env, params: 1,
    "SimpleBandit-bsuite": lambda env, params: 1,
    "PointRobot-misc": _time_limit,
    "BernoulliBandit-misc": _time_limit,
    "GaussianBandit-misc": _time_limit,
    "Reacher-misc": _time_limit,
    "Swimmer-misc": _time_limit,
}


class GymnaxAdapter(Environment):
    """One of gymnax's environments.

    Attributes:
        inner: The environment as gymnax makes it.
        env_id: Its id in gymnax.
    """

    def __init__(self, env_id: str, inner: Any):
        self.env_id = env_id
        self.inner = inner

    @property
    def default_params(self) -> Any:
        """gymnax's own parameters."""
        return self.inner.default_params

    def action_space(self, params: Any) -> Any:
        """gymnax's action space."""
        return spaces.recognize(self.inner.action_space(params))

    def observation_space(self, params: Any) -> Any:
        """gymnax's observation space; observations are cast to its dtype."""
        return spaces.recognize(self.inner.observation_space(params))

    def max_episode_steps(self, params: Any) -> int | None:
        """The time limit, or the number of steps at which every episode ends."""
        fixed = self.fixed_length(params)
        return _time_limit(self.inner, params) if fixed is None else fixed

    def fixed_length(self, params: Any) -> int | None:
        """The number of steps of every episode, where the environment cannot end early."""
        length = FIXED_LENGTHS.get(self.env_id)
        return None if length is None else min(length(self.inner, params), _time_limit(self.inner, params))

    def truncates(self, params: Any) -> bool:
        """Whether the time limit is what ends an episode, or may be."""
        length = FIXED_LENGTHS.get(self.env_id, _time_limit)
        return length is _time_limit or _time_limit(self.inner, params) < length(self.inner, params)

    @partial(jax.jit, static_argnames=("self",))
    def reset(self, key: PRNGKeyArray, params: Any = None) -> tuple[Any, Any]:
        """Begin an episode."""
        if params is None:
            params = self.default_params
        with lenient():
            obs, state = self.inner.reset_env(key, params)
            return self._cast_observation(obs, params), strong(state)

    @partial(jax.jit, static_argnames=("self",))
    def step(
        self, key: PRNGKeyArray, state: Any, action: Any, params: Any = None
    ) -> tuple[Any, Any, Float32[Array, ""], Bool[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """One transition, followed by a reset where it ended the episode (see the base class)."""
        if params is None:
            params = self.default_params
        with lenient():
            action, old_state = jnp.asarray(action, self.action_space(params).dtype), state
            obs, state, reward, terminated, truncated, info = self.inner.step(key, state, action, params)
            extra = {}
            if hasattr(self.inner, "action_mask"):
                # gymnax's step shows the state after the reset only. The compiler finds that this is computed already.
                final_state = self.inner.step_env(jax.random.split(key)[0], old_state, action, params)[1]
                extra["final_action_mask"] = self.inner.action_mask(final_state, params)
            return (
                self._cast_observation(obs, params),
                strong(state),
                jnp.asarray(reward, jnp.float32),
                jnp.asarray(terminated, bool),
                jnp.asarray(truncated, bool),
                {"final_observation": self._cast_observation(info["final_observation"], params), **extra},
            )

    def action_mask(self, state: Any, params: Any) -> Any:
        """What a method `action_mask(state, params)` of the environment says, where it has one."""
        if not hasattr(self.inner, "action_mask"):
            return None
        with lenient():
            return self.inner.action_mask(state, params)

    def _cast_observation(self, obs: Any, params: Any) -> Any:
        return as_declared(self.env_id, self.observation_space(params), obs)


def make(env_id: str) -> GymnaxAdapter:
    """Make one of gymnax's environments.

    Args:
        env_id: An id of gymnax, for example `"CartPole-v1"`.

    Raises:
        EnvironmentFailure: If its data could not be downloaded (MNISTBandit only).
    """
    try:
        with lenient():
            inner, _ = gymnax.make(env_id)
    except OSError as error:
        raise EnvironmentFailure(
            f"gymnax/{env_id} downloads its data when it is made, and that failed: {error}. "
            "Check the network connection, or choose another environment."
        ) from error
    return GymnaxAdapter(env_id, inner)


_NEEDED = ("reset_env", "step_env", "observation_space", "action_space", "default_params")


def adapt(env_id: str, env: Any) -> Environment:
    """Return an environment with gymnax's API as a `memax_rl.envs.base.Environment`.

    Raises:
        ValueError: If it lacks something. The message lists all of it.
    """
    own, base = type(env), gymnax.environments.environment.Environment
    # What the base classes only raise for is missing too.
    missing = [
        name
        for name in _NEEDED
        if not hasattr(own, name) or (name != "default_params" and getattr(own, name) is getattr(base, name, None))
    ]
    if missing:
        raise ValueError(
            f"{env_id}: {own.__name__} lacks {', '.join(missing)}; an environment has gymnax's interface "
            "(docs/own_environment.md) or is a memax_rl.envs.base.Environment"
        )
    if own.default_params is base.default_params:
        raise ValueError(
            f"{env_id}: {own.__name__} has no default_params of its own, and those of gymnax's base class end "
            "every episode after one step; define default_params, with max_steps_in_episode"
        )
    if isinstance(env, Environment):
        check_returns(env_id, env, jax.random.key(0))
        return env
    if not hasattr(env, "step"):
        raise ValueError(f"{env_id}: {own.__name__} lacks step; subclass gymnax.environments.environment.Environment")
    if not hasattr(env.default_params, "max_steps_in_episode"):
        raise ValueError(
            f"{env_id}: default_params of {own.__name__} has no max_steps_in_episode, by which gymnax's step "
            "truncates; add the field"
        )
    check_returns(env_id, env, jax.random.key(0))
    return GymnaxAdapter(env_id, env)


def check_returns(env_id: str, env: Any, key: Any) -> None:
    """Raise `ValueError` unless `reset_env` and `step_env` return as many values as gymnax's do. Nothing is run.

    Args:
        env_id: Its name, for messages.
        env: An environment with gymnax's interface.
        key: A key as it expects them, or its shape and dtype.
    """
    params = env.default_params
    with lenient():
        _, state = call_for(f"{env_id}: reset_env", ("observation", "state"), env.reset_env, key, params)
        action = jax.eval_shape(lambda: spaces.recognize(env.action_space(params)).sample(jax.random.key(0)))
        parts = ("observation", "state", "reward", "terminated", "info")
        call_for(f"{env_id}: step_env", parts, env.step_env, key, state, action, params)
