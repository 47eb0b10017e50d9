"""The rows of metrics.csv, made of the metrics of updates; what they tell of that training cannot go on with."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from memax_rl import distributed
from memax_rl.agents import Agent
from memax_rl.rollout.step_count import StepCount
from memax_rl.rollout.streams import LARGEST
from memax_rl.runs.config import TrainConfig
from memax_rl.training.session import TrainingError

# A reward scale that falls by more than this within an update is worth a word.
_LARGEST_FALL = 1_000


@runtime_checkable
class Seeds(Protocol):
    """What `metric_rows` uses of a configuration."""

    @property
    def seed(self) -> int:
        """The first seed."""
        ...

    @property
    def num_seeds(self) -> int:
        """How many there are."""
        ...


def metric_rows(config: Seeds, metrics, before: int, after: int, seconds: float) -> list[dict[str, float]]:
    """Return one row an update and seed. Seeds are never averaged: the spread is the result."""
    metrics = {name: m.to_numpy() if isinstance(m, StepCount) else m for name, m in metrics.items()}
    return [
        {"update": before + i + 1, "seed": config.seed + s, "seconds": round(seconds, 3)}
        | {name: float(m[i, s]) for name, m in metrics.items()}
        for i in range(after - before)
        for s in range(config.num_seeds)
    ]


def until_divergence(rows: list[dict[str, float]], seeds: set[int]) -> list[dict[str, float]]:
    """Return the rows of these seeds, of each up to the one in which it diverged."""
    kept = []
    for row in rows:
        if row["seed"] in seeds:
            kept.append(row)
            if not row["finite"]:
                seeds = seeds - {row["seed"]}
    return kept


def check_rows(config: TrainConfig, agent: Agent[Any], rows: list[dict[str, float]], stops: bool, kept: str) -> None:
    """Raise `TrainingError` if the rows tell of something that training cannot go on with.

    `stops`: whether a seed that diverged ends the run. `kept`: which checkpoint there is, in words.
    """
    unusable = next((row for row in rows if row["env/unusable"] > 0), None)
    if unusable is not None:
        raise TrainingError(
            f"{config.env} gave an observation or a reward that is not finite or larger than {LARGEST:g}, first at "
            f"step {unusable['env/unusable']:.0f} of update {unusable['update']:.0f} of seed {unusable['seed']:.0f}; "
            f"mend the environment, or wrap it so that it stays within bounds. Checkpoints: {kept}"
        )
    diverged = [row for row in rows if not row["finite"]]
    if stops and diverged:
        bad = diverged[-1]
        what = f"the loss is {bad['loss']}"
        if np.isfinite(bad["loss"]) or bad.get("gradient_steps", 1) == 0:
            what = "a parameter is not finite"
        raise TrainingError(
            f"{what} at update {bad['update']:.0f} of seed {bad['seed']:.0f}; good checkpoints: {kept}. Try a smaller "
            f"{agent.name}.learning_rate or {agent.name}.max_grad_norm, and look whether observations or rewards are "
            "very large"
        )
    overlong = next((row for row in rows if row["tape/overlong"] > 0), None)
    if overlong is not None:
        raise TrainingError(
            f"an episode is longer than a row of the tape at update {overlong['update']:.0f}; {agent.overlong_hint}"
        )


def warn_of_scale(config: TrainConfig, rows: list[dict[str, float]], scales: dict[float, float]) -> None:
    """Say so where returns became so much larger within an update that those before it no longer count for anything.

    `scales` holds the last reward scale of each seed, and is brought up to date.
    """
    for row in rows:
        seed, scale = row["seed"], row.get("reward_scale", 1.0)
        before = scales.get(seed, scale)
        scales[seed] = scale
        if scale < before / _LARGEST_FALL:
            distributed.say(
                f"{config.env}: reward_scale fell from {before:.3g} to {scale:.3g} at update {row['update']:.0f} of "
                f"seed {seed:.0f}: a return was {before / scale:.0e} times as large as those before, which the agent "
                "hardly sees any more. Bound the rewards, or set ppo.reward_scale"
            )
