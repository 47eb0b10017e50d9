"""One copy of a Gymnasium environment on the host, with every result checked. No JAX here.

It has a wrapper for what a vector environment lacks: a copy can skip a step, an ended episode is followed at once by a
new one with its own seed, and an exception or a bad value is reported as text instead of being raised.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import gymnasium.wrappers
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from memax_rl.envs.adapters.gymnasium_spaces import (
    blank,
    decode_action,
    encoded,
    fault,
    short,
)

# Commands of a copy.
WAIT, STEP, RESET = 0, 1, 2


class Keys(gymnasium.ObservationWrapper):
    """Shows only some keys of a Dict observation."""

    def __init__(self, env: gymnasium.Env, keys: Sequence[str]):
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        self.keys = tuple(keys)
        self.observation_space = spaces.Dict({key: env.observation_space[key] for key in keys})

    def observation(self, observation: Any) -> Any:
        """Drop the other keys. A value that is not a dict is passed on, for the check of observations to report."""
        if not isinstance(observation, Mapping):
            return observation
        return {key: observation[key] for key in self.keys if key in observation}


class ActionMasks(gymnasium.Wrapper):
    """Shows `info["action_mask"]` beside the observation: `{"action_mask": ..., "observation": ...}`."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        mask = spaces.MultiBinary(mask_size(env.action_space))
        self.observation_space = spaces.Dict({"action_mask": mask, "observation": env.observation_space})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return {"action_mask": _mask(info, True), "observation": observation}, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        mask = _mask(info, not (terminated or truncated))
        return {"action_mask": mask, "observation": observation}, reward, terminated, truncated, info


