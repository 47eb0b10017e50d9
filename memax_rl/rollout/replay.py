"""Replay of whole episodes: a ring of slots for each environment stream, sampled as tapes. Arrays only, pure functions.

Slots are written one after the other as on a tape (see `memax_rl.rollout.tape`), the newest over the oldest. Behind the
newest stands one slot more, the *pending* one: the observation that is shown next, without an action. So the transition
made last has its next observation like any other, and can be drawn at once.

A sample is a tape that begins at an episode's start and runs on through the following episodes of its stream; behind
the pending slot it goes on with the oldest episode. So every transition on it has its whole history on it, nothing is
padded, and nothing is cut but the last episode at the tape's end, which is bootstrapped there. What is left of an
episode whose start was overwritten is never drawn.

**How probable.** An episode e with a stored start and at least one transition begins a tape with probability

    p(e) = mass(e) / (sum of all masses),

where mass(e) is its number of transitions ("transition"), 1 ("episode") or priority(e)^alpha ("priority"). A
transition t is on the tape if it is one of the last `slots` slots counted from the tape's start. So one drawn tape
learns from t with probability

    P(t) = sum of p(e) over the episodes e of its stream that begin on t or at most w - 1 slots before it,

counted around the ring, where w = `slots` if t was terminated and else `slots` - 1: the tape's last slot has no slot
after it that could show the next observation. P(t) > 0 for every transition of an episode of fewer than `slots` slots,
the open episode included, because its own episode is always one term of the sum.

P(t) is nearly the same everywhere when mass is the number of transitions, but not exactly: the window (t - w, t]
holds parts of episodes. Weights make it exact: with weight(t) = target(t) / P(t) the expected sum of weight(t) * f(t)
over a drawn tape is the sum of target(t) * f(t) over all stored transitions, where target(t) is

- "transition": 1 / (number of stored transitions);
- "episode": 1 / (number of stored episodes * transitions of t's episode);
- "priority": none; the weight is (1 / P(t))^beta, scaled as Schaul et al. 2016 do. beta = 1 is "transition" again.

With several devices (memax_rl/sharding.py) each holds the rings of its own streams. What is drawn is the same as on
one: every device knows all streams' masses and draws all rows, the one that holds a row's stream reads it, and each
gets its share of the rows. `size` and all that is said of a whole replay are those of all devices.
"""

import math
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from memax_rl import sharding
from memax_rl.networks.encoder import AgentInput
from memax_rl.rollout.tape import Tape, positions, previous, segment_ids

_RENUMBER_AT = 2**30

# What a run is told that goes on without its replay.
NOT_SAVED = (
    "the replay of this run is not in its checkpoint: training goes on with an empty one, and not exactly as if it had "
    "never stopped"
)


class Replay(eqx.Module):
    """The stored slots. A slot's number counts the slots of its stream from 0; it lies at `number % capacity`.

    Attributes:
        tape: The slots, in observation's and action's own dtypes.
        length: At an episode's first slot, how many of its transitions were stored so far; elsewhere 0.
        priority: At an episode's first slot, its priority; elsewhere 0.
        head: The number of the first slot of the episode that is open; -1 if that was never stored.
        count: The number of the pending slot. At 2**30 a multiple of `capacity` is taken off, from `head` too, so that
            they never overflow; only their differences and their remainders by `capacity` are used.
    """

    tape: Tape
    length: Int[Array, "streams capacity"]
    priority: Float[Array, "streams capacity"]
    head: Int[Array, " streams"]
    count: Int[Array, ""]


class Sample(eqx.Module):
    """Tapes drawn from a replay.

    Attributes:
        tape: [rows, slots]. `valid` where the loss may learn from the slot: it holds a transition and, unless that was
            terminated, the tape holds the next observation.
        weight: What a slot's loss is to be multiplied by before the sum over all slots of all rows; 0 where not valid.
        probability: P(t), that a drawn tape learns from the transition in this slot; 1 where not valid.
        stream, index: Where in the replay the slots lie.
    """

    tape: Tape
    weight: Float[Array, "rows slots"]
    probability: Float[Array, "rows slots"]
    stream: Int[Array, " rows"]
    index: Int[Array, "rows slots"]


