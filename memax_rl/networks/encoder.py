"""The encoder: from observation, previous action and previous reward to a vector of features.

All modules are unbatched; callers `jax.vmap`.
"""

import math
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from memax_rl.envs import spaces
from memax_rl.networks.normalization import RunningMeanStd
from memax_rl.ops import linear

Space = spaces.Discrete | spaces.MultiDiscrete | spaces.Box | spaces.Tuple | spaces.Dict


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


class ImageSettings(NamedTuple):
    """How images among the observations are read.

    Attributes:
        kind: "pixels": brightness; "codes": categorical values, encoded one-hot for each channel; "auto": codes if a
            Box of whole numbers has three to 32 values, else pixels.
        channels: Which axis of three holds the channels, "first" or "last"; "auto": the smaller one.
    """

    kind: Literal["auto", "pixels", "codes"] = "auto"
    channels: Literal["auto", "first", "last"] = "auto"


AUTO = ImageSettings()
# Whole numbers of fewer values than the first are flags, of more than the second brightness.
_FEWEST_CODES, _MOST_CODES = 3, 32
# A longer one-hot code would not fit into memory.
_MOST_STATED_CODES = 256


# A picture has at least so many rows and columns; smaller arrays are read as vectors.
_SMALLEST_IMAGE = 5
# Convolutions shrink an image until neither side is longer than this.
_LARGEST_MAP = 12
# Boxes with bounds beyond the first are scaled; bounds beyond the second count as infinite.
_LARGE_BOUND, _NO_BOUND = 30.0, 1e6
# A Discrete space of more values is embedded, not one-hot.
_LARGEST_ONE_HOT = 512


