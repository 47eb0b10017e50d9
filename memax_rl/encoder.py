"""From what an agent is shown at a step to a vector of features: the observation, its last action and its last reward.

All modules are unbatched; callers `jax.vmap`.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from memax_rl.envs import spaces
from memax_rl.moments import RunningMoments
from memax_rl.ops import project

Space = spaces.Discrete | spaces.MultiDiscrete | spaces.Box | spaces.Tuple | spaces.Dict


class Inputs(NamedTuple):
    """What the agent is shown at a step. Previous action and reward are zero where `start` is true."""

    observation: PyTree[Array]
    previous_action: PyTree[Array]
    previous_reward: Float[Array, "*axes"]
    start: Bool[Array, "*axes"]


class Dense(eqx.Module):
    """y = W x + b, with W from N(0, gain^2 / in_size) and b = 0 at the start."""

    weight: Float[Array, "out_size in_size"]
    bias: Float[Array, " out_size"]

    def __init__(self, in_size: int, out_size: int, gain: float = 1.0, *, key: PRNGKeyArray):
        self.weight = jax.random.normal(key, (out_size, in_size)) * (gain * max(in_size, 1) ** -0.5)
        self.bias = jnp.zeros(out_size)

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        """Apply the layer to one vector."""
        return project(x, self.weight.T) + self.bias


def leaf_spaces(space: spaces.Space) -> list[Any]:
    """Return the simple spaces inside a Tuple or Dict, in the order of `jax.tree.leaves` of an observation."""
    if isinstance(space, spaces.Tuple):
        return [leaf for part in space.spaces for leaf in leaf_spaces(part)]
    if isinstance(space, spaces.Dict):
        return [leaf for name in sorted(space.spaces) for leaf in leaf_spaces(space.spaces[name])]
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.Box):
        return [space]
    raise ValueError(f"cannot encode the space {space!r}; expected Box, Discrete, MultiDiscrete, Tuple or Dict")


def one_hot(space: spaces.Discrete | spaces.MultiDiscrete, x: Array) -> Float[Array, " features"]:
    """Return the one-hot code of a discrete value, or of each component of a multi-discrete one, end to end."""
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(x, space.n)
    parts = [jax.nn.one_hot(x[i], n) for i, n in enumerate(nvec(space))]
    return jnp.concatenate(parts)


def nvec(space: spaces.MultiDiscrete) -> tuple[int, ...]:
    """Return how many values each component has."""
    return tuple(int(n) for n in space.nvec)


def _is_image(space: Any) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 3


class ConvNet(eqx.Module):
    """Two convolutions of 3 x 3 for an image [height, width, channels]; bytes are scaled to [0, 1]."""

    layers: tuple[eqx.nn.Conv2d, ...]
    is_bytes: bool = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

    def __init__(self, space: spaces.Box, *, key: PRNGKeyArray):
        height, width, channels = space.shape
        keys = jax.random.split(key, 2)
        # Large images are halved twice; small ones (MinAtar's 10 x 10) are read at full size first.
        strides = (2, 2) if min(height, width) > 16 else (1, 2)
        self.layers = (
            eqx.nn.Conv2d(channels, 16, 3, strides[0], padding=1, key=keys[0]),
            eqx.nn.Conv2d(16, 32, 3, strides[1], padding=1, key=keys[1]),
        )
        for stride in strides:
            height, width = math.ceil(height / stride), math.ceil(width / stride)
        self.out_size = 32 * height * width
        self.is_bytes = jnp.dtype(space.dtype) == jnp.uint8

    def __call__(self, image: Array) -> Float[Array, " out_size"]:
        """Return the flat features of one image."""
        x = jnp.moveaxis(image.astype(jnp.float32) / (255 if self.is_bytes else 1), -1, 0)
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x.reshape(-1)


class RunningNormalizer(eqx.Module):
    """(x - mean) / standard deviation of all x that `update` was given, clipped. Before the first `update`, x clipped.

    No gradient reaches the statistics, so that an optimiser leaves them as they are.
    """

    moments: RunningMoments
    clip: float = eqx.field(static=True)

    def __init__(self, space: spaces.NormalizedBox):
        self.moments = RunningMoments(space.shape)
        self.clip = space.clip

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Normalise one observation."""
        mean, variance = jax.lax.stop_gradient((self.moments.mean, self.moments.variance))
        return jnp.clip((x - mean) * jax.lax.rsqrt(variance + 1e-8), -self.clip, self.clip)

    def update(self, x: Float[Array, "n ..."], valid: Bool[Array, " n"]) -> "RunningNormalizer":
        """Return the normaliser after it has seen the valid ones of n observations."""
        return eqx.tree_at(lambda r: r.moments, self, self.moments.update(x, valid))


