"""Wrappers that change how an environment is stepped, or what it pays."""

import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, PRNGKeyArray
from pydantic import Field

from memax_rl.envs.adapters.gymnax import GymnaxAdapter
from memax_rl.envs.base import Environment, Step, where
from memax_rl.envs.wrappers.base import Wrapper, WrapperConfig, refuse_masks, use_key


class TimeLimitState(eqx.Module):
    """The `inner` state, and the steps of the open episode (`time`)."""

    inner: Any
    time: Int32[Array, ""]


class TimeLimit(Wrapper):
    """Truncates an episode after `steps` steps, if it has not ended by then."""

    def __init__(self, inner: Environment, steps: int):
        super().__init__(inner)
        self.steps = steps

    def max_episode_steps(self, params: Any) -> int | None:
        """The limit, or the inner horizon where that is shorter."""
        return min(self.steps, self.inner.max_episode_steps(params) or self.steps)

    def fixed_length(self, params: Any) -> int | None:
        """The inner length, cut at the limit."""
        fixed = self.inner.fixed_length(params)
        return None if fixed is None else min(fixed, self.steps)

    def truncates(self, params: Any) -> bool:
        """Whether this limit comes first, or the inner environment is cut."""
        fixed = self.inner.fixed_length(params)
        return self.inner.truncates(params) or (fixed is not None and self.steps < fixed)

    def action_mask(self, state: TimeLimitState, params: Any) -> Bool[Array, " actions"] | None:
        """The inner environment's."""
        return self.inner.action_mask(state.inner, params)

    def reset(self, key: PRNGKeyArray, params: Any = None) -> tuple[Any, TimeLimitState]:
        """Begin an episode."""
        obs, inner = self.inner.reset(key, params)
        return obs, TimeLimitState(inner, jnp.zeros((), jnp.int32))

    def step_if(
        self, active: Bool[Array, ""], key: PRNGKeyArray, state: TimeLimitState, action: Any, params: Any
    ) -> Step:
        """One transition, cut at the limit."""
        obs, inner, reward, terminated, truncated, info = self.inner.step_if(active, key, state.inner, action, params)
        done = terminated | truncated
        time = state.time + active.astype(jnp.int32)
        cut = active & ~done & (time >= self.steps)
        obs, inner = self.inner.reset_if(cut, use_key(key, 0), obs, inner, params)
        time = jnp.where(active & (done | cut), 0, time)
        return obs, TimeLimitState(inner, time), reward, terminated, truncated | cut, info

    def reset_if(
        self, active: Bool[Array, ""], key: PRNGKeyArray, obs: Any, state: TimeLimitState, params: Any
    ) -> tuple[Any, TimeLimitState]:
        """A new episode where `active`."""
        obs, inner = self.inner.reset_if(active, key, obs, state.inner, params)
        return obs, TimeLimitState(inner, jnp.where(active, 0, state.time))


class TimeLimitConfig(WrapperConfig):
    """Another time limit. gymnax/ and gym/ environments take a longer one too, the others only a shorter one."""

    name: Literal["time_limit"] = "time_limit"
    steps: int = Field(ge=1, lt=2**31)
    """Steps after which an episode is truncated."""

    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Set the environment's own limit where it has one, else put another around it."""
        from memax_rl.envs.adapters.gymnasium import GymnasiumAdapter

        if isinstance(env, GymnaxAdapter):
            return env, params.replace(max_steps_in_episode=self.steps)
        if isinstance(env, GymnasiumAdapter):
            given = env.options.arguments.get("max_episode_steps")
            if given is not None:
                raise ValueError(
                    f"env_wrappers: time_limit of {self.steps} steps would replace env_options.arguments."
                    f"max_episode_steps={given} of {env_id}; leave one of them out"
                )
            return GymnasiumAdapter(env.env_id, env.options, max_episode_steps=self.steps), params
        longest = env.max_episode_steps(params)
        if longest is not None and self.steps >= longest:
            raise ValueError(
                f"env_wrappers: time_limit of {self.steps} steps does nothing, because no episode of {env_id} has more "
                f"than {longest}; only gymnax/ and gym/ environments can be made longer, with time_limit listed first"
            )
        return TimeLimit(env, self.steps), params


# Frame skip


