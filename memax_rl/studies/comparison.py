"""Statistics of run scores over tasks, after Agarwal et al. 2021, https://arxiv.org/abs/2108.13264.

Scores are given as one array of runs a task. Estimates are those of the paper: the median is over the tasks' means, and
the interquartile mean drops whole runs, a quarter of all at each end (rounded down).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

# The last axis is that of runs; leading ones, the same for all tasks, are drawn samples.
Scores = Sequence[np.ndarray]


def _means(scores: Scores) -> np.ndarray:
    return np.stack([s.mean(axis=-1) for s in scores])


def _mean(scores: Scores) -> Any:
    return _means(scores).mean(axis=0)


def _median(scores: Scores) -> Any:
    return np.median(_means(scores), axis=0)


def _iqm(scores: Scores) -> Any:
    return stats.trim_mean(np.concatenate(scores, axis=-1), 0.25, axis=-1)


def _optimality_gap(scores: Scores) -> Any:
    return _means([1 - np.minimum(s, 1) for s in scores]).mean(axis=0)


STATISTICS: dict[str, Callable[[Scores], Any]] = {
    "mean": _mean,
    "median": _median,
    "iqm": _iqm,
    "optimality_gap": _optimality_gap,
}


def estimate(scores: Scores, statistic: str, *, resamples: int = 2000, seed: int = 0) -> dict[str, float]:
    """Return a statistic of the runs with its 95 % interval, by a bootstrap stratified by task.

    The interval is value ± t x standard error. The error is the bootstrap's, widened by sqrt(n / (n - 1)) for n runs a
    task; t has n - 1 degrees of freedom, of the task with fewest runs. For one task's mean that is Student's interval.

    Returns:
        `{"value", "low", "high"}`; low and high are nan where a task has a single run.
    """
    rng, of = np.random.default_rng(seed), STATISTICS[statistic]
    value, fewest = float(of(scores)), min(len(s) for s in scores)
    if fewest < 2:
        return {"value": value, "low": np.nan, "high": np.nan}
    drawn = of([s[rng.integers(len(s), size=(resamples, len(s)))] for s in scores])
    half = np.std(drawn) * np.sqrt(fewest / (fewest - 1)) * stats.t.ppf(0.975, fewest - 1)
    return {"value": value, "low": float(value - half), "high": float(value + half)}


def probability_of_improvement(x: Scores, y: Scores) -> float:
    """Return the chance that a run of x scores above one of y, ties counted half; the mean over the tasks."""
    wins = [np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b)) for a, b in zip(x, y, strict=True)]
    return float(np.mean(wins))


def welch(x: np.ndarray, y: np.ndarray) -> float:
    """Return the p value of Welch's test of equal means, two-sided."""
    # scipy's result has no type that a checker sees through.
    result: Any = stats.ttest_ind(x, y, equal_var=False)
    return float(result.pvalue)


def p_values(scores: Mapping[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """Return, for each pair, the p value of Welch's test of equal means, corrected for all pairs after Holm."""
    raw = {}
    for a, b in itertools.combinations(scores, 2):
        x, y = scores[a], scores[b]
        if min(len(x), len(y)) < 2:
            raw[a, b] = 1.0
        elif np.ptp(x) == np.ptp(y) == 0:
            raw[a, b] = float(x[0] == y[0])
        else:
            raw[a, b] = welch(x, y)
    corrected, highest = {}, 0.0
    for rank, pair in enumerate(sorted(raw, key=raw.__getitem__)):
        highest = corrected[pair] = max(highest, min(1.0, raw[pair] * (len(raw) - rank)))
    return corrected


def sentence(scores: Mapping[str, np.ndarray], level: float = 0.05) -> str:
    """Return in plain words which memories can be told apart on a task."""
    said: list[Any] = []
    for (a, b), p in p_values(scores).items():
        n, m = len(scores[a]), len(scores[b])
        seeds = f"{n} seed{'s' if n > 1 else ''}" if n == m else f"{n} and {m} seeds"
        if p >= level:
            said.append(f"{a} and {b} cannot be told apart with {seeds}")
        else:
            better, worse = (a, b) if scores[a].mean() > scores[b].mean() else (b, a)
            said.append(f"{better} is better than {worse} with {seeds} (p = {p:.2g})")
    return "; ".join(said) or "one memory alone: nothing to compare"
