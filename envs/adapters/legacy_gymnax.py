"""Environments with gymnax's interface from before its version 1.0, as many packages still have it.

`step_env` returns five values, whose `done` mixes an end by itself with a time limit, and the state may count no steps.
Here steps are counted, and the two kinds of end are told apart.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt32

from memax_rl.envs import spaces
from memax_rl.envs.adapters.package import Outcome, PackageEnvironment

# What parameters call the time limit.
LIMITS = ("max_steps_in_episode", "max_timesteps")


class LegacyGymnaxAdapter(PackageEnvironment):
    """An environment by its `reset_env` and `step_env`.

    A step that the package says was cut (`info["truncated"]`) is a truncation. Where it does not say, an end at the
    time limit of the parameters is one, unless `is_terminal` also holds with parameters without a limit.

    Attributes:
        limit: A time limit that stands elsewhere than in the parameters, or None.
    """

    def __init__(self, env_id: str, inner: Any, params: Any = None, limit: int | None = None):
        super().__init__(env_id, inner)
        self._params = inner.default_params if params is None else params
        self.limit = limit

    @property
    def default_params(self) -> Any:
        """The environment's own parameters."""
        return self._params

    def action_space(self, params: Any) -> Any:
        """The environment's action space."""
        return spaces.recognize(self.inner.action_space(params))

    def observation_space(self, params: Any) -> Any:
        """The environment's observation space."""
        return spaces.recognize(self.inner.observation_space(params))

    def max_episode_steps(self, params: Any) -> int | None:
        """The time limit, where one is stated."""
        limit = self._time_limit(params)
        return None if limit is None else int(limit)

    def _time_limit(self, params: Any) -> Any:
        stated = [getattr(params, name) for name in LIMITS if hasattr(params, name)]
        return self.limit if self.limit is not None else next(iter(stated), None)

    def begin(self, key: UInt32[Array, " 2"], params: Any) -> tuple[Any, Any]:
        """The environment's reset."""
        return self.inner.reset_env(key, params)

    def advance(
        self, key: UInt32[Array, " 2"], state: Any, action: Any, time: Int32[Array, ""], params: Any
    ) -> Outcome:
        """The environment's transition."""
        observation, after, reward, done, info = self.inner.step_env(key, state, action, params)
        done = jnp.asarray(done, bool)
        limit = self._time_limit(params)
        if isinstance(info, dict) and "truncated" in info:
            truncated = jnp.asarray(info["truncated"], bool)
        elif limit is None:
            truncated = jnp.zeros((), bool)
        else:
            truncated = (time >= limit) & ~(done & self._ends_by_itself(after, params))
        return Outcome(observation, after, reward, done & ~truncated, truncated)

    def _ends_by_itself(self, state: Any, params: Any) -> Array:
        """Whether the state ends an episode without any time limit; False where the environment cannot say."""
        names = [name for name in LIMITS if hasattr(params, name)]
        if self.limit is not None or not names or not hasattr(self.inner, "is_terminal"):
            return jnp.zeros((), bool)
        unlimited = params.replace(**{names[0]: jnp.iinfo(jnp.int32).max})
        try:
            return jnp.asarray(self.inner.is_terminal(state, unlimited), bool)
        except NotImplementedError:
            # gymnax's base class has the method and leaves it open.
            return jnp.zeros((), bool)


def steps_by_six(env: Any) -> bool:
    """Whether an environment with gymnax's interface has the step of its version 1.0: it does not give five values."""
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)

    def one_step(key, params):
        _, state = env.reset_env(key, params)
        action = env.action_space(params).sample(jax.random.key(0))
        return env.step(key, state, action, params)

    try:
        return len(jax.eval_shape(one_step, key, env.default_params)) != 5
    except AttributeError:
        # Its step asks the state for a step count that an older environment's does not have.
        return False
    except Exception:
        # The check of a new environment says what is wrong.
        return True
