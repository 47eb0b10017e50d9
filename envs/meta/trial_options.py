"""Options of trials that every family of tasks of one's own has. Light to import."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrialOptions(BaseModel):
    """Options of trials."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    episodes: int | None = Field(default=8, ge=1, lt=2**30)
    """Episodes a trial; null if steps is given."""
    steps: int | None = Field(default=None, ge=1, lt=2**30)
    """Steps a trial instead, the last episode being cut."""
    discount_across_episodes: bool = True
    """Whether a return goes on into the next episode of the trial."""
    novelty_bonus: float = Field(default=0.0, ge=0)
    """What the learner adds for what is new in the trial, until the first reward."""
    unrewarded_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of training trials that pay nothing but that bonus."""
    split: Literal["train", "test"] = "train"
    """Which of the two sets of tasks."""
    split_seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the split."""
    num_tasks: int | None = Field(default=None, ge=1, lt=2**31)
    """Draw from only so many tasks."""
