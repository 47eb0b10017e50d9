"""Environment streams: an environment, the network's carry, and the slots they write onto a tape.

Training and evaluation act through this one function, so that they cannot differ.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from memax_rl import sharding
from memax_rl.envs.base import Timestep, action_mask, step_if, where
from memax_rl.networks import to_environment
from memax_rl.networks.encoder import AgentInput
from memax_rl.rollout.step_count import StepCount
from memax_rl.rollout.tape import Tape

# How an agent acts: (carry, inputs, key) -> (carry, action, log-probability of the action).
Act = Callable[[Any, AgentInput, PRNGKeyArray], tuple[Any, Array, Array]]


class RolloutState(eqx.Module):
    """One environment and what the agent is about to see of it.

    Attributes:
        environment: The environment's state.
        inputs: What the agent is shown next.
        carry: The network's carry before it has seen `inputs`.
        next_observation: While `final`, the first observation of the next episode; else unused.
        final: True where `inputs` shows the last observation of a truncated episode, on which there is nothing to do.
        episode_return, episode_length: Of the open episode so far.
    """

    environment: PyTree[Array]
    inputs: AgentInput
    carry: PyTree[Array]
    next_observation: PyTree[Array]
    final: Bool[Array, ""]
    episode_return: Float[Array, ""]
    episode_length: Int[Array, ""]


class Finished(eqx.Module):
    """What ended in a slot.

    Attributes:
        done: Whether an episode did.
        episode_return, episode_length: Its return and length; of no meaning where none ended.
    """

    done: Bool[Array, "*axes"]
    episode_return: Float[Array, "*axes"]
    episode_length: Int[Array, "*axes"]


def seed_key(seed: int, impl: str = "philox4x32") -> PRNGKeyArray:
    """Return the random key of a seed.

    Philox (Salmon et al. 2011), not JAX's default Threefry: on a CPU each draw of that is a loop of its own, and the
    draws of a rollout took a tenth of the training time of small networks.

    Args:
        impl: Kind of the key, of `jax.random.key`.

    Raises:
        ValueError: If it is no whole number of 64 bits.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected a whole number from -2**63 to 2**63 - 1, got {str(seed)[:100]!r}")
    return jax.random.key(seed, impl=impl)


def start_stream(env: Any, params: Any, carry: PyTree[Array], key: PRNGKeyArray) -> RolloutState:
    """Return a stream at the start of its first episode."""
    observation, state = env.reset(key, params)
    action = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), env.action_space(params))
    return RolloutState(
        environment=state,
        inputs=AgentInput(observation, action, jnp.zeros(()), jnp.ones((), bool), action_mask(env, state, params)),
        carry=carry,
        next_observation=jax.tree.map(jnp.zeros_like, observation),
        final=jnp.zeros((), bool),
        episode_return=jnp.zeros(()),
        episode_length=jnp.zeros((), jnp.int32),
    )


def start_streams(env: Any, params: Any, network: Any, key: PRNGKeyArray, count: int) -> RolloutState:
    """Return `count` streams [streams], each at the start of its first episode with the network's initial carry."""
    carry = network.initial_state()
    return jax.vmap(lambda k: start_stream(env, params, carry, k))(jax.random.split(key, count))


def slot_shapes(env: Any, params: Any, act: Act, streams: RolloutState) -> Tape:
    """Return the shapes and dtypes of a slot that one of the streams would write."""
    stream = jax.tree.map(lambda leaf: leaf[0], streams)
    return jax.eval_shape(lambda: step_stream(env, params, act, stream, jax.random.split(jax.random.key(0)))[1])


