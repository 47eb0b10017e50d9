"""Reference scores of the POPGym suite: what chance gets, and what a scripted policy with a memory gets.

The scripted policies see what an agent sees, observations and their own actions, never the hidden state. Where a
task is fully solvable they solve it. Elsewhere they are strong, not proven optimal: an agent may do better.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PRNGKeyArray

from memax_rl.envs import reference_boards, reference_cards, reference_control, registry
from memax_rl.envs.reference_policy import Policy


class RandomPolicy(Policy):
    """Actions drawn uniformly from the action space."""

    action_space: Any = eqx.field(static=True)

    def initial_memory(self) -> None:
        """Nothing to remember."""
        return None

    def act(self, key: PRNGKeyArray, memory: None, obs: Any) -> tuple[None, Array]:
        """Any action."""
        return None, self.action_space.sample(key)


BEST_POLICIES: dict[str, Callable[[Any], Policy]] = {
    "RepeatFirst": reference_cards.repeat_first,
    "RepeatPrevious": reference_cards.repeat_previous,
    "Autoencode": reference_cards.autoencode,
    "CountRecall": reference_cards.count_recall,
    "HigherLower": reference_cards.higher_lower,
    "Concentration": reference_boards.concentration,
    "Battleship": reference_boards.battleship,
    "MineSweeper": reference_boards.mine_sweeper,
    "MultiarmedBandit": reference_boards.multiarmed_bandit,
    "PositionOnlyCartPole": reference_control.cart_pole,
    "VelocityOnlyCartPole": reference_control.cart_pole,
    "NoisyPositionOnlyCartPole": reference_control.cart_pole,
    "PositionOnlyPendulum": reference_control.pendulum,
    "NoisyPositionOnlyPendulum": reference_control.pendulum,
}


def random_policy(env_id: str) -> Policy:
    """The policy that chooses uniformly from the action space of an environment."""
    env, params = registry.make(env_id)
    return RandomPolicy(action_space=env.action_space(params))


def best_policy(env_id: str) -> Policy:
    """The scripted policy for an environment of the POPGym suite.

    Raises:
        ValueError: If there is none for this environment.
    """
    family = env_id.removeprefix("popgym/")
    for level in registry.DIFFICULTIES:
        family = family.removesuffix(level)
    if not env_id.startswith("popgym/") or family not in BEST_POLICIES:
        raise ValueError(f"env_id: expected an id that begins with popgym/, got {env_id!r}")
    env, _ = registry.make(env_id)
    return BEST_POLICIES[family](env)


@partial(jax.jit, static_argnames=("env", "steps", "episodes"))
def _returns(
    key: PRNGKeyArray, policy: Policy, params: Any, env: Any, steps: int, episodes: int
) -> Float32[Array, " episodes"]:
    def one_step(carry, step_key):
        obs, state, memory, running, total = carry
        act_key, env_key = jax.random.split(step_key)
        memory, action = policy.act(act_key, memory, obs)
        obs, state, reward, terminated, truncated, _ = env.step(env_key, state, action, params)
        total = total + jnp.where(running, reward, 0.0)
        return (obs, state, memory, running & ~(terminated | truncated), total), None

    def episode(episode_key):
        reset_key, scan_key = jax.random.split(episode_key)
        obs, state = env.reset(reset_key, params)
        first = (obs, state, policy.initial_memory(), jnp.ones((), bool), jnp.zeros(()))
        (*_, total), _ = jax.lax.scan(one_step, first, jax.random.split(scan_key, steps))
        return total

    return jax.vmap(episode)(jax.random.split(key, episodes))


def episode_returns(
    env_id: str, policy: Policy, *, key: PRNGKeyArray, episodes: int
) -> Float32[Array, " episodes"]:
    """Undiscounted returns of a scripted policy, one for each of independent episodes."""
    env, params = registry.make(env_id)
    steps = registry.horizon(env, params)
    if steps is None:
        raise ValueError(f"env_id: episodes of {env_id} have no known longest length")
    return _returns(key, policy, params, env, steps, episodes)
