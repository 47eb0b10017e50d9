"""Mean, median and interquartile mean of returns, with bootstrap confidence intervals over seeds and episodes.

Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice,
https://arxiv.org/abs/2108.13264, recommend the interquartile mean and percentile intervals.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float


def interquartile_mean(x: Float[np.ndarray, "*axes n"]) -> Any:
    """Return the mean of the middle half along the last axis; values on its borders count in part.

    With n values the middle half holds n / 2 of them, from position n / 4 to 3 n / 4 of the sorted values.
    """
    n = x.shape[-1]
    borders = np.arange(n + 1)
    inside = np.clip(borders, n / 4, 3 * n / 4)
    weights = np.diff(inside)
    return np.sort(x, axis=-1) @ weights / weights.sum()


def summarize(
    returns: Float[np.ndarray, "seeds episodes"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Return mean, median and interquartile mean of all returns, each with a confidence interval.

    The interval is the percentile bootstrap in two stages: seeds are drawn with replacement, then episodes within each
    drawn seed. With one seed it speaks of the episodes alone.

    **Returns:** `{"mean": {"value", "low", "high"}, "median": ..., "iqm": ...}`.
    """
    rng = np.random.default_rng(seed)
    seeds, episodes = returns.shape
    statistics: dict[str, Callable[..., Any]] = {
        "mean": lambda x: x.mean(axis=-1),
        "median": lambda x: np.median(x, axis=-1),
        "iqm": interquartile_mean,
    }
    drawn_seeds = rng.integers(seeds, size=(resamples, seeds, 1))
    drawn_episodes = rng.integers(episodes, size=(resamples, seeds, episodes))
    samples = returns[drawn_seeds, drawn_episodes].reshape(resamples, -1)
    tail = 100 * (1 - confidence) / 2
    result = {}
    for name, statistic in statistics.items():
        low, high = np.percentile(statistic(samples), [tail, 100 - tail])
        result[name] = {"value": float(statistic(returns.reshape(-1))), "low": float(low), "high": float(high)}
    return result