def step_stream(
    env: Any,
    params: Any,
    act: Act,
    stream: RolloutState,
    keys: Key[Array, "2"],
    active: Bool[Array, ""] | bool = True,
) -> tuple[RolloutState, Tape, Finished]:
    """Write one slot: act on what is shown, or pass over the final observation of a truncated episode.

    Args:
        keys: Two keys, for acting and for the environment. Split them for all steps at once, outside of a loop: a split
            inside costs as much as a small network.
        active: Where false the stream stays as it is and its environment is not stepped; the slot has no meaning.

    Returns:
        The stream after it, the slot, and the episode that it ended if it did.
    """
    inputs, acted = stream.inputs, active & ~stream.final
    carry, action, log_prob = act(stream.carry, inputs, keys[0])
    step = step_if(acted, env, keys[1], stream.environment, to_environment(env.action_space(params), action), params)
    slot = _slot(inputs, action, log_prob, step, acted)
    terminated, truncated, reward = slot.terminated, slot.truncated, slot.reward
    done = terminated | truncated
    begins = terminated | stream.final
    shown = where(truncated, step.final_observation, where(stream.final, stream.next_observation, step.observation))
    total, length = stream.episode_return + reward, stream.episode_length + 1
    after = RolloutState(
        environment=stream.environment,
        inputs=AgentInput(
            observation=shown,
            # Nothing of the last episode is shown in the first step of the next.
            previous_action=where(begins, jax.tree.map(jnp.zeros_like, action), action),
            previous_reward=jnp.where(begins, 0, reward),
            start=begins,
            # While the final observation is shown, the environment's state is the next episode's already.
            action_mask=where(truncated, step.final_action_mask, step.action_mask),
        ),
        carry=carry,
        next_observation=step.observation,
        final=truncated,
        episode_return=jnp.where(done | stream.final, 0, total),
        episode_length=jnp.where(done | stream.final, 0, length),
    )
    # The environment's state has been chosen by `step_if`.
    after = replace(where(jnp.asarray(active), after, stream), environment=step.state)
    return after, slot, Finished(done, total, length)


def _slot(inputs: AgentInput, action: Array, log_prob: Array, step: Timestep, acted: Bool[Array, ""]) -> Tape:
    """Return what is written of a step; where nothing was done, what was shown and nothing more."""
    terminated = step.terminated & acted
    return Tape(
        observation=inputs.observation,
        action=action,
        reward=jnp.where(acted, step.reward, 0),
        start=inputs.start,
        terminated=terminated,
        truncated=step.truncated & acted & ~terminated,
        valid=acted,
        log_prob=log_prob,
        discount=None if step.discount is None else jnp.where(acted, step.discount, 1),
        intrinsic_reward=None if step.intrinsic_reward is None else jnp.where(acted, step.intrinsic_reward, 0),
        action_mask=inputs.action_mask,
    )


def as_metrics(values: dict[str, Any]) -> dict[str, Any]:
    """Return the `values` of metrics as float32, but a `StepCount` as it is: float32 counts to 16 million only."""
    return {n: v if isinstance(v, StepCount) else jnp.asarray(v, jnp.float32) for n, v in values.items()}


# The square of a larger number overflows float32, and with it every variance that it enters.
LARGEST = 1e18


def first_unusable(tape: Tape, axis: int, devices: int = 1) -> Int[Array, ""]:
    """Return the first step, counted from 1, at which an observation or a reward cannot be learned from; 0 for none.

    That is where it is not finite or larger than `LARGEST`.

    Args:
        tape: Slots [rows, steps] or [steps, rows], of this device.
        axis: That of the steps.
        devices: How many devices have rows; the step is the first on any of them.
    """

    def unusable(x: Array) -> Array:
        # False for nan too.
        return jnp.any(~(jnp.abs(x) <= LARGEST), axis=tuple(range(tape.start.ndim, x.ndim)))

    leaves = [tape.reward, *jax.tree.leaves(tape.observation)]
    found = [unusable(x) for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    steps = jnp.any(jnp.stack(found), axis=(0, 2 - axis))
    first = jnp.where(jnp.any(steps), jnp.argmax(steps) + 1, 0)[None]
    firsts = sharding.all_gather(first, devices)
    return jnp.min(jnp.where(firsts > 0, firsts, len(steps) + 1)) % (len(steps) + 1)


def episode_metrics(finished: Finished) -> dict[str, Array]:
    """Return count, mean return and mean length, scalars, of the episodes that `finished`; nan where none did."""
    count = jnp.sum(finished.done)

    def mean(x):
        return jnp.where(count > 0, jnp.sum(jnp.where(finished.done, x, 0)) / jnp.maximum(count, 1), jnp.nan)

    return {
        "episode/count": count,
        "episode/return": mean(finished.episode_return),
        "episode/length": mean(finished.episode_length),
    }
