"""Mean, median and interquartile mean of returns, with bootstrap confidence intervals over runs, or over episodes.

Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice,
https://arxiv.org/abs/2108.13264, recommend the interquartile mean of the scores of runs, a score being the mean over
the episodes of an evaluation, and percentile bootstrap intervals over runs, stratified by task if there are several.
With a single run, the same statistics are taken over its episodes, and labeled so.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

# Values that are drawn at once.
_LARGEST_DRAW = 5_000_000


def interquartile_mean(x: Float[np.ndarray, "*axes n"]) -> Any:
    """Return the mean of the middle half along the last axis; values on its borders have fractional weight.

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
    over: Literal["runs", "episodes"] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return mean, median and interquartile mean, each with a percentile bootstrap interval.

    Args:
        over: `"runs"`: of the mean returns of the runs (seeds), as Agarwal et al. define it; runs are drawn with
            replacement. With fewer than about five runs the interval is too narrow. `"episodes"`: of the returns of all
            episodes, pooled; runs are drawn, and episodes within each drawn run. By default over runs if there are
            several, else over episodes.
        confidence: Share of the intervals, such as .95.
        resamples: Draws of the bootstrap.

    Returns:
        `{"over": ..., "mean": {"value", "low", "high"}, "median": ..., "iqm": ...}`.
    """
    rng = np.random.default_rng(seed)
    seeds, episodes = returns.shape
    if over is None:
        over = "runs" if seeds > 1 else "episodes"
    statistics: dict[str, Callable[..., Any]] = {
        "mean": lambda x: x.mean(axis=-1),
        "median": lambda x: np.median(x, axis=-1),
        "iqm": interquartile_mean,
    }
    drawn_seeds = rng.integers(seeds, size=(resamples, seeds))
    scores = returns.mean(axis=1) if over == "runs" else returns.reshape(-1)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    # Some samples at a time: all of them at once may be more than there is memory.
    parts = min(resamples, -(-resamples * scores.size // _LARGEST_DRAW))
    for some in np.array_split(drawn_seeds, parts):
        if over == "runs":
            samples = scores[some]
        else:
            drawn_episodes = rng.integers(episodes, size=(len(some), seeds, episodes))
            samples = returns[some[..., None], drawn_episodes].reshape(len(some), -1)
        for name, statistic in statistics.items():
            drawn[name].append(statistic(samples))
    tail = 100 * (1 - confidence) / 2
    result: dict[str, Any] = {"over": over}
    for name, statistic in statistics.items():
        low, high = np.percentile(np.concatenate(drawn[name]), [tail, 100 - tail])
        result[name] = {"value": float(statistic(scores)), "low": float(low), "high": float(high)}
    return result
