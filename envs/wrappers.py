"""Wrappers for any environment, in JAX or on the host. A configuration lists them, the innermost first.

Each has a settings model that documents its options and whose `wrap` applies it to an environment. All preserve
gymnax's six-value step, the automatic reset, the true last observation, and correct episode lengths.
"""

import abc
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, PRNGKeyArray
from pydantic import BaseModel, ConfigDict, Field

from memax_rl.envs import spaces
from memax_rl.envs.adapters.gymnax import GymnaxAdapter
from memax_rl.envs.base import Environment, Step, has_action_mask, host_of, where


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

    def show_reward(self, reward: Array) -> Array:
        """What the agent sees of a reward of `inner` that came from elsewhere. The reward itself, unless overridden."""
        return reward


class WrapperConfig(BaseModel, abc.ABC):
    """Options of a wrapper."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str

    @abc.abstractmethod
    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Return the environment and its parameters with the wrapper in place.

        Raises:
            ValueError: If it does not fit the environment.
        """


def _key(key: PRNGKeyArray, use: int) -> PRNGKeyArray:
    """Return a key for the wrapper itself; the inner environment gets the original key."""
    return jax.random.fold_in(key, 2**31 - 1 - use)


def _refuse_masks(name: str, env: Environment, params: Any, env_id: str) -> None:
    if has_action_mask(env, params):
        raise ValueError(
            f"env_wrappers: {name} takes actions again, and in {env_id} they may no longer be legal then; leave it out"
        )


# Time limit


class TimeLimitState(eqx.Module):
    """The inner state and the steps of the open episode."""

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
        obs, inner = self.inner.reset_if(cut, _key(key, 0), obs, inner, params)
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
        _refuse_masks(self.name, env, params, env_id)
        return FrameSkip(env, self.frames), params


# Sticky actions


class StickyState(eqx.Module):
    """The inner state, the last action, and whether the episode has none yet."""

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
        sticks = ~state.is_first & (jax.random.uniform(_key(key, 1)) < self.probability)
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
        _refuse_masks(self.name, env, params, env_id)
        return StickyActions(env, self.probability), params


# Reward scaling


class RewardScaling(Wrapper):
    """Multiplies the reward by a constant."""

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


# Observations


class ObservationWrapper(Wrapper):
    """Changes each observation independently by `observe(key, observation, params)`."""

    @abc.abstractmethod
    def observe(self, key: PRNGKeyArray, obs: Any, params: Any) -> Any:
        """Return what the agent sees of an observation."""

    def show(self, obs: Any, params: Any) -> Any:
        """What `observe` returns. Overridden where that is random."""
        return self.observe(jax.random.key(0), obs, params)

    def reset(self, key: PRNGKeyArray, params: Any = None) -> tuple[Any, Any]:
        """Begin an episode."""
        obs, state = self.inner.reset(key, params)
        return self.observe(_key(key, 2), obs, params), state

    def step_if(self, active: Bool[Array, ""], key: PRNGKeyArray, state: Any, action: Any, params: Any) -> Step:
        """One transition; the last observation of an episode and the first of the next are changed each by itself."""
        obs, state, reward, terminated, truncated, info = self.inner.step_if(active, key, state, action, params)
        final = self.observe(_key(key, 3), info["final_observation"], params)
        obs = where(terminated | truncated, self.observe(_key(key, 2), obs, params), final)
        return obs, state, reward, terminated, truncated, {**info, "final_observation": final}

    def reset_if(
        self, active: Bool[Array, ""], key: PRNGKeyArray, obs: Any, state: Any, params: Any
    ) -> tuple[Any, Any]:
        """A new episode where `active`."""
        shapes = jax.eval_shape(self.inner.reset, key, params)[0]
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        first, state = self.inner.reset_if(active, key, nothing, state, params)
        return where(active, self.observe(_key(key, 2), first, params), obs), state


def _is_real(space: Any) -> bool:
    return isinstance(space, spaces.Box) and jnp.issubdtype(space.dtype, jnp.floating) and len(space.shape) < 3


def _leaves(space: Any) -> list[Any]:
    """Return the simple spaces, in the order of an observation's leaves."""
    if isinstance(space, spaces.Tuple):
        return [leaf for part in space.spaces for leaf in _leaves(part)]
    if isinstance(space, spaces.Dict):
        return [leaf for name in sorted(space.spaces) for leaf in _leaves(space.spaces[name])]
    return [space]


