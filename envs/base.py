"""The interface of all environments, and a step with an automatic reset."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments import environment
from gymnax.environments.environment import EnvParams as EnvParams
from jaxtyping import Array, Bool, Float32, PRNGKeyArray, PyTree

from memax_rl.envs import spaces

if TYPE_CHECKING:
    from memax_rl.envs.adapters.gymnasium_host import Host

if not hasattr(environment.Environment, "is_truncated"):
    # stable-gymnax, which popgym_arcade asks for, installs an older gymnax into the same folder.
    raise ImportError(
        "the package gymnax is not version 1.0 or newer, or another one has overwritten it, as stable-gymnax does; "
        "pip uninstall -y stable-gymnax, then pip install --force-reinstall --no-deps 'gymnax>=1.0.1'"
    )

# What a step returns: observation, state, reward, terminated, truncated, info.
Step = tuple[Any, Any, Float32[Array, ""], Bool[Array, ""], Bool[Array, ""], dict[str, Any]]

# Entries of `info` that the learner alone reads, see `Environment`.
LEARNER_FIELDS = ("discount", "intrinsic_reward")


class Timestep(NamedTuple):
    """What one step of any environment gave.

    Attributes:
        observation: What the agent sees next; the first of a new episode where this one ended.
        state: The environment's state after it.
        reward: The reward.
        terminated: Whether the episode ended by itself.
        truncated: Whether it was cut by a time limit.
        final_observation: The last observation of this episode where it ended, else `observation`.
        discount: What multiplies all that follows in the learner's returns, or None for 1 everywhere.
        intrinsic_reward: What the learner adds to the reward, or None.
        action_mask: Which actions are legal in `state`, see `Environment.action_mask`; None where all always are.
        final_action_mask: Which were at `final_observation`.
    """

    observation: Any
    state: Any
    reward: Float32[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    final_observation: Any
    discount: Float32[Array, ""] | None = None
    intrinsic_reward: Float32[Array, ""] | None = None
    action_mask: Bool[Array, " actions"] | None = None
    final_action_mask: Bool[Array, " actions"] | None = None


class EnvironmentFailure(RuntimeError):
    """An environment could not be made, or on the host raised, hung, or gave a bad value. The message says why."""


class NotAsDeclared(ValueError):
    """An environment gave something else than it says that it gives. The message names it, and says what."""


class Environment(environment.Environment):
    """A gymnax environment with a stricter contract.

    - `reset(key, params) -> (obs, state)`
    - `step(key, state, action, params) -> (obs, state, reward, terminated, truncated, info)`; at the end of
      an episode `obs` and `state` already belong to the next one and `info["final_observation"]` is the last
      observation of this one. At every other step it equals `obs`.
    - `info["discount"]`, if present, a float32 in [0, 1], multiplies all that follows this step in the learner's
      returns, as in dm_env: 0 where no return looks beyond the step although the episode, and the memory, go on, as
      between the episodes of a trial. A termination needs none. (gymnax's own entry of this name, which is 0 at time
      limits too, is not read.)
    - `info["intrinsic_reward"]`, if present, is added to the reward by the learner; the agent does not see it, and
      reported returns do not include it.
    - Where `action_mask` says which actions are legal, `info["final_action_mask"]` is the mask that belongs to
      `info["final_observation"]`. `step` of this class adds it.
    - Observations and states have the same structure, shapes and dtypes (never weak ones) from `reset` and
      from `step`, so that they can be carried through `jax.lax.scan`. Observations have the dtype of
      `observation_space(params)`. The reward is float32.
    - Instances are hashed by identity and immutable: everything random is in the state.

    A subclass implements `reset_env`, `step_env`, `default_params` and the two spaces, and where it can
    `max_episode_steps` and `fixed_length`. `step_env` and `reset_env` are given the *same* key within one step, because
    hashing keys is most of the cost of small environments. A subclass whose last transition is random must therefore
    fold a constant into the key in `reset_env`.
    """

    def max_episode_steps(self, params: Any) -> int | None:
        """The largest number of steps an episode can have, or None if no bound is known. None unless overridden."""
        return None

    def fixed_length(self, params: Any) -> int | None:
        """The number of steps of every episode, or None if episodes differ in length. None unless overridden."""
        return None

    def truncates(self, params: Any) -> bool:
        """Whether an episode of the fixed length may be cut there by a time limit.

        Its final observation then takes a slot of its own on a tape. True unless overridden, which is always safe.
        """
        return True

    def action_mask(self, state: Any, params: Any) -> Bool[Array, " actions"] | None:
        """Which actions are legal in a state, or None where all always are. None unless overridden.

        For Discrete(n) an array [n], true for each legal action; for MultiDiscrete those of all components, one after
        the other [sum(nvec)]. Agents take legal actions only. Where nothing is legal, all counts as legal.
        """
        return None

    def next_episode(self, key: PRNGKeyArray, state: Any, params: Any) -> tuple[Any, Any]:
        """The first observation and state of the episode after the one that ended in `state`.

        `reset_env` unless overridden. It is computed at every step, so if drawing an episode is expensive, `step_env`
        can draw a part of the next one at each step.
        """
        return self.reset_env(key, params)

    @property
    def host(self) -> "Host | None":
        """What runs the environment outside of JAX, or None where it is written in JAX."""
        return None

    def step_if(self, active: Bool[Array, ""], key: PRNGKeyArray, state: Any, action: Any, params: Any) -> Step:
        """A step where `active`; else the state stays as it is, and what else is returned has no meaning."""
        obs, after, *rest = self.step(key, state, action, params)
        return obs, where(active, after, state), *rest

    def reset_if(
        self, active: Bool[Array, ""], key: PRNGKeyArray, obs: Any, state: Any, params: Any
    ) -> tuple[Any, Any]:
        """A new episode where `active`; else the given observation and state. For an episode that was cut short."""
        return where(active, self.reset(key, params), (obs, state))

    @partial(jax.jit, static_argnames=("self",))
    def step(
        self, key: PRNGKeyArray, state: Any, action: Any, params: Any = None
    ) -> tuple[Any, Any, Float32[Array, ""], Bool[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """One transition, followed by a reset where it ended the episode.

        Args:
            key: A fresh random key.
            state: The state from `reset` or the previous `step`.
            action: A member of `action_space(params)`.
            params: The parameters; the default ones if None.

        Returns:
            The observation, state, reward, whether the episode ended by itself, whether it was cut by a time
            limit (both may hold at once), and `{"final_observation": ...}` with what `step_env` adds.
        """
        if params is None:
            params = self.default_params
        final_obs, next_state, reward, terminated, info = self.step_env(key, state, action, params)
        truncated = self.is_truncated(next_state, params)
        final_mask = self.action_mask(next_state, params)
        if final_mask is not None:
            info = {**info, "final_action_mask": final_mask}
        done = terminated | truncated
        first_obs, first_state = self.next_episode(key, next_state, params)
        obs, next_state = jax.tree.map(
            lambda first, following: jnp.where(done, first, following),
            (first_obs, first_state),
            (final_obs, next_state),
        )
        return obs, next_state, reward, terminated, truncated, {**info, "final_observation": final_obs}


def noise_keys(key: PRNGKeyArray, noise: float) -> tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray]:
    """Keys for the noise of a step, the state of a new episode, and the noise of its first observation.

    Args:
        key: The key given to both `step_env` and `reset_env`.
        noise: The standard deviation of the noise. Without noise only the new state is drawn, and each of the
            three is the key itself, which saves splitting it.
    """
    if noise == 0.0:
        return key, key, key
    step_noise_key, state_key, reset_noise_key = jax.random.split(key, 3)
    return step_noise_key, state_key, reset_noise_key


@contextmanager
def lenient() -> Iterator[None]:
    """Run another package's code under JAX's default promotion rules, whatever stricter ones the user has set."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def strong(tree: Any) -> Any:
    """The same values as arrays whose dtypes are not weak.

    Args:
        tree: A pytree of arrays and numbers.
    """
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def where(condition: Bool[Array, ""], if_true: PyTree, if_false: PyTree) -> PyTree:
    """Return the pytree `if_true` where `condition`, a scalar, is true, else `if_false` of the same shapes."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def step_if(active: Bool[Array, ""], env: Any, key: PRNGKeyArray, state: Any, action: Any, params: Any) -> Timestep:
    """A step of any environment where `active`; else its state stays as it is.

    A step on the host has effects, so one that is not wanted must not be taken. A step in JAX is computed anyway, and
    its result chosen or not.

    Args:
        active: Whether to step. Where false, everything returned but the state has no meaning.
        env: An environment of `memax_rl.envs`, or any other with gymnax's six-value step.
        key, state, action, params: As for its `step`.
    """
    if isinstance(env, Environment):
        obs, after, reward, terminated, truncated, info = env.step_if(active, key, state, action, params)
        discount, intrinsic_reward = (
            None if (x := info.get(name)) is None else jnp.asarray(x, jnp.float32) for name in LEARNER_FIELDS
        )
        mask = action_mask(env, after, params)
        final_mask = None if mask is None else spaces.usable_mask(env.action_space(params), info["final_action_mask"])
        final = info["final_observation"]
        return Timestep(obs, after, reward, terminated, truncated, final, discount, intrinsic_reward, mask, final_mask)
    obs, after, reward, terminated, truncated, info = env.step(key, state, action, params)
    return Timestep(obs, where(active, after, state), reward, terminated, truncated, info["final_observation"])


def action_mask(env: Any, state: Any, params: Any) -> Bool[Array, " actions"] | None:
    """Which actions of any environment are legal in a state, at least one of them, or None where all always are."""
    mask = env.action_mask(state, params) if isinstance(env, Environment) else None
    return None if mask is None else spaces.usable_mask(env.action_space(params), mask)


def has_action_mask(env: Any, params: Any) -> bool:
    """Whether an environment says which of its actions are legal. Nothing is run."""
    key = jax.random.key(0)
    return jax.eval_shape(lambda: action_mask(env, env.reset(key, params)[1], params)) is not None


def host_of(env: Any) -> "Host | None":
    """What runs an environment outside of JAX, or None where it is written in JAX."""
    return env.host if isinstance(env, Environment) else None


def failure(env: Any) -> str | None:
    """What has gone wrong with an environment on the host, or None."""
    host = host_of(env)
    return None if host is None else host.failure


def close(env: Any) -> None:
    """Close the copies of an environment on the host, and end its processes. States from before cannot be used."""
    host = host_of(env)
    if host is not None:
        host.close()


@contextmanager
def closing_new_copies(env: Any) -> Iterator[None]:
    """Close at the end the copies of an environment on the host that were begun inside, and no others."""
    host = host_of(env)
    begun = 0 if host is None else host.begun
    try:
        yield
    finally:
        if host is not None:
            host.close(begun)
