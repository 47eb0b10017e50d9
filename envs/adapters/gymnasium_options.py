"""Options of environments that run on the host. Light to import."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from memax_rl.unused import refuse_unused

# The wrappers of `gymnasium.wrappers` that a configuration may name: they compute what an agent sees, does and gets.
# Others write files, open windows, take functions, or do what this package does itself (time limits, resets).
WRAPPERS = (
    "AddWhiteNoise",
    "AtariPreprocessing",
    "ClipAction",
    "ClipReward",
    "DelayObservation",
    "DiscretizeAction",
    "DiscretizeObservation",
    "DtypeObservation",
    "FilterObservation",
    "FlattenObservation",
    "FrameStackObservation",
    "GrayscaleObservation",
    "MaxAndSkipObservation",
    "ObstructView",
    "RepeatAction",
    "RescaleAction",
    "RescaleObservation",
    "ReshapeObservation",
    "ResizeObservation",
    "StickyAction",
    "TimeAwareObservation",
)


class HostOptions(BaseModel):
    """Options of an environment that runs on the host."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    processes: int = Field(default=0, ge=0, le=4096)
    """Processes for a gym/ environment, its copies shared out among them. 0: all in the main process."""
    step_timeout: float = Field(default=60.0, gt=0, le=10**6)
    """Seconds that one step of all copies may take; else the run stops. It needs processes: this one cannot be left."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments for gymnasium.make, for example --env-options.arguments '{max_episode_steps: 100}'."""
    action_masks: bool = True
    """Take only actions that info["action_mask"] of reset and step allows, where the environment gives one."""
    keep_keys: list[str] | None = None
    """Of a Dict observation, show only these keys, for example --env-options.keep-keys '[image]'."""
    drop_keys: list[str] = Field(default_factory=list)
    """Of a Dict observation, leave these keys out, for example --env-options.drop-keys '[mission]'."""
    wrappers: list[dict[str, Any]] = Field(default_factory=list)
    """Wrappers of Gymnasium, the innermost first, by name or with arguments: '[{name: ClipReward, min_reward: -1}]'."""

    @field_validator("wrappers", mode="before")
    @classmethod
    def _name_wrappers(cls, value: Any) -> Any:
        # A name alone, or one wrapper alone, is short for a list of one.
        value = [value] if isinstance(value, str | dict) else value
        return [{"name": w} if isinstance(w, str) else w for w in value] if isinstance(value, list | tuple) else value

    @field_validator("wrappers")
    @classmethod
    def _know_wrappers(cls, wrappers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for wrapper in wrappers:
            if wrapper.get("name") not in WRAPPERS:
                raise ValueError(f"each must have a name, one of {', '.join(WRAPPERS)}")
        return wrappers

    @model_validator(mode="after")
    def _check_used(self) -> "HostOptions":
        if not self.processes:
            why = "is for environments in processes of their own; set processes above 0"
            refuse_unused(self, ("step_timeout",), why)
        return self


class EnvPoolOptions(BaseModel):
    """Options of an environment of EnvPool."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments for envpool.make, for example --env-options.arguments '{num_threads: 2, reward_clip: true}'."""
