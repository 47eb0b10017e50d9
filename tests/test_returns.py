"""Returns and advantages against literal numbers, and against rlax episode by episode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from memax_rl.rollout.returns import discounted_returns, generalized_advantages, lambda_returns, n_step_returns


def test_discounted_returns_by_hand():
    reward = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0])
    start = jnp.array([True, False, True, False, False])
    # Episodes (1, 2) and (4, 8, 16), discount 1/2: nothing of the second reaches the first.
    want = [1 + 0.5 * 2, 2.0, 4 + 0.5 * (8 + 0.5 * 16), 8 + 0.5 * 16, 16.0]
    np.testing.assert_allclose(discounted_returns(reward, start, 0.5), want)


def test_discounted_returns_of_a_row_that_goes_on():
    start = jnp.array([False, False, True])
    np.testing.assert_allclose(discounted_returns(jnp.array([1.0, 1.0, 1.0]), start, 0.5), [1.5, 1.0, 1.0])


def test_advantages_by_hand():
    # Two steps and a termination, then two steps and a truncation, then an open episode.
    reward = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
    value = jnp.array([10.0, 20.0, 30.0, 40.0, 50.0])
    next_value = jnp.array([20.0, 99.0, 40.0, 7.0, 60.0])
    terminated = jnp.array([False, True, False, False, False])
    truncated = jnp.array([False, False, False, True, False])
    deltas = [1 + 0.5 * 20 - 10, 2 - 20, 3 + 0.5 * 40 - 30, 4 + 0.5 * 7 - 40, 5 + 0.5 * 60 - 50]
    want = [deltas[0] + 0.25 * deltas[1], deltas[1], deltas[2] + 0.25 * deltas[3], deltas[3], deltas[4]]
    got = generalized_advantages(reward, value, next_value, terminated, truncated, 0.5, 0.5)
    np.testing.assert_allclose(got, want)


def test_termination_outweighs_truncation():
    one, yes = jnp.ones(1), jnp.ones(1, bool)
    np.testing.assert_allclose(generalized_advantages(one, one, 5 * one, yes, yes, 0.9, 0.9), [0.0])


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_rlax_episode_by_episode(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=6)
    ends = np.zeros(lengths.sum(), bool)
    ends[np.cumsum(lengths) - 1] = True
    kind = rng.random(len(lengths)) < 0.5
    terminated, truncated = ends.copy(), ends.copy()
    terminated[np.cumsum(lengths) - 1] = kind
    truncated[np.cumsum(lengths) - 1] = ~kind
    reward, value, next_value = rng.normal(size=(3, len(ends))).astype(np.float32)
    inside = np.flatnonzero(~ends)
    next_value[inside] = value[inside + 1]
    discount, lambda_ = 0.9, 0.7
    advantage = generalized_advantages(
        *map(jnp.asarray, (reward, value, next_value, terminated, truncated)), discount=discount, lambda_=lambda_
    )
    returns = lambda_returns(
        *map(jnp.asarray, (reward, next_value, terminated, truncated)), discount=discount, lambda_=lambda_
    )
    at = 0
    for n in lengths:
        part = slice(at, at + n)
        discounts = jnp.asarray(discount * (1 - terminated[part].astype(np.float32)))
        values = jnp.append(jnp.asarray(value[part]), next_value[at + n - 1])
        want = rlax.truncated_generalized_advantage_estimation(jnp.asarray(reward[part]), discounts, lambda_, values)
        np.testing.assert_allclose(advantage[part], want, atol=1e-5)
        want = rlax.lambda_returns(jnp.asarray(reward[part]), discounts, jnp.asarray(next_value[part]), lambda_)
        np.testing.assert_allclose(returns[part], want, atol=1e-5)
        at += n


def test_nothing_crosses_an_end(key):
    reward = jax.random.normal(key, (9,))
    ends = jnp.arange(9) == 4

    def first(reward):
        zero = jnp.zeros(9)
        return jnp.sum(generalized_advantages(reward, zero, zero, ends, ~(ends | True), 0.9, 0.9)[:5])

    assert jnp.all(jax.grad(first)(reward)[5:] == 0)


def test_n_step_returns_by_hand():
    # Three steps and a termination, two and a truncation, two that the tape's end cuts. Discount 1/2.
    reward = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
    next_value = jnp.array([10.0, 20.0, 99.0, 30.0, 40.0, 50.0, 60.0])
    terminated, truncated = jnp.arange(7) == 2, jnp.arange(7) == 4
    want = {
        1: [1 + 5, 2 + 10, 4, 8 + 15, 16 + 20, 32 + 25, 64 + 30],
        2: [1 + 1 + 5, 2 + 2, 4, 8 + 8 + 10, 16 + 20, 32 + 32 + 15, 64 + 30],
        3: [1 + 1 + 1, 2 + 2, 4, 8 + 8 + 10, 16 + 20, 32 + 32 + 15, 64 + 30],
    }
    for n, expected in want.items():
        np.testing.assert_allclose(n_step_returns(reward, next_value, terminated, truncated, 0.5, n), expected)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        n_step_returns(reward, next_value, terminated, truncated, 0.5, 0)


def test_lambda_may_differ_by_slot():
    reward, value, no = jnp.array([1.0, 2.0, 4.0]), jnp.array([8.0, 16.0, 32.0]), jnp.zeros(3, bool)
    last = 4 + 0.5 * 32
    middle = 2 + 0.5 * last
    got = lambda_returns(reward, value, no, no, 0.5, jnp.array([0.0, 1.0, 0.5]))
    np.testing.assert_allclose(got, [1 + 0.5 * 8, middle, last])


@pytest.mark.parametrize("ends", ["never", "at the zero"])
def test_a_discount_of_a_slot_multiplies_all_that_follows_it(ends):
    """Rewards 1, 2, 4, 8, the value after the last 16, discounts 1/2 but 0 and 1 in the middle."""
    reward, next_value = jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.full(4, 16.0)
    discount = jnp.array([0.5, 0.0, 1.0, 0.5])
    terminated = (discount == 0) & (ends == "at the zero")
    truncated, zeros = jnp.array([False, False, False, True]), jnp.zeros(4)
    expected = [2.0, 2.0, 20.0, 16.0]
    advantages = generalized_advantages(
        reward, zeros, jnp.where(truncated, next_value, 0), terminated, truncated, discount, 1.0
    )
    np.testing.assert_allclose(advantages, expected)
    np.testing.assert_allclose(lambda_returns(reward, next_value, terminated, truncated, discount, 1.0), expected)
    np.testing.assert_allclose(n_step_returns(reward, next_value, terminated, truncated, discount, 4), expected)
    # One step: r + discount V.
    np.testing.assert_allclose(
        lambda_returns(reward, next_value, terminated, truncated, discount, 0.0), [9.0, 2.0, 20.0, 16.0]
    )
    np.testing.assert_allclose(
        discounted_returns(reward, jnp.array([True, False, False, False]), discount), [2.0, 2.0, 12.0, 8.0]
    )
