"""Scripted policies: what solves a task scores 1, and the reference scores are what the policies get."""

import jax
import numpy as np
import pytest

from memax_rl import envs
from memax_rl.envs.baselines import scores

EASY = [env_id for env_id in envs.names() if env_id.startswith("popgym/") and env_id.endswith("Easy")]
SOLVABLE = [env_id for env_id, (_, best) in scores.SCORES.items() if best == 1.0]


def returns(env_id, policy, episodes=200, seed=0):
    return np.asarray(scores.episode_returns(env_id, policy, key=jax.random.key(seed), episodes=episodes))


@pytest.mark.parametrize("env_id", [env_id for env_id in SOLVABLE if not env_id.endswith("Medium")])
def test_a_perfect_memory_solves_what_can_be_solved(env_id):
    np.testing.assert_allclose(returns(env_id, scores.best_policy(env_id), episodes=20), 1.0, atol=1e-5)


def check_mean(sample, score):
    error = np.std(sample) / np.sqrt(len(sample))
    assert np.mean(sample) == pytest.approx(score, abs=4 * error + 0.002)


@pytest.mark.parametrize("env_id", EASY)
def test_chance_is_what_the_random_policy_gets(env_id):
    check_mean(returns(env_id, scores.random_policy(env_id)), scores.reference_scores(env_id)[0])


@pytest.mark.parametrize("env_id", [env_id for env_id in EASY if env_id not in SOLVABLE])
def test_best_is_what_the_scripted_policy_gets(env_id):
    check_mean(returns(env_id, scores.best_policy(env_id)), scores.reference_scores(env_id)[1])


def test_every_popgym_environment_has_scores():
    popgym_ids = [env_id for env_id in envs.names() if env_id.startswith("popgym/")]
    assert list(scores.SCORES) == popgym_ids
    for chance, best in scores.SCORES.values():
        assert chance < best <= 1.0


@pytest.mark.parametrize("function", [scores.reference_scores, scores.best_policy])
def test_other_suites_have_none(function):
    with pytest.raises(ValueError, match="popgym suite only, got 'gymnax/CartPole-v1'"):
        function("gymnax/CartPole-v1")
