"""Discounted returns and advantages along one tape row, as reverse reset scans. Arrays only.

Index t is a slot of the tape. A sum never crosses from one episode into the next. A discount is one
number for all slots, or one for each: `discount[t]` multiplies all that follows transition t.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memax_rl.ops import linear_recurrence


def _reverse_sum(
    step: Float[Array, " T"], factor: float | Float[Array, ""] | Float[Array, " T"], stops: Bool[Array, " T"]
) -> Float[Array, " T"]:
    """Return x_t = step_t + factor_t x_{t+1}, without the second term where `stops` and at the last slot."""
    zero = jnp.zeros((), step.dtype)
    factor = jnp.broadcast_to(jnp.asarray(factor, step.dtype), step.shape)
    return linear_recurrence(factor[::-1], step[::-1], zero, stops[::-1])[::-1]


def discounted_returns(
    reward: Float[Array, " T"], start: Bool[Array, " T"], discount: float | Float[Array, ""] | Float[Array, " T"]
) -> Float[Array, " T"]:
    """Return G_t = r_t + discount * G_{t+1}, without the second term where slot t+1 starts an episode.

    Nothing is added beyond the last slot.
    """
    ends = jnp.concatenate([start[1:], jnp.ones((1,), bool)])
    return _reverse_sum(reward, discount, ends)


def generalized_advantages(
    reward: Float[Array, " T"],
    value: Float[Array, " T"],
    next_value: Float[Array, " T"],
    terminated: Bool[Array, " T"],
    truncated: Bool[Array, " T"],
    discount: float | Float[Array, ""] | Float[Array, " T"],
    lambda_: float | Float[Array, ""],
) -> Float[Array, " T"]:
    """Return generalized advantage estimates (Schulman et al. 2015, https://arxiv.org/abs/1506.02438, equation 16).

        delta_t = r_t + discount * V_{t+1} - V_t,    A_t = delta_t + discount * lambda * A_{t+1}

    Termination drops V_{t+1}; truncation does not. The sum over A stops at either, and at the last slot.

    Args:
        reward, value: Of slot t.
        next_value: The value of the observation that followed slot t, *not* of the next episode's first.
        terminated, truncated: How the transition in slot t ended its episode, if it did.
        discount, lambda_: Gamma and lambda.
    """
    delta = reward + discount * jnp.where(terminated, 0, next_value) - value
    return _reverse_sum(delta, discount * lambda_, terminated | truncated)


def lambda_returns(
    reward: Float[Array, " T"],
    next_value: Float[Array, " T"],
    terminated: Bool[Array, " T"],
    truncated: Bool[Array, " T"],
    discount: float | Float[Array, ""] | Float[Array, " T"],
    lambda_: float | Float[Array, ""] | Float[Array, " T"],
) -> Float[Array, " T"]:
    """Return G_t = r_t + discount * ((1 - lambda) V_{t+1} + lambda * G_{t+1}) (Sutton and Barto 2018, equation 12.2).

    At a truncation, and at the last slot, the whole weight falls on V_{t+1}; at a termination nothing follows. Lambda
    may differ by slot: `lambda_[t]` is the weight of G_{t+1}.
    """
    last = jnp.arange(reward.shape[0]) == reward.shape[0] - 1
    cut = truncated | last
    bootstrap = jnp.where(terminated, 0, next_value) * jnp.where(cut, 1, 1 - lambda_)
    step = reward + discount * bootstrap
    return _reverse_sum(step, discount * lambda_, terminated | cut)


def n_step_returns(
    reward: Float[Array, " T"],
    next_value: Float[Array, " T"],
    terminated: Bool[Array, " T"],
    truncated: Bool[Array, " T"],
    discount: float | Float[Array, ""] | Float[Array, " T"],
    n: int,
) -> Float[Array, " T"]:
    """Return the n-step returns (Sutton and Barto 2018, equation 7.1).

        G_t = r_t + discount * r_{t+1} + ... + discount^(m - 1) * r_{t+m-1} + discount^m * V_{t+m}

    where m = n, or fewer where the episode is truncated or the slots end before: then V is that of the observation
    there. At a termination nothing follows.

    Raises:
        ValueError: If n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    last = jnp.arange(reward.shape[0]) == reward.shape[0] - 1
    one_step = reward + discount * jnp.where(terminated, 0, next_value)
    ends = terminated | truncated | last

    def one_more(_, longer):
        return jnp.where(ends, one_step, reward + discount * jnp.roll(longer, -1))

    return jax.lax.fori_loop(1, n, one_more, one_step)