def init(slot: PyTree[jax.ShapeDtypeStruct | Array], streams: int, capacity: int) -> Replay:
    """Return an empty replay.

    Args:
        slot: A `Tape` of one slot, or its shapes.
        streams: Environments that write to it.
        capacity: Slots for each, the pending one included.

    Raises:
        ValueError: If `capacity` is below 2.
    """
    if capacity < 2:
        raise ValueError(f"capacity must be at least 2 slots, got {capacity}")
    shape = (streams, capacity)
    return Replay(
        tape=jax.tree.map(lambda leaf: jnp.zeros(shape + leaf.shape, leaf.dtype), slot),
        length=jnp.zeros(shape, jnp.int32),
        priority=jnp.zeros(shape),
        head=jnp.full(streams, -1, jnp.int32),
        count=jnp.zeros((), jnp.int32),
    )


def add(replay: Replay, slots: Tape, shown: AgentInput, devices: int = 1) -> Replay:
    """Return the replay with new slots.

    Args:
        slots: [streams, new], as `step_stream` writes them, in order.
        shown: [streams], what is shown after the last of them.
        devices: How many devices hold a part of the replay, here and below.

    Raises:
        ValueError: If there is not room for all of them.
    """
    streams, capacity = replay.length.shape
    new = slots.start.shape[1]
    if new >= capacity:
        raise ValueError(f"{new} new slots and the pending one do not fit into a ring of {capacity}; add fewer at once")
    written = jax.tree.map(_append, slots, _pending(slots, shown))
    numbers = replay.count + jnp.arange(new + 1)
    at = numbers % capacity
    tape = jax.tree.map(lambda ring, slot: ring.at[:, at].set(slot), replay.tape, written)

    number = jnp.broadcast_to(numbers[None], (streams, new + 1))
    head = jax.lax.cummax(jnp.where(written.start, number, replay.head[:, None]), axis=1)
    # A start that was overwritten, or never stored, has no place to count the episode's transitions: they are lost.
    oldest = jnp.maximum(replay.count + new - capacity + 1, 0)
    place = jnp.where(head >= oldest, head % capacity, capacity)
    length = replay.length.at[:, at].set(0)
    length = length.at[jnp.arange(streams)[:, None], place].add(written.valid.astype(jnp.int32), mode="drop")

    # An episode that nothing is known of yet is as urgent as the most urgent one.
    highest = sharding.pmax(jnp.max(replay.priority), devices)
    highest = jnp.where(highest > 0, highest, 1)
    priority = replay.priority.at[:, at].set(jnp.where(written.start, highest, 0))
    count = replay.count + new
    # Two rings' worth stay, so that a full ring is still seen to be full.
    excess = jnp.where(count >= _RENUMBER_AT, (count // capacity - 2) * capacity, 0)
    return Replay(tape, length, priority, jnp.maximum(head[:, -1] - excess, -1), count - excess)


def abandon(replay: Replay) -> Replay:
    """Return the replay without the last transition of every episode that was not terminated by its stream's last slot.

    For streams that begin new episodes from here: the pending slot, which shows what followed, is overwritten by them.
    """
    streams, capacity = replay.length.shape
    last = (replay.count - 1) % capacity
    unfinished = replay.tape.valid[:, last] & ~replay.tape.terminated[:, last]
    valid = replay.tape.valid.at[:, last].set(replay.tape.valid[:, last] & ~unfinished)
    oldest = jnp.maximum(replay.count - capacity + 1, 0)
    place = jnp.where(unfinished & (replay.head >= oldest), replay.head % capacity, capacity)
    length = replay.length.at[jnp.arange(streams), place].add(-1, mode="drop")
    return eqx.tree_at(lambda r: (r.tape.valid, r.length), replay, (valid, length))


def _pending(slots: Tape, shown: AgentInput) -> Tape:
    false = jnp.zeros_like(shown.start)
    return Tape(
        observation=shown.observation,
        action=jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:, 0]), slots.action),
        reward=jnp.zeros_like(slots.reward[:, 0]),
        start=shown.start,
        terminated=false,
        truncated=false,
        valid=false,
        log_prob=None if slots.log_prob is None else jnp.zeros_like(slots.log_prob[:, 0]),
        discount=None if slots.discount is None else jnp.ones_like(slots.discount[:, 0]),
        intrinsic_reward=None if slots.intrinsic_reward is None else jnp.zeros_like(slots.intrinsic_reward[:, 0]),
        action_mask=shown.action_mask,
    )


