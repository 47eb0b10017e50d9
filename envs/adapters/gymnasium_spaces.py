"""Values of Gymnasium's spaces as the arrays that the learner takes, actions back, and what is wrong with a value.

No JAX here: processes of environments import it.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces


def simple_spaces(space: spaces.Space) -> list[spaces.Space]:
    """Return the simple spaces inside a Tuple or Dict, a Dict's in the order of its sorted keys."""
    if isinstance(space, spaces.Tuple):
        return [leaf for part in space.spaces for leaf in simple_spaces(part)]
    if isinstance(space, spaces.Dict):
        return [leaf for key in sorted(space.spaces) for leaf in simple_spaces(space.spaces[key])]
    return [space]


def _leaves(space: spaces.Space, value: Any) -> list[Any]:
    """Return the parts of a (batched) value in the order of `simple_spaces`."""
    if isinstance(space, spaces.Tuple):
        return [leaf for part, x in zip(space.spaces, value, strict=True) for leaf in _leaves(part, x)]
    if isinstance(space, spaces.Dict):
        return [leaf for key in sorted(space.spaces) for leaf in _leaves(space.spaces[key], value[key])]
    return [value]


def encoded(space: spaces.Space) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and dtype of the array that stands for a value of a simple space.

    Raises:
        ValueError: For a space that no array of a fixed shape can stand for.
    """
    if isinstance(space, spaces.Discrete) and int(space.n) <= _INT32.max:
        return (), np.dtype(np.int32)
    if isinstance(space, spaces.MultiDiscrete) and int(space.nvec.max()) <= _INT32.max:
        return (math.prod(space.shape),), np.dtype(np.int32)
    if isinstance(space, spaces.MultiBinary):
        return (math.prod(space.shape),), np.dtype(np.int32)
    if isinstance(space, spaces.Box):
        narrow = {"float64": "float32", "int64": "int32", "uint64": "int32", "bool": "uint8"}
        if space.dtype.name in ("int64", "uint64") and not _fits(space, _INT32):
            # Numbers that may be so large are measures: float32 has their size, and only their last digits are lost.
            return space.shape, np.dtype(np.float32)
        return space.shape, np.dtype(narrow.get(space.dtype.name, space.dtype.name))
    raise ValueError(f"expected Box, Discrete, MultiDiscrete, MultiBinary, or a Tuple or Dict of them, got {space}")


def require_arrays(observation: spaces.Space, action: spaces.Space) -> None:
    """Raise `ValueError` that names the part of the observation, or the action, that no array can stand for."""
    for path, leaf in _paths(observation):
        try:
            encoded(leaf)
        except ValueError as error:
            keys = [key for key in path if isinstance(key, str)][:1]
            hint = f"; leave it out with --env-options.drop-keys '[{keys[0]}]'" if keys == [*path[:1]] else ""
            name = "".join(f"[{key!r}]" for key in path)
            raise ValueError(f"observation{name} cannot be given to a network: {error}{hint}") from None
    try:
        encoded(action)
    except ValueError:
        raise ValueError(
            f"the action cannot be an agent's: expected Discrete, MultiDiscrete, MultiBinary or Box, got {action}"
        ) from None


def _paths(space: spaces.Space) -> Iterator[tuple[tuple[Any, ...], spaces.Space]]:
    if isinstance(space, spaces.Tuple | spaces.Dict):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            yield from (((key, *path), leaf) for path, leaf in _paths(part))
    else:
        yield (), space


_INT32 = np.iinfo(np.int32)


def _fits(box: spaces.Box, limits: np.iinfo) -> bool:
    return bool((box.low >= limits.min).all() and (box.high <= limits.max).all())


def least(space: Any) -> Any:
    """Return the least value of a discrete space; encoded values count from 0."""
    return space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else 0


def encode(space: spaces.Space, batch: Any) -> tuple[np.ndarray, ...]:
    """Return the leaves of a batch of values as arrays of the shapes and dtypes that `encoded` states."""
    result = []
    for leaf, values in zip(simple_spaces(space), _leaves(space, batch), strict=True):
        shape, dtype = encoded(leaf)
        values = np.asarray(values)
        result.append((values - least(leaf)).reshape(len(values), *shape).astype(dtype))
    return tuple(result)


def decode_action(space: Any, action: Any) -> Any:
    """Return the member of an action space that an array of the learner stands for."""
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(action + space.start)
    return (action.reshape(space.shape) + least(space)).astype(space.dtype)


def fault(space: spaces.Space, value: Any, name: str) -> str | None:
    """Return what is wrong with a value that should be of a space, or None."""
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            return f"{name} is {short(value)}, expected a tuple of {len(space.spaces)}"
        parts: Any = [(part, x, f"{name}[{i}]") for i, (part, x) in enumerate(zip(space.spaces, value, strict=True))]
    elif isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or set(value) != set(space.spaces):
            return f"{name} is {short(value)}, expected a dict with the keys {sorted(space.spaces)}"
        parts = [(part, value[key], f"{name}[{key!r}]") for key, part in space.spaces.items()]
    else:
        return _simple_fault(space, value, name)
    return next((found for part in parts if (found := fault(*part)) is not None), None)


def _simple_fault(space: Any, value: Any, name: str) -> str | None:
    try:
        array = np.asarray(value)
    except ValueError:
        return f"{name} is {short(value)}, expected one of {space}"
    if array.shape != space.shape:
        return f"{name} has shape {list(array.shape)}, expected {list(space.shape)}: {short(value)}"
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):
        return f"{name} has dtype {array.dtype}, expected {space.dtype}: {short(value)}"
    if isinstance(space, spaces.Box):
        return _box_fault(array, encoded(space)[1], name)
    count = {spaces.Discrete: lambda: space.n, spaces.MultiDiscrete: lambda: space.nvec}
    low = least(space)
    high = low + count.get(type(space), lambda: 2)()
    return None if bool(((array >= low) & (array < high)).all()) else f"{name} is {short(value)}, not in {space}"


def _box_fault(array: np.ndarray, dtype: np.dtype, name: str) -> str | None:
    """Return what becomes wrong with an array when it is narrowed to what the learner takes, or None."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            is_sound = bool(np.isfinite(array.astype(dtype)).all())
        was_finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
        reason = f"too large for {dtype}" if was_finite else "not finite"
        return None if is_sound else f"{name} is {reason}: {short(array)}"
    limits = np.iinfo(dtype)
    is_sound = array.dtype.kind == "b" or bool(((array >= limits.min) & (array <= limits.max)).all())
    return None if is_sound else f"{name} does not fit in {dtype}, by its space: {short(array)}"


def short(value: Any) -> str:
    """Return a value in one line of at most 200 characters, for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def blank(space: spaces.Space) -> Any:
    """An observation to show before there is one. Not a sample, which overflows for some spaces."""
    if isinstance(space, spaces.Dict):
        return {name: blank(part) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(blank(part) for part in space.spaces)
    if isinstance(space, spaces.Discrete):
        return space.start
    return np.zeros(space.shape or (), space.dtype)
