"""Spaces as plain values, which a JSON file can hold: those of the learner, and those of Gymnasium.

A run folder keeps what its policy sees and does in this form, so that the policy can act where the environment, and the
package that it comes from, are not installed.
"""

import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from memax_rl.envs import spaces

_LARGEST_INT32 = 2**31 - 1
# Elements of an array: more than any observation has, few enough for bounds to be made of them.
_MOST_ELEMENTS = 2**26

Size = Annotated[int, Field(ge=0, le=_MOST_ELEMENTS)]
Shape = Annotated[tuple[Size, ...], Field(max_length=32)]
Count = Annotated[int, Field(ge=1, le=_LARGEST_INT32)]
# An infinite bound is a word: JSON has no number for it.
Bound = int | float | Literal["inf", "-inf"]
_Whole = Literal["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
_Real = Literal["float16", "bfloat16", "float32", "float64"]
DType = _Whole | _Real


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def __str__(self) -> str:
        """As a space is written, such as Discrete(n=4)."""
        fields = ", ".join(f"{name}={value}" for name, value in self.model_dump(exclude_defaults=True).items())
        return f"{type(self).__name__.removeprefix('Plain')}({fields})"


class PlainDiscrete(_Plain):
    """Whole numbers from `start` on, `n` of them."""

    kind: Literal["Discrete"] = "Discrete"
    n: Count
    start: int = 0
    dtype: DType = "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of a value: it is one number."""
        return ()


class _PlainArray(_Plain):
    shape: Shape
    dtype: DType

    @property
    def elements(self) -> int:
        """How many numbers a value has."""
        return math.prod(self.shape)

    @model_validator(mode="after")
    def _check_elements(self) -> "_PlainArray":
        if self.elements > _MOST_ELEMENTS:
            raise ValueError(f"a shape of {self.elements} elements; expected at most {_MOST_ELEMENTS}")
        return self

    def _check_list(self, name: str, values: Any) -> None:
        if isinstance(values, tuple) and len(values) != self.elements:
            raise ValueError(f"{name} has {len(values)} numbers, but the shape {list(self.shape)} {self.elements}")


class PlainMultiDiscrete(_PlainArray):
    """An array of whole numbers, element i from `start[i]` on, `nvec[i]` of them; both flat, row by row."""

    kind: Literal["MultiDiscrete"] = "MultiDiscrete"
    nvec: Annotated[tuple[Count, ...], Field(min_length=1)]
    start: tuple[int, ...] | Literal[0] = 0

    @model_validator(mode="after")
    def _check_lists(self) -> "PlainMultiDiscrete":
        self._check_list("nvec", self.nvec)
        self._check_list("start", self.start)
        return self


class PlainMultiBinary(_PlainArray):
    """An array of zeros and ones, of Gymnasium; the learner has a MultiDiscrete of two values each."""

    kind: Literal["MultiBinary"] = "MultiBinary"


class PlainBox(_PlainArray):
    """An array within bounds: one for all elements, or one each, row by row."""

    kind: Literal["Box"] = "Box"
    low: Bound | tuple[Bound, ...]
    high: Bound | tuple[Bound, ...]

    @model_validator(mode="after")
    def _check_lists(self) -> "PlainBox":
        self._check_list("low", self.low)
        self._check_list("high", self.high)
        return self


class PlainTuple(_Plain):
    """Several spaces in an order."""

    kind: Literal["Tuple"] = "Tuple"
    spaces: tuple["PlainSpace", ...]


class PlainDict(_Plain):
    """Several spaces by name."""

    kind: Literal["Dict"] = "Dict"
    spaces: dict[str, "PlainSpace"]


PlainLeaf = PlainDiscrete | PlainMultiDiscrete | PlainMultiBinary | PlainBox
PlainSpace = Annotated[PlainLeaf | PlainTuple | PlainDict, Field(discriminator="kind")]

PlainTuple.model_rebuild()
PlainDict.model_rebuild()


def to_plain(space: Any) -> Any:
    """Return a space of the learner, or one of Gymnasium, as plain values.

    Raises:
        ValueError: For a space of another kind.
    """
    parts = getattr(space, "spaces", None)
    if isinstance(parts, Mapping):
        return PlainDict(spaces={str(name): to_plain(part) for name, part in parts.items()})
    if isinstance(parts, list | tuple):
        return PlainTuple(spaces=tuple(to_plain(part) for part in parts))
    dtype: Any = np.dtype(space.dtype).name
    shape = tuple(int(n) for n in space.shape)
    if type(space).__name__ == "MultiBinary":
        return PlainMultiBinary(shape=shape, dtype=dtype)
    if (nvec := getattr(space, "nvec", None)) is not None:
        starts = np.asarray(getattr(space, "start", 0))
        start = tuple(int(n) for n in starts.reshape(-1)) if starts.any() else 0
        counts = tuple(int(n) for n in np.asarray(nvec).reshape(-1))
        return PlainMultiDiscrete(shape=shape, dtype=dtype, nvec=counts, start=start)
    if (n := getattr(space, "n", None)) is not None:
        return PlainDiscrete(n=int(n), start=int(getattr(space, "start", 0)), dtype=dtype)
    if getattr(space, "low", None) is None:
        raise ValueError(f"cannot write down the space {space!r}; expected one of {', '.join(_KINDS)}")
    return PlainBox(shape=shape, dtype=dtype, low=_bounds(space.low, shape), high=_bounds(space.high, shape))


_KINDS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Tuple", "Dict")


def _bounds(bound: Any, shape: tuple[int, ...]) -> Any:
    """Return one bound where all elements have the same, else a flat tuple of them."""
    array = np.asarray(bound)
    if array.size and bool((array == array.reshape(-1)[0]).all()):
        return _number(array.reshape(-1)[0])
    return tuple(_number(x) for x in np.broadcast_to(array, shape).reshape(-1))


def _number(x: Any) -> Any:
    if np.issubdtype(np.asarray(x).dtype, np.integer) or np.asarray(x).dtype == bool:
        return int(x)
    # Exact: float32 and smaller fit into the numbers of JSON.
    value = float(x)
    return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def from_plain(plain: Any) -> Any:
    """Return the learner's space, one of `memax_rl.envs.spaces`, that is written down as plain values.

    The same values give the same object: gymnax's spaces equal only themselves, and a program that was compiled for the
    policy of one run is found again for the policy of another with equal spaces.

    Raises:
        ValueError: If only Gymnasium has it.
    """
    return _from_text(plain.model_dump_json())


# Few, because the bounds of images are large.
@functools.lru_cache(maxsize=16)
def _from_text(text: str) -> Any:
    return _made(_SPACE.validate_json(text))


_SPACE = TypeAdapter[Any](PlainSpace)


def _made(plain: Any) -> Any:
    if isinstance(plain, PlainDict):
        return spaces.Dict({name: _made(part) for name, part in plain.spaces.items()})
    if isinstance(plain, PlainTuple):
        return spaces.Tuple([_made(part) for part in plain.spaces])
    if isinstance(plain, PlainDiscrete) and plain.start == 0:
        return spaces.Discrete(plain.n)
    if isinstance(plain, PlainMultiDiscrete) and plain.start == 0 and len(plain.shape) == 1:
        return spaces.MultiDiscrete(plain.nvec)
    if isinstance(plain, PlainBox):
        dtype = jnp.dtype(plain.dtype)
        return spaces.Box(_array(plain.low, plain, dtype), _array(plain.high, plain, dtype), plain.shape, dtype)
    raise ValueError(f"{plain.kind} of shape {list(plain.shape)} is no space of a network")


def _array(bound: Any, plain: PlainBox, dtype: Any) -> Any:
    if isinstance(bound, tuple):
        array = np.array([float(x) if isinstance(x, str) else x for x in bound])
        # No whole number is infinite: such bounds stay real numbers.
        keeps = jnp.issubdtype(dtype, jnp.inexact) or np.isfinite(array).all()
        return (array.astype(dtype) if keeps else array).reshape(plain.shape)
    return float(bound) if isinstance(bound, str) else bound


def plain_leaves(plain: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any]]:
    """Return the simple spaces with the keys that lead to each, in the order of `jax.tree.leaves` of a value."""
    if isinstance(plain, PlainDict):
        parts: list[tuple[str | int, Any]] = sorted(plain.spaces.items())
    elif isinstance(plain, PlainTuple):
        parts = list(enumerate(plain.spaces))
    else:
        return [(path, plain)]
    return [leaf for key, part in parts for leaf in plain_leaves(part, (*path, key))]


def structure(plain: Any) -> Any:
    """Return a value's nest of dicts and tuples, with 0 for each array."""
    if isinstance(plain, PlainDict):
        return {name: structure(part) for name, part in plain.spaces.items()}
    if isinstance(plain, PlainTuple):
        return tuple(structure(part) for part in plain.spaces)
    return 0
