"""Options of the environments of optional packages. Light to import."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CraftaxOptions(_Options):
    """Options of a Craftax environment."""

    max_steps: int | None = Field(default=None, ge=1, lt=2**31)
    """Time limit of an episode. null: the package's own, 10,000 in Classic, else 100,000."""


class ArcadeOptions(_Options):
    """Options of a game of POPGym Arcade."""

    partial_obs: bool = True
    """Whether the picture leaves out a part of the state."""
    obs_size: Literal[128, 256] = 128
    """Pixels along each side of the picture."""


class BraxOptions(_Options):
    """Options of an environment of brax."""

    backend: Literal["generalized", "positional", "spring", "mjx"] | None = None
    """The physics. null: the environment's own."""
    max_steps: int = Field(default=1000, ge=1, lt=2**31)
    """Time limit of an episode, which truncates; 1000 is that of brax's own training."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the environment's constructor."""


class PlaygroundOptions(_Options):
    """Options of an environment of MuJoCo Playground."""

    max_steps: int | None = Field(default=None, ge=1, lt=2**31)
    """Time limit of an episode, which truncates. null: the package's own."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of the package's configuration of the environment to override."""


class JumanjiOptions(_Options):
    """Options of an environment of Jumanji."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment's constructor, for example --env-options.arguments '{time_limit: 50}'."""


class NavixOptions(_Options):
    """Options of an environment of navix."""

    view: Literal["symbolic_first_person", "symbolic", "rgb_first_person", "rgb"] = "symbolic_first_person"
    """What the agent sees: codes or pixels, of what is before it or of the whole grid."""
    max_steps: int | None = Field(default=None, ge=1, lt=2**31)
    """Time limit of an episode. null: the package's own."""


class PobaxOptions(_Options):
    """An environment of pobax has no options."""


MODELS: dict[str, type[BaseModel]] = {
    "craftax": CraftaxOptions,
    "popgym_arcade": ArcadeOptions,
    "brax": BraxOptions,
    "mujoco_playground": PlaygroundOptions,
    "jumanji": JumanjiOptions,
    "navix": NavixOptions,
    "pobax": PobaxOptions,
}
