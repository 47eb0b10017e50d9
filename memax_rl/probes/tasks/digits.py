"""Tasks on pictures of digits, pixel by pixel: which digit, and what a sum of them comes to.

The pictures are scikit-learn's (8 x 8, part of that package), or those of MNIST (28 x 28): IDX files in a folder, or a
data set of Hugging Face's. Nothing is downloaded but by the last.
"""

import functools
import gzip
import math
import struct
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from pydantic import Field, model_validator

from memax_rl.envs import spaces
from memax_rl.probes.tasks.base import LONGEST, Classification, Sequence

_SMALL, _HUB = "digits", "hf:"
_SIDES = {True: 8, False: 28}
_CLASSES = 10
# Every fifth of scikit-learn's pictures is for tests.
_FIFTH = 5
# More than MNIST and its like hold; a header that says more is damage.
_MOST_IMAGES = 1_000_000
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_INSTALL = "install it with `pip install 'memax_rl[probes]'`"


class Digits(NamedTuple):
    """Pictures [count, pixels] of brightness 0 to 255, and the digits on them."""

    images: UInt8[Array | np.ndarray, "count pixels"]
    labels: Int[Array | np.ndarray, " count"]


class SequentialDigits(Classification):
    """Say at the last pixel which digit a picture shows (sequential MNIST)."""

    known: ClassVar[str] = "All memories with a state that lasts over a picture; on MNIST the best are above 0.98."
    source: ClassVar[str] = "https://arxiv.org/abs/1504.00941; sets of https://github.com/smorad/memax"

    pictures: str = _SMALL
    """digits: scikit-learn's, 8 x 8; a folder with the IDX files of MNIST, 28 x 28; or hf:NAME for a data set of
    Hugging Face's with columns image and label, such as hf:ylecun/mnist, or for a folder with one."""
    length: int = Field(default=64, ge=1, le=LONGEST)
    """Slots of a sequence: the pixels of a picture, 64 or 784. It follows from pictures."""

    @model_validator(mode="before")
    @classmethod
    def _set_length(cls, fields: Any) -> Any:
        return _with_length(fields, 1)

    @model_validator(mode="after")
    def _check(self) -> "SequentialDigits":
        _check_length(self, self.pictures, 1)
        return self

    @property
    def input_space(self) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, (1,))

    @property
    def classes(self) -> int:
        return _CLASSES

    def data(self, split: Literal["train", "test"]) -> Digits:
        return Digits(*map(jnp.asarray, load_digits(self.pictures, split)))

    def sample(self, key, data: Any = ()) -> Sequence:
        index = jax.random.randint(key, (), 0, len(data.labels))
        return _pixels(data.images[index], data.labels[index])


class DigitMath(Classification):
    """Say at the last pixel in which tenth of all results a sum of digits with plus and minus lies (MNIST Math).

    Pictures of digits and of operators take turns; with an even number of pictures the first is an operator. The
    tenths are those of uniform digits and signs, with bounds rounded to whole numbers; short sums have few results, and
    so tenths of unequal size.
    """

    known: ClassVar[str] = "Not known at these lengths; it needs recognition of digits and an exact sum."
    source: ClassVar[str] = "MNIST Math of https://github.com/smorad/memax"

    pictures: str = _SMALL
    """As of sequential_digits."""
    images: int = Field(default=5, ge=1, le=LONGEST)
    """How many pictures there are, operators included."""
    length: int = Field(default=320, ge=1, le=10 * LONGEST)
    """Slots of a sequence: images times the pixels of one. It follows from these."""

    @model_validator(mode="before")
    @classmethod
    def _set_length(cls, fields: Any) -> Any:
        return _with_length(fields, fields.get("images", 5) if isinstance(fields, dict) else 1)

    @model_validator(mode="after")
    def _check(self) -> "DigitMath":
        _check_length(self, self.pictures, self.images)
        return self

    def at_length(self, length: int) -> Classification:
        images = length // _pixel_count(self.pictures)
        return type(self)(pictures=self.pictures, images=images, length=length)

    @property
    def input_space(self) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, (1,))

    @property
    def classes(self) -> int:
        return _CLASSES

    @property
    def chance(self) -> float:
        bounds, results = result_bounds(self.images)
        tenths = np.bincount(np.searchsorted(bounds, results, side="right") - 1, minlength=_CLASSES)
        return float(tenths.max() / tenths.sum())

    def data(self, split: Literal["train", "test"]) -> Digits:
        return Digits(*map(jnp.asarray, load_digits(self.pictures, split)))

    def sample(self, key, data: Any = ()) -> Sequence:
        key_digits, key_signs, key_scale, key_noise = jax.random.split(key, 4)
        terms, side = (self.images + 1) // 2, math.isqrt(_pixel_count(self.pictures))
        index = jax.random.randint(key_digits, (terms,), 0, len(data.labels))
        minus = jax.random.bernoulli(key_signs, shape=(terms,))
        first = self.images % 2
        # The first digit of an odd number of pictures has no operator.
        minus = minus & (jnp.arange(terms) >= first)
        drawn = jnp.asarray(operator_images(side))[minus.astype(jnp.int32)]
        scale = jax.random.uniform(key_scale, drawn.shape, minval=0.8, maxval=1.2)
        signs = jnp.clip(drawn * scale + 20 * jax.random.normal(key_noise, drawn.shape), 0, 255)
        pairs = jnp.stack([signs, data.images[index].astype(jnp.float32)], axis=1)
        pixels = pairs.reshape(-1, side * side)[first:]
        result = jnp.sum(jnp.where(minus, -1, 1) * data.labels[index])
        bounds = jnp.asarray(result_bounds(self.images)[0])
        tenth = jnp.maximum(jnp.searchsorted(bounds, result.astype(jnp.float32), side="right") - 1, 0)
        return _pixels(pixels.reshape(-1), tenth)