def image_axes(space: Any, settings: ImageSettings = AUTO) -> tuple[tuple[int, ...], int] | None:
    """Return the channel axes of a Box and the first of its two spatial axes; None if it is no image.

    Of three axes the smallest is that of the channels, if it is the first or the last (the last if both are as small).
    Two axes are an image of one channel. Of four the first counts images of a stack, which are channels too.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3, 4):
        return None
    shape = space.shape
    if len(shape) == 2:
        channels, first = (), 0
    else:
        offset = len(shape) - 3
        sizes = shape[offset:]
        leads = sizes[0] < min(sizes[1:]) if settings.channels == "auto" else settings.channels == "first"
        channels, first = (*range(offset), offset + (0 if leads else 2)), offset + leads
    return (channels, first) if min(shape[first : first + 2]) >= _SMALLEST_IMAGE else None


def image_codes(space: Any, settings: ImageSettings = AUTO) -> tuple[int, ...] | None:
    """Return how many values each channel of an image of codes has; None for any other space.

    Raises:
        ValueError: If "codes" are asked for and the bounds are not those of few whole numbers.
    """
    axes = image_axes(space, settings)
    if axes is None or settings.kind == "pixels" or isinstance(space, NormalizedBox):
        return None
    low, high = (np.broadcast_to(np.asarray(x, np.float64), space.shape) for x in (space.low, space.high))
    whole = bool(jnp.issubdtype(space.dtype, jnp.integer)) and np.isfinite(low).all() and np.isfinite(high).all()
    values = (np.moveaxis(high - low, axes[0], range(len(axes[0]))) + 1) if whole else np.full(space.shape, np.inf)
    channels = values.reshape(-1, *values.shape[len(axes[0]) :]).max(axis=(1, 2))
    if settings.kind == "codes":
        if channels.max() > _MOST_STATED_CODES:
            raise ValueError(
                f"network.images is 'codes', but {space!r} is no Box of whole numbers of at most {_MOST_STATED_CODES} "
                "values; set it to 'pixels' or 'auto'"
            )
    elif not _FEWEST_CODES <= channels.max() <= _MOST_CODES:
        return None
    return tuple(int(n) for n in channels)


def scaling(space: Any, settings: ImageSettings = AUTO) -> tuple[Array, Array] | None:
    """Return (low, width) by which values of a Box are mapped to [0, 1], or None where they stay as they are.

    This depends on the bounds, never on the dtype: an image is scaled if its bounds are finite, any other Box if they
    are finite and exceed 30.
    """
    if not isinstance(space, spaces.Box):
        return None
    low, high = (np.broadcast_to(np.asarray(x, np.float32), space.shape) for x in (space.low, space.high))
    largest = max(np.abs(low).max(initial=0), np.abs(high).max(initial=0))
    if not largest < _NO_BOUND or (image_axes(space, settings) is None and largest <= _LARGE_BOUND):
        return None
    width = np.where(high > low, high - low, 1)
    if np.all(low == low.flat[0]) and np.all(width == width.flat[0]):
        low, width = low.flat[0], width.flat[0]
    return jnp.asarray(low), jnp.asarray(width)


def check_images(leaves: list[Any], settings: ImageSettings) -> None:
    """Raise `ValueError` if `settings` say how images are read, and there is none among the leaf spaces.

    Args:
        leaves: Of `leaf_spaces`.
        settings: How images are read.
    """
    images = [leaf for leaf in leaves if image_axes(leaf, settings) is not None]
    chosen = {"images": (settings.kind, 2), "channels": (settings.channels, 3)}
    for name, (value, axes) in chosen.items():
        if value != "auto" and not any(len(leaf.shape) >= axes for leaf in images):
            raise ValueError(
                f"network.{name} is {value!r}, and nothing in the observation is then an image with {axes} axes or "
                f"more, {_SMALLEST_IMAGE} or more rows and columns: {', '.join(map(spaces.describe, leaves))}; set it "
                "to 'auto'"
            )


class ConvNet(eqx.Module):
    """Convolutions of 3 x 3 for an image: at least two, and as many as reduce both sides to at most 12.

    Attributes:
        layers: The convolutions.
        channels: The axes of the space that are channels.
        space, settings: The space, and how images are read.
        codes: How many values each channel has, if they are categorical, else None.
        out_size: Size of what they put out.
    """

    layers: tuple[eqx.nn.Conv2d, ...]
    channels: tuple[int, ...] = eqx.field(static=True)
    space: Any = eqx.field(static=True)
    settings: ImageSettings = eqx.field(static=True)
    codes: tuple[int, ...] | None = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

    def __init__(self, space: spaces.Box, settings: ImageSettings = AUTO, *, key: PRNGKeyArray):
        axes = image_axes(space, settings)
        assert axes is not None
        self.space, self.settings, self.codes = space, settings, image_codes(space, settings)
        self.channels, first = axes
        height, width = space.shape[first : first + 2]
        channels = sum(self.codes) if self.codes else math.prod(space.shape[axis] for axis in self.channels)
        # Large images are halved from the first layer on; small ones (MinAtar's 10 x 10) are read at full size first.
        strides = [2, 2] if min(height, width) > 16 else [1, 2]
        while -(-max(height, width) // math.prod(strides)) > _LARGEST_MAP:
            strides.append(2)
        layers = []
        for i, (stride, k) in enumerate(zip(strides, jax.random.split(key, len(strides)), strict=True)):
            out = 16 if i == 0 else 32
            layers.append(eqx.nn.Conv2d(channels, out, 3, stride, padding=1, key=k))
            height, width, channels = math.ceil(height / stride), math.ceil(width / stride), out
        self.layers = tuple(layers)
        self.out_size = channels * height * width

    def __call__(self, image: Shaped[Array, "*shape"]) -> Float[Array, " out_size"]:
        """Return the flat features of one image, in the layout of the environment."""
        if self.codes is None:
            x = self._channels_first(_scale(self.space, image, self.settings))
        else:
            low = np.broadcast_to(np.asarray(self.space.low), self.space.shape)
            codes = self._channels_first((image - jnp.asarray(low, image.dtype)).astype(jnp.int32))
            parts = [jnp.moveaxis(jax.nn.one_hot(codes[i], n), -1, 0) for i, n in enumerate(self.codes)]
            x = jnp.concatenate(parts)
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x.reshape(-1)

    def _channels_first(self, image: Array) -> Array:
        x = jnp.moveaxis(image, self.channels, range(len(self.channels)))
        return x.reshape(-1, *x.shape[-2:])


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


class NormalizedBox(spaces.Box):
    """A Box of real numbers that the network normalizes by running statistics.

    Attributes:
        box: The Box as it was.
        clip: Normalized components are clipped to plus and minus this.
    """

    def __init__(self, box: spaces.Box, clip: float):
        super().__init__(box.low, box.high, box.shape, box.dtype)
        self.box, self.clip = box, clip

    def __eq__(self, other: object) -> bool:
        # It is part of the networks, whose structure must be the same for two calls.
        return isinstance(other, NormalizedBox) and self.box is other.box and self.clip == other.clip

    def __hash__(self) -> int:
        return hash((id(self.box), self.clip))


def mark_normalized(leaves: list[Any], clip: float | None) -> list[Any]:
    """Return the leaf spaces, with Boxes of real numbers that are no images as `NormalizedBox` unless `clip` is None.

    Args:
        leaves: The leaf spaces, of `leaf_spaces`.
        clip: That of `NormalizedBox`.

    Raises:
        ValueError: If there is none to mark.
    """
    if clip is None:
        return leaves
    real = [
        isinstance(x, spaces.Box) and bool(jnp.issubdtype(x.dtype, jnp.floating)) and len(x.shape) < 3 for x in leaves
    ]
    if not any(real):
        shown = ", ".join(map(spaces.describe, leaves))
        raise ValueError(f"network.normalize_observation needs a Box of real numbers to observe, got {shown}")
    return [NormalizedBox(x, clip) if is_real else x for x, is_real in zip(leaves, real, strict=True)]


class RunningNormalizer(eqx.Module):
    """(x - mean) / standard deviation over all x passed to `update`, clipped. Before the first `update`, x clipped.

    No gradient flows into the statistics, so an optimizer does not change them.

    Attributes:
        moments: Mean and variance.
        clip: The result is clipped to plus and minus this.
    """

    moments: RunningMeanStd
    clip: float = eqx.field(static=True)

    def __init__(self, space: NormalizedBox):
        self.moments = RunningMeanStd(space.shape)
        self.clip = space.clip

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Normalize one observation."""
        mean, variance = jax.lax.stop_gradient((self.moments.mean, self.moments.variance))
        return jnp.clip((x - mean) * jax.lax.rsqrt(variance + 1e-8), -self.clip, self.clip)

    def update(self, x: Float[Array, "n ..."], valid: Bool[Array, " n"]) -> "RunningNormalizer":
        """Return the normalizer after it has seen the valid ones of n observations."""
        return eqx.tree_at(lambda r: r.moments, self, self.moments.update(x, valid))


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


def _scale(space: Any, x: Array, settings: ImageSettings) -> Array:
    """Return a value of a Box as float32, scaled by `scaling`; any other value unchanged."""
    if not isinstance(space, spaces.Box):
        return x
    # The bounds of a normalized box do not apply to the normalized values.
    by = None if isinstance(space, NormalizedBox) else scaling(space, settings)
    x = x.astype(jnp.float32)
    return x if by is None else (x - by[0]) / by[1]


def flat(space: Any, x: Array, settings: ImageSettings = AUTO) -> Float[Array, " features"]:
    """Return a value of a simple space as a vector of `flat_size`: a Box scaled, a discrete one as one-hot code."""
    if isinstance(space, spaces.Box):
        return _scale(space, x, settings).reshape(-1)
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
