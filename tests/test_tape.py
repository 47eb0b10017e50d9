"""The tape: packing, segment ids, positions, previous action and reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl.rollout.tape import Tape, pack, positions, previous, segment_ids, unpack


def _episode(first: int, length: int, truncated: bool) -> Tape:
    """An episode in which every slot holds a number of its own."""
    slots = length + truncated
    number = jnp.arange(first, first + slots, dtype=jnp.float32)
    at = jnp.arange(slots)
    return Tape(
        observation={"a": number, "b": jnp.stack([number, -number], axis=1)},
        action=number.astype(jnp.int32),
        reward=number / 2,
        start=at == 0,
        terminated=(at == length - 1) & (not truncated),
        truncated=(at == length - 1) & truncated,
        valid=at < length,
        log_prob=-number,
    )


def _episodes(seed: int, count: int = 12) -> list[Tape]:
    rng = np.random.default_rng(seed)
    return [_episode(1000 * i, int(rng.integers(1, 8)), bool(rng.integers(2))) for i in range(count)]


@pytest.mark.parametrize("seed", range(8))
def test_unpack_undoes_pack(seed):
    episodes = _episodes(seed)
    back = unpack(pack(episodes, 16))
    assert len(back) == len(episodes)
    for got, want in zip(back, episodes, strict=True):
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(g, w)


def test_padding_is_cut_off_and_out_of_the_loss():
    tape = pack([_episode(0, 3, False), _episode(10, 2, True)], 8)
    assert tape.start.tolist() == [[True, False, False, True, False, False, True, True]]
    assert tape.valid.tolist() == [[True, True, True, True, True, False, False, False]]


def test_unpack_leaves_out_an_open_episode():
    tape = pack([_episode(0, 3, False), _episode(10, 3, False)], 6)
    open_end = jax.tree.map(lambda leaf: leaf[0, :5], tape)
    assert [e.action.tolist() for e in unpack(open_end)] == [[0, 1, 2]]


def test_too_long_an_episode_says_what_capacity_it_needs():
    with pytest.raises(ValueError, match=r"episode 1 takes 6 slots .* capacity must be at least 6, got 5"):
        pack([_episode(0, 3, False), _episode(10, 5, True)], 5)


def test_an_episode_has_one_start():
    two = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), _episode(0, 2, False), _episode(5, 2, False))
    with pytest.raises(ValueError, match="one start flag"):
        pack([two], 9)
    with pytest.raises(ValueError, match="at least one episode"):
        pack([], 9)


def test_segment_ids_and_positions():
    start = jnp.array([False, False, True, False, True, True, False])
    assert segment_ids(start).tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert positions(start).tolist() == [0, 1, 0, 1, 0, 0, 1]


def test_previous_shows_nothing_of_the_last_episode():
    start = jnp.array([False, False, True, False])
    action, reward = previous(
        (jnp.array([1, 2, 3, 4]), jnp.array([0.1, 0.2, 0.3, 0.4])), start, (jnp.array(9), jnp.array(0.9))
    )
    assert action.tolist() == [9, 1, 0, 3]
    np.testing.assert_allclose(reward, [0.9, 0.1, 0.0, 0.3])
    first = previous(jnp.array([1, 2]), jnp.array([True, False]), jnp.array(9))
    assert first.tolist() == [0, 1]
