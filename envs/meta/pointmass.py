"""A point that looks for a hidden goal in the plane, with continuous actions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.meta.trials import TaskEnvironment

STEP = 0.1  # of a full action, on each axis
SECTORS = 8
TEST_SECTORS = 2


class PointMass(TaskEnvironment):
    """Walk from the origin to a goal at a distance of 0.5 to 1.

    Observation: Box(2), the position. Action: Box(2) in [-1, 1], the step in tenths. Reward: minus the distance to the
    goal after the step. The circle of directions is cut into eight sectors; the goals of two of them, chosen by
    `split_seed`, are held out for testing. Episodes do not end early.
    """

    def __init__(self, episode_length: int, split: str, split_seed: int):
        self.episode_length = episode_length
        self.observation_space = spaces.Box(-jnp.inf, jnp.inf, (2,), jnp.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), jnp.float32)
        order = np.random.default_rng(split_seed).permutation(SECTORS)
        self.sectors = np.sort(order[:TEST_SECTORS] if split == "test" else order[TEST_SECTORS:])

    def draw_task(self, key: PRNGKeyArray) -> Float32[Array, "2"]:
        """The goal."""
        sector_key, place_key = jax.random.split(key)
        sector = jnp.asarray(self.sectors)[jax.random.randint(sector_key, (), 0, len(self.sectors))]
        within, far = jax.random.uniform(place_key, (2,))
        angle = (sector + within) * (2 * math.pi / SECTORS)
        return (0.5 + 0.5 * far) * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def reset_episode(
        self, key: PRNGKeyArray, task: Float32[Array, "2"]
    ) -> tuple[Float32[Array, "2"], Float32[Array, "2"]]:
        """Stand at the origin."""
        return jnp.zeros(2), jnp.zeros(2)

    def step_episode(
        self, key: PRNGKeyArray, task: Float32[Array, "2"], state: Float32[Array, "2"], action: Float32[Array, "2"]
    ) -> tuple[Float32[Array, "2"], Float32[Array, "2"], Float32[Array, ""], Bool[Array, ""]]:
        """Move."""
        position = state + STEP * jnp.clip(action, -1, 1)
        return position, position, -jnp.linalg.norm(position - task), jnp.zeros((), bool)

    def best_return(self, task: Float32[Array, "2"]) -> Float32[Array, ""]:
        """Close each axis as fast as it goes, which is nearest at every step."""
        steps = jnp.arange(1, self.episode_length + 1)
        left = jnp.maximum(jnp.abs(task)[None, :] - STEP * steps[:, None], 0)
        return -jnp.sum(jnp.linalg.norm(left, axis=-1))