class ObservationNoise(ObservationWrapper):
    """Adds Gaussian noise to every Box of real numbers in the observation, and clips it to its bounds."""

    def __init__(self, inner: Environment, std: float, params: Any):
        super().__init__(inner)
        self.std = std
        self.boxes = _leaves(inner.observation_space(params))

    def observe(self, key: PRNGKeyArray, obs: Any, params: Any) -> Any:
        """Add noise."""
        leaves, tree = jax.tree.flatten(obs)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            jnp.clip(x + self.std * jax.random.normal(k, x.shape, x.dtype), box.low, box.high).astype(x.dtype)
            if _is_real(box)
            else x
            for x, k, box in zip(leaves, keys, self.boxes, strict=True)
        ]
        return jax.tree.unflatten(tree, noisy)

    def show(self, obs: Any, params: Any) -> Any:
        """The observation itself: one from elsewhere has the noise of the place that it comes from."""
        return obs


class ObservationNoiseConfig(WrapperConfig):
    """Gaussian noise on every real component of the observation, then clipped to the observation's bounds."""

    name: Literal["observation_noise"] = "observation_noise"
    std: float = Field(ge=0)
    """Standard deviation, in the observation's own units."""

    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Put the wrapper around the environment."""
        _need_a_box(self.name, env.observation_space(params), env_id)
        return ObservationNoise(env, self.std, params), params


def _need_a_box(name: str, space: Any, env_id: str) -> None:
    if not any(_is_real(leaf) for leaf in _leaves(space)):
        raise ValueError(f"env_wrappers: {name} needs a Box of real numbers to observe, but {env_id} has {space}")


class MaskObservation(ObservationWrapper):
    """Shows only some components of a Box of one axis."""

    def __init__(self, inner: Environment, keep: Sequence[int]):
        super().__init__(inner)
        self.keep = np.asarray(keep, np.int32)

    def observation_space(self, params: Any) -> spaces.Box:
        """A Box of the components that are left."""
        box = self.inner.observation_space(params)
        low, high = (np.broadcast_to(np.asarray(bound), box.shape)[self.keep] for bound in (box.low, box.high))
        return spaces.Box(jnp.asarray(low), jnp.asarray(high), (len(self.keep),), box.dtype)

    def observe(self, key: PRNGKeyArray, obs: Any, params: Any) -> Any:
        """Take the components that are left."""
        return obs[self.keep]


class MaskObservationConfig(WrapperConfig):
    """The agent sees only some components of the observation."""

    name: Literal["mask_observation"] = "mask_observation"
    keep: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Indices of the components that it sees."""

    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Put the wrapper around the environment."""
        return _mask(env, params, env_id, self.name, self.keep), params


def _mask(env: Environment, params: Any, env_id: str, name: str, keep: Sequence[int]) -> Environment:
    box = env.observation_space(params)
    if not isinstance(box, spaces.Box) or len(box.shape) != 1:
        raise ValueError(f"env_wrappers: {name} needs a Box of one axis to observe, but {env_id} has {box}")
    if max(keep) >= box.shape[0] or len(set(keep)) < len(keep):
        raise ValueError(
            f"env_wrappers: {name} must keep different components from 0 to {box.shape[0] - 1}, got {list(keep)}"
        )
    return MaskObservation(env, keep)


class SelectKeys(ObservationWrapper):
    """Shows only some keys of a Dict observation."""

    def __init__(self, inner: Environment, keep: Sequence[str]):
        super().__init__(inner)
        self.keep = tuple(keep)

    def observation_space(self, params: Any) -> spaces.Dict:
        """A Dict of the keys that are left."""
        inner = self.inner.observation_space(params)
        return spaces.Dict({name: inner.spaces[name] for name in self.keep})

    def observe(self, key: PRNGKeyArray, obs: Any, params: Any) -> Any:
        """Take the keys that are left."""
        return {name: obs[name] for name in self.keep}


class SelectKeysConfig(WrapperConfig):
    """The agent sees only some keys of a Dict observation; give `keep` or `drop`."""

    name: Literal["select_keys"] = "select_keys"
    keep: tuple[str, ...] = ()
    """Keys that it sees."""
    drop: tuple[str, ...] = ()
    """Keys that it does not see."""

    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Put the wrapper around the environment."""
        space = env.observation_space(params)
        if not isinstance(space, spaces.Dict):
            raise ValueError(f"env_wrappers: {self.name} needs a Dict to observe, but {env_id} has {space}")
        if bool(self.keep) == bool(self.drop):
            raise ValueError(
                f"env_wrappers: {self.name} takes either keep or drop, got keep={self.keep} drop={self.drop}"
            )
        known = list(space.spaces)
        unknown = [name for name in self.keep + self.drop if name not in known]
        left = [name for name in known if (name in self.keep if self.keep else name not in self.drop)]
        if unknown or not left:
            wrong = f"has no {', '.join(unknown)}" if unknown else "would show nothing"
            raise ValueError(f"env_wrappers: {self.name} {wrong}; the keys of {env_id} are {', '.join(known)}")
        return SelectKeys(env, left), params


