"""Scripted policies for POPGym's cart-poles and pendulums: estimate the whole state, then control it.

The dynamics are known and free of noise, so an extended Kalman filter without process noise estimates the
state from all observations so far: https://en.wikipedia.org/wiki/Extended_Kalman_filter.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs.baselines.policy import Policy
from memax_rl.envs.popgym import cartpole
from memax_rl.envs.popgym import pendulum as pendulum_dynamics
from memax_rl.envs.popgym.cartpole import CartPole, CartPoleState
from memax_rl.envs.popgym.pendulum import Pendulum, PendulumState

# Observations without noise are taken as this precise, so that the filter's matrices stay well conditioned.
LEAST_NOISE = 1e-3


class Belief(NamedTuple):
    """A Gaussian belief about the state before the next observation."""

    mean: Float32[Array, " n"]
    covariance: Float32[Array, "n n"]


def observe(
    belief: Belief,
    obs: Float32[Array, "2"],
    sensor: Callable[[Float32[Array, " n"]], Float32[Array, "2"]],
    noise: float,
) -> Belief:
    """The belief after an observation `sensor(state) + noise`."""
    matrix = jax.jacfwd(sensor)(belief.mean)
    spread = matrix @ belief.covariance @ matrix.T + noise**2 * jnp.eye(obs.size)
    # Two numbers are observed, so that the inverse is this; a general solver took most of the time.
    (a, b), (c, d) = spread
    inverse = jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    gain = belief.covariance @ matrix.T @ inverse
    # Joseph's form keeps the covariance positive in single precision.
    rest = jnp.eye(belief.mean.size) - gain @ matrix
    covariance = rest @ belief.covariance @ rest.T + noise**2 * gain @ gain.T
    return Belief(belief.mean + gain @ (obs - sensor(belief.mean)), covariance)


def predict(belief: Belief, dynamics: Callable[[Float32[Array, " n"]], Float32[Array, " n"]]) -> Belief:
    """The belief after a step of the dynamics."""
    matrix = jax.jacfwd(dynamics)(belief.mean)
    return Belief(dynamics(belief.mean), matrix @ belief.covariance @ matrix.T)


class CartPolePolicy(Policy):
    """Push the cart to where the pole is about to fall. The carry is a belief about the four variables."""

    shown: str = eqx.field(static=True)
    noise: float = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> Belief:
        """The first state is drawn from U(-0.05, 0.05)."""
        return Belief(jnp.zeros(4), 0.05**2 / 3 * jnp.eye(4))

    def act(self, carry: Belief, inputs: Any, key: PRNGKeyArray) -> tuple[Belief, Int32[Array, ""]]:
        """Push right if the pole leans right, with velocities and the cart's position weighed in."""
        obs = inputs.observation  # [2]
        first_shown = 0 if self.shown == "positions" else 1

        def sensor(state: Float32[Array, "4"]) -> Float32[Array, "2"]:
            return state[first_shown::2]

        belief = observe(carry, obs, sensor, max(self.noise, LEAST_NOISE))
        x, x_dot, theta, theta_dot = belief.mean
        lean = theta + 0.25 * theta_dot + 0.02 * x + 0.06 * x_dot
        action = (lean > 0).astype(jnp.int32)
        force = jnp.where(action == 1, cartpole.FORCE, -cartpole.FORCE)

        def dynamics(state: Float32[Array, "4"]) -> Float32[Array, "4"]:
            after = cartpole.advance(CartPoleState(jnp.zeros((), jnp.int32), *state), force)
            return jnp.stack([after.x, after.x_dot, after.theta, after.theta_dot])

        return predict(belief, dynamics), action


class PendulumCarry(NamedTuple):
    """Whether nothing was observed yet, and the belief about the angle and its velocity."""

    is_first: Bool[Array, ""]
    belief: Belief


class PendulumPolicy(Policy):
    """Pump energy until the pendulum reaches the top, then hold it there."""

    noise: float = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> PendulumCarry:
        """Nothing is known."""
        return PendulumCarry(jnp.ones((), bool), Belief(jnp.zeros(2), jnp.eye(2)))

    def act(self, carry: PendulumCarry, inputs: Any, key: PRNGKeyArray) -> tuple[PendulumCarry, Float32[Array, "1"]]:
        """Choose the torque for the estimated state."""
        obs = inputs.observation  # [2]
        noise = max(self.noise, LEAST_NOISE)

        def sensor(state: Float32[Array, "2"]) -> Float32[Array, "2"]:
            return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0])])

        # The angle can be anywhere at first, where a linear filter would be lost: begin at what was observed.
        seen = Belief(jnp.stack([jnp.arctan2(obs[1], obs[0]), jnp.zeros(())]), jnp.diag(jnp.array([noise**2, 1 / 3])))
        followed = observe(carry.belief, obs, sensor, noise)
        belief = jax.tree.map(partial(jnp.where, carry.is_first), seen, followed)
        torque = swing_up_torque(belief.mean[0], belief.mean[1])

        def dynamics(state: Float32[Array, "2"]) -> Float32[Array, "2"]:
            after = pendulum_dynamics.advance(PendulumState(jnp.zeros((), jnp.int32), *state), torque)
            return jnp.stack([after.theta, after.theta_dot])

        return PendulumCarry(jnp.zeros((), bool), predict(belief, dynamics)), torque[None]


def swing_up_torque(theta: Float32[Array, ""], theta_dot: Float32[Array, ""]) -> Float32[Array, ""]:
    """Torque [N m] that adds energy until it suffices to stand upright; a linear controller near there."""
    limit = pendulum_dynamics.MAX_TORQUE
    wrapped = (theta + math.pi) % (2 * math.pi) - math.pi
    gravity = 1.5 * pendulum_dynamics.GRAVITY
    missing_energy = gravity * (1 - jnp.cos(wrapped)) - theta_dot**2 / 2
    pump = jnp.clip(missing_energy * jnp.where(theta_dot >= 0, 1.0, -1.0), -limit, limit)
    # Near the top a deviation grows along this combination of angle and velocity, by 1/0.25 a second.
    lean = wrapped + 0.25 * theta_dot
    hold = jnp.clip(-15.0 * lean, -limit, limit)
    return jnp.where((jnp.abs(lean) < 0.5) & (jnp.abs(wrapped) < 1.0), hold, pump)


def cart_pole(env: CartPole) -> Policy:
    """The policy for the cart-poles."""
    return CartPolePolicy(shown=env.shown, noise=env.noise)


def pendulum(env: Pendulum) -> Policy:
    """The policy for the pendulums."""
    return PendulumPolicy(noise=env.noise)
