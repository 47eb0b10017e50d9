"""Statistics of returns by hand, and the coverage of their intervals."""

import numpy as np
import pytest

from memax_rl.evaluation import interquartile_mean, summarize


def test_interquartile_mean_by_hand():
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, -50.0])) == 1.5
    # Of five values the middle half holds 2.5: the middle one whole, its neighbors three quarters each.
    want = (0.75 * 2 + 3 + 0.75 * 4) / 2.5
    assert interquartile_mean(np.array([1.0, 2.0, 3.0, 4.0, 50.0])) == pytest.approx(want)
    assert interquartile_mean(np.array([7.0])) == 7


def test_summary_of_one_run_is_over_its_episodes():
    result = summarize(np.array([[0.0, 1.0, 2.0, 9.0]]))
    assert result["over"] == "episodes"
    assert result["mean"]["value"] == 3
    assert result["median"]["value"] == 1.5
    assert result["iqm"]["value"] == 1.5


def test_interquartile_mean_of_several_runs_is_over_runs():
    """Of four runs the middle two count; pooled, the middle half of the episodes would be another number."""
    returns = np.array([[0.0, 0.0, 9.0], [1.0, 1.0, 4.0], [0.0, 0.0, 30.0], [-5.0, 0.0, 0.0]])
    result = summarize(returns)
    assert result["over"] == "runs"
    assert result["iqm"]["value"] == pytest.approx((2 + 3) / 2)
    assert result["median"]["value"] == pytest.approx(2.5)
    assert result["mean"]["value"] == pytest.approx(returns.mean())
    # Drawn again are runs: no interval reaches behind the lowest and the highest of them.
    assert result["iqm"]["low"] >= -5 / 3
    assert result["iqm"]["high"] <= 10
    pooled = summarize(returns, over="episodes")
    assert pooled["over"] == "episodes"
    # Of the twelve sorted returns the fourth to the ninth.
    assert pooled["iqm"]["value"] == pytest.approx((0 * 4 + 1 * 2) / 6)


def test_intervals_over_runs_cover():
    """Ten runs, whose own means differ: 95 % of 100 intervals, a little fewer with ten runs."""
    rng = np.random.default_rng(0)
    inside = 0
    for i in range(100):
        runs = rng.normal(1.0, 1.0, size=(10, 1)) + rng.normal(0, 1, size=(10, 20))
        entry = summarize(runs, resamples=300, seed=i)["mean"]
        inside += entry["low"] <= 1.0 <= entry["high"]
    assert 82 <= inside <= 99


def test_intervals_cover():
    rng = np.random.default_rng(0)
    inside = 0
    for i in range(60):
        sample = rng.normal(1.0, 1.0, size=(1, 100))
        mean = summarize(sample, resamples=300, seed=i)["mean"]
        inside += mean["low"] <= 1.0 <= mean["high"]
    assert 51 <= inside <= 60


def test_seeds_count():
    """Seeds that differ widen the interval, which resampling episodes alone would hide."""
    rng = np.random.default_rng(0)
    same = rng.normal(0, 1, size=(3, 200))
    apart = same + np.array([[-1.0], [0.0], [1.0]])
    width = [summarize(x, resamples=500)["mean"] for x in (same, apart)]
    assert width[1]["high"] - width[1]["low"] > 3 * (width[0]["high"] - width[0]["low"])


def test_samples_drawn_some_at_a_time_are_the_same(monkeypatch):
    """Of many episodes all samples at once are more than there is memory."""
    returns = np.random.default_rng(0).normal(size=(3, 7))
    whole = [summarize(returns, over=over) for over in ("runs", "episodes")]
    for most in (100, 5):
        monkeypatch.setattr("memax_rl.evaluation.statistics._LARGEST_DRAW", most)
        assert [summarize(returns, over=over) for over in ("runs", "episodes")] == whole
