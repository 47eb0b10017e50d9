"""Random tabular MDPs.

Duan et al. 2016, https://arxiv.org/abs/1611.02779, section 3.2, after Osband et al. 2013,
https://arxiv.org/abs/1306.0940: rewards N(mean, 1) with mean ~ N(1, 1), transitions from a flat Dirichlet distribution.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray, UInt32

from memax_rl.envs import spaces
from memax_rl.envs.meta.trials import TaskEnvironment


class MDP(eqx.Module):
    """Transition probabilities and mean rewards."""

    transition: Float32[Array, "states actions states"]
    reward: Float32[Array, "states actions"]


def finite_horizon_q(
    transition: Float[Array, "states actions states"], reward: Float[Array, "states actions"], steps: int
) -> Float[Array, "steps states actions"]:
    """Value iteration: Q[t] is the value of an action with `steps - t` rewards to come, this one included."""

    def backward(value, _):
        q = reward + transition @ value
        return jnp.max(q, axis=-1), q

    _, q = jax.lax.scan(backward, jnp.zeros(reward.shape[0]), None, steps)
    return q[::-1]


class TabularMDP(TaskEnvironment):
    """Observation: Discrete(states). Action: Discrete(actions). An episode begins in state 0 and has a fixed length."""

    def __init__(self, states: int, actions: int, reward_noise: float, episode_length: int):
        for name, value in (("states", states), ("actions", actions)):
            if value < 2:
                raise ValueError(f"{name} must be at least 2, got {value}")
        self.states, self.actions, self.reward_noise = states, actions, reward_noise
        self.episode_length = episode_length
        self.observation_space, self.action_space = spaces.Discrete(states), spaces.Discrete(actions)

    def draw_task(self, key: PRNGKeyArray) -> UInt32[Array, " words"]:
        """The bits of a key, from which `row` makes what a step needs: the whole tables would be drawn every step."""
        return jax.random.key_data(key)

    def row(
        self, task: UInt32[Array, " words"], state: Int32[Array, ""], action: Int32[Array, ""]
    ) -> tuple[Float32[Array, " states"], Float32[Array, ""]]:
        """Probabilities of the next state, and the mean reward."""
        key = jax.random.fold_in(jax.random.wrap_key_data(task), state * self.actions + action)
        uniform = jax.random.uniform(key, (self.states + 2,))
        weights = -jnp.log1p(-uniform[2:])
        # Box and Muller's transform, so that one draw serves all.
        normal = jnp.sqrt(-2 * jnp.log1p(-uniform[0])) * jnp.cos(2 * math.pi * uniform[1])
        return weights / jnp.sum(weights), 1 + normal

    def model(self, task: UInt32[Array, " words"]) -> MDP:
        """The whole tables, for oracles and planners."""
        states, actions = jnp.arange(self.states), jnp.arange(self.actions)
        row = jax.vmap(jax.vmap(lambda s, a: self.row(task, s, a), (None, 0)), (0, None))
        return MDP(*row(states, actions))

    def reset_episode(
        self, key: PRNGKeyArray, task: UInt32[Array, " words"]
    ) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
        """State 0."""
        return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

    def step_episode(
        self, key: PRNGKeyArray, task: UInt32[Array, " words"], state: Int32[Array, ""], action: Int32[Array, ""]
    ) -> tuple[Int32[Array, ""], Int32[Array, ""], Float32[Array, ""], Bool[Array, ""]]:
        """One transition."""
        probabilities, mean = self.row(task, state, action)
        draws = jax.random.uniform(key, (3,))
        # Without the last sum, so that rounding leaves no draw beyond the last state.
        following = jnp.sum(draws[0] >= jnp.cumsum(probabilities)[:-1]).astype(jnp.int32)
        noise = jnp.sqrt(-2 * jnp.log1p(-draws[1])) * jnp.cos(2 * math.pi * draws[2])
        return following, following, mean + self.reward_noise * noise, jnp.zeros((), bool)

    def best_return(self, task: UInt32[Array, " words"]) -> Float32[Array, ""]:
        """The value of state 0, by value iteration."""
        model = self.model(task)
        return jnp.max(finite_horizon_q(model.transition, model.reward, self.episode_length)[0, 0])
