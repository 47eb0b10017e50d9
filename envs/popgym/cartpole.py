"""POPGym's cart-poles: balance a pole, seeing only a part of the state.

- PositionOnlyCartPole: the cart's position and the pole's angle, no velocities.
- VelocityOnlyCartPole: their velocities, no positions.
- NoisyPositionOnlyCartPole: the positions with Gaussian noise.

Source: `popgym.envs.position_only_cartpole`, `velocity_only_cartpole` and `noisy_position_only_cartpole`,
popgym 1.0.7, on Gymnasium's CartPole, whose dynamics are those of Barto, Sutton and Anderson, "Neuronlike
adaptive elements that can solve difficult learning control problems", 1983.

One difference: the package's VelocityOnlyCartPole shows the positions at reset, a mistake; here it shows the
velocities from the first step on.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.base import Environment, EnvParams, noise_keys
from memax_rl.envs.popgym.timed import TimedEnvironment

GRAVITY = 9.8  # m/s^2
POLE_MASS = 0.1  # kg
CART_MASS = 1.0  # kg
HALF_LENGTH = 0.5  # m, of the pole
FORCE = 10.0  # N
TIME_STEP = 0.02  # s
X_LIMIT = 2.4  # m
THETA_LIMIT = math.radians(12)


class CartPoleState(eqx.Module):
    """Steps taken; position [m], angle [rad] and their velocities."""

    time: Int32[Array, ""]
    x: Float32[Array, ""]
    x_dot: Float32[Array, ""]
    theta: Float32[Array, ""]
    theta_dot: Float32[Array, ""]


def advance(
    state: CartPoleState,
    force: Float32[Array, ""],
    pole_mass: float | Float32[Array, ""] = POLE_MASS,
    half_length: float | Float32[Array, ""] = HALF_LENGTH,
) -> CartPoleState:
    """One explicit Euler step under a force [N], for a pole of a mass [kg] and half length [m]."""
    cos, sin = jnp.cos(state.theta), jnp.sin(state.theta)
    pole, total_mass = pole_mass * half_length, CART_MASS + pole_mass
    push = (force + pole * state.theta_dot**2 * sin) / total_mass
    theta_acceleration = (GRAVITY * sin - cos * push) / (half_length * (4.0 / 3.0 - pole_mass * cos**2 / total_mass))
    x_acceleration = push - pole * theta_acceleration * cos / total_mass
    return CartPoleState(
        time=state.time + 1,
        x=state.x + TIME_STEP * state.x_dot,
        x_dot=state.x_dot + TIME_STEP * x_acceleration,
        theta=state.theta + TIME_STEP * state.theta_dot,
        theta_dot=state.theta_dot + TIME_STEP * theta_acceleration,
    )


class CartPole(TimedEnvironment):
    """Balance the pole, seeing half of the state.

    Observation: Box(2), `[x, theta]` or `[x_dot, theta_dot]`; with noise of standard deviation `noise` added
    and then clipped to the box, at reset too. Action: Discrete(2), push left or right. Reward: 1/T at every
    step, the one that fails included, with T = `params.max_steps_in_episode`. Terminates when abs(x) > 2.4 m
    or abs(theta) > 12 degrees; truncated after T steps.
    """

    def __init__(self, max_steps: int, shown: Literal["positions", "velocities"] = "positions", noise: float = 0.0):
        self.max_steps = max_steps
        self.shown = shown
        self.noise = noise

    def action_space(self, params: EnvParams) -> spaces.Discrete:
        """Push left (0) or right (1)."""
        return spaces.Discrete(2)

    def observation_space(self, params: EnvParams) -> spaces.Box:
        """Positions within twice the limits, so that the failing observation is inside; any velocities."""
        if self.shown == "velocities":
            return spaces.Box(-jnp.inf, jnp.inf, (2,), jnp.float32)
        high = jnp.array([2 * X_LIMIT, 2 * THETA_LIMIT], jnp.float32)
        return spaces.Box(-high, high, (2,), jnp.float32)

    def _observe(self, state: CartPoleState, key: PRNGKeyArray, params: EnvParams) -> Float32[Array, "2"]:
        if self.shown == "velocities":
            return jnp.stack([state.x_dot, state.theta_dot])
        obs = jnp.stack([state.x, state.theta])
        if self.noise == 0.0:
            return obs
        space = self.observation_space(params)
        return jnp.clip(obs + self.noise * jax.random.normal(key, (2,)), space.low, space.high)

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Float32[Array, "2"], CartPoleState]:
        """Draw the four state variables from U(-0.05, 0.05)."""
        _, state_key, noise_key = noise_keys(key, self.noise)
        x, x_dot, theta, theta_dot = jax.random.uniform(state_key, (4,), minval=-0.05, maxval=0.05)
        state = CartPoleState(time=jnp.zeros((), jnp.int32), x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot)
        return self._observe(state, noise_key, params), state

    def step_env(
        self, key: PRNGKeyArray, state: CartPoleState, action: Int32[Array, ""], params: EnvParams
    ) -> tuple[Float32[Array, "2"], CartPoleState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Push the cart for one time step."""
        noise_key, _, _ = noise_keys(key, self.noise)
        state = advance(state, jnp.where(action == 1, jnp.float32(FORCE), jnp.float32(-FORCE)))
        terminated = (jnp.abs(state.x) > X_LIMIT) | (jnp.abs(state.theta) > THETA_LIMIT)
        reward = jnp.float32(1.0) / params.max_steps_in_episode
        return self._observe(state, noise_key, params), state, reward, terminated, {}


BUILDERS: dict[str, Callable[[], Environment]] = {
    "PositionOnlyCartPoleEasy": partial(CartPole, max_steps=200),
    "PositionOnlyCartPoleMedium": partial(CartPole, max_steps=400),
    "PositionOnlyCartPoleHard": partial(CartPole, max_steps=600),
    "VelocityOnlyCartPoleEasy": partial(CartPole, max_steps=200, shown="velocities"),
    "VelocityOnlyCartPoleMedium": partial(CartPole, max_steps=400, shown="velocities"),
    "VelocityOnlyCartPoleHard": partial(CartPole, max_steps=600, shown="velocities"),
    "NoisyPositionOnlyCartPoleEasy": partial(CartPole, max_steps=200, noise=0.1),
    "NoisyPositionOnlyCartPoleMedium": partial(CartPole, max_steps=200, noise=0.2),
    "NoisyPositionOnlyCartPoleHard": partial(CartPole, max_steps=200, noise=0.3),
}
