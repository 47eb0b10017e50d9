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

    Args:
        scores: Of each task an array [runs].
        statistic: One of `STATISTICS`.

    Returns:
        `{"value", "low", "high"}`; low and high are nan where a task has a single run.
    """
    rng, of = np.random.default_rng(seed), STATISTICS[statistic]
    value, fewest = float(of(scores)), min(len(s) for s in scores)
    if fewest < 2:
        return {"value": value, "low": np.nan, "high": np.nan}
    half = float(_half_width(of(_resampled(scores, resamples, rng)), fewest))
    return {"value": value, "low": value - half, "high": value + half}


def _resampled(scores: Scores, resamples: int, rng: np.random.Generator) -> list[np.ndarray]:
    return [s[rng.integers(len(s), size=(resamples, len(s)))] for s in scores]


def _half_width(drawn: np.ndarray, fewest: int) -> Any:
    """Return half of the 95 % interval from a statistic of the samples, drawn from at least `fewest` runs a task."""
    return np.std(drawn, axis=0) * np.sqrt(fewest / (fewest - 1)) * stats.t.ppf(0.975, fewest - 1)


def mean_interval(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the means over runs of shape [runs, n], and the ends of Student's 95 % intervals; nan for one run."""
    runs = len(x)
    if runs < 2:
        return x[0], np.full(x.shape[1:], np.nan), np.full(x.shape[1:], np.nan)
    mean, half = x.mean(axis=0), x.std(axis=0, ddof=1) / np.sqrt(runs) * stats.t.ppf(0.975, runs - 1)
    return mean, mean - half, mean + half


def probability_of_improvement(x: Scores, y: Scores) -> float:
    """Return the chance that a run of x scores above one of y, ties counted half; the mean over the tasks."""
    wins = [np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b)) for a, b in zip(x, y, strict=True)]
    return float(np.mean(wins))


