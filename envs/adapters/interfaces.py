"""Any class with gymnax's, brax's or Jumanji's interface, recognized by its attributes; and `jax/module:Class`."""

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from memax_rl.envs.adapters.brax_like import BraxAdapter
from memax_rl.envs.adapters.gymnax import adapt as adapt_gymnax
from memax_rl.envs.adapters.gymnax import check_returns
from memax_rl.envs.adapters.jumanji_like import JumanjiAdapter
from memax_rl.envs.adapters.legacy_gymnax import LegacyGymnaxAdapter, steps_by_six
from memax_rl.envs.base import Environment, lenient
from memax_rl.envs.checking import check_environment
from memax_rl.envs.trust import import_package

# brax's environments know no time limit; this is the one of its own training.
_BRAX_LIMIT = 1000


def adapt(env_id: str, env: Any) -> Environment:
    """Return an environment with one of the interfaces as a `memax_rl.envs.base.Environment`.

    Raises:
        ValueError: If it has none of them. The message says what it lacks.
    """
    if isinstance(env, Environment):
        return adapt_gymnax(env_id, env)
    if _has(env, "reset", "step", "observation_spec", "action_spec"):
        return JumanjiAdapter(env_id, env)
    if _has(env, "reset", "step", "action_size", "observation_size"):
        return BraxAdapter(env_id, env, int(getattr(env, "episode_length", _BRAX_LIMIT)))
    if _has(env, "reset_env", "step_env", "action_space", "observation_space", "default_params"):
        with lenient():
            is_new = steps_by_six(env)
        if is_new:
            return adapt_gymnax(env_id, env)
        # Packages of that time keep keys as arrays of two numbers.
        check_returns(env_id, env, jax.ShapeDtypeStruct((2,), jnp.uint32))
        return LegacyGymnaxAdapter(env_id, env)
    return adapt_gymnax(env_id, env)


def _has(env: Any, *names: str) -> bool:
    return all(hasattr(type(env), name) for name in names)


def split(name: str) -> tuple[str, str]:
    """Module and class of `module:Class`.

    Raises:
        ValueError: If it is not of that form.
    """
    module, colon, cls = name.partition(":")
    if not (colon and cls.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ValueError(f"env: expected jax/module:Class, for example jax/my_module:Room, got {f'jax/{name}'[:100]!r}")
    return module, cls


def find(name: str) -> type:
    """Import the class of `module:Class`.

    Raises:
        ValueError: If it is not of that form, may not be imported (see `memax_rl.envs.trust`), or is not there.
    """
    module, cls = split(name)
    try:
        with lenient():
            import_package(module)
    except ImportError as error:
        raise ValueError(f"env: jax/{name}: the module {module} cannot be imported: {error}") from None
    found = getattr(sys.modules[module], cls, None)
    if not isinstance(found, type):
        known = sorted(x for x, value in vars(sys.modules[module]).items() if isinstance(value, type))
        hint = f"its classes are {', '.join(known[:20])}" if known else "it has no classes"
        raise ValueError(f"env: jax/{name}: the module {module} has no class {cls}; {hint}")
    return found


def make(name: str, options: Mapping[str, Any]) -> Environment:
    """Make the environment of `module:Class`, with the options as arguments of the constructor, and look at it.

    Raises:
        ValueError: As `find`, or if the constructor takes no such option, raises, or if what it made has none of the
            interfaces or does not keep to its own spaces.
    """
    env_id, cls = f"jax/{name}", find(name)
    try:
        inspect.signature(cls).bind(**options)
    except TypeError as error:
        raise ValueError(f"env_options: {env_id}: {error}; it takes {inspect.signature(cls)}") from None
    try:
        with lenient():
            made = cls(**options)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"env: {env_id} cannot be made: {type(error).__name__}: {reason}") from error
    env = adapt(env_id, made)
    check_environment(env_id, env, env.default_params)
    return env
