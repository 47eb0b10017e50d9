"""Copies of a Gymnasium environment on the host, stepped in batches, with every result checked. No JAX here.

The copies run in gymnasium's own vector environments: `SyncVectorEnv` in this process, or `AsyncVectorEnv` over several
processes that hold a `SyncVectorEnv` each (`gymnasium_copy.Copy` is what each copy is).
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import gymnasium.wrappers
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from memax_rl.envs.adapters.gymnasium_copy import (
    RESET,
    STEP,
    WAIT,
    ActionMasks,
    Copy,
    any_box,
    gives_masks,
)
from memax_rl.envs.adapters.gymnasium_spaces import (
    encode,
    encoded,
    require_arrays,
    simple_spaces,
)


class HostError(RuntimeError):
    """An environment on the host has failed. The message names it, the place and the reason."""


class Transition(NamedTuple):
    """The result of a step of several environments; each array has a leading axis over them.

    Attributes:
        observation: Leaves of the observation to act on next, encoded as by `encode`.
        final: Leaves of the last observation; they differ from `observation` only where an episode has ended.
        reward: Float32.
        terminated, truncated: Bool.
    """

    observation: tuple[np.ndarray, ...]
    final: tuple[np.ndarray, ...]
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Group(gymnasium.Env):
    """Several copies in one process, made at their first command.

    Its action is (commands, seeds, actions), arrays of the copies; its observation is a `Transition` laid flat. What
    goes wrong stands in `info["failure"]`. `owner` is the process that learns, `first` the index of the first copy.
    """

    def __init__(self, maker: Callable[[], Any], copies: int, owner: int, first: int):
        if os.getpid() != owner:
            # A worker. Ctrl-C reaches every process of the terminal; the owner decides what comes of it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.maker, self.copies, self.first = maker, copies, first
        self.vector: SyncVectorEnv | None = None
        try:
            one = self._make()
        except SystemExit as error:
            # It would silently end a worker process.
            raise HostError(f"it could not be made: SystemExit: {error}") from error
        self.leaves = [encoded(leaf) for leaf in simple_spaces(one.observation_space)]
        shape, dtype = encoded(one.inner_action_space)
        one.close()
        observation = [any_box((copies, *shape), dtype) for shape, dtype in self.leaves]
        flags = [any_box((copies,), dtype) for dtype in (np.float32, np.uint8, np.uint8)]
        self.observation_space = spaces.Tuple((*observation, *observation, *flags))
        self.action_space = spaces.Tuple(
            (any_box((copies,), np.int32), any_box((copies,), np.int64), any_box((copies, *shape), dtype))
        )

    def _make(self) -> Copy:
        return Copy(self.maker())

    def step(self, action: tuple[np.ndarray, ...]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Carry out a command in each copy."""
        commands, seeds, actions = action
        try:
            result, problem = self._run(commands, seeds, actions)
        except BaseException as error:
            result, problem = self._nothing(), f"it could not be made or run: {type(error).__name__}: {error}"
        flat = (*result.observation, *result.final, result.reward, result.terminated, result.truncated)
        return flat, 0.0, False, False, {} if problem is None else {"failure": problem}

    def _nothing(self) -> Transition:
        leaves = tuple(np.zeros((self.copies, *shape), dtype) for shape, dtype in self.leaves)
        flags = np.zeros(self.copies, np.uint8)
        return Transition(leaves, leaves, np.zeros(self.copies, np.float32), flags, flags)

    def _run(self, commands: np.ndarray, seeds: np.ndarray, actions: np.ndarray) -> tuple[Transition, str | None]:
        if self.vector is None:
            self.vector = SyncVectorEnv([self._make] * self.copies, autoreset_mode=AutoresetMode.DISABLED)
        vector, space = self.vector, self.vector.single_observation_space
        resets = commands == RESET
        if resets.any():
            observation, _ = self._reset(resets, seeds)
        reward = np.zeros(self.copies)
        terminated = truncated = np.zeros(self.copies, bool)
        if not resets.all():
            observation, reward, terminated, truncated, _ = vector.step(((commands == STEP).astype(np.int64), actions))
        final = encode(space, observation)
        done = terminated | truncated
        observed = encode(space, self._reset(done, seeds)[0]) if done.any() else final
        result = Transition(
            observed, final, reward.astype(np.float32), terminated.astype(np.uint8), truncated.astype(np.uint8)
        )
        failed = next(((i, copy) for i, copy in enumerate(self._copies(vector)) if copy.problem is not None), None)
        return result, failed and failed[1].explain(self.first + failed[0])

    def _reset(self, mask: np.ndarray, seeds: np.ndarray) -> tuple[Any, Any]:
        assert self.vector is not None
        return self.vector.reset(seed=[int(seed) for seed in seeds], options={"reset_mask": mask})

    @staticmethod
    def _copies(vector: SyncVectorEnv) -> Iterator[Copy]:
        for env in vector.envs:
            assert isinstance(env, Copy)
            yield env

    def close(self) -> None:
        """Close all copies."""
        if self.vector is not None:
            self.vector.close()