class FrameSkip(Wrapper):
    """Takes every action `frames` times, or until the episode ends, and adds up the rewards.

    Its `step` raises `ValueError` where the inner environment gives `info["discount"]` or
    `info["intrinsic_reward"]`.
    """

    def __init__(self, inner: Environment, frames: int):
        super().__init__(inner)
        self.frames = frames

    def max_episode_steps(self, params: Any) -> int | None:
        """The inner horizon in steps of several frames."""
        longest = self.inner.max_episode_steps(params)
        return None if longest is None else math.ceil(longest / self.frames)

    def fixed_length(self, params: Any) -> int | None:
        """The inner length in steps of several frames."""
        fixed = self.inner.fixed_length(params)
        return None if fixed is None else math.ceil(fixed / self.frames)

    def step_if(self, active: Bool[Array, ""], key: PRNGKeyArray, state: Any, action: Any, params: Any) -> Step:
        """Several transitions."""
        first, *others = jax.random.split(key, self.frames)
        obs, state, reward, terminated, truncated, info = self.inner.step_if(active, first, state, action, params)
        if not others:
            return obs, state, reward, terminated, truncated, info
        if "discount" in info:
            raise ValueError(
                "env_wrappers: frame_skip would add up rewards on both sides of an episode's end within a trial, where "
                "the return is to stop; set env_options.discount_across_episodes to true, or leave frame_skip out"
            )

        if "intrinsic_reward" in info:
            raise ValueError(
                "env_wrappers: frame_skip would lose the intrinsic reward of all but the last of its steps; leave it "
                "out, or set env_options.novelty_bonus to 0"
            )

        def again(carry, key):
            obs, state, reward, terminated, truncated, final = carry
            goes_on = active & ~(terminated | truncated)
            new_obs, state, more, new_terminated, new_truncated, info = self.inner.step_if(
                goes_on, key, state, action, params
            )
            old = (obs, terminated, truncated, final)
            new = (new_obs, new_terminated, new_truncated, info["final_observation"])
            obs, terminated, truncated, final = where(goes_on, new, old)
            return (obs, state, reward + jnp.where(goes_on, more, 0), terminated, truncated, final), None

        carry = (obs, state, reward, terminated, truncated, info["final_observation"])
        (obs, state, reward, terminated, truncated, final), _ = jax.lax.scan(again, carry, jnp.stack(others))
        return obs, state, reward, terminated, truncated, {"final_observation": final}


class FrameSkipConfig(WrapperConfig):
    """Every action is taken several times, and the rewards are added up."""

    name: Literal["frame_skip"] = "frame_skip"
    frames: int = Field(ge=1, le=10_000)
    """Steps of the inner environment in one of the agent."""

    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Put the wrapper around the environment."""
        refuse_masks(self.name, env, params, env_id)
        return FrameSkip(env, self.frames), params


# Sticky actions


class StickyState(eqx.Module):
    """The `inner` state, the last `action`, and whether the episode has none yet (`is_first`)."""

    inner: Any
    action: Array
    is_first: Bool[Array, ""]


class StickyActions(Wrapper):
    """With some probability the environment takes its previous action again instead of the agent's.

    Machado et al. 2018, https://arxiv.org/abs/1709.06009, section 5.2. The first action of an episode is the agent's.
    """

    def __init__(self, inner: Environment, probability: float):
        super().__init__(inner)
        self.probability = probability

    def action_mask(self, state: StickyState, params: Any) -> Bool[Array, " actions"] | None:
        """The inner environment's."""
        return self.inner.action_mask(state.inner, params)

    def reset(self, key: PRNGKeyArray, params: Any = None) -> tuple[Any, StickyState]:
        """Begin an episode."""
        obs, inner = self.inner.reset(key, params)
        space = self.inner.action_space(params)
        return obs, StickyState(inner, jnp.zeros(space.shape, space.dtype), jnp.ones((), bool))

    def step_if(self, active: Bool[Array, ""], key: PRNGKeyArray, state: StickyState, action: Any, params: Any) -> Step:
        """One transition by the agent's action or the previous one."""
        sticks = ~state.is_first & (jax.random.uniform(use_key(key, 1)) < self.probability)
        action = jnp.where(sticks, state.action, jnp.asarray(action, state.action.dtype))
        obs, inner, reward, terminated, truncated, info = self.inner.step_if(active, key, state.inner, action, params)
        chosen = (where(active, action, state.action), where(active, terminated | truncated, state.is_first))
        return obs, StickyState(inner, *chosen), reward, terminated, truncated, info

    def reset_if(
        self, active: Bool[Array, ""], key: PRNGKeyArray, obs: Any, state: StickyState, params: Any
    ) -> tuple[Any, StickyState]:
        """A new episode where `active`."""
        obs, inner = self.inner.reset_if(active, key, obs, state.inner, params)
        return obs, StickyState(inner, state.action, state.is_first | active)


class StickyActionsConfig(WrapperConfig):
    """The environment sometimes takes its previous action again instead of the agent's."""

    name: Literal["sticky_actions"] = "sticky_actions"
    probability: float = Field(default=0.25, ge=0, le=1)
    """Probability of the previous action."""

    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Put the wrapper around the environment."""
        refuse_masks(self.name, env, params, env_id)
        return StickyActions(env, self.probability), params


# Reward scaling


class RewardScaling(Wrapper):
    """Multiplies the reward by `scale`."""

    def __init__(self, inner: Environment, scale: float):
        super().__init__(inner)
        self.scale = scale

    def step_if(self, active: Bool[Array, ""], key: PRNGKeyArray, state: Any, action: Any, params: Any) -> Step:
        """One transition with the reward scaled."""
        obs, state, reward, terminated, truncated, info = self.inner.step_if(active, key, state, action, params)
        if "intrinsic_reward" in info:
            info = {**info, "intrinsic_reward": info["intrinsic_reward"] * jnp.float32(self.scale)}
        return obs, state, self.show_reward(reward), terminated, truncated, info

    def show_reward(self, reward: Array) -> Array:
        """The reward scaled."""
        return reward * jnp.float32(self.scale)


class RewardScalingConfig(WrapperConfig):
    """The reward, and with it every return that is printed, is multiplied by a constant."""

    name: Literal["reward_scaling"] = "reward_scaling"
    scale: float
    """The factor."""

    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Put the wrapper around the environment."""
        return RewardScaling(env, self.scale), params
