"""Statistics of run scores. Literal numbers are those of rliable 1.2.0 for the same scores."""

import numpy as np
import pytest
from scipy import stats

from memax_rl.studies.comparison import STATISTICS, estimate, p_values, probability_of_improvement, sentence

X = np.random.default_rng(0).normal(0.6, 0.4, size=(5, 26))
Y = np.random.default_rng(1).normal(0.5, 0.4, size=(5, 26))


RLIABLE = {
    "mean": 0.619566284905214,
    "median": 0.6249806775809527,
    "iqm": 0.6160992368482446,
    "optimality_gap": 0.41196653284341267,
}


@pytest.mark.parametrize(("name", "want"), RLIABLE.items())
def test_estimates_are_those_of_rliable(name, want):
    assert STATISTICS[name](list(X.T)) == pytest.approx(want, abs=1e-6)


def test_probability_of_improvement_is_that_of_rliable():
    assert probability_of_improvement(list(X.T), list(Y.T)) == pytest.approx(0.6107692307692308, abs=1e-6)
    # The example in rliable's own tests.
    x, y = np.array([[1, 2], [2, 2], [1, 1], [2, 1]]), np.array([[1, 1], [2, 2], [3, 3]])
    assert probability_of_improvement(list(x.T), list(y.T)) == pytest.approx(1 / 3)


def test_the_interval_of_a_mean_is_students():
    x = X[:, 0]
    want = stats.t.interval(0.95, 4, loc=x.mean(), scale=stats.sem(x))
    got = estimate([x], "mean", resamples=20_000)
    assert (got["low"], got["high"]) == pytest.approx(want, abs=0.02 * (want[1] - want[0]))


def test_the_interval_of_a_mean_holds_the_truth():
    rng = np.random.default_rng(0)
    found = [estimate([rng.normal(size=4)], "mean", resamples=200, seed=i) for i in range(400)]
    held = np.mean([e["low"] <= 0 <= e["high"] for e in found])
    assert 0.92 < held < 0.98


def test_one_run_has_no_interval():
    got = estimate([np.array([2.0])], "iqm")
    assert got["value"] == 2
    assert np.isnan([got["low"], got["high"]]).all()


def test_p_values_are_corrected_for_all_pairs():
    scores = {"a": X[:, 0], "b": X[:, 1] + 1, "c": X[:, 2] + 3}
    raw = {}
    for pair in ("ab", "ac", "bc"):
        x, y = scores[pair[0]], scores[pair[1]]
        variances = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
        t = (x.mean() - y.mean()) / sum(variances) ** 0.5
        degrees = sum(variances) ** 2 / sum(v**2 / (len(z) - 1) for v, z in zip(variances, (x, y), strict=True))
        raw[pair] = 2 * float(stats.t.sf(abs(t), degrees))
    low, middle, high = sorted(raw.values())
    want = [3 * low, max(3 * low, 2 * middle), max(3 * low, 2 * middle, high)]
    assert sorted(p_values(scores).values()) == pytest.approx([min(1, p) for p in want])


def test_the_sentence_says_what_can_be_told_apart():
    x = np.array([0.0, 0.1, 0.2])
    assert sentence({"gru": x, "lru": x}) == "gru and lru cannot be told apart with 3 seeds"
    assert sentence({"gru": x, "lru": x + 5}).startswith("lru is better than gru with 3 seeds (p = ")
    assert sentence({"gru": x[:1], "lru": x + 5}) == "gru and lru cannot be told apart with 1 and 3 seeds"
    assert sentence({"gru": x}) == "one memory alone: nothing to compare"
