"""Action and observation spaces: those of gymnax, and MultiDiscrete, which gymnax lacks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments.spaces import Box as Box
from gymnax.environments.spaces import Dict as Dict
from gymnax.environments.spaces import Discrete as Discrete
from gymnax.environments.spaces import Space as Space
from gymnax.environments.spaces import Tuple as Tuple
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray


class MultiDiscrete(Space):
    """A vector of integers, component i in [0, nvec[i]).

    Attributes:
        nvec: The number of values of each component.
        shape: `(len(nvec),)`.
        dtype: int32.
    """

    def __init__(self, nvec: Sequence[int]):
        """Make the space.

        Args:
            nvec: The number of values of each component.

        Raises:
            ValueError: If `nvec` is empty or holds a number below 1.
        """
        if len(nvec) == 0 or min(nvec) < 1:
            raise ValueError(f"nvec: expected at least one number, each 1 or more, got {tuple(nvec)}")
        self.nvec = tuple(nvec)
        self.shape = (len(self.nvec),)
        self.dtype = jnp.dtype(jnp.int32)

    def __repr__(self) -> str:
        return f"MultiDiscrete({self.nvec})"

    def sample(self, key: PRNGKeyArray) -> Int32[Array, " components"]:
        """Draw every component uniformly and independently."""
        return jax.random.randint(key, self.shape, 0, jnp.array(self.nvec), self.dtype)

    def contains(self, x: Int[Array, " components"]) -> Bool[Array, ""]:
        """Whether every component is within its range."""
        return jnp.all((x >= 0) & (x < jnp.array(self.nvec)))


def recognize(space: Any) -> Space:
    """A space of any package as one of these, by its attributes.

    `spaces` (a Dict or Tuple), `nvec` or `num_values`, `n`, `low` and `high` or `minimum` and `maximum`, or else
    `shape` and `dtype` alone, which is a Box without bounds. Whole numbers in a grid, an `n` with a shape, are a Box of
    them.

    Raises:
        ValueError: If it has none of them.
    """
    # Some packages compute a bound when it is asked for, which within a compiled function would be a traced value.
    with jax.ensure_compile_time_eval():
        return _recognize(space)


def _recognize(space: Any) -> Space:
    if isinstance(space, Discrete | MultiDiscrete | Box) and not isinstance(space, Dict | Tuple):
        return space
    parts = getattr(space, "spaces", None)
    if isinstance(parts, Mapping):
        return Dict({name: _recognize(part) for name, part in sorted(parts.items())})
    if isinstance(parts, list | tuple):
        return Tuple([_recognize(part) for part in parts])
    values = getattr(space, "nvec", getattr(space, "num_values", None))
    if values is not None and jnp.ndim(values) == 1:
        return MultiDiscrete([int(n) for n in values])
    if values is not None and jnp.ndim(values) > 1:
        return Box(0, jnp.asarray(values) - 1, jnp.shape(values), space.dtype)
    count, shape = getattr(space, "n", values), tuple(getattr(space, "shape", None) or ())
    if count is not None and jnp.ndim(count) == 0:
        return Box(0, int(count) - 1, shape, space.dtype) if shape else Discrete(int(count))
    low, high = (
        getattr(space, "low", getattr(space, "minimum", None)),
        getattr(space, "high", getattr(space, "maximum", None)),
    )
    if low is not None and high is not None:
        return Box(low, high, shape, space.dtype)
    if getattr(space, "shape", None) is not None and is_number(getattr(space, "dtype", None)):
        return unbounded(shape, space.dtype)
    raise ValueError(
        f"cannot read the space {space!r}; expected one with n (Discrete), nvec (MultiDiscrete), low and high (Box) or "
        "spaces (Dict, Tuple)"
    )


def is_number(dtype: Any) -> bool:
    """Whether this is the dtype of an array that JAX can hold."""
    try:
        kind = jnp.dtype(dtype)
    except TypeError:
        return False
    return dtype is not None and (jnp.issubdtype(kind, jnp.number) or kind == jnp.bool_)


def unbounded(shape: Sequence[int], dtype: Any) -> Box:
    """A Box of any numbers. Whole ones of no known range are measures, such as a step count: they become float32.

    Args:
        shape, dtype: Of its elements.
    """
    kind = jnp.dtype(dtype)
    if kind == jnp.bool_:
        return Box(0, 1, tuple(shape), kind)
    return Box(-jnp.inf, jnp.inf, tuple(shape), kind if jnp.issubdtype(kind, jnp.floating) else jnp.float32)


# Actions of which only some are legal


def value_counts(space: Discrete | MultiDiscrete) -> tuple[int, ...]:
    """How many values each component of an action has; a Discrete action has one component."""
    return tuple(int(n) for n in space.nvec) if isinstance(space, MultiDiscrete) else (int(space.n),)


def by_component(space: Discrete | MultiDiscrete, x: Array) -> list[Array]:
    """Split what holds an entry for each value of each component, as a mask of actions does."""
    counts = value_counts(space)
    return [x[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]


def usable_mask(space: Discrete | MultiDiscrete, mask: Array) -> Bool[Array, " actions"]:
    """The mask, with all values of a component legal where none is: one must be taken."""
    return jnp.concatenate([part | ~jnp.any(part) for part in by_component(space, jnp.asarray(mask, bool))])


def draw_action(
    space: Discrete | MultiDiscrete, uniform: Float[Array, " components"], mask: Bool[Array, " actions"] | None = None
) -> Array:
    """Return a random action, drawn evenly among the legal values of each component: [] or [components].

    Args:
        space: The space of actions.
        uniform: A random number in [0, 1) for each component.
        mask: Which values are legal: those of the first component, then those of the second, and so on.
    """
    counts = jnp.array(value_counts(space))
    if mask is None:
        drawn = jnp.minimum((uniform * counts).astype(jnp.int32), counts - 1)
    else:
        # The place of the k-th legal value.
        parts = zip(uniform, by_component(space, mask), strict=True)
        drawn = jnp.stack([_place(u, part) for u, part in parts])
    return drawn.reshape(space.shape).astype(jnp.int32)


def _place(uniform: Array, legal: Bool[Array, " values"]) -> Int32[Array, ""]:
    count = jnp.sum(legal)
    k = jnp.minimum((uniform * count).astype(jnp.int32), count - 1)
    return jnp.argmax(jnp.cumsum(legal) > k).astype(jnp.int32)


def leaves(space: Space) -> list[Any]:
    """The leaf spaces of a Tuple or Dict, in the order of `jax.tree.leaves` of an observation."""
    if isinstance(space, Tuple):
        return [leaf for part in space.spaces for leaf in leaves(part)]
    if isinstance(space, Dict):
        return [leaf for name in sorted(space.spaces) for leaf in leaves(space.spaces[name])]
    return [space]


def other_parts(what: str, space: Space, observation: Any) -> str | None:
    """What is wrong with an observation of other keys, or another number of arrays, than its space has, or None.

    Args:
        what: Whose observation it is, the beginning of the sentence.
        space: Its space.
        observation: What came in its place.
    """
    if len(jax.tree.leaves(observation)) == len(leaves(space)) and not _has_other_keys(space, observation):
        return None
    if isinstance(space, Dict) and isinstance(observation, Mapping):
        lacks = [repr(name) for name in space.spaces if name not in observation]
        more = [repr(name) for name in observation if name not in space.spaces]
        if lacks or more:
            said = [f"lacks {', '.join(lacks)}"] * bool(lacks) + [f"has {', '.join(more)} beside"] * bool(more)
            return f"{what} {' and '.join(said)}; its space is {describe(space)}"
    came = " ".join(str(jax.tree.map(lambda x: jax.typeof(x).str_short(), observation)).split())
    return f"{what} must be as its space, {describe(space)}; got {came[:200]}"


def _has_other_keys(space: Space, observation: Any) -> bool:
    """Whether a dict in an observation has other keys than its space. Its arrays would be taken for others."""
    if isinstance(space, Dict) and isinstance(observation, Mapping):
        if space.spaces.keys() != observation.keys():
            return True
        return any(_has_other_keys(part, observation[name]) for name, part in space.spaces.items())
    if isinstance(space, Tuple) and isinstance(observation, tuple | list) and len(space.spaces) == len(observation):
        return any(map(_has_other_keys, space.spaces, observation))
    return False


def describe(space: Space) -> str:
    """A space in a few words: `Discrete(4)`, `MultiDiscrete(3 x 104)`, `Box(2)`, `Tuple(Discrete(2), Discrete(4))`."""
    if isinstance(space, Tuple):
        return f"Tuple({', '.join(describe(part) for part in space.spaces)})"
    if isinstance(space, Dict):
        return f"Dict({', '.join(f'{name}: {describe(part)}' for name, part in space.spaces.items())})"
    if isinstance(space, Discrete):
        return f"Discrete({space.n})"
    if isinstance(space, MultiDiscrete):
        nvec = list(space.nvec)
        # The shortest part that the rest repeats, as the tile and the color of every cell of a grid.
        period = next(n for n in range(1, len(nvec) + 1) if nvec == nvec[:n] * (len(nvec) // n))
        values = ", ".join(map(str, nvec if len(nvec) <= 2 else nvec[:period]))
        if len(nvec) > 2 and period < len(nvec):
            values = f"{values if period == 1 else f'({values})'} x {len(nvec) // period}"
        return f"MultiDiscrete({values})"
    if isinstance(space, Box):
        return f"Box({', '.join(map(str, space.shape))})"
    return repr(space)