class Pool:
    """The copies of one call to `Host.begin`: one group in this process, or one a worker process."""

    def __init__(self, maker: Callable[[], Any], size: int, processes: int, timeout: float):
        self.size, self.timeout = size, timeout
        self.count = np.zeros(size, np.int32)
        self.per_process = math.ceil(size / max(1, processes))
        self.group: Group | None = None
        self.workers: AsyncVectorEnv | None = None
        if processes == 0:
            self.group = Group(maker, size, os.getpid(), 0)
            return
        # All groups have the same size, so the last may have surplus copies.
        self.workers = AsyncVectorEnv(
            [partial(Group, maker, self.per_process, os.getpid(), i) for i in range(0, size, self.per_process)],
            # A fork of this process could deadlock: JAX runs many threads in it.
            context="forkserver",
            autoreset_mode=AutoresetMode.DISABLED,
        )

    def run(self, commands: np.ndarray, seeds: np.ndarray, actions: np.ndarray) -> Transition:
        """Carry out a command in each copy. Raises `HostError` if one fails."""
        if self.group is not None:
            flat, _, _, _, info = self.group.step((commands, seeds, actions))
            problem = info.get("failure")
        else:
            flat, problem = self._ask(commands, seeds, actions)
        if problem is not None:
            raise HostError(problem)
        self.count += commands != WAIT
        *leaves, reward, terminated, truncated = flat
        half = len(leaves) // 2
        return Transition(
            tuple(leaves[:half]), tuple(leaves[half:]), reward, terminated.astype(bool), truncated.astype(bool)
        )

    def _ask(self, *arrays: np.ndarray) -> tuple[list[np.ndarray], str | None]:
        workers = self.workers
        assert workers is not None
        processes = workers.num_envs

        def deal(x: np.ndarray) -> np.ndarray:
            padding = np.repeat(x[-1:], processes * self.per_process - self.size, axis=0)
            return np.concatenate([x, padding]).reshape(processes, self.per_process, *x.shape[1:])

        commands, *rest = arrays
        dealt = deal(commands)
        # Surplus copies are reset once with the others, because every copy must return an observation.
        dealt.reshape(-1)[self.size :] = WAIT if self.count.any() else RESET
        try:
            action: Any = (dealt, *map(deal, rest))
            workers.step_async(action)
            flat, _, _, _, info = workers.step_wait(self.timeout)
        except multiprocessing.TimeoutError:
            return [], self._hanging(workers)
        except (EOFError, OSError) as error:
            return [], f"its worker process has ended ({type(error).__name__}), as by a crash or for want of memory"
        problems = [problem for problem in info.get("failure", ()) if problem is not None]
        joined = [x.reshape(-1, *x.shape[2:])[: self.size] for x in flat]
        return joined, problems[0] if problems else None

    def _hanging(self, workers: AsyncVectorEnv) -> str:
        late = [i for i, pipe in enumerate(workers.parent_pipes) if not pipe.poll(0)]
        first = late[0] * self.per_process if late else 0
        last = min(first + self.per_process, self.size) - 1
        return (
            f"at step {int(self.count[first])} it did not answer within {self.timeout:g} s (a copy between {first} and "
            f"{last}); if it is slow rather than hanging, raise env_options.step_timeout"
        )

    def close(self) -> None:
        """Close the copies and end the worker processes, whatever they are doing."""
        if self.group is not None:
            self.group.close()
        if self.workers is not None and not self.workers.closed:
            # Its own `close` waits for an answer, which a process that hangs never gives.
            self.workers.closed = True
            for process in self.workers.processes:
                process.kill()
            for process in self.workers.processes:
                process.join()
            for pipe in self.workers.parent_pipes:
                if pipe is not None:
                    pipe.close()


