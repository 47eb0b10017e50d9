"""A cart-pole behind an unknown projection.

After Lu et al. 2023, "Structured State Space Models for In-Context Reinforcement Learning",
https://arxiv.org/abs/2303.03982, section 5: per trial one random orthogonal projection of what is seen, and of what is
done. Unlike the published version, every episode begins in a fresh state, and by default so far from rest that the
first pushes decide: an agent that must first find out which way is left falls before it knows.
"""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.meta.trials import TaskEnvironment
from memax_rl.envs.popgym.cartpole import (
    FORCE,
    HALF_LENGTH,
    POLE_MASS,
    THETA_LIMIT,
    X_LIMIT,
    CartPoleState,
    advance,
)

# Factors of pole mass, pole length and force, if they differ between tasks: drawn log-uniformly up to the first number,
# and its inverse, in training; between the first and the second, or their inverses, in testing.
TRAIN_FACTOR, TEST_FACTOR = 1.25, 1.6


def _start_range(given: Sequence[Any]) -> tuple[float, ...]:
    numbers = isinstance(given, list | tuple) and all(
        isinstance(a, int | float) and not isinstance(a, bool) and 0 <= a < math.inf for a in given
    )
    if not numbers or len(given) != 4 or given[0] >= X_LIMIT or given[2] >= THETA_LIMIT:
        raise ValueError(
            "start_range must be the largest x (below 2.4), its speed, angle (below 0.2094 rad) and its speed, "
            f"as [1, 0.5, 0.1, 1.5], got {given!r}"
        )
    return tuple(float(a) for a in given)


class ProjectedCartPoleTask(eqx.Module):
    """The projection of (x, theta), each scaled by its limit; whether the actions are swapped; physics."""

    projection: Float32[Array, "size 2"]
    swapped: Bool[Array, ""]
    pole_mass: Float32[Array, ""]
    half_length: Float32[Array, ""]
    force: Float32[Array, ""]


class ProjectedCartPole(TaskEnvironment):
    """Balance the pole, seeing the positions through a random matrix with orthonormal columns.

    Observation: Box(observation_size). Action: Discrete(2); a one-dimensional orthogonal projection is a sign, so with
    `project_action` left and right are swapped in half of the tasks. Reward: 1/T a step, T = `episode_length`; an
    episode ends when the cart or the pole leaves its limits.
    """

    ends_early = True

    def __init__(
        self,
        observation_size: int,
        project_action: bool,
        vary_physics: bool,
        start_range: Sequence[Any],
        episode_length: int,
        split: str,
    ):
        if observation_size < 2:
            raise ValueError(f"observation_size must be at least 2, got {observation_size}")
        self.start_range = _start_range(start_range)
        self.observation_size, self.project_action, self.vary_physics = observation_size, project_action, vary_physics
        self.episode_length, self.split = episode_length, split
        self.observation_space = spaces.Box(-jnp.inf, jnp.inf, (observation_size,), jnp.float32)
        self.action_space = spaces.Discrete(2)

    def draw_task(self, key: PRNGKeyArray) -> ProjectedCartPoleTask:
        """Projection and physics."""
        projection_key, swap_key, physics_key = jax.random.split(key, 3)
        columns = jax.random.normal(projection_key, (self.observation_size, 2))
        first = columns[:, 0] / jnp.linalg.norm(columns[:, 0])
        second = columns[:, 1] - jnp.sum(first * columns[:, 1]) * first
        second = second / jnp.linalg.norm(second)
        factors = self._factors(physics_key)
        return ProjectedCartPoleTask(
            projection=jnp.stack([first, second], axis=-1),
            swapped=jax.random.bernoulli(swap_key) if self.project_action else jnp.zeros((), bool),
            pole_mass=POLE_MASS * factors[0],
            half_length=HALF_LENGTH * factors[1],
            force=FORCE * factors[2],
        )

    def _factors(self, key: PRNGKeyArray) -> Float32[Array, "3"]:
        if not self.vary_physics:
            return jnp.ones(3)
        share_key, sign_key = jax.random.split(key)
        share = jax.random.uniform(share_key, (3,))
        low, high = (TRAIN_FACTOR, TEST_FACTOR) if self.split == "test" else (1.0, TRAIN_FACTOR)
        size = jnp.log(low) + share * (jnp.log(high) - jnp.log(low))
        return jnp.exp(jnp.where(jax.random.bernoulli(sign_key, shape=(3,)), size, -size))

    def _observe(self, task: ProjectedCartPoleTask, state: CartPoleState) -> Float32[Array, " size"]:
        return task.projection @ jnp.stack([state.x / X_LIMIT, state.theta / THETA_LIMIT])

    def reset_episode(
        self, key: PRNGKeyArray, task: ProjectedCartPoleTask
    ) -> tuple[Float32[Array, " size"], CartPoleState]:
        """Draw each state variable uniformly, up to its number in `start_range` on either side."""
        draws = jax.random.uniform(key, (4,), minval=-1, maxval=1)
        x, x_dot, theta, theta_dot = draws * jnp.array(self.start_range, jnp.float32)
        state = CartPoleState(time=jnp.zeros((), jnp.int32), x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot)
        return self._observe(task, state), state

    def step_episode(
        self, key: PRNGKeyArray, task: ProjectedCartPoleTask, state: CartPoleState, action: Int32[Array, ""]
    ) -> tuple[Float32[Array, " size"], CartPoleState, Float32[Array, ""], Bool[Array, ""]]:
        """Push the cart for one time step."""
        right = (action == 1) ^ task.swapped
        force = jnp.where(right, task.force, -task.force)
        state = advance(state, force, pole_mass=task.pole_mass, half_length=task.half_length)
        terminated = (jnp.abs(state.x) > X_LIMIT) | (jnp.abs(state.theta) > THETA_LIMIT)
        return self._observe(task, state), state, jnp.float32(1 / self.episode_length), terminated

    def best_return(self, task: ProjectedCartPoleTask) -> Float32[Array, ""]:
        """Balanced to the end."""
        return jnp.ones(())
