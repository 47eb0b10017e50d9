"""Images among the observations: which Boxes are some, how their values are scaled, and what reads them.

All modules are unbatched; callers `jax.vmap`.
"""

import math
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from memax_rl.envs import spaces
from memax_rl.networks.normalization import NormalizedBox


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


def scale(space: Any, x: Shaped[Array, "*shape"], settings: ImageSettings) -> Shaped[Array, "*shape"]:
    """Return a value of a Box as float32, scaled by `scaling`; any other value unchanged."""
    if not isinstance(space, spaces.Box):
        return x
    # The bounds of a normalized box do not apply to the normalized values.
    by = None if isinstance(space, NormalizedBox) else scaling(space, settings)
    x = x.astype(jnp.float32)
    return x if by is None else (x - by[0]) / by[1]


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
            x = self._channels_first(scale(self.space, image, self.settings))
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