def _append(slots: Array, last: Array) -> Array:
    return jnp.concatenate([slots, jnp.asarray(last, slots.dtype)[:, None]], axis=1)


def size(replay: Replay, devices: int = 1) -> Int[Array, ""]:
    """Return how many transitions can be drawn from a `replay`."""
    return sharding.psum(jnp.sum(replay.length), devices)


def can_sample(replay: Replay, transitions: int = 1, devices: int = 1) -> Bool[Array, ""]:
    """Return whether so many `transitions`, at least one, can be drawn from a `replay`."""
    return size(replay, devices) >= max(transitions, 1)


def sample(
    replay: Replay,
    key: PRNGKeyArray,
    *,
    rows: int,
    slots: int,
    by: Literal["transition", "episode", "priority"] = "transition",
    alpha: float = 0.6,
    beta: float | Float[Array, ""] = 1.0,
    devices: int = 1,
) -> Sample:
    """Return tapes drawn independently, with replacement. The module's docstring says with what probabilities.

    With several devices it returns this one's share of the rows.

    What is returned has no meaning while `can_sample` is false.

    Args:
        rows, slots: How many tapes, and how long. An episode of more than `slots` - 1 steps loses its end.
        by: What is drawn uniformly, or "priority" for prioritized replay (Schaul et al. 2016,
            https://arxiv.org/abs/1511.05952), by episode: see `reprioritize`.
        alpha, beta: The exponents of priorities and of importance weights. For "priority" only.
    """
    stored = replay.length > 0
    mass = {
        "transition": lambda: replay.length.astype(jnp.float32),
        "episode": lambda: stored.astype(jnp.float32),
        "priority": lambda: jnp.where(stored, jnp.where(stored, replay.priority, 1) ** alpha, 0),
    }[by]()
    # Sums of mass in the order of the ring's places, each including its own.
    upto = jnp.cumsum(mass, axis=1)
    drawn, head = draw(key, upto, rows, devices)
    stream, held = _local(drawn, len(upto), devices)

    capacity = replay.length.shape[1]
    first, live = _live(replay)
    first, live = first[stream][:, None], live[stream][:, None]
    age = (replay.count - head) % capacity
    place = jnp.arange(slots)[None, :] + (replay.count - age)[:, None] - first
    index = (first + place % live) % capacity
    within = jnp.broadcast_to(jnp.arange(slots)[None, :], index.shape) < live
    tape = jax.tree.map(lambda leaf: leaf[stream[:, None], index], replay.tape)
    last = jnp.broadcast_to((jnp.arange(slots) == slots - 1)[None, :], index.shape)
    valid = tape.valid & within & (~last | tape.terminated) & held[:, None]
    tape = eqx.tree_at(lambda t: (t.valid, t.start), tape, (valid, tape.start | ~within))

    window = jnp.where(tape.terminated, slots, slots - 1)
    earliest = (first + (place - window + 1) % live) % capacity
    before = (upto - mass)[stream[:, None], earliest]
    around = upto[stream, -1][:, None]
    covered = upto[stream[:, None], index] - before + jnp.where(earliest > index, around, 0)
    covered = jnp.where(window >= live, around, covered)
    # The tape's own start is one of the terms; rounding must not lose it.
    covered = jnp.maximum(covered, mass[stream, head][:, None])
    total = jnp.sum(sharding.all_gather(upto[:, -1], devices))
    probability = jnp.where(valid, covered / total, 1)
    weight = jnp.where(valid, _weight(replay, tape, probability, stream, index, by, beta, devices), 0)
    return sharding.share_out(Sample(tape, weight, probability, drawn, index), held, devices)


def _local(stream: Int[Array, "*rows"], count: int, devices: int) -> tuple[Int[Array, "*rows"], Bool[Array, "*rows"]]:
    """Return the places of streams among the `count` of this device, and which it holds; the others have some place."""
    place = stream - sharding.index(devices) * count
    return jnp.clip(place, 0, count - 1), (place >= 0) & (place < count)


