"""Reference scores of the POPGym suite: of random actions, and of a scripted policy with a memory.

The scripted policies see what an agent sees, observations and their own actions, never the hidden state.
Where a task is fully solvable they solve it. Elsewhere they are strong, not proven optimal: an agent may do
better.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PRNGKeyArray

from memax_rl.envs import ids, registry
from memax_rl.envs.baselines import boards, cards, control
from memax_rl.envs.baselines.policy import Policy, PolicyInput, RandomPolicy

BEST_POLICIES: dict[str, Callable[[Any], Policy]] = {
    "RepeatFirst": cards.repeat_first,
    "RepeatPrevious": cards.repeat_previous,
    "Autoencode": cards.autoencode,
    "CountRecall": cards.count_recall,
    "HigherLower": cards.higher_lower,
    "Concentration": boards.concentration,
    "Battleship": boards.battleship,
    "MineSweeper": boards.mine_sweeper,
    "MultiarmedBandit": boards.multiarmed_bandit,
    "PositionOnlyCartPole": control.cart_pole,
    "VelocityOnlyCartPole": control.cart_pole,
    "NoisyPositionOnlyCartPole": control.cart_pole,
    "PositionOnlyPendulum": control.pendulum,
    "NoisyPositionOnlyPendulum": control.pendulum,
}

# (chance, best), mean returns. Chance is exact where it has a closed form, else the mean of 4096 episodes;
# best is the mean of 4096 episodes (MineSweeper 1024, standard error 0.02; elsewhere below 0.005).
SCORES: dict[str, tuple[float, float]] = {
    "popgym/RepeatFirstEasy": (-0.5, 1.0),
    "popgym/RepeatFirstMedium": (-0.5, 1.0),
    "popgym/RepeatFirstHard": (-0.5, 1.0),
    "popgym/RepeatPreviousEasy": (-0.5, 1.0),
    "popgym/RepeatPreviousMedium": (-0.5, 1.0),
    "popgym/RepeatPreviousHard": (-0.5, 1.0),
    "popgym/AutoencodeEasy": (-0.5, 1.0),
    "popgym/AutoencodeMedium": (-0.5, 1.0),
    "popgym/AutoencodeHard": (-0.5, 1.0),
    "popgym/CountRecallEasy": (-0.926, 1.0),
    "popgym/CountRecallMedium": (-0.926, 1.0),
    "popgym/CountRecallHard": (-0.882, 1.0),
    "popgym/HigherLowerEasy": (0.0, 0.529),
    "popgym/HigherLowerMedium": (0.0, 0.516),
    "popgym/HigherLowerHard": (0.0, 0.511),
    "popgym/ConcentrationEasy": (-0.191, 0.813),
    "popgym/ConcentrationMedium": (-0.184, 0.813),
    "popgym/ConcentrationHard": (-0.836, 0.698),
    "popgym/BattleshipEasy": (-0.45, 0.554),
    "popgym/BattleshipMedium": (-0.415, 0.587),
    "popgym/BattleshipHard": (-0.401, 0.615),
    "popgym/MineSweeperEasy": (-0.226, 0.707),
    "popgym/MineSweeperMedium": (-0.401, 0.492),
    "popgym/MineSweeperHard": (-0.433, 0.524),
    "popgym/MultiarmedBanditEasy": (0.0, 0.721),
    "popgym/MultiarmedBanditMedium": (0.0, 0.818),
    "popgym/MultiarmedBanditHard": (0.0, 0.856),
    "popgym/PositionOnlyCartPoleEasy": (0.113, 1.0),
    "popgym/PositionOnlyCartPoleMedium": (0.056, 1.0),
    "popgym/PositionOnlyCartPoleHard": (0.038, 1.0),
    "popgym/VelocityOnlyCartPoleEasy": (0.113, 1.0),
    "popgym/VelocityOnlyCartPoleMedium": (0.056, 1.0),
    "popgym/VelocityOnlyCartPoleHard": (0.038, 1.0),
    "popgym/NoisyPositionOnlyCartPoleEasy": (0.112, 0.992),
    "popgym/NoisyPositionOnlyCartPoleMedium": (0.112, 0.631),
    "popgym/NoisyPositionOnlyCartPoleHard": (0.112, 0.378),
    "popgym/PositionOnlyPendulumEasy": (0.249, 0.908),
    "popgym/PositionOnlyPendulumMedium": (0.248, 0.878),
    "popgym/PositionOnlyPendulumHard": (0.247, 0.817),
    "popgym/NoisyPositionOnlyPendulumEasy": (0.249, 0.892),
    "popgym/NoisyPositionOnlyPendulumMedium": (0.249, 0.699),
    "popgym/NoisyPositionOnlyPendulumHard": (0.249, 0.625),
}


def reference_scores(env_id: str) -> tuple[float, float]:
    """The mean returns of the random policy and of the scripted policy.

    Args:
        env_id: An id of the POPGym suite.

    Raises:
        ValueError: If there are no scores for this environment.
    """
    if env_id not in SCORES:
        raise ValueError(f"env_id: there are reference scores for the popgym suite only, got {env_id!r}")
    return SCORES[env_id]


def find_scores(env_id: str) -> tuple[float, float] | None:
    """The reference scores of an environment, also of the `popgym` package's own (`gym/popgym-...`), or None.

    Args:
        env_id: Any id.
    """
    if env_id.startswith("gym/"):
        from memax_rl.envs.adapters.gymnasium import jax_twin

        env_id = jax_twin(env_id.removeprefix("gym/")) or env_id
    return SCORES.get(env_id)


def random_policy(env_id: str) -> Policy:
    """The policy that chooses uniformly from the action space of an environment."""
    env, params = registry.make(env_id)
    return RandomPolicy(action_space=env.action_space(params))


def best_policy(env_id: str) -> Policy:
    """The scripted policy for an environment of the POPGym suite.

    Raises:
        ValueError: If there is none for this environment.
    """
    if env_id not in SCORES:
        raise ValueError(f"env_id: there are scripted policies for the popgym suite only, got {env_id!r}")
    family = env_id.removeprefix("popgym/")
    for level in ids.DIFFICULTIES:
        family = family.removesuffix(level)
    env, _ = registry.make(env_id)
    return BEST_POLICIES[family](env)


@partial(jax.jit, static_argnames=("env", "steps", "episodes"))
def _returns(
    key: PRNGKeyArray, policy: Policy, params: Any, env: Any, steps: int, episodes: int
) -> Float32[Array, " episodes"]:
    def one_step(carry, step_key):
        inputs, state, remembered, running, total = carry
        act_key, env_key = jax.random.split(step_key)
        remembered, action = policy.act(remembered, inputs, act_key)
        observation, state, reward, terminated, truncated, _ = env.step(env_key, state, action, params)
        total = total + jnp.where(running, reward, 0.0)
        # After the episode's end nothing counts, so that a new start need not be told.
        shown = PolicyInput(observation, action, jnp.asarray(reward, jnp.float32), jnp.zeros((), bool))
        return (shown, state, remembered, running & ~(terminated | truncated), total), None

    def episode(episode_key):
        reset_key, scan_key = jax.random.split(episode_key)
        observation, state = env.reset(reset_key, params)
        action = jax.tree.map(lambda space: jnp.zeros(space.shape, space.dtype), env.action_space(params))
        shown = PolicyInput(observation, action, jnp.zeros(()), jnp.ones((), bool))
        first = (shown, state, policy.initial_carry(), jnp.ones((), bool), jnp.zeros(()))
        (*_, total), _ = jax.lax.scan(one_step, first, jax.random.split(scan_key, steps))
        return total

    return jax.vmap(episode)(jax.random.split(key, episodes))


def episode_returns(env_id: str, policy: Policy, *, key: PRNGKeyArray, episodes: int) -> Float32[Array, " episodes"]:
    """Play independent episodes with a scripted policy.

    Args:
        env_id: An id of the POPGym suite.
        policy: The policy.
        key: A random key.
        episodes: The number of episodes, all played at once.

    Returns:
        The undiscounted return of each episode.

    Raises:
        ValueError: If the environment has no known longest episode.
    """
    env, params = registry.make(env_id)
    steps = env.max_episode_steps(params)
    if steps is None:
        raise ValueError(f"env_id: episodes of {env_id} have no known longest length")
    return _returns(key, policy, params, env, steps, episodes)
