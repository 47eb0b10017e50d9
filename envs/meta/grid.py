"""Dark rooms: square grids in which the agent observes its own position, but not the hidden goal.

Laskin et al. 2022, "In-context Reinforcement Learning with Algorithm Distillation",
https://arxiv.org/abs/2210.14215, section 4.
"""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.meta.trials import TaskEnvironment

# Stay, up, down, left, right, as changes of (row, column).
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


class Grid(TaskEnvironment):
    """What the rooms share. Observation: MultiDiscrete [size, size], the cell. Actions: stay, up, down, left, right.

    An episode begins in the middle. The hidden cells are drawn from the list of the split: `test_fraction` of all
    possibilities, chosen by `split_seed`, are held out for testing.
    """

    def __init__(self, size: int, episode_length: int, hidden: int, test_fraction: float, split: str, split_seed: int):
        if size < 3:
            raise ValueError(f"size must be at least 3, got {size}")
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}")
        self.size, self.episode_length = size, episode_length
        self.middle = ((size - 1) // 2, (size - 1) // 2)
        self.observation_space, self.action_space = spaces.MultiDiscrete([size, size]), spaces.Discrete(len(MOVES))
        cells = [cell for cell in itertools.product(range(size), repeat=2) if cell != self.middle]
        every = np.array(list(itertools.permutations(cells, hidden)), np.int32)
        order = np.random.default_rng(split_seed).permutation(len(every))
        held_out = max(1, round(test_fraction * len(every)))
        # [possibilities, hidden, 2]
        self.possibilities = every[np.sort(order[:held_out] if split == "test" else order[held_out:])]

    def draw_task(self, key: PRNGKeyArray) -> Int32[Array, "hidden 2"]:
        """The hidden cells."""
        return jnp.asarray(self.possibilities)[jax.random.randint(key, (), 0, len(self.possibilities))]

    def start(self) -> Int32[Array, "2"]:
        """The cell where an episode begins."""
        return jnp.array(self.middle, jnp.int32)

    def move(self, cell: Int32[Array, "2"], action: Int32[Array, ""]) -> Int32[Array, "2"]:
        """The cell after an action; a wall stops it."""
        return jnp.clip(cell + jnp.array(MOVES, jnp.int32)[action], 0, self.size - 1)


class DarkRoom(Grid):
    """Find the hidden goal: reward 1 for every step that ends on it. Episodes do not end early."""

    def __init__(self, size: int, episode_length: int | None, test_fraction: float, split: str, split_seed: int):
        super().__init__(size, episode_length or 2 * size, 1, test_fraction, split, split_seed)

    def reset_episode(
        self, key: PRNGKeyArray, task: Int32[Array, "1 2"]
    ) -> tuple[Int32[Array, "2"], Int32[Array, "2"]]:
        """Stand in the middle."""
        return self.start(), self.start()

    def step_episode(
        self, key: PRNGKeyArray, task: Int32[Array, "1 2"], state: Int32[Array, "2"], action: Int32[Array, ""]
    ) -> tuple[Int32[Array, "2"], Int32[Array, "2"], Float32[Array, ""], Bool[Array, ""]]:
        """Move."""
        cell = self.move(state, action)
        return cell, cell, jnp.all(cell == task[0]).astype(jnp.float32), jnp.zeros((), bool)

    def best_return(self, task: Int32[Array, "1 2"]) -> Float32[Array, ""]:
        """Walk straight to the goal and stay."""
        distance = jnp.sum(jnp.abs(task[0] - self.start()))
        return jnp.maximum(self.episode_length - distance + 1, 0).astype(jnp.float32)


class KeyToDoorState(eqx.Module):
    """The cell, and whether the key was found."""

    cell: Int32[Array, "2"]
    has_key: Bool[Array, ""]


class KeyToDoor(Grid):
    """Find the hidden key (reward 1), then the hidden door (reward 1), which ends the episode."""

    ends_early = True

    def __init__(self, size: int, episode_length: int | None, test_fraction: float, split: str, split_seed: int):
        super().__init__(size, episode_length or 5 * size, 2, test_fraction, split, split_seed)

    def reset_episode(self, key: PRNGKeyArray, task: Int32[Array, "2 2"]) -> tuple[Int32[Array, "2"], KeyToDoorState]:
        """Stand in the middle, without the key."""
        return self.start(), KeyToDoorState(self.start(), jnp.zeros((), bool))

    def step_episode(
        self, key: PRNGKeyArray, task: Int32[Array, "2 2"], state: Any, action: Int32[Array, ""]
    ) -> tuple[Int32[Array, "2"], KeyToDoorState, Float32[Array, ""], Bool[Array, ""]]:
        """Move."""
        cell = self.move(state.cell, action)
        found = jnp.all(cell == task[0]) & ~state.has_key
        opened = jnp.all(cell == task[1]) & state.has_key
        reward = (found | opened).astype(jnp.float32)
        return cell, KeyToDoorState(cell, state.has_key | found), reward, opened

    def best_return(self, task: Int32[Array, "2 2"]) -> Float32[Array, ""]:
        """2 if there is time for both walks, 1 if only for the first."""
        first = jnp.sum(jnp.abs(task[0] - self.start()))
        second = jnp.sum(jnp.abs(task[1] - task[0]))
        in_time = (first <= self.episode_length).astype(jnp.float32)
        return in_time + (first + second <= self.episode_length)
