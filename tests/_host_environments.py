"""Gymnasium environments for the tests, in a module of their own so that worker processes import nothing else."""

import time

import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env):
    """Shows a number drawn from the episode's seed, and the step count. Reward 1 a step.

    `trouble` happens at step `at` of every episode.
    """

    def __init__(self, length: int = 4, ending: str = "terminated", trouble: str = "", at: int = 3):
        self.length, self.ending, self.trouble, self.at = length, ending, trouble, at
        self.observation_space = spaces.Box(0.0, 1e6, (2,), np.float32)
        self.action_space = spaces.Discrete(3)

    def _show(self):
        return np.array([self.number, self.time], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        assert options is None
        self.number, self.time = self.np_random.integers(100_000), 0
        return self._show(), {}

    def step(self, action):
        assert 0 <= action < 3
        self.time += 1
        observation, reward = self._show(), 1.0
        if self.time == self.at:
            if self.trouble == "raises":
                raise RuntimeError("the door is stuck")
            if self.trouble == "four":
                return observation, reward, False, {}
            if self.trouble == "swapped":
                return observation, reward, False, {}, True
            if self.trouble == "hangs":
                time.sleep(3600)
            if self.trouble == "nan":
                observation[1] = np.nan
            if self.trouble == "shape":
                observation = observation[:1]
            if self.trouble == "dtype":
                observation = np.array(["a", "b"])
            if self.trouble == "reward":
                reward = float("inf")
            if self.trouble == "huge reward":
                reward = 1e300
            if self.trouble == "exits":
                raise SystemExit("the simulator gave up")
            if self.trouble == "interrupts":
                raise KeyboardInterrupt("the simulator was stopped")
        done = self.time >= self.length
        return observation, reward, done and self.ending == "terminated", done and self.ending == "truncated", {}


class Shows(gymnasium.Env):
    """Shows a value of a Box of one number, whatever its dtype."""

    def __init__(self, low: float, high: float, dtype: str, value: float, as_dtype: str | None = None):
        self.observation_space = spaces.Box(low, high, (1,), np.dtype(dtype).type)
        self.action_space = spaces.Discrete(2)
        self.value = np.array([value], as_dtype or dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.value, {}

    def step(self, action):
        return self.value, 0.0, False, False, {}


class Shapes(gymnasium.Env):
    """Every kind of space; the observation repeats the last action. `outside` makes its Discrete leave its range."""

    def __init__(self, outside: bool = False):
        self.outside = outside
        self.observation_space = spaces.Dict(
            {
                "z": spaces.Discrete(3, start=-1),
                "a": spaces.Tuple((spaces.MultiBinary((2, 2)), spaces.Box(0, 255, (2, 2, 3), np.uint8))),
                "m": spaces.MultiDiscrete([3, 4], start=[5, 6]),
            }
        )
        self.action_space = spaces.MultiDiscrete([3, 4], start=[5, 6])

    def _show(self, action):
        return {
            "z": np.int64(2 if self.outside else -1),
            "a": (np.array([[1, 0], [0, 1]], np.int8), np.full((2, 2, 3), 200, np.uint8)),
            "m": action,
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._show(np.array([5, 6])), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self._show(action), 0.0, False, False, {}


class Mission(gymnasium.Env):
    """What MiniGrid shows: an image, a direction, and a text that no array can stand for."""

    def __init__(self, nested: bool = False):
        parts: dict[str, spaces.Space] = {
            "direction": spaces.Discrete(4),
            "image": spaces.Box(0, 255, (7, 7, 3), np.uint8),
            "mission": spaces.Text(20),
        }
        self.nested = nested
        self.observation_space = spaces.Tuple([spaces.Dict(parts)]) if nested else spaces.Dict(parts)
        self.action_space = spaces.Discrete(2)

    def _show(self):
        seen = {"direction": np.int64(3), "image": np.ones((7, 7, 3), np.uint8), "mission": "get the key"}
        return (seen,) if self.nested else seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._show(), {}

    def step(self, action):
        self.time += 1
        return self._show(), 0.0, self.time == 4, False, {}


gymnasium.register("memax_test/Mission-v0", entry_point="_host_environments:Mission")
gymnasium.register("memax_test/Counter-v0", entry_point="_host_environments:Counter")
gymnasium.register("memax_test/Shapes-v0", entry_point="_host_environments:Shapes")
gymnasium.register("memax_test/Shows-v0", entry_point="_host_environments:Shows")


class Masked(gymnasium.Env):
    """Says in `info["action_mask"]` that action `time % 3` alone is legal, at the last step too. Another one raises.

    Episodes of four steps. `how` is what is done at the third step instead: no mask, a long one, or none at all.
    """

    def __init__(self, ending: str = "terminated", how: str = "", pair: bool = False):
        self.ending, self.how, self.pair = ending, how, pair
        self.observation_space = spaces.Discrete(5)
        self.action_space = spaces.MultiDiscrete([2, 3]) if pair else spaces.Discrete(3, start=5)

    def _info(self):
        mask = (np.arange(3) == self.time % 3).astype(np.int8)
        if self.pair:
            return {"action_mask": (np.array([0, 1], np.int8), mask)}
        if self.time == 3 and self.how:
            return {"missing": {}, "long": {"action_mask": np.ones(4, np.int8)}}[self.how]
        return {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return 0, self._info()

    def step(self, action):
        legal = [1, self.time % 3] if self.pair else 5 + self.time % 3
        if np.any(action != np.array(legal)):
            raise RuntimeError(f"{action} is illegal at step {self.time}")
        self.time += 1
        done = self.time >= 4
        ends = done and self.ending == "terminated", done and self.ending == "truncated"
        return self.time, 1.0, *ends, self._info()


gymnasium.register("memax_test/Masked-v0", entry_point="_host_environments:Masked")