class Encoder(eqx.Module):
    """Observation, and as asked previous action, previous reward and start flag, to `width` features."""

    observation_spaces: tuple[Any, ...] = eqx.field(static=True)
    action_space: Any = eqx.field(static=True)
    include: tuple[bool, bool, bool] = eqx.field(static=True)
    normalizers: tuple[RunningNormalizer | None, ...]
    images: tuple[ConvNet | None, ...]
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
        key: PRNGKeyArray,
    ):
        self.observation_spaces = tuple(leaf_spaces(observation_space))
        self.action_space = action_space
        self.include = (previous_action, previous_reward, start)
        self.normalizers = tuple(
            RunningNormalizer(space) if isinstance(space, spaces.NormalizedBox) else None
            for space in self.observation_spaces
        )
        *image_keys, key = jax.random.split(key, len(self.observation_spaces) + 1)
        self.images = tuple(
            ConvNet(space, key=k) if _is_image(space) else None
            for space, k in zip(self.observation_spaces, image_keys, strict=True)
        )
        size = sum(
            image.out_size if image else flat_size(space)
            for image, space in zip(self.images, self.observation_spaces, strict=True)
        )
        size += flat_size(action_space) if previous_action else 0
        self.project = Dense(size + previous_reward + start, width, 2**0.5, key=key)

    def __call__(self, inputs: Inputs) -> Float[Array, " width"]:
        """Return the features of one step."""
        return self.embed(self.flatten(inputs))

    def embed(self, flat: Float[Array, " inputs"]) -> Float[Array, " width"]:
        """Return the features of a step from its flat inputs."""
        return jax.nn.gelu(self.project(flat))

    def flatten(self, inputs: Inputs) -> Float[Array, " inputs"]:
        """Return all inputs of one step as one vector: observation, previous action, previous reward, start flag."""
        leaves = jax.tree.leaves(inputs.observation)
        leaves = [norm(x) if norm else x for norm, x in zip(self.normalizers, leaves, strict=True)]
        parts = [
            image(x) if image else _flat(space, x)
            for image, space, x in zip(self.images, self.observation_spaces, leaves, strict=True)
        ]
        previous_action, previous_reward, start = self.include
        if previous_action:
            code = _flat(self.action_space, inputs.previous_action)
            # Without this the code of action 0 would stand for "no action yet".
            parts.append(jnp.where(inputs.start, jnp.zeros_like(code), code))
        if previous_reward:
            parts.append(inputs.previous_reward[None])
        if start:
            parts.append(inputs.start[None].astype(jnp.float32))
        return jnp.concatenate(parts)

    def observe(self, observation: PyTree[Array], valid: Bool[Array, "rows slots"]) -> "Encoder":
        """Return the encoder after its running statistics have seen the valid slots of a tape."""
        flat = [x.reshape(valid.size, *x.shape[2:]) for x in jax.tree.leaves(observation)]
        normalizers = tuple(
            norm.update(x, valid.reshape(-1)) if norm else None for norm, x in zip(self.normalizers, flat, strict=True)
        )
        return eqx.tree_at(lambda e: e.normalizers, self, normalizers, is_leaf=lambda x: x is None)


def flat_size(space: Any) -> int:
    """Return how many numbers a value of the space is as one vector, discrete ones as one-hot codes."""
    if isinstance(space, spaces.Discrete):
        return space.n
    if isinstance(space, spaces.MultiDiscrete):
        return sum(nvec(space))
    return math.prod(space.shape)


def _flat(space: Any, x: Array) -> Float[Array, " features"]:
    if isinstance(space, spaces.Box):
        return x.astype(jnp.float32).reshape(-1)
    return one_hot(space, x)
