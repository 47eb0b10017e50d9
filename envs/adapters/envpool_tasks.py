"""The environments of EnvPool: a batch of them is stepped by threads of a compiled library.

Weng et al. 2022, "EnvPool: A Highly Parallel Reinforcement Learning Environment Execution Engine",
https://arxiv.org/abs/2206.10558. EnvPool can step some of its copies and leave the others, shows the last observation
of an episode, and takes a seed at a reset, so that streams can wait and episodes have seeds of their own as in `gym/`.
"""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from memax_rl.envs.adapters.gymnasium import HostAdapter
from memax_rl.envs.adapters.gymnasium_copy import RESET, STEP, WAIT
from memax_rl.envs.adapters.gymnasium_host import Host, HostError, Transition
from memax_rl.envs.adapters.gymnasium_options import EnvPoolOptions
from memax_rl.envs.adapters.gymnasium_spaces import encode, encoded, simple_spaces


class PoolMaker(NamedTuple):
    """Makes a pool of copies of one task.

    Attributes:
        task: EnvPool's id.
        arguments: For `envpool.make`.
    """

    task: str
    arguments: Mapping[str, Any]

    def __call__(self, size: int = 1) -> Any:
        """Make so many copies."""
        import envpool  # pyright: ignore[reportMissingImports]

        return envpool.make(self.task, env_type="gymnasium", num_envs=size, **self.arguments)


class EnvPoolCopies:
    """The copies of one call to `Host.begin`.

    Attributes:
        size: How many.
        count: Commands that each has executed.
    """

    def __init__(self, maker: PoolMaker, size: int):
        self.size, self.count = size, np.zeros(size, np.int32)
        self.pool = maker(size)
        self.space, self.action = self.pool.observation_space, self.pool.action_space
        self.shown = tuple(np.zeros((size, *shape), dtype) for shape, dtype in map(encoded, simple_spaces(self.space)))

    def run(self, commands: np.ndarray, seeds: np.ndarray, actions: np.ndarray) -> Transition:
        """Carry out a command in each copy. Raises `HostError` if a value cannot be learned from."""
        reward = np.zeros(self.size, np.float32)
        terminated, truncated = np.zeros(self.size, bool), np.zeros(self.size, bool)
        resets = commands == RESET
        if resets.any():
            self._reset(resets, seeds)
        steps = np.flatnonzero(commands == STEP).astype(np.int32)
        if len(steps):
            observation, *rest, info = self.pool.step(self._decode(actions[steps]), steps)
            rows = info["env_id"]
            self._show(rows, observation)
            for array, part in zip((reward, terminated, truncated), rest, strict=True):
                array[rows] = part
        if not np.isfinite(reward).all():
            raise HostError(f"the reward is {reward[~np.isfinite(reward)][0]}, expected a finite number")
        final = tuple(leaf.copy() for leaf in self.shown)
        done = terminated | truncated
        if done.any():
            self._reset(done, seeds)
        self.count += commands != WAIT
        return Transition(tuple(leaf.copy() for leaf in self.shown), final, reward, terminated, truncated & ~terminated)

    def _reset(self, mask: np.ndarray, seeds: np.ndarray) -> None:
        rows = np.flatnonzero(mask).astype(np.int32)
        observation, info = self.pool.reset(rows, seed=[int(seed) for seed in seeds[rows]])
        self._show(info["env_id"], observation)

    def _show(self, rows: np.ndarray, observation: Any) -> None:
        for leaf, part in zip(self.shown, encode(self.space, observation), strict=True):
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                raise HostError(f"the observation is not finite: {part[~np.isfinite(part)][0]}")
            leaf[rows] = part

    def _decode(self, actions: np.ndarray) -> np.ndarray:
        start = self.action.start if isinstance(self.action, spaces.Discrete) else 0
        return (actions + start).astype(self.action.dtype)

    def close(self) -> None:
        """End the threads."""
        self.pool.close()


class EnvPoolHost(Host):
    """All copies of one task of EnvPool."""

    maker: PoolMaker

    def make_pool(self, size: int) -> EnvPoolCopies:
        """Make so many copies."""
        return EnvPoolCopies(self.maker, size)


class EnvPoolAdapter(HostAdapter):
    """A task of EnvPool.

    Attributes:
        limit: The time limit, or None.
    """

    def __init__(self, task: str, options: EnvPoolOptions):
        try:
            maker = PoolMaker(task, options.arguments)
            one = maker()
            self.limit = getattr(one.spec.config, "max_episode_steps", None)
            one.close()
            host = EnvPoolHost(f"envpool/{task}", maker, 0, 0.0)
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"env: envpool/{task} cannot be made: {type(error).__name__}: {reason}") from error
        super().__init__(task, host)

    def max_episode_steps(self, params: Any) -> int | None:
        """The task's time limit, where it has one."""
        return self.limit


def check(task: str) -> None:
    """Raise `ValueError` with close matches unless EnvPool has the task."""
    import envpool  # pyright: ignore[reportMissingImports]

    known = envpool.list_all_envs()
    if task not in known:
        close = difflib.get_close_matches(task, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(f'envpool/{x}' for x in close)}?" if close else "see envpool.list_all_envs()"
        raise ValueError(f"env: EnvPool has no task {task!r}; {hint}")