def inputs_of(tape: Tape) -> AgentInput:
    """Return what the network was shown in each slot of tapes that begin at an episode's start, [rows, slots]."""

    def row(action, reward, start):
        first = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), (action, reward))
        return previous((action, reward), start, first)

    action, reward = jax.vmap(row)(tape.action, tape.reward, tape.start)
    return AgentInput(tape.observation, action, reward, tape.start, tape.action_mask)


def draw(
    key: PRNGKeyArray, upto: Float[Array, "streams capacity"], rows: int, devices: int = 1
) -> tuple[Int[Array, " rows"], Int[Array, " rows"]]:
    """Return streams and places drawn with probability in proportion to mass, given the sums of mass up to each place.

    Independently, with replacement. With several devices streams are counted over all of them, and a place has a
    meaning only where this one holds the stream.

    Args:
        upto: Sums of mass up to each place.
        rows: How many are drawn.
    """
    uniform = jax.random.uniform(key, (2, rows))

    def below(u, total):
        # u * total can be rounded up to total, which is beyond the last place.
        return jnp.minimum(u * total, jnp.nextafter(total, jnp.zeros_like(total)))

    streams = jnp.cumsum(sharding.all_gather(upto[:, -1], devices))
    stream = jnp.searchsorted(streams, below(uniform[0], streams[-1]), side="right").astype(jnp.int32)
    stream = jnp.minimum(stream, len(streams) - 1)
    mine = upto[_local(stream, len(upto), devices)[0]]
    head = jax.vmap(lambda m, u: jnp.searchsorted(m, below(u, m[-1]), side="right"))(mine, uniform[1])
    return stream, head.astype(jnp.int32)


def _live(replay: Replay) -> tuple[Int[Array, " streams"], Int[Array, " streams"]]:
    """Return for each stream the number of the oldest stored start, and the slots from there to the pending one."""
    capacity = replay.length.shape[1]
    number = replay.count - (replay.count - jnp.arange(capacity)) % capacity
    nothing = replay.count + 1
    first = jnp.min(jnp.where(replay.tape.start, number[None, :], nothing), axis=1)
    # At least 1, because it divides.
    return first, jnp.maximum(nothing - first, 1)


def _weight(replay: Replay, tape: Tape, probability, stream, index, by, beta, devices) -> Float[Array, "rows slots"]:
    rows = tape.start.shape[0]
    ratio = 1 / (rows * jnp.maximum(size(replay, devices), 1) * probability)
    if by == "transition":
        return ratio
    if by == "priority":
        # A mean over the slots, whatever beta: only how they compare is changed.
        ratio = jnp.where(tape.valid, ratio, 0)
        highest, count = sharding.pmax(jnp.max(ratio), devices), sharding.psum(jnp.sum(tape.valid), devices)
        return (ratio / jnp.maximum(highest, 1e-30)) ** beta / jnp.maximum(count, 1)
    at = jnp.arange(tape.start.shape[1])[None, :] - jax.vmap(positions)(tape.start)
    length = replay.length[stream[:, None], jnp.take_along_axis(index, at, axis=1)]
    episodes = sharding.psum(jnp.sum(replay.length > 0), devices)
    return 1 / (rows * jnp.maximum(episodes, 1) * jnp.maximum(length, 1) * probability)


def reprioritize(
    replay: Replay, sample: Sample, error: Float[Array, "rows slots"], eta: float = 0.9, devices: int = 1
) -> Replay:
    """Return the replay with the priorities of the sampled episodes set from their errors.

        priority(e) = eta * max |error| + (1 - eta) * mean |error|    (Kapturowski et al. 2019, section 2.3)

    over the valid slots of the episode on the tape. An episode that is on several tapes gets the highest. With several
    devices `sample` and `error` are this one's rows.
    """
    tape, slots = sample.tape, sample.tape.start.shape[1]
    error = jnp.where(tape.valid, jnp.abs(error), 0)

    def of_row(error, valid, start):
        # The first slot is a start, so the numbers of the segments begin at 1.
        segment = segment_ids(start) - 1
        total = jax.ops.segment_sum(error, segment, slots)
        count = jax.ops.segment_sum(valid.astype(jnp.float32), segment, slots)
        highest = jax.ops.segment_max(error, segment, slots)
        priority = eta * highest + (1 - eta) * total / jnp.maximum(count, 1)
        return priority[segment], count[segment] > 0

    priority, seen = jax.vmap(of_row)(error, tape.valid, tape.start)
    # Off the ring, and so dropped, unless it is the start of an episode that was learned from.
    streams, capacity = replay.length.shape
    index = jnp.where(tape.start & seen, sample.index, capacity)
    stream, index, priority = sharding.all_gather((sample.stream, index, priority), devices)
    place, held = _local(stream, streams, devices)
    index = jnp.where(held[:, None], index, capacity)
    cleared = replay.priority.at[place[:, None], index].set(0, mode="drop")
    # Never 0, so that everything stays reachable.
    raised = cleared.at[place[:, None], index].max(jnp.maximum(priority, 1e-6), mode="drop")
    return eqx.tree_at(lambda r: r.priority, replay, raised)


