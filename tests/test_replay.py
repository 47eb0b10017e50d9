"""The replay against a plain Python reference: what is stored, what is drawn, and how often."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl.networks.encoder import AgentInput
from memax_rl.rollout import replay as replays
from memax_rl.rollout.tape import Tape

STREAMS, CAPACITY, SLOTS = 3, 40, 12


class Writer:
    """Writes episodes of random lengths, slot by slot, and remembers all. An observation is its slot's number."""

    def __init__(self, seed: int, longest: int = 8):
        self.rng = np.random.default_rng(seed)
        self.longest = longest
        self.slots: list[list[dict]] = [[] for _ in range(STREAMS)]
        self.plan: list[list[dict]] = [[] for _ in range(STREAMS)]

    def _next(self, stream: int) -> dict:
        """Return the slot that comes next, without taking it."""
        if not self.plan[stream]:
            length, truncates = int(self.rng.integers(1, self.longest + 1)), bool(self.rng.random() < 0.5)
            episode = [
                {"start": t == 0, "terminated": False, "truncated": False, "valid": True, "of": length}
                for t in range(length)
            ]
            episode[-1]["truncated" if truncates else "terminated"] = True
            if truncates:
                episode.append({"start": False, "terminated": False, "truncated": False, "valid": False, "of": length})
            self.plan[stream] = episode
        return self.plan[stream][0]

    def write(self, new: int) -> tuple[Tape, AgentInput]:
        """Return new slots of all streams, and what is shown after them."""
        fresh = []
        for stream in range(STREAMS):
            for _ in range(new):
                slot = self._next(stream) | {"number": len(self.slots[stream])}
                self.plan[stream].pop(0)
                self.slots[stream].append(slot)
            fresh.append(self.slots[stream][-new:])
        pending = [self._next(stream)["start"] for stream in range(STREAMS)]
        number = jnp.array([[slot["number"] for slot in row] for row in fresh], jnp.int32)
        name = jnp.arange(STREAMS)[:, None] * 100_000
        tape = Tape(
            observation=number + name,
            action=number % 3,
            reward=(number + name).astype(jnp.float32),
            **{k: jnp.array([[s[k] for s in row] for row in fresh]) for k in _FLAGS},
        )
        nothing = jnp.zeros(STREAMS)
        return tape, AgentInput(number[:, -1] + 1 + name[:, 0], nothing, nothing, jnp.array(pending))

    def live(self, stream: int) -> list[dict]:
        """Return the slots from the oldest stored start to the pending slot."""
        slots = [*self.slots[stream], self._next(stream) | {"number": len(self.slots[stream]), "valid": False}]
        slots[-1]["terminated"] = slots[-1]["truncated"] = False
        slots = slots[-CAPACITY:]
        first = next((i for i, slot in enumerate(slots) if slot["start"]), len(slots))
        return slots[first:]

    def episodes(self, stream: int) -> list[list[dict]]:
        """Return the live slots by episode."""
        live = self.live(stream)
        bounds = [*[i for i, slot in enumerate(live) if slot["start"]], len(live)]
        return [live[a:b] for a, b in itertools.pairwise(bounds)]


_FLAGS = ("start", "terminated", "truncated", "valid")
_DTYPES = (jnp.int32, jnp.float32, bool, bool, bool, bool)
_ONE = Tape(jnp.zeros((), jnp.int32), *(jnp.zeros((), dtype) for dtype in _DTYPES))
_add = jax.jit(replays.add)
_sample = jax.jit(replays.sample, static_argnames=("rows", "slots", "by", "alpha"))


# One number of rows for all tests, so that each way to sample is compiled once.
ROWS = 1000


def _draws(replay: replays.Replay, key: jax.Array, by: str, beta: float = 1.0) -> replays.Sample:
    drawn = _sample(replay, key, rows=ROWS, slots=SLOTS, by=by, beta=beta)
    return jax.tree.map(np.asarray, drawn)


def _filled(seed: int, new: int = 7, times: int = 20, longest: int = 8) -> tuple[Writer, replays.Replay]:
    writer, replay = Writer(seed, longest), replays.init(_ONE, STREAMS, CAPACITY)
    for _ in range(times):
        replay = _add(replay, *writer.write(new))
    return writer, replay


def _masses(writer: Writer, by: str, priority=lambda stream, episode: 1.0) -> dict[tuple[int, int], float]:
    """Return the mass of each episode that can begin a tape, by stream and the number of its first slot."""
    masses = {}
    for stream in range(STREAMS):
        for episode in writer.episodes(stream):
            length = sum(slot["valid"] for slot in episode)
            if length:
                number = episode[0]["number"]
                mass = {"transition": length, "episode": 1.0, "priority": priority(stream, number)}[by]
                masses[stream, number] = mass
    return masses


