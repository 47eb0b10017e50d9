"""Filling a rollout: one row of the tape for each environment, acted in until every row is full.

How a row is filled (`Rollout`):
- "whole_episodes": a row holds whole episodes. What is open when the row is full is not learned from yet: it is
  pending, stands at the front of the environment's next row, is continued there, and is learned from when complete.
- "truncated_bptt": a row goes on where the last one ended, with the carry as it was (truncated backpropagation through
  time). For episodes longer than any tape.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree

from memax_rl import sharding
from memax_rl.networks.encoder import AgentInput
from memax_rl.rollout.streams import Act, RolloutState, episode_metrics, first_unusable, step_stream
from memax_rl.rollout.tape import Tape, previous

Rollout = Literal["whole_episodes", "truncated_bptt"]


class RolloutBatch(NamedTuple):
    """Rows of a tape, and what stands before and after each of them, which counts in "truncated_bptt" mode only.

    Attributes:
        tape: [rows, slots].
        carry, before: Carry of the network, and (action, reward), before the first slot.
        after: What is shown after the last slot.
    """

    tape: Tape
    carry: PyTree[Array]
    before: tuple[Array, Array]
    after: AgentInput


def inputs_of(rows: RolloutBatch) -> AgentInput:
    """Return what the network was shown in each slot of the rows, [rows, slots]."""
    tape = rows.tape
    action, reward = jax.vmap(previous)((tape.action, tape.reward), tape.start, rows.before)
    return AgentInput(tape.observation, action, reward, tape.start, tape.action_mask)


class Pending(eqx.Module):
    """The open episodes at the front of the next rows: [rows, slots], of which the first `length` count."""

    tape: Tape
    length: Int[Array, " rows"]

    @classmethod
    def none(cls, slot: PyTree[jax.ShapeDtypeStruct], rows: int, slots: int) -> "Pending":
        """Return what is pending before the first rollout: nothing, in `rows` of `slots` of the shapes of `slot`."""
        tape = jax.tree.map(lambda s: jnp.zeros((rows, slots, *s.shape), s.dtype), slot)
        return cls(tape, jnp.zeros(rows, jnp.int32))


class Collected(NamedTuple):
    """What `collect` returns: the streams and pending episodes after it, the rows, and metrics."""

    streams: RolloutState
    pending: Pending
    rows: RolloutBatch
    metrics: dict[str, Array]


def collect(
    env: Any,
    env_params: Any,
    act: Act,
    streams: RolloutState,
    pending: Pending,
    keys: Key[Array, "slots rows 2"],
    *,
    mode: Rollout,
    devices: int = 1,
) -> Collected:
    """Act in all streams until each has filled its row.

    Args:
        streams, pending, keys: Of this device's rows.
        mode: What a row holds, "whole_episodes" or "truncated_bptt".
        devices: How many devices collect at once; metrics are those of all of them.
    """
    slots, rows = keys.shape[:2]

    def body(streams, slot):
        index, keys = slot
        # A stream whose row is full waits for the others.
        active = pending.length + index < slots
        step = jax.vmap(lambda s, k, a: step_stream(env, env_params, act, s, k, a))
        after, slot, finished = step(streams, keys, active)
        return after, (slot, finished)

    after, (new, finished) = jax.lax.scan(body, streams, (jnp.arange(slots), keys))
    new = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), new)
    row = jax.vmap(_append)(pending.tape, new, pending.length)
    env_steps = jnp.sum(row.valid) - jnp.sum(pending.tape.valid & _first(pending.length, slots))
    if mode == "truncated_bptt":
        complete, left = jnp.full(rows, slots), pending
    else:
        complete = jax.vmap(_end_of_last_episode)(row)
        left = Pending(jax.vmap(_shift)(row, complete), slots - complete)
    learned = row.valid & _first(complete, slots)
    row = eqx.tree_at(lambda tape: tape.valid, row, learned)
    lagging = jnp.sum(learned & _first(pending.length, slots))
    counts = (env_steps, jnp.sum(learned), lagging, jnp.sum(complete == 0))
    env_steps, used, lagging, overlong = sharding.psum(counts, devices)
    metrics = {
        **episode_metrics(sharding.all_gather(finished, devices, axis=1)),
        "env_steps": env_steps,
        "tape/utilization": used / (rows * devices * slots),
        "tape/lag": lagging / jnp.maximum(used, 1),
        "tape/overlong": overlong,
        "env/unusable": first_unusable(new, axis=1, devices=devices),
    }
    before = (streams.inputs.previous_action, streams.inputs.previous_reward)
    return Collected(after, left, RolloutBatch(row, streams.carry, before, after.inputs), metrics)


def collect_steps(
    env: Any,
    env_params: Any,
    make_act: Callable[[Array], Act],
    exploration: Array,
    streams: RolloutState,
    keys: Key[Array, "steps streams 2"],
    *,
    tape_length: int,
    devices: int = 1,
) -> tuple[RolloutState, Tape, dict[str, Array]]:
    """Take the same number of steps in all streams of this device, for a replay.

    Args:
        env, env_params: The environment.
        make_act: From how much a stream explores to how the agent acts there.
        exploration: [streams], for `make_act`.
        streams: The streams before.
        keys: Two for each step of each stream, see `step_stream`.
        tape_length: Slots of the tapes that are sampled later.
        devices: How many devices collect at once; metrics are those of all of them.

    Returns:
        The streams after it, the slots [streams, steps], and metrics.
    """

    def step(exploration, stream, keys):
        return step_stream(env, env_params, make_act(exploration), stream, keys)

    def body(streams, keys):
        streams, slot, finished = jax.vmap(step)(exploration, streams, keys)
        return streams, (slot, finished)

    streams, (slots, finished) = jax.lax.scan(body, streams, keys)
    # No tape from the episode's start holds such a transition with its next observation.
    beyond = slots.valid & ~slots.terminated & (finished.episode_length >= tape_length)
    env_steps, overlong = sharding.psum((jnp.sum(slots.valid), jnp.sum(beyond)), devices)
    metrics = {
        **episode_metrics(sharding.all_gather(finished, devices, axis=1)),
        "env_steps": env_steps,
        "tape/overlong": overlong,
        "env/unusable": first_unusable(slots, axis=0, devices=devices),
    }
    return streams, jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), slots), metrics


def rollout_size(
    env: Any,
    env_params: Any,
    *,
    num_envs: int | None,
    rollout_length: int | None,
    mode: Rollout,
    num_minibatches: int,
    total_steps: int,
    devices: int = 1,
    name: str,
) -> tuple[int, int]:
    """Return the number of environments and of slots a row, chosen where they are None.

    An update has about 8,192 slots, or fewer where so short a run would have less than 24 updates; the number of
    environments is a multiple of what the minibatches and the devices need, if that is at most four times as many.

    Where all episodes have one length, a row is a multiple of it, so that rows end where episodes end. Else a row holds
    at least four of the longest, so that little of it is taken by the open one.

    Args:
        num_envs, rollout_length, num_minibatches: Settings of the agent; the first two may be None.
        mode: What a row holds, as in `collect`.
        name: Of the agent, for messages.

    Raises:
        ValueError: If an episode cannot fit into a row, or the minibatches do not divide the rows. It names the fields
            of `name`, the agent.
    """
    horizon, fixed = env.max_episode_steps(env_params), env.fixed_length(env_params)
    # An episode that a time limit cuts has its final observation on the tape too.
    whole = None if fixed is None else fixed + env.truncates(env_params)
    longest = whole if whole is not None else horizon
    slots = rollout_length
    if slots is None:
        if mode == "truncated_bptt":
            slots = 128
        elif whole is not None:
            slots = whole * max(1, round(128 / whole))
        elif horizon is not None:
            slots = max(128, 4 * (horizon + 1))
        else:
            raise ValueError(
                "rollout_length is not set and the environment states no longest episode; set "
                f"{name}.rollout_length to more than the longest episode, or {name}.rollout to 'truncated_bptt'"
            )
    if mode != "truncated_bptt" and longest is not None and slots < longest:
        raise ValueError(
            f"rollout_length={slots} is shorter than the longest episode, {longest} slots; set {name}.rollout_length "
            f"to {longest + 1} or more, or {name}.rollout to 'truncated_bptt'"
        )
    if num_envs is None:
        num_envs = _choose_envs(slots, num_minibatches, total_steps, devices, name)
    _check_rows(num_envs, num_minibatches, devices, name)
    return num_envs, slots


def _choose_envs(slots: int, num_minibatches: int, total_steps: int, devices: int, name: str) -> int:
    """Return how many environments there are where nobody has set it. Raises `ValueError` as `rollout_size`."""
    wanted = min(8192, total_steps / 24)
    num_envs = max(8, 2 ** round(math.log2(max(wanted / slots, 1))))
    # What is chosen here fits what the user has set, unless that takes many times as much memory.
    shares, most = num_minibatches * devices, 4 * num_envs
    fitting = -(-num_envs // shares) * shares
    if fitting > most:
        whose = f" on each of {devices} devices" if devices > 1 else ""
        raise ValueError(
            f"num_minibatches={num_minibatches}{whose} needs {shares} environments or more, because a row of the tape "
            f"is never cut, and {name}.num_envs, which is not set, would be {num_envs}, for about {wanted:,.0f} slots "
            f"an update in rows of {slots:,}; set {name}.num_envs to {shares}, or {name}.num_minibatches to "
            f"{most // devices} or less"
        )
    return fitting


def _check_rows(num_envs: int, num_minibatches: int, devices: int, name: str) -> None:
    if num_envs % devices != 0:
        raise ValueError(
            f"devices={devices} must divide num_envs={num_envs}, because each device has as many rows of the tape; set "
            f"devices to a divisor of {num_envs}"
        )
    rows = num_envs // devices
    if rows % num_minibatches != 0:
        whose = f"num_envs={num_envs}" if devices == 1 else f"the {rows} rows of each of {devices} devices"
        raise ValueError(
            f"num_minibatches={num_minibatches} must divide {whose}, because a row of the tape is never cut; set "
            f"{name}.num_minibatches to a divisor of {rows}"
        )


def _first(count: Int[Array, " rows"], slots: int) -> Bool[Array, "rows slots"]:
    """Return true at the first `count` slots of each row."""
    return jnp.arange(slots)[None, :] < count[:, None]


def _append(pending: Tape, new: Tape, length: Int[Array, ""]) -> Tape:
    """Return a row of the first `length` slots of `pending`, followed by `new` as far as it fits."""
    index = jnp.arange(pending.start.shape[0]) - length

    def choose(old, fresh):
        is_old = (index < 0).reshape(index.shape + (1,) * (old.ndim - 1))
        return jnp.where(is_old, old, fresh[jnp.maximum(index, 0)])

    return jax.tree.map(choose, pending, new)


def _shift(row: Tape, by: Int[Array, ""]) -> Tape:
    """Return the row moved `by` slots to the front; slots beyond its end hold copies of the last one."""
    index = jnp.minimum(jnp.arange(row.start.shape[0]) + by, row.start.shape[0] - 1)
    return jax.tree.map(lambda leaf: leaf[index], row)


def _end_of_last_episode(row: Tape) -> Int[Array, ""]:
    """Return the number of slots up to the end of the last complete episode, its final observation included."""
    slots = row.start.shape[0]
    final = jnp.concatenate([jnp.zeros((1,), bool), row.truncated[:-1]])
    return jnp.max(jnp.where(row.terminated | final, jnp.arange(1, slots + 1), 0))
