"""Settings that the agents share which learn from a replay."""

from typing import Any

from pydantic import Field

from memax_rl.agents.optimizer import OptimizerSettings
from memax_rl.rollout.replay import ReplaySize, replay_size


class ReplaySettings(OptimizerSettings):
    """Settings of a replay and of what is drawn from it, with those of the optimizer."""

    num_envs: int = Field(default=16, ge=1, le=2**20)
    """Environments in parallel."""
    batch_size: int = Field(default=4, ge=1, le=2**20)
    """Tapes in a gradient step."""
    tape_length: int | None = Field(default=None, ge=2, le=2**24)
    """Slots of a tape, more than the longest episode has steps. None: 128, or as many as the longest episode needs."""
    samples_per_insert: float = Field(default=8.0, gt=0, le=10_000)
    """Slots learned from for each slot collected, counting every time one is learned from; PPO's is its update_epochs.
    An update collects the fewest steps that make its gradient steps a whole number."""
    buffer_size: int = Field(default=200_000, ge=2, le=2**28)
    """Slots in the replay, shared evenly by the environments."""
    learning_starts: int = Field(default=5_000, ge=1, le=2**28)
    """Transitions in the replay before learning begins."""
    save_replay: bool = True
    """Save the replay in checkpoints. Without it a resumed run collects anew, and differs from one left alone."""


def size_of(settings: ReplaySettings, env: Any, env_params: Any, devices: int, name: str) -> ReplaySize:
    """Return the sizes that follow from the settings of the agent `name`. Raises `ValueError` as `replay_size`."""
    return replay_size(
        env,
        env_params,
        num_envs=settings.num_envs,
        batch_size=settings.batch_size,
        tape_length=settings.tape_length,
        samples_per_insert=settings.samples_per_insert,
        buffer_size=settings.buffer_size,
        learning_starts=settings.learning_starts,
        devices=devices,
        name=name,
    )