def _covered(writer: Writer, stream: int, head: int, slots: int = SLOTS) -> list[int]:
    """Return the numbers of the transitions that a tape from `head` learns from, by laying it out slot by slot."""
    live = writer.live(stream)
    offset = next(i for i, slot in enumerate(live) if slot["number"] == head)
    tape = (live[offset:] + live[:offset])[:slots]
    return [s["number"] for i, s in enumerate(tape) if s["valid"] and (i < slots - 1 or s["terminated"])]


def _probabilities(writer: Writer, masses: dict) -> dict[tuple[int, int], float]:
    """Return P(t) by enumeration of all tapes."""
    total = sum(masses.values())
    found: dict[tuple[int, int], float] = {}
    for (stream, head), mass in masses.items():
        for number in _covered(writer, stream, head):
            found[stream, number] = found.get((stream, number), 0) + mass / total
    return found


@pytest.mark.parametrize("new", [1, 7, 39])
def test_no_headless_episode_ten_times_round_the_ring(new, key):
    """After every write each tape is a run of whole stored histories; the first slot is an episode's first."""
    writer, replay = Writer(new), replays.init(_ONE, STREAMS, CAPACITY)
    for i in range(10 * CAPACITY // new + 1):
        replay = _add(replay, *writer.write(new))
        drawn = _sample(replay, jax.random.fold_in(key, i), rows=8, slots=SLOTS)
        stored = sum(slot["valid"] for stream in range(STREAMS) for slot in writer.live(stream))
        assert int(replays.size(replay)) == stored
        if not stored:
            continue
        tape = jax.tree.map(np.asarray, drawn.tape)
        for row, stream in enumerate(np.asarray(drawn.stream)):
            live = writer.live(stream)
            assert tape.start[row, 0]
            head = tape.observation[row, 0] - 100_000 * stream
            offset = next(i for i, slot in enumerate(live) if slot["number"] == head)
            want = (live[offset:] + live[:offset])[:SLOTS]
            got = tape.observation[row, : len(want)] - 100_000 * stream
            assert got.tolist() == [slot["number"] for slot in want]
            assert tape.start[row, : len(want)].tolist() == [slot["start"] for slot in want]
            assert tape.terminated[row, : len(want)].tolist() == [slot["terminated"] for slot in want]
            assert tape.start[row, len(want) :].all()
            learned = tape.observation[row][tape.valid[row]] - 100_000 * stream
            assert learned.tolist() == _covered(writer, stream, head)


@pytest.mark.parametrize("by", ["transition", "episode", "priority"])
@pytest.mark.parametrize("times", [2, 20])
def test_stated_probabilities_are_those_of_an_enumeration(by, times, key):
    """With a ring that is full and one that is not, the newest transition of the open episode included."""
    writer, replay = _filled(4, times=times)
    rng = np.random.default_rng(0)
    priority = jnp.asarray(rng.uniform(0.1, 3, (STREAMS, CAPACITY)), jnp.float32)
    replay = replays.Replay(replay.tape, replay.length, priority, replay.head, replay.count)
    masses = _masses(writer, by, lambda stream, number: float(priority[stream, number % CAPACITY]) ** 0.6)
    want = _probabilities(writer, masses)
    newest = [max(s["number"] for s in writer.slots[stream] if s["valid"]) for stream in range(STREAMS)]
    stored = {(s, slot["number"]) for s in range(STREAMS) for slot in writer.live(s) if slot["valid"]}
    assert want.keys() == stored, "every stored transition can be drawn"
    assert all((stream, number) in want for stream, number in enumerate(newest))
    seen = set()
    drawn = _draws(replay, key, by)
    for row, slot in zip(*np.nonzero(drawn.tape.valid), strict=True):
        stream = int(drawn.stream[row])
        number = int(drawn.tape.observation[row, slot]) - 100_000 * stream
        assert abs(drawn.probability[row, slot] / want[stream, number] - 1) < 1e-4
        seen.add((stream, number))
    assert seen == stored


def _chi_squared_bound(degrees: int) -> float:
    """Return what chi-squared exceeds with a probability of 1e-4 (Wilson and Hilferty 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.719 * (2 / (9 * degrees)) ** 0.5) ** 3


@pytest.mark.parametrize("by", ["transition", "episode", "priority"])
def test_frequencies_agree_with_the_stated_probabilities(by, key):
    """Chi-squared of the tapes' first episodes, and of one transition taken from each tape at random."""
    writer, replay = _filled(1)
    masses = _masses(writer, by)
    total = sum(masses.values())
    draws = 20 * ROWS
    parts = [_draws(replay, k, by) for k in jax.random.split(key, 20)]
    drawn = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    numbers = drawn.tape.observation - 100_000 * drawn.stream[:, None]

    def chi_squared(got: dict, want: dict) -> float:
        assert got.keys() <= want.keys()
        return sum((got.get(k, 0) - p * draws) ** 2 / (p * draws) for k, p in want.items())

    heads: dict[tuple[int, int], int] = {}
    for stream, number in zip(drawn.stream, numbers[:, 0], strict=True):
        heads[stream, number] = heads.get((stream, number), 0) + 1
    want = {k: mass / total for k, mass in masses.items()}
    assert chi_squared(heads, want) < _chi_squared_bound(len(want) - 1)

    # Transitions of one tape come together, so one of each tape is taken: chosen evenly among those learned from.
    one_each: dict[tuple[int, int], float] = {}
    for (stream, head), p in want.items():
        learned = _covered(writer, stream, head)
        for number in learned:
            one_each[stream, number] = one_each.get((stream, number), 0) + p / len(learned)
    rng, got = np.random.default_rng(0), {}
    for row in range(draws):
        number = numbers[row, rng.choice(np.flatnonzero(drawn.tape.valid[row]))]
        got[drawn.stream[row], number] = got.get((drawn.stream[row], number), 0) + 1
    assert chi_squared(got, one_each) < _chi_squared_bound(len(one_each) - 1)

    # And how often each transition is learned from is P(t), each within 4.5 standard deviations.
    counts: dict[tuple[int, int], int] = {}
    for row, slot in zip(*np.nonzero(drawn.tape.valid), strict=True):
        k = (drawn.stream[row], numbers[row, slot])
        counts[k] = counts.get(k, 0) + 1
    for k, p in _probabilities(writer, masses).items():
        assert abs(counts[k] - draws * p) < 4.5 * (draws * p * (1 - p)) ** 0.5 + 1e-6


@pytest.mark.parametrize(
    ("by", "uniform"), [("transition", "transition"), ("episode", "episode"), ("priority", "transition")]
)
def test_the_expected_weight_is_uniform(by, uniform):
    """Exactly, over an enumeration of all tapes: sum over draws of p(e) * weight = target, and the targets sum to 1."""
    writer, replay = _filled(6)
    episodes = [(s, e) for s in range(STREAMS) for e in writer.episodes(s) if e[0]["valid"]]
    lengths = {(s, e[0]["number"]): sum(slot["valid"] for slot in e) for s, e in episodes}
    masses = _masses(writer, by)
    # A tape from every head is among those drawn: the draw is replaced by the enumeration.
    drawn = _draws(replay, jax.random.key(3), by)
    expected: dict[tuple[int, int], float] = {}
    numbers = drawn.tape.observation - 100_000 * drawn.stream[:, None]
    for head, mass in masses.items():
        row = np.flatnonzero((drawn.stream == head[0]) & (numbers[:, 0] == head[1]))[0]
        for slot in np.flatnonzero(drawn.tape.valid[row]):
            k = (head[0], int(numbers[row, slot]))
            weight = float(drawn.weight[row, slot]) * ROWS
            expected[k] = expected.get(k, 0) + mass / sum(masses.values()) * weight
    total = sum(expected.values())
    if by != "priority":
        # Importance weights are scaled by the largest; here only how they compare counts.
        assert total == pytest.approx(1, rel=1e-4)
    of = {(s, slot["number"]): (s, e[0]["number"]) for s, e in episodes for slot in e if slot["valid"]}
    assert expected.keys() == of.keys()
    for k, weight in expected.items():
        want = 1 / len(of) if uniform == "transition" else 1 / (len(lengths) * lengths[of[k]])
        assert weight / total == pytest.approx(want, rel=1e-4)


def test_weights_of_a_smaller_beta_are_a_power(key):
    _, replay = _filled(2)
    whole, half = (_draws(replay, key, "priority", beta) for beta in (1.0, 0.5))
    a, b = whole.weight[whole.tape.valid], half.weight[half.tape.valid]
    np.testing.assert_allclose(b / b.max(), (a / a.max()) ** 0.5, rtol=1e-5)
    assert a.min() < a.max()


@pytest.mark.parametrize("eta", [0.9, 0.25])
def test_priorities_by_hand(eta, key):
    """Two episodes on a tape: max and mean of each, over the slots that count; the rest keeps its priority."""
    _, replay = _filled(1)
    drawn = _sample(replay, key, rows=1, slots=SLOTS, by="priority")
    error = jnp.arange(1.0, SLOTS + 1)[None] * jnp.where(jnp.arange(SLOTS) % 2 == 0, 1, -1)[None]
    after = jax.jit(partial(replays.reprioritize, eta=eta))(replay, drawn, error)
    start, valid = np.asarray(drawn.tape.start[0]), np.asarray(drawn.tape.valid[0])
    bounds = [*np.flatnonzero(start), SLOTS]
    changed = set()
    for a, b in itertools.pairwise(bounds):
        sizes = [abs(float(error[0, t])) for t in range(a, b) if valid[t]]
        at = (int(drawn.stream[0]), int(drawn.index[0, a]))
        if sizes:
            assert float(after.priority[at]) == pytest.approx(eta * max(sizes) + (1 - eta) * np.mean(sizes), rel=1e-6)
            changed.add(at)
    assert len(changed) > 1
    same = np.asarray(after.priority == replay.priority)
    assert {tuple(map(int, at)) for at in np.argwhere(~same)} <= changed
    # A new episode is as urgent as the most urgent.
    writer, replay = _filled(1)
    raised = replays.Replay(replay.tape, replay.length, replay.priority * 7, replay.head, replay.count)
    later = _add(_add(raised, *writer.write(7)), *writer.write(7))
    new = np.asarray(later.tape.start) & (np.asarray(later.length) > 0)
    assert (np.asarray(later.priority)[new] == 7).all()


def _shown(observation):
    """Return what is shown to one stream in the middle of an episode."""
    return AgentInput(observation, jnp.zeros(1, jnp.int32), jnp.zeros(1), jnp.array([False]))


def test_observations_keep_their_dtype(key):
    one = Tape(jnp.zeros((2, 2), jnp.uint8), *(jnp.zeros((), dtype) for dtype in _DTYPES))
    replay = replays.init(one, 1, 8)
    slots = jax.tree.map(lambda s: jnp.zeros((1, 3, *s.shape), s.dtype), one)
    slots = Tape(
        slots.observation + jnp.arange(250, 253, dtype=jnp.uint8)[None, :, None, None],
        slots.action,
        slots.reward,
        jnp.array([[True, False, False]]),
        slots.terminated,
        slots.truncated,
        ~slots.valid,
    )
    replay = _add(replay, slots, _shown(jnp.full((1, 2, 2), 253, jnp.uint8)))
    drawn = _sample(replay, key, rows=1, slots=4)
    assert replay.tape.observation.dtype == drawn.tape.observation.dtype == jnp.uint8
    assert drawn.tape.observation[0, :, 0, 0].tolist() == [250, 251, 252, 253]
    assert drawn.tape.valid[0].tolist() == [True, True, True, False]


def test_an_episode_whose_start_was_never_stored_waits_for_the_next(key):
    """As after a resume without the replay: what is open is skipped up to the next start."""
    writer = Writer(0)
    writer.write(3)
    replay = replays.init(_ONE, STREAMS, CAPACITY)
    assert not bool(replays.can_sample(replay))
    before = [len(slots) for slots in writer.slots]
    for _ in range(3):
        replay = _add(replay, *writer.write(7))
    stored = 0
    for stream in range(STREAMS):
        slots = writer.slots[stream][before[stream] :]
        first = next(i for i, slot in enumerate(slots) if slot["start"])
        stored += sum(slot["valid"] for slot in slots[first:])
    assert int(replays.size(replay)) == stored
    assert bool(replays.can_sample(replay, stored))
    assert not bool(replays.can_sample(replay, stored + 1))


def test_an_open_episode_longer_than_the_ring_is_lost_and_nothing_else(key):
    replay = replays.init(_ONE, 1, 8)
    flags = jnp.zeros((1, 5), bool)
    for i in range(4):
        slots = Tape(
            jnp.full((1, 5), i),
            jnp.zeros((1, 5), jnp.int32),
            jnp.zeros((1, 5)),
            flags.at[0, 0].set(i == 0),
            flags,
            flags,
            ~flags,
        )
        replay = _add(replay, slots, _shown(jnp.array([i + 1])))
        assert int(replays.size(replay)) == (5 if i == 0 else 0)
    assert not bool(replays.can_sample(replay))
    slots = Tape(
        jnp.full((1, 5), 9),
        jnp.zeros((1, 5), jnp.int32),
        jnp.zeros((1, 5)),
        flags.at[0, 2].set(True),
        flags.at[0, 1].set(True),
        flags,
        ~flags,
    )
    replay = _add(replay, slots, _shown(jnp.array([10])))
    assert int(replays.size(replay)) == 3
    assert _sample(replay, key, rows=2, slots=6).tape.observation[:, :4].tolist() == [[9, 9, 9, 10]] * 2


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="capacity must be at least 2"):
        replays.init(_ONE, 1, 1)
    writer = Writer(0)
    with pytest.raises(ValueError, match="40 new slots and the pending one do not fit into a ring of 40"):
        replays.add(replays.init(_ONE, STREAMS, CAPACITY), *writer.write(40))
