"""Options of the environments of the package xminigrid. Light to import."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class GridOptions(BaseModel):
    """Options of a MiniGrid environment."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_steps: int | None = Field(default=None, ge=1, lt=2**31)
    """Time limit of an episode; a success pays by the share of it that is left. null: the package's own."""


class XLandOptions(GridOptions):
    """Options of an XLand environment."""

    benchmark: str | None = None
    """Draw each episode's ruleset from this benchmark: a name of the package, which downloads it, or a file of one."""
    split: Literal["train", "test"] = "train"
    """Which of the disjoint sets of the benchmark's rulesets: train or test."""
    split_seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the split."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the benchmark's rulesets held out for testing."""
