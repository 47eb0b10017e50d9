"""Options of environments that run on the host. Light to import."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


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