class ReplaySize(NamedTuple):
    """Sizes that follow from the settings of a replay and the environment.

    Attributes:
        slots: Slots of a tape.
        steps: Steps that each environment takes in an update.
        gradient_steps: Gradient steps in an update.
        capacity: Slots of the replay for each environment.
    """

    slots: int
    steps: int
    gradient_steps: int
    capacity: int


def replay_size(
    env: Any,
    env_params: Any,
    *,
    num_envs: int,
    batch_size: int,
    tape_length: int | None,
    samples_per_insert: float,
    buffer_size: int,
    learning_starts: int,
    devices: int,
    name: str,
) -> ReplaySize:
    """Return the slots of a tape, chosen where `tape_length` is None, and the steps and gradient steps of an update.

    Args:
        batch_size, tape_length, samples_per_insert, buffer_size, learning_starts: Settings of the agent.
        name: Of the agent, for messages.

    Raises:
        ValueError: If an episode cannot fit onto a tape, the replay is too small for the rest, or the devices do not
            divide what they share. It names the fields of `name`, the agent.
    """
    for field, count in (("num_envs", num_envs), ("batch_size", batch_size)):
        if count % devices != 0:
            raise ValueError(
                f"devices={devices} must divide {field}={count}, because each device has as many of them; set devices "
                f"to a divisor of {count}, or {name}.{field} to a multiple of {devices}"
            )
    slots = _tape_length(env, env_params, tape_length, name)
    # gradient steps in an update / steps in it, in lowest terms.
    ratio = Fraction(samples_per_insert).limit_denominator(1000) * num_envs / (batch_size * slots)
    if not ratio:
        raise ValueError(
            f"samples_per_insert={samples_per_insert} is rounded to 0, with which nothing is learned; set "
            f"{name}.samples_per_insert to 0.001 or more"
        )
    gradient_steps, steps = ratio.numerator, ratio.denominator
    capacity = buffer_size // num_envs
    if steps + slots > capacity:
        raise ValueError(
            f"buffer_size={buffer_size} gives each of {num_envs} environments {capacity} slots, which do not hold a "
            f"tape of {slots} slots and the {steps} steps of an update; set {name}.buffer_size to "
            f"{(steps + slots) * num_envs} or more, or {name}.samples_per_insert, batch_size and num_envs to rounder "
            "numbers"
        )
    # In the worst case every other slot is a final observation, and the oldest episode has lost its start.
    surely = num_envs * (capacity - slots) // 2
    if learning_starts > surely:
        raise ValueError(
            f"learning_starts={learning_starts} is more than a replay of {buffer_size} slots surely holds, {surely} "
            f"transitions; set {name}.learning_starts lower or {name}.buffer_size higher"
        )
    return ReplaySize(slots, steps, gradient_steps, capacity)


def _tape_length(env: Any, env_params: Any, slots: int | None, name: str) -> int:
    fixed = env.fixed_length(env_params)
    longest = fixed + env.truncates(env_params) if fixed is not None else env.max_episode_steps(env_params)
    if slots is None:
        if longest is None:
            raise ValueError(
                f"tape_length is not set and the environment states no longest episode; set {name}.tape_length to more "
                "than the longest episode"
            )
        # A round number, so that the gradient steps of an update are soon a whole number.
        return 32 * math.ceil(max(128, longest + 1) / 32)
    if longest is not None and slots < longest:
        raise ValueError(
            f"tape_length={slots} is shorter than the longest episode, {longest} slots; set {name}.tape_length to "
            f"{longest + 1} or more"
        )
    return slots
