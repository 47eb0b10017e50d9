"""POPGym's pendulums: swing a pendulum up and hold it there, without seeing its velocity.

- PositionOnlyPendulum: the direction it points in.
- NoisyPositionOnlyPendulum: the direction with Gaussian noise.

Source: `popgym.envs.position_only_pendulum` and `noisy_position_only_pendulum`, popgym 1.0.7, on Gymnasium's
Pendulum.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.base import Environment, EnvParams, noise_keys
from memax_rl.envs.popgym.timed import TimedEnvironment

GRAVITY = 10.0  # m/s^2; mass 1 kg, length 1 m
TIME_STEP = 0.05  # s
MAX_TORQUE = 2.0  # N m
MAX_SPEED = 8.0  # rad/s
HALF_WORST_COST = 16.2736044 / 2  # pi^2 + 0.1 * 8^2 + 0.001 * 2^2, halved


class PendulumState(eqx.Module):
    """Steps taken; angle from upright [rad, not wrapped] and its velocity [rad/s]."""

    time: Int32[Array, ""]
    theta: Float32[Array, ""]
    theta_dot: Float32[Array, ""]


def advance(state: PendulumState, torque: Float32[Array, ""]) -> PendulumState:
    """One semi-implicit Euler step under a torque [N m]."""
    acceleration = 1.5 * GRAVITY * jnp.sin(state.theta) + 3.0 * torque
    theta_dot = jnp.clip(state.theta_dot + acceleration * TIME_STEP, -MAX_SPEED, MAX_SPEED)
    return PendulumState(time=state.time + 1, theta=state.theta + theta_dot * TIME_STEP, theta_dot=theta_dot)


class Pendulum(TimedEnvironment):
    """Hold the pendulum upright, seeing the direction it points in.

    Observation: Box(2), `[cos(theta), sin(theta)]`; with noise of standard deviation `noise` added and then
    clipped to [-1, 1], at reset too. Action: Box(1), a torque in [-2, 2] N m, clipped. Reward: (1 - cost /
    8.1368) / T with cost = theta^2 + 0.1 theta_dot^2 + 0.001 torque^2 before the step, theta wrapped to [-pi,
    pi), and T = `params.max_steps_in_episode`. Truncated after T steps.
    """

    def __init__(self, max_steps: int, noise: float = 0.0):
        self.max_steps = max_steps
        self.noise = noise

    def fixed_length(self, params: EnvParams) -> int | None:
        """The time limit."""
        return int(params.max_steps_in_episode)

    def action_space(self, params: EnvParams) -> spaces.Box:
        """A torque [N m]."""
        return spaces.Box(-MAX_TORQUE, MAX_TORQUE, (1,), jnp.float32)

    def observation_space(self, params: EnvParams) -> spaces.Box:
        """A direction."""
        return spaces.Box(-1.0, 1.0, (2,), jnp.float32)

    def _observe(self, state: PendulumState, key: PRNGKeyArray) -> Float32[Array, "2"]:
        obs = jnp.stack([jnp.cos(state.theta), jnp.sin(state.theta)])
        if self.noise == 0.0:
            return obs
        return jnp.clip(obs + self.noise * jax.random.normal(key, (2,)), -1.0, 1.0)

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Float32[Array, "2"], PendulumState]:
        """Draw the angle from U(-pi, pi) and the velocity from U(-1, 1)."""
        _, state_key, noise_key = noise_keys(key, self.noise)
        theta, theta_dot = jax.random.uniform(state_key, (2,), minval=-1.0, maxval=1.0)
        state = PendulumState(time=jnp.zeros((), jnp.int32), theta=math.pi * theta, theta_dot=theta_dot)
        return self._observe(state, noise_key), state

    def step_env(
        self, key: PRNGKeyArray, state: PendulumState, action: Float32[Array, "1"], params: EnvParams
    ) -> tuple[Float32[Array, "2"], PendulumState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Apply a torque for one time step."""
        noise_key, _, _ = noise_keys(key, self.noise)
        torque = jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE)
        wrapped = (state.theta + math.pi) % (2 * math.pi) - math.pi
        cost = wrapped**2 + 0.1 * state.theta_dot**2 + 0.001 * torque**2
        reward = (1.0 - cost / HALF_WORST_COST) / params.max_steps_in_episode

        state = advance(state, torque)
        return self._observe(state, noise_key), state, reward, jnp.zeros((), bool), {}


BUILDERS: dict[str, Callable[[], Environment]] = {
    "PositionOnlyPendulumEasy": partial(Pendulum, max_steps=200),
    "PositionOnlyPendulumMedium": partial(Pendulum, max_steps=150),
    "PositionOnlyPendulumHard": partial(Pendulum, max_steps=100),
    "NoisyPositionOnlyPendulumEasy": partial(Pendulum, max_steps=200, noise=0.1),
    "NoisyPositionOnlyPendulumMedium": partial(Pendulum, max_steps=200, noise=0.2),
    "NoisyPositionOnlyPendulumHard": partial(Pendulum, max_steps=200, noise=0.3),
}