def _with_length(fields: Any, images: Any) -> Any:
    """Return the fields with the length that follows from the others."""
    if not isinstance(fields, dict) or "length" in fields or not isinstance(images, int):
        return fields
    pictures = fields.get("pictures", _SMALL)
    return fields | {"length": images * _pixel_count(pictures)}


def _check_length(task: Classification, pictures: str, images: int) -> None:
    needed = images * _pixel_count(pictures)
    if task.length != needed:
        raise ValueError(f"length is {needed} with these pictures, got {task.length}; leave it out")


def _pixel_count(pictures: Any) -> int:
    return _SIDES[pictures == _SMALL] ** 2


def _pixels(pixels: Array, answer: Array) -> Sequence:
    """Return pixels of brightness 0 to 255 as a sequence that asks at the end."""
    last = jnp.arange(len(pixels)) == len(pixels) - 1
    return Sequence(pixels.astype(jnp.float32)[:, None] / 255, jnp.where(last, answer, 0), last)


def operator_images(side: int) -> Float[np.ndarray, "2 pixels"]:
    """Return the pictures of plus and minus, with bars of about a fifth of the side."""
    width = max(2, round(side * 5 / 28))
    bar = slice((side - width + 1) // 2, (side + width + 1) // 2)
    minus = np.zeros((side, side), np.float32)
    minus[bar] = 192
    return np.stack([np.maximum(minus, minus.T), minus]).reshape(2, side * side)


@functools.lru_cache(maxsize=16)
def result_bounds(images: int) -> tuple[Float[np.ndarray, " classes"], Int[np.ndarray, " results"]]:
    """Return the lower bounds of the tenths of results, and the 100,000 random results that they are of."""
    rng = np.random.default_rng(0)
    terms, first = (images + 1) // 2, images % 2
    digits = np.arange(_CLASSES)
    values = np.concatenate([digits, -digits])
    counts = rng.multinomial(terms - first, np.full(len(values), 1 / len(values)), size=100_000)
    results = counts @ values + first * rng.integers(0, _CLASSES, 100_000)
    return np.round(np.percentile(results, range(0, 100, 10))).astype(np.float32), results


@functools.lru_cache(maxsize=4)
def load_digits(pictures: str, split: Literal["train", "test"]) -> Digits:
    """Return the pictures of a split.

    Raises:
        ValueError: If they are not there; it says in a line how to get them.
    """
    if pictures == _SMALL:
        images, labels = _from_sklearn(split)
    elif pictures.startswith(_HUB):
        images, labels = _from_hub(pictures.removeprefix(_HUB), split)
    else:
        images, labels = (
            _read_idx(Path(pictures), name, axes) for name, axes in zip(_FILES[split], (3, 1), strict=True)
        )
        if images.shape[1:] != (28, 28) or len(images) != len(labels) or not len(labels):
            raise ValueError(f"pictures: {pictures} needs as many pictures of 28 x 28 as labels, got {images.shape}")
    if labels.min() < 0 or labels.max() >= _CLASSES:
        raise ValueError(f"pictures: {pictures} holds the label {labels.max()}; expected digits 0 to 9")
    return Digits(images.reshape(len(labels), -1).astype(np.uint8), labels.astype(np.int32))


def _from_sklearn(split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits as load  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"pictures: 'digits' are those of scikit-learn, which is not installed; {_INSTALL}") from None
    images, labels = load(return_X_y=True)
    chosen = (np.arange(len(labels)) % _FIFTH == 0) == (split == "test")
    # They have brightness 0 to 16.
    return np.round(images[chosen] * (255 / 16)), labels[chosen]


def _from_hub(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"pictures: hf: needs the package datasets, which is not installed; {_INSTALL}") from None
    try:
        found = datasets.load_dataset(name, split=split).with_format("np")
        images, labels = np.stack(list(found["image"])), np.asarray(list(found["label"]))
    except Exception as error:
        # The package raises its own errors, those of its readers, and of the network.
        raise ValueError(f"pictures: hf:{name} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    if images.shape[1:] != (28, 28):
        raise ValueError(f"pictures: hf:{name} must have pictures of 28 x 28, got {images.shape[1:]}")
    return images, labels


def _read_idx(folder: Path, name: str, axes: int) -> np.ndarray:
    """Return the array of an IDX file of bytes, which may be compressed; what its header claims is compared."""
    paths = [folder / name, folder / f"{name}.gz"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"pictures: {folder} has no file {name} or {name}.gz; name a folder with the files of MNIST")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 * (1 + axes))
            magic, *shape = struct.unpack(f">{1 + axes}I", head)
            if magic != 0x800 + axes or shape[0] > _MOST_IMAGES or any(side > 1_000 for side in shape[1:]):
                raise ValueError("its header is not that of such a file")
            content = file.read(math.prod(shape) + 1)
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, EOFError, struct.error, ValueError) as error:
        raise ValueError(f"pictures: {path} cannot be read: {error}") from None