def mask_size(space: spaces.Space) -> int:
    """Return how many entries a mask of such actions has; 0 where there can be none."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    return int(space.nvec.sum()) if isinstance(space, spaces.MultiDiscrete) else 0


def _mask(info: Mapping[str, Any], goes_on: bool) -> np.ndarray:
    """Return the mask of all components, one after the other; Gymnasium has one array for each."""
    mask = info.get("action_mask")
    if mask is None:
        raise ValueError("info has no 'action_mask', which a reset before had; set env_options.action_masks to false")
    parts = mask if isinstance(mask, tuple | list) and np.ndim(mask[0]) else [mask]
    if goes_on and not all(np.any(part) for part in parts):
        raise ValueError(f"info['action_mask'] leaves no legal action: {short(mask)}")
    return np.concatenate([np.asarray(part).reshape(-1) for part in parts])


def gives_masks(env: gymnasium.Env) -> bool:
    """Return whether an environment gives `info["action_mask"]` in a first reset."""
    if not mask_size(env.action_space):
        return False
    try:
        _, info = env.reset(seed=0)
    except Exception:
        # It is told with its place when an episode is to begin.
        return False
    return isinstance(info, Mapping) and info.get("action_mask") is not None


class Maker(NamedTuple):
    """Makes one environment. Worker processes get it pickled.

    Attributes:
        spec, arguments: For `gymnasium.make`.
        keep: Keys of a Dict observation to show; None for all.
        drop: Keys of a Dict observation to leave out.
        wrappers: Names of `gymnasium.wrappers` with their arguments, the innermost first.
        masked: Whether to show action masks beside the observation, see `ActionMasks`.
    """

    spec: EnvSpec
    arguments: Mapping[str, Any]
    keep: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    wrappers: tuple[Mapping[str, Any], ...] = ()
    masked: bool = False

    def __call__(self) -> gymnasium.Env:
        """Make it. Raises `ValueError` where a key is asked for that it does not have, or a wrapper does not fit."""
        env = self._select_keys()
        for wrapper in self.wrappers:
            arguments = {key: value for key, value in wrapper.items() if key != "name"}
            try:
                env = getattr(gymnasium.wrappers, wrapper["name"])(env, **arguments)
            except Exception as error:
                raise ValueError(f"env_options.wrappers: {wrapper['name']}: {error}") from error
        return ActionMasks(env) if self.masked else env

    def _select_keys(self) -> gymnasium.Env:
        env = gymnasium.make(self.spec, disable_env_checker=True, **self.arguments)
        if self.keep is None and not self.drop:
            return env
        if not isinstance(env.observation_space, spaces.Dict):
            raise ValueError(
                f"env_options.keep_keys and drop_keys are for Dict observations, and it has {env.observation_space}"
            )
        known = sorted(env.observation_space.spaces)
        unknown = [key for key in (*(self.keep or ()), *self.drop) if key not in known]
        kept = [key for key in known if (self.keep is None or key in self.keep) and key not in self.drop]
        if unknown or not kept:
            wrong = f"there is no {unknown[0]!r}" if unknown else "nothing is left"
            raise ValueError(f"env_options.keep_keys and drop_keys: {wrong} of the keys {', '.join(known)}")
        return Keys(env, kept)


# Copies


def _parts_fault(method: str, returned: Any, parts: tuple[str, ...]) -> str | None:
    """Return what is wrong with what a method returned, if it is not one value for each part."""
    if isinstance(returned, tuple) and len(returned) == len(parts):
        return None
    got = f"{len(returned)} values" if isinstance(returned, tuple) else f"a value of type {type(returned).__name__}"
    return f"{method} returned {got}, expected ({', '.join(parts)})"


def _reward_fault(reward: Any) -> str | None:
    array = np.asarray(reward)
    if array.shape == () and array.dtype.kind in "fiub":
        with np.errstate(over="ignore"):
            if np.isfinite(array.astype(np.float32)):
                return None
    hint = ", too large for float32" if array.dtype.kind in "fiub" and bool(np.isfinite(array).all()) else ""
    return f"the reward is {short(array.tolist())}{hint}, expected one finite number"


def _flag_fault(name: str, flag: Any) -> str | None:
    """Return what is wrong with a flag, such as a dict in its place, which would count as false where it is empty."""
    # Asked at every step.
    if isinstance(flag, bool | np.bool_):
        return None
    array = np.asarray(flag)
    if array.size == 1 and array.dtype.kind in "biuf":
        return None
    return f"{name} is {short(array.tolist())}, expected true or false"


def any_box(shape: tuple[int, ...], dtype: Any) -> spaces.Box:
    """Return a Box that holds every array of a shape and dtype, for gymnasium to pass arrays around in."""
    dtype = np.dtype(dtype)
    bounds = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return spaces.Box(*bounds, shape, dtype.type)


class Copy(gymnasium.Wrapper):
    """One environment. Its action is (whether to step at all, the learner's action); it never raises.

    `problem` holds the first failure, or None. After a failure the copy is not stepped any more.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.inner_action_space = env.action_space
        shape, dtype = encoded(env.action_space)
        self.action_space = spaces.Tuple((spaces.Discrete(2), any_box(shape, dtype)))
        self.problem: str | None = None
        self.shown: Any = blank(env.observation_space)
        self.steps = 0
        self.seed: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode with a seed."""
        # After a failure, step and seed stay those at which it occurred.
        if self.problem is None:
            self.steps, self.seed = 0, seed
            try:
                returned = self.env.reset(seed=seed, options=options or None)
                self.problem = _parts_fault("reset", returned, ("observation", "info"))
                if self.problem is None:
                    self._show(returned[0])
            except BaseException as error:
                self.problem = f"reset raised {type(error).__name__}: {error}"
        return self.shown, {}

    def step(self, action: tuple[Any, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, unless the first part of the action is 0."""
        acts, chosen = action
        if not acts or self.problem is not None:
            return self.shown, 0.0, False, False, {}
        self.steps += 1
        try:
            decoded = decode_action(self.inner_action_space, chosen)
            returned = self.env.step(decoded)
            parts = ("observation", "reward", "terminated", "truncated", "info")
            self.problem = _parts_fault("step", returned, parts)
            if self.problem is not None:
                return self.shown, 0.0, False, False, {}
            observation, reward, terminated, truncated, _ = returned
            flags = _flag_fault("terminated", terminated) or _flag_fault("truncated", truncated)
            self.problem = _reward_fault(reward) or flags
            if self.problem is None:
                self._show(observation)
            if self.problem is not None:
                return self.shown, 0.0, False, False, {}
            return self.shown, float(np.float32(reward)), bool(terminated), bool(truncated), {}
        except BaseException as error:
            # KeyboardInterrupt and SystemExit too: neither is to leave the compiled program that this is called from.
            self.problem = f"step raised {type(error).__name__}: {error}"
            return self.shown, 0.0, False, False, {}

    def _show(self, observation: Any) -> None:
        self.problem = fault(self.observation_space, observation, "the observation")
        if self.problem is None:
            self.shown = observation

    def explain(self, index: int) -> str:
        """Return where this copy, the index-th, has failed, and why."""
        return f"at step {self.steps} of an episode (copy {index}, episode seed {self.seed}) {self.problem}"
