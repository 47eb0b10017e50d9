"""Statistics of run scores. Literal numbers are those of rliable 1.2.0 for the same scores."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from memax_rl.studies.analysis import with_labels
from memax_rl.studies.comparison import (
    STATISTICS,
    estimate,
    improvement,
    mean_interval,
    p_values,
    performance_profile,
    probability_of_improvement,
    ranking,
    sentence,
)

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


def test_a_profile_is_the_share_of_runs_above_a_level():
    levels = np.array([-9.0, 0.3, 0.6, 9.0])
    value, low, high = performance_profile(list(X.T), levels)
    # rliable's run_score_deviation.
    np.testing.assert_allclose(value, [np.mean(level < X) for level in levels])
    assert (value[0], low[0], value[-1], high[-1]) == (1, 1, 0, 0)
    errors = [np.mean([np.var(x > level) / 5 for x in X.T]) / 26 for level in levels]
    half = np.sqrt(errors) * np.sqrt(5 / 4) * stats.t.ppf(0.975, 4)
    np.testing.assert_allclose(high[1:3] - value[1:3], half[1:3], rtol=0.15)
    # Tasks count alike, however many runs they have.
    assert performance_profile([np.zeros(2), np.ones(6)], np.array([0.5]))[0] == 0.5


def test_an_improvement_has_an_interval_within_0_and_1():
    x, y = [X[:, 0], X[:, 1]], [Y[:, 0], Y[:, 1]]
    e = improvement(x, y)
    assert e["value"] == probability_of_improvement(x, y)
    assert 0 <= e["low"] < e["value"] < e["high"] <= 1
    back = improvement(y, x, seed=1)
    assert (1 - back["high"], 1 - back["low"]) == pytest.approx((e["low"], e["high"]), abs=0.08)
    assert np.isnan(improvement([X[:1, 0]], [Y[:, 0]])["low"])


def test_the_interval_of_means_is_students():
    mean, low, high = mean_interval(X)
    want = stats.t.interval(0.95, 4, loc=X.mean(axis=0), scale=stats.sem(X, axis=0))
    np.testing.assert_allclose((mean, low, high), (X.mean(axis=0), *want))
    assert np.isnan(mean_interval(X[:1])[1]).all()


def test_the_ranking_knows_how_sure_it_is():
    apart = ranking([{"a": X[:, 0], "b": X[:, 0] + 9, "c": X[:, 0] - 9}] * 2)
    assert apart == {
        "a": {"value": 2, "low": 2, "high": 2, "first": 0},
        "b": {"value": 1, "low": 1, "high": 1, "first": 1},
        "c": {"value": 3, "low": 3, "high": 3, "first": 0},
    }
    equal = ranking([{"a": X[:, 0], "b": X[::-1, 0]}])
    assert [equal[name]["value"] for name in "ab"] == [1.5, 1.5], "equal means share a rank"
    assert equal["a"]["first"] == pytest.approx(0.5, abs=0.03)
    assert (equal["a"]["low"], equal["a"]["high"]) == (1, 2)
    same = ranking([{"a": np.ones(3), "b": np.ones(3)}])["a"]
    assert (same["low"], same["high"], same["first"]) == (1.5, 1.5, 0.5)
    alone = ranking([{"a": X[:, 0], "b": X[:1, 1]}])["a"]
    assert np.isnan([alone["low"], alone["high"], alone["first"]]).all()


def test_settings_that_are_nearly_the_same_are_told_apart():
    about = {"env": "a/b", "memory": "gru", "agent": "ppo", "status": "finished", "final_return": 0.0}
    found = with_labels(
        pd.DataFrame([about | {"ppo.gamma": gamma, "env_options.p": 0.5} for gamma in (0.9999995, 0.9999999)])
    )
    assert list(found["label"]) == ["gru (ppo.gamma=0.9999995)", "gru (ppo.gamma=0.9999999)"]
    found = with_labels(pd.DataFrame([about | {"env_options.p": p} for p in (0.2500001, 0.25)]))
    assert list(found["task"]) == ["a/b, p=0.2500001", "a/b, p=0.25"]


def test_many_memories_have_a_short_sentence():
    x = np.array([0.0, 0.1, 0.2])
    assert sentence(dict.fromkeys("abcd", x)) == "no two of the 4 memories can be told apart with 3 seeds"
    found = sentence({"a": x, "b": x, "c": x, "d": x + 0.5})
    assert found.startswith("d is better than a, b and c with 3 seeds (p at most ")
    assert found.endswith("); no other two can be told apart")
    found = sentence({"a": x, "b": x + 5, "c": x, "d": x + 5})
    assert found.startswith("b and d are each better than a and c with 3 seeds (p < 0.001)")


def test_the_sentence_says_what_can_be_told_apart():
    x = np.array([0.0, 0.1, 0.2])
    assert sentence({"gru": x, "lru": x}) == "gru and lru cannot be told apart with 3 seeds"
    assert sentence({"gru": x, "lru": x + 0.5}).startswith("lru is better than gru with 3 seeds (p = ")
    flat = {"gru": np.zeros(2), "lru": np.ones(2)}
    assert sentence(flat) == "lru is better than gru with 2 seeds (p < 0.001)", "p is 0 where seeds do not differ"
    assert sentence({"gru": x[:1], "lru": x + 5}) == "gru and lru cannot be told apart with 1 and 3 seeds"
    assert sentence({"gru": x}) == "one memory alone: nothing to compare"