def improvement(x: Scores, y: Scores, *, resamples: int = 500, seed: int = 0) -> dict[str, float]:
    """Return the probability of improvement of x on y with its 95 % interval, as `estimate` makes it, within 0 and 1.

    Returns:
        `{"value", "low", "high"}`; low and high are nan where a task has a single run.
    """
    rng, value = np.random.default_rng(seed), probability_of_improvement(x, y)
    fewest = min(len(s) for s in (*x, *y))
    if fewest < 2:
        return {"value": value, "low": np.nan, "high": np.nan}
    wins = []
    for a, b in zip(_resampled(x, resamples, rng), _resampled(y, resamples, rng), strict=True):
        above = (a[:, :, None] > b[:, None]) + 0.5 * (a[:, :, None] == b[:, None])
        wins.append(above.mean(axis=(1, 2)))
    half = float(_half_width(np.mean(wins, axis=0), fewest))
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def performance_profile(
    scores: Scores, levels: np.ndarray, *, resamples: int = 500, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the share of runs that score above each level, the mean over the tasks, and its 95 % interval.

    The interval is made as that of `estimate`, within 0 and 1; nan where a task has a single run.

    Args:
        scores: Of each task an array [runs].
        levels: [levels].
    """
    rng, fewest = np.random.default_rng(seed), min(len(s) for s in scores)
    value = np.mean([(s[:, None] > levels).mean(axis=0) for s in scores], axis=0)
    if fewest < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    shares = []
    for s in scores:
        # How often each run is drawn, so that no array has runs, samples and levels at once.
        counts = rng.multinomial(len(s), np.full(len(s), 1 / len(s)), size=resamples)
        shares.append(counts @ (s[:, None] > levels) / len(s))
    half = _half_width(np.mean(shares, axis=0), fewest)
    return value, np.clip(value - half, 0, 1), np.clip(value + half, 0, 1)


def ranking(
    tasks: Sequence[Mapping[str, np.ndarray]], *, draws: int = 4000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return the rank of each name by its mean score, 1 the best, the mean over the tasks; equal means share a rank.

    Its uncertainty is that of the means: each is drawn as mean + t x standard error, with t of Student's distribution,
    and the ranks of the draws have a 95 % interval. All tasks have the same names.

    Args:
        tasks: Of each task the scores of each name, [runs].
        draws: How many.

    Returns:
        For each name `{"value", "low", "high", "first"}`; `first` is the share of draws in which its rank is the best,
        shared among equals. The last three are nan where a task has a single run of any name.
    """
    names, rng = list(tasks[0]), np.random.default_rng(seed)
    means = np.array([[task[name].mean() for name in names] for task in tasks])
    value = stats.rankdata(-means, axis=-1).mean(axis=0)
    runs = np.array([[len(task[name]) for name in names] for task in tasks])
    if runs.min() < 2:
        return {
            name: {"value": float(v)} | dict.fromkeys(("low", "high", "first"), np.nan)
            for name, v in zip(names, value, strict=True)
        }
    errors = np.array([[stats.sem(task[name]) for name in names] for task in tasks])
    drawn = means + errors * rng.standard_t(runs - 1, size=(draws, *means.shape))
    ranks = stats.rankdata(-drawn, axis=-1).mean(axis=1)
    low, high = np.percentile(ranks, [2.5, 97.5], axis=0)
    lowest = ranks == ranks.min(axis=1, keepdims=True)
    first = (lowest / lowest.sum(axis=1, keepdims=True)).mean(axis=0)
    table = np.stack([value, low, high, first], axis=1).tolist()
    return {
        name: dict(zip(("value", "low", "high", "first"), row, strict=True))
        for name, row in zip(names, table, strict=True)
    }


def welch(x: np.ndarray, y: np.ndarray) -> float:
    """Return the p value of Welch's test of equal means, two-sided."""
    # scipy's result has no type that a checker sees through.
    result: Any = stats.ttest_ind_from_stats(
        x.mean(), x.std(ddof=1), len(x), y.mean(), y.std(ddof=1), len(y), equal_var=False
    )
    return float(result.pvalue)


def p_values(scores: Mapping[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """Return, for each pair, the p value of Welch's test of equal means, corrected for all pairs after Holm.

    Args:
        scores: The scores of each memory, [runs].
    """
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
    """Return in plain words which memories can be told apart on a task.

    Args:
        scores: The scores of each memory, [runs].
        level: Of significance.
    """
    if len(scores) < 2:
        return "one memory alone: nothing to compare"
    beaten: dict[str, list[str]] = {}
    equal, values = [], p_values(scores)
    for (a, b), p in values.items():
        if p < level:
            better, worse = (a, b) if scores[a].mean() > scores[b].mean() else (b, a)
            beaten.setdefault(better, []).append(worse)
        else:
            equal.append((a, b))
    said, order = [], sorted(scores, key=lambda name: -scores[name].mean())
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in (name for name in order if name in beaten):
        groups.setdefault(tuple(sorted(beaten[name], key=order.index)), []).append(name)
    for worse, better in groups.items():
        pairs = [(a, b) for a in better for b in worse]
        p = max(values.get((a, b), values.get((b, a), 0.0)) for a, b in pairs)
        verb = "are each" if len(better) > 1 else "is"
        # Where no two seeds of a memory differ, p is 0 to rounding.
        sure = "p < 0.001" if p < 0.001 else f"{'p at most' if len(pairs) > 1 else 'p ='} {p:.2g}"
        seeds = _seeds(scores, *better, *worse)
        said.append(f"{_and(better)} {verb} better than {_and(worse)} with {seeds} ({sure})")
    if len(equal) <= 2:
        said += [f"{a} and {b} cannot be told apart with {_seeds(scores, a, b)}" for a, b in equal]
    elif beaten:
        said.append("no other two can be told apart")
    else:
        said.append(f"no two of the {len(scores)} memories can be told apart with {_seeds(scores, *scores)}")
    return "; ".join(said)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _seeds(scores: Mapping[str, np.ndarray], *names: str) -> str:
    """Return as "3 seeds", "1 and 3 seeds"."""
    counts = list(dict.fromkeys(len(scores[name]) for name in names))
    return f"{_and([str(n) for n in counts])} seed{'s' if counts != [1] else ''}"
