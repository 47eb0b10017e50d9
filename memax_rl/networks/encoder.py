"""The encoder: from observation, previous action and previous reward to a vector of features.

All modules are unbatched; callers `jax.vmap`.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from memax_rl.envs import spaces
from memax_rl.networks.images import AUTO, ConvNet, ImageSettings, check_images, image_axes, image_codes, scale, scaling
from memax_rl.networks.normalization import NormalizedBox, RunningNormalizer, mark_normalized
from memax_rl.ops import linear

Space = spaces.Discrete | spaces.MultiDiscrete | spaces.Box | spaces.Tuple | spaces.Dict
# A Discrete space of more values is embedded, not one-hot.
_LARGEST_ONE_HOT = 512


class AgentInput(NamedTuple):
    """What the agent is shown at a step.

    Attributes:
        observation: Of the environment.
        previous_action, previous_reward: Of the step before; zero where `start` is true.
        start: Whether an episode begins.
        action_mask: Which actions are legal; None where all always are. It limits what the network may choose, and is
            not encoded.
    """

    observation: PyTree[Array]
    previous_action: PyTree[Array]
    previous_reward: Float[Array, "*axes"]
    start: Bool[Array, "*axes"]
    action_mask: Bool[Array, "*axes actions"] | None = None


class Dense(eqx.Module):
    """y = W x + b (`weight`, `bias`), with W from N(0, gain^2 / in_size) and b = 0 at the start."""

    weight: Float[Array, "out_size in_size"]
    bias: Float[Array, " out_size"]

    def __init__(self, in_size: int, out_size: int, gain: float = 1.0, *, key: PRNGKeyArray):
        self.weight = jax.random.normal(key, (out_size, in_size)) * (gain * max(in_size, 1) ** -0.5)
        self.bias = jnp.zeros(out_size)

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        """Apply the layer to one vector."""
        return linear(x, self.weight.T) + self.bias


def leaf_spaces(space: spaces.Space) -> list[Any]:
    """Return the leaf spaces of a Tuple or Dict, in the order of `jax.tree.leaves` of an observation.

    Raises:
        ValueError: If one of them is no Box, Discrete or MultiDiscrete.
    """
    leaves = spaces.leaves(space)
    for leaf in leaves:
        if not isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete | spaces.Box):
            raise ValueError(f"cannot encode the space {leaf!r}; expected Box, Discrete, MultiDiscrete, Tuple or Dict")
    return leaves


def one_hot(space: spaces.Discrete | spaces.MultiDiscrete, x: Array) -> Float[Array, " features"]:
    """Return the one-hot code of a discrete value, or those of all components of a multi-discrete one, concatenated."""
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(x, space.n)
    parts = [jax.nn.one_hot(x[i], n) for i, n in enumerate(nvec(space))]
    return jnp.concatenate(parts)


def nvec(space: spaces.MultiDiscrete) -> tuple[int, ...]:
    """Return the number of values of each component."""
    return tuple(int(n) for n in space.nvec)


class Embedding(eqx.Module):
    """A learned vector for each value of a large Discrete space: the sum of two, for its quotient and its remainder.

    Two tables of about sqrt(n) rows instead of one of n (Shi et al. 2020, https://arxiv.org/abs/1909.02107), so that
    any 32-bit space fits.

    Attributes:
        quotients, rests: The two tables.
        out_size: Size of a vector.

    Args:
        n: How many values the space has.
    """

    quotients: Float[Array, "rows out_size"]
    rests: Float[Array, "rows out_size"]
    out_size: int = eqx.field(static=True)

    def __init__(self, n: int, *, key: PRNGKeyArray):
        self.out_size = 64
        rows = math.isqrt(n - 1) + 1
        # Unit variance, as that of a normalized input.
        self.quotients, self.rests = jax.random.normal(key, (2, rows, self.out_size)) * 2**-0.5

    def __call__(self, x: Array) -> Float[Array, " out_size"]:
        """Return the vector of one value."""
        rows = self.rests.shape[0]
        return self.quotients[x // rows] + self.rests[x % rows]


class Encoder(eqx.Module):
    """Maps the observation, and optionally previous action, previous reward and start flag, to `width` features.

    Attributes:
        observation_spaces: The leaf spaces of the observation.
        include: Whether `previous_action`, `previous_reward` and `start` are encoded.
        images: How images are read.
        normalizers: Of each leaf its running statistics, or None. They are there with `normalize`.
        parts: Of each leaf its convolutions or embedding, or None.
        project: The layer to the features.
    """

    observation_spaces: tuple[Any, ...] = eqx.field(static=True)
    action_space: Any = eqx.field(static=True)
    include: tuple[bool, bool, bool] = eqx.field(static=True)
    images: ImageSettings = eqx.field(static=True)
    normalizers: tuple[RunningNormalizer | None, ...]
    parts: tuple[ConvNet | Embedding | None, ...]
    project: Dense

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        width: int,
        *,
        previous_action: bool,
        previous_reward: bool,
        start: bool,
        images: ImageSettings = AUTO,
        normalize: float | None = None,
        key: PRNGKeyArray,
    ):
        leaves = leaf_spaces(observation_space)
        check_images(leaves, images)
        self.observation_spaces = tuple(mark_normalized(leaves, normalize))
        self.action_space = action_space
        self.include = (previous_action, previous_reward, start)
        self.images = images
        self.normalizers = tuple(
            RunningNormalizer(space) if isinstance(space, NormalizedBox) else None for space in self.observation_spaces
        )
        *part_keys, key = jax.random.split(key, len(self.observation_spaces) + 1)
        self.parts = tuple(
            _make_part(space, images, k) for space, k in zip(self.observation_spaces, part_keys, strict=True)
        )
        size = sum(
            part.out_size if part else flat_size(space)
            for part, space in zip(self.parts, self.observation_spaces, strict=True)
        )
        size += flat_size(action_space) if previous_action else 0
        self.project = Dense(size + previous_reward + start, width, 2**0.5, key=key)

    def __call__(self, inputs: AgentInput) -> Float[Array, " width"]:
        """Return the features of one step."""
        return self.embed(self.flatten(inputs))

    def embed(self, inputs: Float[Array, " inputs"]) -> Float[Array, " width"]:
        """Return the features of a step from its flat inputs."""
        return jax.nn.gelu(self.project(inputs))

    def flatten(self, inputs: AgentInput) -> Float[Array, " inputs"]:
        """Return all inputs of one step as one vector: observation, previous action, previous reward, start flag."""
        leaves = self._normalize(inputs.observation)
        parts = [
            part(x) if part else flat(space, x, self.images)
            for part, space, x in zip(self.parts, self.observation_spaces, leaves, strict=True)
        ]
        previous_action, previous_reward, start = self.include
        if previous_action:
            code = flat(self.action_space, inputs.previous_action)
            # Otherwise "no action yet" would be encoded as action 0.
            parts.append(jnp.where(inputs.start, jnp.zeros_like(code), code))
        if previous_reward:
            parts.append(inputs.previous_reward[None])
        if start:
            parts.append(inputs.start[None].astype(jnp.float32))
        return jnp.concatenate(parts)

    def flat_observation(self, observation: PyTree[Array]) -> list[Float[Array, " features"]]:
        """Return each array of an observation as a vector, scaled or normalized or one-hot, before anything learned."""
        leaves = self._normalize(observation)
        return [flat(space, x, self.images) for space, x in zip(self.observation_spaces, leaves, strict=True)]

    def _normalize(self, observation: PyTree[Array]) -> list[Array]:
        leaves = jax.tree.leaves(observation)
        return [norm(x) if norm else x for norm, x in zip(self.normalizers, leaves, strict=True)]

    def observe(self, observation: PyTree[Array], valid: Bool[Array, "rows slots"]) -> "Encoder":
        """Return the encoder after its running statistics have seen the valid slots of a tape."""
        slots = [x.reshape(valid.size, *x.shape[2:]) for x in jax.tree.leaves(observation)]
        normalizers = tuple(
            norm.update(x, valid.reshape(-1)) if norm else None for norm, x in zip(self.normalizers, slots, strict=True)
        )
        return eqx.tree_at(lambda e: e.normalizers, self, normalizers, is_leaf=lambda x: x is None)


def flat_size(space: Any) -> int:
    """Return the size of a value of the space as a flat vector, discrete values one-hot."""
    if isinstance(space, spaces.Discrete):
        return space.n
    if isinstance(space, spaces.MultiDiscrete):
        return sum(nvec(space))
    return math.prod(space.shape)


def _make_part(space: Any, images: ImageSettings, key: PRNGKeyArray) -> ConvNet | Embedding | None:
    if isinstance(space, spaces.Discrete):
        return Embedding(space.n, key=key) if space.n > _LARGEST_ONE_HOT else None
    return None if image_axes(space, images) is None else ConvNet(space, images, key=key)


def flat(space: Any, x: Array, settings: ImageSettings = AUTO) -> Float[Array, " features"]:
    """Return a value of a simple space as a vector of `flat_size`: a Box scaled, a discrete one as one-hot code."""
    if isinstance(space, spaces.Box):
        return scale(space, x, settings).reshape(-1)
    return one_hot(space, x)


def describe_inputs(space: Space, images: ImageSettings = AUTO, normalize: float | None = None) -> list[str]:
    """Return a line for each array of an observation: its path in a Dict or Tuple, and how the network encodes it.

    Args:
        images: How images are read.
        normalize: Where running statistics clip; None: there are none.

    Raises:
        ValueError: As `image_codes` and `mark_normalized` do.
    """
    lines = []
    for name, leaf in zip(_leaf_names(space), mark_normalized(leaf_spaces(space), normalize), strict=True):
        by, axes, codes = scaling(leaf, images), image_axes(leaf, images), image_codes(leaf, images)
        if isinstance(leaf, NormalizedBox):
            how = "normalized by running statistics"
        elif isinstance(leaf, spaces.Box):
            how = "as it is" if by is None else "mapped from its bounds to [0, 1]"
        else:
            how = "one-hot"
        if isinstance(leaf, spaces.Discrete) and leaf.n > _LARGEST_ONE_HOT:
            how = "embedded"
        if axes is not None:
            height, width = leaf.shape[axes[1]], leaf.shape[axes[1] + 1]
            channels = math.prod(leaf.shape[axis] for axis in axes[0])
            how = f"codes of {' + '.join(map(str, codes))} values, one-hot" if codes else how
            how = f"an image of {height} x {width} with {channels} channels, {how}"
        lines.append(f"{name}{' ' if name else ''}{spaces.describe(leaf)}: {how}")
    return lines


def _leaf_names(space: Space, prefix: str = "") -> list[str]:
    """Return the keys that lead to each simple space, joined by dots."""
    if isinstance(space, spaces.Dict):
        parts: list[tuple[Any, Any]] = [(name, space.spaces[name]) for name in sorted(space.spaces)]
    elif isinstance(space, spaces.Tuple):
        parts = list(enumerate(space.spaces))
    else:
        return [prefix]
    return [name for key, part in parts for name in _leaf_names(part, f"{prefix}.{key}" if prefix else str(key))]
