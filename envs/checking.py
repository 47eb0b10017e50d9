"""One look at a new environment: does it do what its spaces say?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memax_rl.envs import spaces


def check_environment(env_id: str, env: Any, params: Any) -> None:
    """Reset an environment written in JAX once, step it twice, and compare what comes with its spaces.

    Args:
        env_id: Its name, for messages.
        env: A `memax_rl.envs.base.Environment`.
        params: Its parameters.

    Raises:
        ValueError: If an observation has another structure, shape or dtype than its space, is out of its range or not
            finite, or a reward is no finite number. The message names the environment and the array.
    """
    key = jax.random.key(0)
    space = env.observation_space(params)
    observation, state = env.reset(key, params)
    _check_observation(f"{env_id}: the observation of reset", space, observation)
    for i in range(2):
        # A sample of a box without bounds is not finite.
        sample = env.action_space(params).sample(jax.random.fold_in(key, i))
        action = jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), a, jnp.zeros_like(a)), sample)
        observation, state, reward, _, _, info = env.step(key, state, action, params)
        _check_observation(f"{env_id}: the observation of step {i + 1}", space, observation)
        _check_observation(f"{env_id}: the final observation of step {i + 1}", space, info["final_observation"])
        if jnp.shape(reward) != () or not np.isfinite(reward):
            raise ValueError(f"{env_id}: the reward of step {i + 1} must be one finite number, got {reward}")


def _check_observation(what: str, space: Any, observation: Any) -> None:
    found, expected = jax.tree.leaves_with_path(observation), spaces.leaves(space)
    if len(found) != len(expected):
        raise ValueError(f"{what} has {len(found)} arrays, but its space has {len(expected)}")
    for (path, x), leaf in zip(found, expected, strict=True):
        name = what + (f" at {jax.tree_util.keystr(path)}" if path else "")
        if jnp.shape(x) != tuple(leaf.shape):
            raise ValueError(f"{name} has the shape {jnp.shape(x)}, but its space {spaces.describe(leaf)} {leaf.shape}")
        values = np.asarray(x)
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{name} is not finite: {_cut(values)}")
        low, high = _range(leaf)
        if np.any(values < low) or np.any(values > high):
            raise ValueError(f"{name} is outside of its space, [{_cut(low)}, {_cut(high)}]: {_cut(values)}")


def _range(leaf: Any) -> tuple[Any, Any]:
    if isinstance(leaf, spaces.Box):
        low, high = np.asarray(leaf.low, np.float64), np.asarray(leaf.high, np.float64)
        # Room for rounding. An infinite bound stays what it is.
        return low - 1e-5 * np.maximum(1, np.abs(low)), high + 1e-5 * np.maximum(1, np.abs(high))
    return 0, np.asarray(leaf.nvec if isinstance(leaf, spaces.MultiDiscrete) else leaf.n) - 1


def _cut(x: Any) -> str:
    text = " ".join(str(x).split())
    return text if len(text) <= 100 else text[:100] + "..."
