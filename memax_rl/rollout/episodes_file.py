"""Episodes in a file: one array a column, episodes end to end as on a tape, in NumPy's format of zipped arrays (.npz).

The columns, each with a leading axis of slots (see `memax_rl.rollout.tape` for what a slot is):

- `observation`, or `observation/NAME` for each part of a Dict or Tuple: what was shown, in the wrappers of the run;
- `action`: as the environment in these wrappers takes it; `reward`;
- `start`, `terminated`, `truncated`, `valid`: flags. `valid` is false in the slot of the final observation that follows
  a truncated transition; nothing was done there;
- `action_mask`: which actions were legal, where the environment says so.

`about` is a text: JSON with the spaces and where the episodes come from (`About`). NumPy alone reads it all:

>>> with np.load("data.npz") as data:  # doctest: +SKIP
...     about, actions = json.loads(str(data["about"])), data["action"]
"""

import hashlib
import io
import json
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memax_rl.envs import spaces
from memax_rl.envs.plain_spaces import (
    PlainBox,
    PlainDiscrete,
    PlainLeaf,
    PlainSpace,
    from_plain,
    plain_leaves,
    structure,
)
from memax_rl.rollout.tape import Tape

# What reading a damaged file may raise.
_DAMAGES = (
    *(EOFError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, RuntimeError),
    *(LookupError, TypeError, ValueError, AttributeError, OverflowError),
)
_FLAGS = ("start", "terminated", "truncated", "valid")
# Messages repeat it: no line ends, nothing that a terminal would act on.
_Name = Annotated[str, Field(pattern=r"^\P{C}*$")]


