"""Bandits: find the arm that pays best while pulling.

Duan et al. 2016, https://arxiv.org/abs/1611.02779, section 3.1. An episode is a block of pulls. Nothing happens between
blocks; they are the unit of the evaluation.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.meta.trials import TaskEnvironment


class Bandit(TaskEnvironment):
    """K arms. Observation: Discrete(1), nothing; the reward of the last pull is shown to every agent anyway."""

    has_boundaries = False

    def __init__(self, arms: int, episode_length: int):
        if arms < 2:
            raise ValueError(f"arms must be at least 2, got {arms}")
        self.arms, self.episode_length = arms, episode_length
        self.observation_space, self.action_space = spaces.Discrete(1), spaces.Discrete(arms)

    def reset_episode(
        self, key: PRNGKeyArray, task: Float32[Array, " arms"]
    ) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
        """Nothing to begin."""
        return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

    def best_return(self, task: Float32[Array, " arms"]) -> Float32[Array, ""]:
        """The best arm's mean, every pull."""
        return jnp.max(task) * self.episode_length


class BernoulliBandit(Bandit):
    """Arm k pays 1 with probability p_k, else 0. p ~ U(0, 1), or the given numbers in random order."""

    def __init__(self, arms: int, payouts: Sequence[float] | None, episode_length: int):
        super().__init__(arms, episode_length)
        if payouts is not None and not (isinstance(payouts, list | tuple) and len(payouts) == arms):
            raise ValueError(f"payouts must be one number for each of {arms} arms, got {payouts!r}")
        if payouts is not None and not all(0 <= p <= 1 for p in payouts):
            raise ValueError(f"payouts must be probabilities, got {list(payouts)}")
        self.payouts = payouts

    def draw_task(self, key: PRNGKeyArray) -> Float32[Array, " arms"]:
        """The probabilities."""
        if self.payouts is None:
            return jax.random.uniform(key, (self.arms,))
        return jax.random.permutation(key, jnp.array(self.payouts, jnp.float32))

    def step_episode(
        self, key: PRNGKeyArray, task: Float32[Array, " arms"], state: Int32[Array, ""], action: Int32[Array, ""]
    ) -> tuple[Int32[Array, ""], Int32[Array, ""], Float32[Array, ""], Bool[Array, ""]]:
        """Pull an arm."""
        reward = (jax.random.uniform(key) < task[action]).astype(jnp.float32)
        return state, state, reward, jnp.zeros((), bool)


class GaussianBandit(Bandit):
    """Arm k pays mean_k plus standard normal noise; mean ~ N(0, 1)."""

    def draw_task(self, key: PRNGKeyArray) -> Float32[Array, " arms"]:
        """The means."""
        return jax.random.normal(key, (self.arms,))

    def step_episode(
        self, key: PRNGKeyArray, task: Float32[Array, " arms"], state: Int32[Array, ""], action: Int32[Array, ""]
    ) -> tuple[Int32[Array, ""], Int32[Array, ""], Float32[Array, ""], Bool[Array, ""]]:
        """Pull an arm."""
        return state, state, task[action] + jax.random.normal(key), jnp.zeros((), bool)