# Components of the classic control tasks: positions and velocities. gymnax and Gymnasium order them alike.
_POSITIONS: dict[str, tuple[int, ...]] = {
    "CartPole-v1": (0, 2),
    "Pendulum-v1": (0, 1),
    "Acrobot-v1": (0, 1, 2, 3),
    "MountainCar-v0": (0,),
    "MountainCarContinuous-v0": (0,),
}
_VELOCITIES: dict[str, tuple[int, ...]] = {
    "CartPole-v1": (1, 3),
    "Pendulum-v1": (2,),
    "Acrobot-v1": (4, 5),
    "MountainCar-v0": (1,),
    "MountainCarContinuous-v0": (1,),
}


def _preset(env: Environment, params: Any, env_id: str, name: str, table: dict[str, tuple[int, ...]]) -> Environment:
    suite, _, task = env_id.partition("/")
    if suite not in ("gymnax", "gym") or task not in table:
        raise ValueError(
            f"env_wrappers: {name} knows {', '.join(table)} of gymnax/ and gym/, not {env_id}; use mask_observation"
        )
    size = len(_POSITIONS[task]) + len(_VELOCITIES[task])
    if env.observation_space(params).shape != (size,):
        raise ValueError(f"env_wrappers: {name} must come before a wrapper that takes components away")
    return _mask(env, params, env_id, name, table[task])


class PositionOnlyConfig(WrapperConfig):
    """The agent sees positions and angles, no velocities, in a classic control task."""

    name: Literal["position_only"] = "position_only"

    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Put the wrapper around the environment."""
        return _preset(env, params, env_id, self.name, _POSITIONS), params


class VelocityOnlyConfig(WrapperConfig):
    """The agent sees velocities, no positions and angles, in a classic control task."""

    name: Literal["velocity_only"] = "velocity_only"

    def wrap(self, env: Environment, params: Any, env_id: str) -> tuple[Environment, Any]:
        """Put the wrapper around the environment."""
        return _preset(env, params, env_id, self.name, _VELOCITIES), params


class Spaces(Environment):
    """Stands for an environment of which only the spaces are known. It can be wrapped, but has no episodes."""

    def __init__(self, observation: Any, action: Any):
        self._observation, self._action = observation, action

    @property
    def default_params(self) -> None:
        """None."""
        return None

    def observation_space(self, params: Any) -> Any:
        """The observation space."""
        return self._observation

    def action_space(self, params: Any) -> Any:
        """The action space."""
        return self._action


def layers(env: Any) -> list[Any]:
    """The environment without its wrappers, and these, the innermost first."""
    return [*layers(env.inner), env] if isinstance(env, Wrapper) else [env]


AnyWrapper = Annotated[
    TimeLimitConfig
    | FrameSkipConfig
    | StickyActionsConfig
    | RewardScalingConfig
    | ObservationNoiseConfig
    | MaskObservationConfig
    | SelectKeysConfig
    | PositionOnlyConfig
    | VelocityOnlyConfig,
    Field(discriminator="name"),
]

CONFIGS: dict[str, type[WrapperConfig]] = {
    "time_limit": TimeLimitConfig,
    "frame_skip": FrameSkipConfig,
    "sticky_actions": StickyActionsConfig,
    "reward_scaling": RewardScalingConfig,
    "observation_noise": ObservationNoiseConfig,
    "mask_observation": MaskObservationConfig,
    "select_keys": SelectKeysConfig,
    "position_only": PositionOnlyConfig,
    "velocity_only": VelocityOnlyConfig,
}


def wrap(env: Any, params: Any, env_id: str, wrappers: Sequence[WrapperConfig]) -> tuple[Any, Any]:
    """Return an environment with wrappers applied, the first of them innermost, and its parameters.

    Raises:
        ValueError: If a wrapper does not fit what it is put around.
    """
    for config in wrappers:
        env, params = config.wrap(env, params, env_id)
    return env, params
