"""POPGym's MultiarmedBandit: find the arm that pays best within an episode.

Source: `popgym.envs.multiarmed_bandit`, popgym 1.0.7.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.base import Environment, EnvParams
from memax_rl.envs.popgym.timed import TimedEnvironment


class MultiarmedBanditState(eqx.Module):
    """Steps taken, and the probability that each arm pays; -1 while it is not drawn, that is before the first pull.

    Nothing depends on an arm before it is pulled, and one number a step is cheaper than those of all arms.
    """

    time: Int32[Array, ""]
    payout: Float32[Array, " arms"]


class MultiarmedBandit(TimedEnvironment):
    """Pull one of K arms, each of which pays with a fixed probability drawn from U(0, 1).

    Observation: Discrete(2), whether the arm paid; 0 at first. Action: Discrete(K). Reward: 1/T if it paid,
    else -1/T, with T = `params.max_steps_in_episode`. Truncated after T steps.
    """

    def __init__(self, arms: int, max_steps: int):
        self.arms = arms
        self.max_steps = max_steps

    def fixed_length(self, params: EnvParams) -> int | None:
        """The number of pulls."""
        return int(params.max_steps_in_episode)

    def action_space(self, params: EnvParams) -> spaces.Discrete:
        """An arm."""
        return spaces.Discrete(self.arms)

    def observation_space(self, params: EnvParams) -> spaces.Discrete:
        """Nothing (0) or a payout (1)."""
        return spaces.Discrete(2)

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Int32[Array, ""], MultiarmedBanditState]:
        """Forget the arms."""
        zero = jnp.zeros((), jnp.int32)
        return zero, MultiarmedBanditState(time=zero, payout=jnp.full(self.arms, -1.0, jnp.float32))

    def step_env(
        self, key: PRNGKeyArray, state: MultiarmedBanditState, action: Int32[Array, ""], params: EnvParams
    ) -> tuple[Int32[Array, ""], MultiarmedBanditState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Pull an arm, and draw it if it was not pulled before."""
        drawn, uniform = jax.random.uniform(key, (2,))
        pulled = jnp.arange(self.arms) == action
        payout = jnp.where(pulled & (state.payout < 0), drawn, state.payout)
        paid = uniform < jnp.sum(jnp.where(pulled, payout, 0.0))
        scale = jnp.float32(1.0) / params.max_steps_in_episode
        state = MultiarmedBanditState(time=state.time + 1, payout=payout)
        return paid.astype(jnp.int32), state, jnp.where(paid, scale, -scale), jnp.zeros((), bool), {}


BUILDERS: dict[str, Callable[[], Environment]] = {
    "MultiarmedBanditEasy": partial(MultiarmedBandit, arms=10, max_steps=200),
    "MultiarmedBanditMedium": partial(MultiarmedBandit, arms=20, max_steps=400),
    "MultiarmedBanditHard": partial(MultiarmedBandit, arms=30, max_steps=600),
}