class Host:
    """All copies of one environment. `begin` and `run` are called from compiled code, so they must not raise.

    Args:
        name: What messages call the environment.
        maker: Makes one environment.
        processes: Worker processes; 0 is this one.
        timeout: Seconds that the workers have for one step of all their copies.
        masks: Whether to show action masks, where the environment gives them; `has_masks` says so then. They are the
            first leaf of every observation.

    `failure` holds the first failure, or None. After a failure no environment is run any more: every step immediately
    reports a terminated episode, so that the compiled program ends soon.
    """

    def __init__(self, name: str, maker: Any, processes: int, timeout: float, masks: bool = False):
        self.name = name
        self.processes, self.timeout = processes, timeout
        self.failure: str | None = None
        self.pools: dict[int, Pool] = {}
        self.begun = 0
        self.lock = threading.Lock()
        one = maker()
        self.observation_space, self.action_space = one.observation_space, one.action_space
        self.has_masks = masks and gives_masks(one)
        self.maker = maker._replace(masked=True) if self.has_masks else maker
        shown = ActionMasks(one).observation_space if self.has_masks else self.observation_space
        one.close()
        require_arrays(self.observation_space, self.action_space)
        self.leaves = [encoded(leaf) for leaf in simple_spaces(shown)]
        self.action_dtype = encoded(self.action_space)[1]

    def begin(self, seeds: np.ndarray) -> tuple[np.ndarray, ...]:
        """Make a copy a seed and begin an episode in each. Return pool, copy and count, then observation leaves."""
        with self.lock:
            size = len(seeds)
            blank = self._blank(size, done=False)
            number, self.begun = self.begun, self.begun + 1
            if self.failure is None:
                try:
                    pool = self.make_pool(size)
                    self.pools[number] = pool
                    actions = np.zeros((size, *encoded(self.action_space)[0]), self.action_dtype)
                    blank = pool.run(np.full(size, RESET, np.int32), seeds.astype(np.int64), actions)
                except BaseException as error:
                    self._fail(error)
            handle = (np.full(size, number, np.int32), np.arange(size, dtype=np.int32), np.ones(size, np.int32))
            return (*handle, *blank.observation)

    def run(
        self,
        commands: np.ndarray,
        seeds: np.ndarray,
        pool: np.ndarray,
        copy: np.ndarray,
        count: np.ndarray,
        actions: np.ndarray,
    ) -> tuple[np.ndarray, ...]:
        """Carry out a command in each of the given copies, arrays [n]. Return counts and a `Transition`, laid flat."""
        with self.lock:
            result = self._blank(len(commands), done=self.failure is not None)
            if self.failure is None:
                try:
                    self._run(result, commands, seeds.astype(np.int64), pool, copy, count, actions)
                except BaseException as error:
                    self._fail(error)
                    result = self._blank(len(commands), done=True)
        acted = (commands != WAIT).astype(np.int32)
        flat = (*result.observation, *result.final, result.reward, result.terminated, result.truncated)
        return (count + acted, *flat)

    def make_pool(self, size: int) -> "Pool | Any":
        """Make so many copies."""
        return Pool(self.maker, size, self.processes, self.timeout)

    def _run(self, result: Transition, commands, seeds, pool, copy, count, actions) -> None:
        """Fill in the rows of `result` that are not told to wait."""
        acts = commands != WAIT
        for number in np.unique(pool[acts]):
            rows = np.flatnonzero(acts & (pool == number))
            copies = copy[rows]
            held = self.pools.get(int(number))
            if held is None or (held.count[copies] != count[rows]).any() or len(np.unique(copies)) < len(copies):
                raise HostError(
                    "a state was stepped twice, or after its copies were closed: on the host every state can be "
                    "stepped once; discard no step, but leave it out with memax_rl.envs.base.step_if"
                )

            def deal(x: np.ndarray, held=held, rows=rows, copies=copies) -> np.ndarray:
                full = np.zeros((held.size, *x.shape[1:]), x.dtype)
                full[copies] = x[rows]
                return full

            answer = held.run(deal(commands), deal(seeds), deal(actions))
            for whole, part in zip(_flat(result), _flat(answer), strict=True):
                whole[rows] = part[copies]

    def _blank(self, size: int, done: bool) -> Transition:
        def zeros() -> tuple[np.ndarray, ...]:
            return tuple(np.zeros((size, *shape), dtype) for shape, dtype in self.leaves)

        return Transition(zeros(), zeros(), np.zeros(size, np.float32), np.full(size, done), np.zeros(size, bool))

    def _fail(self, error: BaseException) -> None:
        detail = str(error) if isinstance(error, HostError) else f"{type(error).__name__}: {error}"
        self.failure = " ".join(f"the environment {self.name} failed: {detail}".split())

    def close(self, begun_since: int = 0) -> None:
        """Close the copies of every pool, or of those begun since `begun` was this number."""
        with self.lock:
            for number in [n for n in self.pools if n >= begun_since]:
                self.pools.pop(number).close()


def _flat(result: Transition) -> Iterator[np.ndarray]:
    yield from result.observation
    yield from result.final
    yield from (result.reward, result.terminated, result.truncated)
