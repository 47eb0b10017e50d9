"""A check of a new environment against its spaces."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memax_rl.envs import spaces
from memax_rl.envs.base import NotAsDeclared
from memax_rl.envs.trust import place


def check_environment(env_id: str, env: Any, params: Any) -> None:
    """Reset an environment written in JAX once, step it twice, and compare the results with its spaces.

    Args:
        env_id: Its name, for messages.
        env: A `memax_rl.envs.base.Environment`.
        params: Its parameters.

    Raises:
        ValueError: If it raises; if an observation has another structure, shape or dtype than its space, is out of its
            range or not finite; if a reward is no finite number; or if a state of `step` has another structure, shape
            or dtype than that of `reset`. The message names the environment and the array.
    """
    key = jax.random.key(0)
    space = env.observation_space(params)
    observation, state = call(f"{env_id}: reset", env.reset, key, params)
    _check_observation(f"{env_id}: the observation of reset", space, observation)
    for i in range(2):
        mask = call(f"{env_id}: action_mask", env.action_mask, state, params)
        _check_mask(f"{env_id}: action_mask", env.action_space(params), mask)
        sample_key = jax.random.fold_in(key, i)
        action = call(f"{env_id}: the action space", _sample, env.action_space(params), sample_key, mask)
        result = call(f"{env_id}: step {i + 1}", env.step, key, state, action, params)
        if not isinstance(result, tuple) or len(result) != 6:
            raise ValueError(
                f"{env_id}: step must return (observation, state, reward, terminated, truncated, info), as gymnax 1.0 "
                f"does, got {f'{len(result)} values' if isinstance(result, tuple) else type(result).__name__}"
            )
        observation, after, reward, _, _, info = result
        _check_observation(f"{env_id}: the observation of step {i + 1}", space, observation)
        _check_observation(f"{env_id}: the final observation of step {i + 1}", space, info["final_observation"])
        if mask is not None and "final_action_mask" not in info:
            raise ValueError(
                f"{env_id}: step must return info['final_action_mask'], the mask that belongs to final_observation"
            )
        if jnp.shape(reward) != () or not np.isfinite(reward):
            raise ValueError(f"{env_id}: the reward of step {i + 1} must be one finite number, got {reward}")
        _check_state(f"{env_id}: the state of step {i + 1}", state, after)
        state = after


def as_declared(env_id: str, space: Any, observation: Any) -> Any:
    """Return an observation, each array in the dtype of its space.

    Raises:
        NotAsDeclared: If it has other parts than its space, or numbers of which the dtype would hold a part alone.
    """
    if (fault := spaces.other_parts(f"{env_id}: an observation", space, observation)) is not None:
        raise NotAsDeclared(fault)
    paths, structure = jax.tree.flatten_with_path(observation)
    arrays = []
    for (path, x), part in zip(paths, spaces.leaves(space), strict=True):
        came = jnp.asarray(x).dtype
        # The cast would cut 0.7 down to 0. gymnax's own Catch shows 0.0 and 1.0 in a Box of integers.
        is_whole = isinstance(part, spaces.Discrete | spaces.MultiDiscrete)
        if jnp.issubdtype(came, jnp.complexfloating) or (is_whole and jnp.issubdtype(came, jnp.floating)):
            raise NotAsDeclared(
                f"{env_id}: an observation{jax.tree_util.keystr(path)} has the dtype {came}, but its space "
                f"{spaces.describe(part)} holds {jnp.dtype(part.dtype)}"
            )
        arrays.append(jax.lax.convert_element_type(x, part.dtype))
    return structure.unflatten(arrays)


def call_for(what: str, parts: Sequence[str], function: Any, *args: Any) -> tuple[Any, ...]:
    """Return shapes and dtypes of what a function of the user's returns, a tuple of these parts; it is not run.

    Raises:
        ValueError: Where it raises anything, or returns something else.
    """
    result = call(what, jax.eval_shape, function, *args)
    if not isinstance(result, tuple) or len(result) != len(parts):
        got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
        got = "an array" if got == jax.ShapeDtypeStruct.__name__ else got
        raise ValueError(f"{what} must return ({', '.join(parts)}), got {got}")
    return result


def call(what: str, function: Any, *args: Any) -> Any:
    """Return what a function of the user's returns; what it raises is told in one line, with its place.

    Raises:
        ValueError: Where it raises anything.
    """
    try:
        return function(*args)
    except NotAsDeclared:
        raise
    except Exception as error:
        reason = " ".join(str(error).strip().split("\n\n")[0].split())
        raise ValueError(f"{what} raised {type(error).__name__}: {reason}{place(error)}") from error


def _sample(space: Any, key: Any, mask: Any) -> Any:
    if mask is not None:
        return spaces.draw_action(space, jax.random.uniform(key, (len(spaces.value_counts(space)),)), mask)
    # A sample of a box without bounds is not finite.
    return jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), a, jnp.zeros_like(a)), space.sample(key))


def _check_mask(what: str, space: Any, mask: Any) -> None:
    if mask is None:
        return
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        raise ValueError(f"{what} is for Discrete and MultiDiscrete actions, and these are {spaces.describe(space)}")
    size = sum(spaces.value_counts(space))
    if jnp.shape(mask) != (size,) or jnp.asarray(mask).dtype != bool:
        raise ValueError(
            f"{what} must return an array of {size} bools, one for each value, got {jnp.asarray(mask).dtype} "
            f"{jnp.shape(mask)}"
        )
    if not all(bool(jnp.any(part)) for part in spaces.by_component(space, mask)):
        raise ValueError(f"{what} leaves no legal action: {_cut(mask)}")


def _check_state(what: str, before: Any, after: Any) -> None:
    """Raise unless both states can be the carry of one loop."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(f"{what} has another structure than that of reset: {_cut(jax.tree.structure(after))}")
    pairs = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, x), y in pairs:
        x, y = jax.typeof(x), jax.typeof(y)
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            name = what + (f" at {jax.tree_util.keystr(path)}" if path else "")
            raise ValueError(f"{name} is {y.str_short()}, but that of reset is {x.str_short()}; make both alike")


def _check_observation(what: str, space: Any, observation: Any) -> None:
    if (fault := spaces.other_parts(what, space, observation)) is not None:
        raise ValueError(fault)
    found, expected = jax.tree.leaves_with_path(observation), spaces.leaves(space)
    for (path, x), leaf in zip(found, expected, strict=True):
        name = what + (f" at {jax.tree_util.keystr(path)}" if path else "")
        if jnp.shape(x) != tuple(leaf.shape):
            raise ValueError(f"{name} has the shape {jnp.shape(x)}, but its space {spaces.describe(leaf)} {leaf.shape}")
        if jnp.asarray(x).dtype != leaf.dtype:
            raise ValueError(f"{name} has the dtype {jnp.asarray(x).dtype}, but its space {jnp.dtype(leaf.dtype)}")
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
