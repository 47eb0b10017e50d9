"""spaces.json of a run: what its policy sees and does, so that it can act where the environment is not installed."""

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from memax_rl.envs.base import has_action_mask, host_of
from memax_rl.envs.plain_spaces import (
    PlainDiscrete,
    PlainLeaf,
    PlainMultiDiscrete,
    PlainSpace,
    from_plain,
    plain_leaves,
    to_plain,
)
from memax_rl.envs.spaces import value_counts
from memax_rl.envs.wrappers import layers

# Bounds of every element of the largest observations are less.
_LARGEST_FILE = 64_000_000


class PlainSpaces(BaseModel):
    """The observations and actions of an environment."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    observation: PlainSpace
    action: PlainLeaf


class SpacesFile(BaseModel):
    """What spaces.json holds.

    Attributes:
        version: Of this format.
        environment: As the environment itself gives and takes them: those of Gymnasium where it is Gymnasium's.
        learner: The same in the learner's form, before any wrapper: discrete values count from 0, numbers have at most
            32 bits.
        network: As the network sees and makes them, in all wrappers.
        action_masks: Whether the environment says which of its actions are legal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    environment: PlainSpaces
    learner: PlainSpaces
    network: PlainSpaces
    action_masks: bool = False

    @model_validator(mode="after")
    def _check(self) -> "SpacesFile":
        for part in (self.learner, self.network):
            for space in (part.observation, part.action):
                # Raises for a space that no network can have.
                from_plain(space)
        if _sizes(self.environment.observation) != _sizes(self.learner.observation):
            raise ValueError("environment.observation and learner.observation have other parts than each other")
        if self.action_masks and not isinstance(self.learner.action, PlainDiscrete | PlainMultiDiscrete):
            raise ValueError("action_masks is true, and only discrete actions have a mask")
        chosen = self.learner.action if _is_joint(self.learner.action, self.network.action) else self.network.action
        if len({_size(action) for action in (self.environment.action, self.learner.action, chosen)}) > 1:
            raise ValueError("the actions of environment, learner and network have other shapes than each other")
        return self


def _is_joint(inner: Any, chosen: Any) -> bool:
    """Whether the wrapper joint_action makes the one action of the other."""
    counts = value_counts(from_plain(inner)) if isinstance(inner, PlainMultiDiscrete) else None
    return counts is not None and isinstance(chosen, PlainDiscrete) and chosen.n == math.prod(counts)


def _sizes(observation: Any) -> dict[Any, int]:
    return {path: _size(leaf) for path, leaf in plain_leaves(observation)}


def _size(leaf: Any) -> int:
    return math.prod(leaf.shape)


def spaces_of(env: Any, params: Any) -> SpacesFile:
    """Return the spaces of an environment in its wrappers."""
    bare = layers(env)[0]

    def of(env: Any) -> PlainSpaces:
        return _plain(env.observation_space(params), env.action_space(params))

    host = host_of(bare)
    given = of(bare) if host is None else _plain(host.observation_space, host.action_space)
    masks = has_action_mask(bare, params)
    return SpacesFile(environment=given, learner=of(bare), network=of(env), action_masks=masks)


def _plain(observation: Any, action: Any) -> PlainSpaces:
    return PlainSpaces(observation=to_plain(observation), action=to_plain(action))


def dump_spaces(spaces: SpacesFile) -> str:
    """Return the text of the file."""
    return json.dumps(spaces.model_dump(mode="json"), allow_nan=False, indent=1) + "\n"


def read_spaces(path: Path) -> SpacesFile:
    """Return what the file holds.

    Raises:
        ValueError: With one line that names the file, if it cannot be read or holds anything else.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"{path} is larger than {_LARGEST_FILE} bytes, and no spaces.json of a run")
        return SpacesFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise ValueError(
            f"{path} is damaged: {_explain(error)}; restore it, or remove it to load with the run's environment"
        ) from None


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
