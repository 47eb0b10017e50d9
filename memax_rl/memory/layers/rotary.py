"""Rotary position embedding: pairs of features are rotated by an angle that grows with the position.

Su et al. 2021, RoFormer, https://arxiv.org/abs/2104.09864, section 3.2.2.

R_t rotates the pair of features (i, i + size / 2) by the angle t base^(-2 i / size). R_t q . R_s k depends on t - s
alone.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_FINE = 64


def _rotations(first: int, count: int, size: int, base: float, dtype: Any) -> tuple[Array, Array]:
    """Return cos and sin [count, size / 2] of the angles at positions first, first + 1, ...

    Computed from two small tables in double precision by the addition theorems, because in float32 an angle of a
    million radians has no digits after the point.
    """
    frequency = base ** (-2 * np.arange(size // 2) / size)
    fine = np.arange(_FINE)[None, :, None] * frequency
    coarse = (first + _FINE * np.arange(-(-count // _FINE)))[:, None, None] * frequency
    cos_f, sin_f, cos_c, sin_c = (jnp.asarray(f(a), dtype) for a in (fine, coarse) for f in (np.cos, np.sin))
    cos, sin = cos_c * cos_f - sin_c * sin_f, sin_c * cos_f + cos_c * sin_f
    shape = (-1, size // 2)
    return cos.reshape(shape)[:count], sin.reshape(shape)[:count]


def turn(x: Float[Array, "T heads size"], first: int, base: float) -> Float[Array, "T heads size"]:
    """Return R_t x_t, where t is `first` for the first row. `size` must be even."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    cos, sin = (a[:, None, :] for a in _rotations(first, x.shape[0], x.shape[-1], base, dtype))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
