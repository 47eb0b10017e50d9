"""Wrappers that change what is seen: noise, and parts taken away."""

import abc
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray
from pydantic import Field

from memax_rl.envs import spaces
from memax_rl.envs.base import Environment, Step, where
from memax_rl.envs.wrappers.base import Wrapper, WrapperConfig, use_key


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
        return self.observe(use_key(key, 2), obs, params), state

    def step_if(self, active: Bool[Array, ""], key: PRNGKeyArray, state: Any, action: Any, params: Any) -> Step:
        """One transition; the last observation of an episode and the first of the next are changed each by itself."""
        obs, state, reward, terminated, truncated, info = self.inner.step_if(active, key, state, action, params)
        final = self.observe(use_key(key, 3), info["final_observation"], params)
        obs = where(terminated | truncated, self.observe(use_key(key, 2), obs, params), final)
        return obs, state, reward, terminated, truncated, {**info, "final_observation": final}

    def reset_if(
        self, active: Bool[Array, ""], key: PRNGKeyArray, obs: Any, state: Any, params: Any
    ) -> tuple[Any, Any]:
        """A new episode where `active`."""
        shapes = jax.eval_shape(self.inner.reset, key, params)[0]
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        first, state = self.inner.reset_if(active, key, nothing, state, params)
        return where(active, self.observe(use_key(key, 2), first, params), obs), state


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
    """Adds Gaussian noise of standard deviation `std` to every real Box in the observation, within its bounds."""

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
    """Shows only some components of a Box of one axis, those whose numbers `keep` has."""

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
    """Shows only some keys of a Dict observation, those in `keep`."""

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