class About(BaseModel):
    """What a file of episodes says of them.

    Attributes:
        version: Of this format.
        env: The environment that they were played in.
        source: Who played: "strategy NAME", or a trained run's agent and memory.
        observation, action: The spaces, as plain values; of the action, the environment's.
        episodes: How many.
        mean_return: Of their returns.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    env: _Name
    source: _Name
    observation: PlainSpace
    action: PlainLeaf
    episodes: Annotated[int, Field(ge=1, le=2**31 - 1)]
    mean_return: float


class Episodes(NamedTuple):
    """Complete episodes end to end on a `tape` [slots], and what is said of them (`about`)."""

    tape: Tape
    about: About


class EpisodesFile(NamedTuple):
    """The `episodes` of a file, and the `sha256` of its bytes in hexadecimal."""

    episodes: Episodes
    sha256: str


def _observation_columns(about: About) -> list[tuple[str, Any]]:
    """Return the name and the space of each part of an observation, in the order of its leaves."""
    return [("/".join(map(str, ("observation", *path))), leaf) for path, leaf in plain_leaves(about.observation)]


def dump_episodes(episodes: Episodes) -> bytes:
    """Return the content of a file of these `episodes`. Raises `ValueError` for what could not be read again."""
    tape, about = episodes
    names = [name for name, _ in _observation_columns(about)]
    columns: dict[str, Any] = dict(zip(names, jax.tree.leaves(tape.observation), strict=True))
    columns |= {name: getattr(tape, name) for name in ("action", "reward", *_FLAGS)}
    if tape.action_mask is not None:
        columns["action_mask"] = tape.action_mask
    arrays: dict[str, Any] = {name: np.asarray(x) for name, x in columns.items()}
    _tape(dict(arrays), about)
    text = json.dumps(about.model_dump(mode="json"), allow_nan=False)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=np.array(text), **arrays)
    return buffer.getvalue()


def read_episodes(path: Path) -> EpisodesFile:
    """Return the episodes of a file.

    Raises:
        ValueError: With one line that names the file, if it cannot be read, or its columns are not what it says.
        OSError: If there is no such file.
    """
    try:
        if path.exists() and not path.is_file():
            # Reading a pipe would wait for ever.
            raise OSError("it is no plain file")
        content = path.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as data:
            columns = {name: _read(data.zip, f"{name}.npy") for name in data.files}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise ValueError(f"{path} holds more than there is memory for; collect fewer episodes") from None
    except _DAMAGES:
        raise ValueError(f"{path} is no file of episodes, or damaged; `memax-rl collect` makes one") from None
    try:
        about = About.model_validate_json(str(columns.pop("about")))
        return EpisodesFile(Episodes(_tape(columns, about), about), hashlib.sha256(content).hexdigest())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{path}: {_of_about(first)}; `memax-rl collect` makes such files") from None
    except KeyError as error:
        raise ValueError(f"{path} has no column {error}; `memax-rl collect` makes such files") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _of_about(error: Any) -> str:
    """Return in words what is wrong with `about`; of a space only whose it is, as its parts have no plain names."""
    known = [str(part) for part in error["loc"][:1] if part in About.model_fields]
    what = error["msg"].removeprefix("Value error, ")
    if not known:
        what = f"unknown key {str(error['loc'][0])[:50]!r}" if error["loc"] else what
    if known and len(error["loc"]) > 1:
        return f"the column about does not hold a space as its {known[0]}: {what}"
    return f"the column about{', ' + known[0] if known else ''}: {what}"


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # Whole, so that its checksum is compared.
    return np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)


def _tape(columns: dict[str, Any], about: About) -> Tape:
    """Return the columns as a tape, checked."""
    # Raises for a space that no network can have.
    from_plain(about.observation)
    action = from_plain(about.action)
    slots = len(np.atleast_1d(columns["start"]))
    parts = [_checked(name, columns.pop(name), slots, leaf) for name, leaf in _observation_columns(about)]
    shapes = {"action": about.action} | {"reward": PlainBox(shape=(), dtype="float32", low="-inf", high="inf")}
    known = {name: _checked(name, columns.pop(name), slots, leaf) for name, leaf in shapes.items()}
    flags = {name: _checked(name, columns.pop(name), slots, None) for name in _FLAGS}
    mask = columns.pop("action_mask", None)
    if columns:
        raise ValueError(f"unknown columns {', '.join(sorted(columns))}")
    _check_episodes(flags, about.episodes)
    _check_bounds(action, known["action"])
    if mask is not None:
        _check_mask(action, mask, known["action"], flags["valid"])
    observation = jax.tree.unflatten(jax.tree.structure(structure(about.observation)), parts)
    return Tape(**jax.tree.map(jnp.asarray, {"observation": observation, **known, **flags, "action_mask": mask}))


def _checked(name: str, column: np.ndarray, slots: int, leaf: Any) -> Any:
    """Return a column, whose values must be in the space `leaf`; flags where that is None."""
    dtype = "bool" if leaf is None else leaf.dtype
    shape = (slots, *(() if leaf is None else leaf.shape))
    if column.shape != shape or column.dtype.name != dtype:
        raise ValueError(
            f"{name} is {column.dtype.name}{list(column.shape)}, expected {dtype}{list(shape)} by the other columns"
        )
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        raise ValueError(f"{name} holds nan or infinite numbers")
    if leaf is not None and not isinstance(leaf, PlainBox):
        most = np.asarray(leaf.n if isinstance(leaf, PlainDiscrete) else leaf.nvec)
        if ((column < 0) | (column >= most)).any():
            raise ValueError(f"{name} holds values that are not in {leaf}")
    return column


def _check_bounds(space: Any, actions: np.ndarray) -> None:
    """Raise `ValueError` unless the actions are within the bounds of a Box, with room for rounding."""
    if isinstance(space, spaces.Box):
        low, high = (np.broadcast_to(np.asarray(x, np.float64), space.shape) for x in (space.low, space.high))
        room = [1e-5 * np.maximum(1, np.abs(bound)) for bound in (low, high)]
        if ((actions < low - room[0]) | (actions > high + room[1])).any():
            raise ValueError(f"action holds values from {actions.min()} to {actions.max()} that are not in {space!r}")


def _check_mask(space: Any, mask: np.ndarray, actions: np.ndarray, valid: np.ndarray) -> None:
    """Raise `ValueError` unless the mask is one of the space, and says that what was done was legal."""
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        raise ValueError(f"action_mask is for Discrete and MultiDiscrete actions, and these are {space!r}")
    counts = spaces.value_counts(space)
    shape = (len(actions), sum(counts))
    if mask.shape != shape or mask.dtype != bool:
        raise ValueError(f"action_mask is {mask.dtype.name}{list(mask.shape)}, expected bool{list(shape)}")
    places = actions.reshape(len(actions), -1) + np.cumsum([0, *counts[:-1]])
    illegal = int((~np.take_along_axis(mask, places, axis=1)).any(axis=1, where=valid[:, None]).sum())
    if illegal:
        raise ValueError(f"action holds {illegal} actions that action_mask says are not legal")


def _check_episodes(flags: dict[str, np.ndarray], count: int) -> None:
    """Raise `ValueError` unless the slots are `count` complete episodes end to end."""
    start, ended = flags["start"], flags["terminated"] | flags["truncated"]
    if not len(start) or not start[0] or start.sum() != count:
        raise ValueError(f"{int(start.sum())} start flags for {count} episodes, expected one on the first slot of each")
    final = np.concatenate([[False], flags["truncated"][:-1]])
    if (final & (start | ended)).any() or (flags["valid"] == final).any():
        raise ValueError("after a truncated transition, and nowhere else, must be one slot that is not valid")
    # The last slot is followed by the first one, which is a start.
    if ((flags["terminated"] | final) != np.roll(start, -1)).any():
        raise ValueError("every episode must end with a terminated transition, or a truncated one and its final slot")
