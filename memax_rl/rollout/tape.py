"""The tape: episodes of any length, end to end in rows of a fixed number of slots, with start flags. Arrays only.

An episode of n transitions is n consecutive slots, the first flagged `start`. Slot t holds an observation, the action
taken on it, and what followed: reward, terminated, truncated. When the episode was truncated, one more slot holds the
final observation, so that its value comes out of the same forward pass, with the memory that saw the whole episode;
that slot enters no loss. A terminated episode needs none. Slots that hold nothing are flagged `start`, so that nothing
reaches them.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree


class Tape(eqx.Module):
    """Slots, along one leading axis [slots] or two [rows, slots].

    Attributes:
        observation: What the agent saw, a pytree.
        action: What it did, a pytree.
        reward: What it got for it.
        start: True where a slot holds the first observation of an episode.
        terminated: True where the transition ended its episode for good: no value follows.
        truncated: True where the transition was the last before a time limit: the next slot holds the final
            observation.
        valid: True where the slot enters a loss.
        log_prob: Log-probability of the action under the policy that took it, or None.
        discount: What the environment multiplies all that follows this transition by, as in dm_env: 0 at the end of an
            episode within a trial, if returns are discounted within episodes only. None: 1 everywhere. Terminations are
            not in it.
        intrinsic_reward: What the learner adds to the reward; the agent does not see it, and no reported return has it
            in it. None: nothing.
        action_mask: Which actions were legal, also in the slot of a final observation. None: all, always.
    """

    observation: PyTree[Array]
    action: PyTree[Array]
    reward: Float[Array, "*axes"]
    start: Bool[Array, "*axes"]
    terminated: Bool[Array, "*axes"]
    truncated: Bool[Array, "*axes"]
    valid: Bool[Array, "*axes"]
    log_prob: Float[Array, "*axes"] | None = None
    discount: Float[Array, "*axes"] | None = None
    intrinsic_reward: Float[Array, "*axes"] | None = None
    action_mask: Bool[Array, "*axes actions"] | None = None


def learning_reward(tape: Tape) -> Float[Array, "*axes"]:
    """Return what the learner's returns add up: the reward, and the bonus if there is one."""
    return tape.reward if tape.intrinsic_reward is None else tape.reward + tape.intrinsic_reward


def learning_discount(tape: Tape, gamma: float) -> Float[Array, "*axes"]:
    """Return what multiplies all that follows each transition that is not terminated: gamma times its `discount`."""
    gammas = jnp.full_like(tape.reward, gamma)
    return gammas if tape.discount is None else gammas * tape.discount


def has_next(tape: Tape) -> Bool[Array, "rows slots"]:
    """Return true where the next slot of a row holds what was observed after a transition, for rows [rows, slots].

    That is at every valid slot but those of terminated transitions, and the last one. The slot after a truncated
    transition holds the final observation.
    """
    return (tape.valid & ~tape.terminated).at[:, -1].set(False)


def next_slot(x: Float[Array, "rows slots"] | Bool[Array, "rows slots"]) -> Array:
    """Return x [rows, slots] of the next slot of each row; zero at the last."""
    return jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], axis=1)


def without_log_prob(tape: Tape) -> Tape:
    """Return the slots without the actions' log-probabilities, for learners that have no use for them."""
    return eqx.tree_at(lambda t: t.log_prob, tape, None)


def segment_ids(start: Bool[Array, " T"]) -> Int[Array, " T"]:
    """Return the number of start flags up to and including each slot: equal within an episode, different across."""
    return jnp.cumsum(start.astype(jnp.int32))


def positions(start: Bool[Array, " T"]) -> Int[Array, " T"]:
    """Return the number of steps since the episode's start; before the first start flag, since the first slot."""
    slots = jnp.arange(start.shape[0])
    return slots - jax.lax.cummax(jnp.where(start, slots, 0))


def previous(
    x: PyTree[Array],
    start: Bool[Array, " T"],
    first: PyTree[Array],
) -> PyTree[Array]:
    """Return x shifted by one slot, and zero at every start flag: the previous action or reward, as the agent saw it.

    `first` is the value preceding slot 0, used only if slot 0 does not start an episode.
    """

    def shift(leaf, first_leaf):
        shifted = jnp.concatenate([first_leaf[None], leaf[:-1]])
        reset = start.reshape(start.shape + (1,) * (leaf.ndim - 1))
        return jnp.where(reset, jnp.zeros_like(shifted), shifted)

    return jax.tree.map(shift, x, first)


def pack(episodes: Sequence[Tape], capacity: int) -> Tape:
    """Lay episodes end to end, in order, into as many rows of `capacity` slots as it takes. On the host.

    Args:
        episodes: Tapes of one leading axis, one episode each, with the slot of the final observation if truncated.
        capacity: Slots a row.

    Returns:
        A tape [rows, capacity].

    Raises:
        ValueError: If there are no episodes, or one is longer than `capacity`, or one does not begin with its only
            start flag.
    """
    if not episodes:
        raise ValueError("episodes must hold at least one episode, got none")
    rows: list[list[Tape]] = []
    free = 0
    for index, episode in enumerate(episodes):
        length = episode.start.shape[0]
        if length > capacity:
            raise ValueError(
                f"episode {index} takes {length} slots and does not fit into a row; capacity must be at least "
                f"{length}, got {capacity}"
            )
        starts = np.asarray(episode.start)
        if not starts[0] or starts[1:].any():
            raise ValueError(
                f"episode {index} must have one start flag, on its first slot, got flags {starts.tolist()}"
            )
        if length > free:
            rows.append([])
            free = capacity
        rows[-1].append(episode)
        free -= length

    def lay(*leaves: Any) -> np.ndarray:
        joined = np.concatenate([np.asarray(leaf) for leaf in leaves])
        padding = np.zeros((capacity - len(joined), *joined.shape[1:]), joined.dtype)
        return np.concatenate([joined, padding])

    packed = [jax.tree.map(lay, *row) for row in rows]
    tape = jax.tree.map(lambda *leaves: jnp.stack(leaves), *packed)
    lengths = np.array([sum(episode.start.shape[0] for episode in row) for row in rows])
    empty = np.arange(capacity) >= lengths[:, None]
    return eqx.tree_at(lambda t: t.start, tape, tape.start | empty)


def unpack(tape: Tape) -> list[Tape]:
    """Return the complete episodes of a tape [slots] or [rows, slots], row by row, in order. On the host.

    An episode is complete if its last transition is terminated, or truncated and followed by its final observation.
    """
    tape = jax.tree.map(np.asarray, tape)
    if tape.start.ndim == 1:
        tape = jax.tree.map(lambda leaf: leaf[None], tape)
    episodes = []
    for row in range(tape.start.shape[0]):
        one = jax.tree.map(lambda leaf, row=row: leaf[row], tape)
        bounds = [*np.flatnonzero(one.start), len(one.start)]
        for low, high in itertools.pairwise(bounds):
            last = one.terminated[high - 1] or (high - low > 1 and one.truncated[high - 2])
            if last:
                episodes.append(jax.tree.map(lambda leaf, low=low, high=high: leaf[low:high], one))
    return episodes
