"""Small parts that several memory models share: initializers, option checks, selection of a state."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, PRNGKeyArray, PyTree

T = TypeVar("T", bound=PyTree[Array])


def state_dtype(parameter: Float[Array, "..."]) -> Any:
    """Return the dtype of the states beside a parameter: the parameter's own, float32 at least.

    A sum over thousands of steps exceeds the eight significant bits of bfloat16: small late terms would be rounded
    away.
    """
    return jnp.promote_types(parameter.dtype, jnp.float32)


def state_zeros(parameter: Float[Array, "..."], shape: int | tuple[int, ...]) -> Float[Array, "..."]:
    """Return zeros in the dtype of the states beside a parameter."""
    return jnp.zeros(shape, state_dtype(parameter))


def as_complex(re: Float[Array, "*shape"], im: Float[Array, "*shape"]) -> Complex[Array, "*shape"]:
    """Return re + i im, of the width of the states beside them."""
    return jax.lax.complex(re.astype(state_dtype(re)), im.astype(state_dtype(im)))


def select(condition: Bool[Array, ""], if_true: T, if_false: T) -> T:
    """Return one of two pytrees of arrays of equal shapes. `where`, so that nan in the other cannot leak."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def normal(key: PRNGKeyArray, in_size: int, out_size: int, scale: float = 1.0) -> Float[Array, "in_size out_size"]:
    """Return a matrix W for `x @ W`, entries from N(0, scale^2 / in_size): unit inputs give outputs of size `scale`."""
    return jax.random.normal(key, (in_size, out_size)) * (scale * in_size**-0.5)


def orthogonal(key: PRNGKeyArray, size: int) -> Float[Array, "size size"]:
    """Return a random orthogonal matrix, uniform over all of them (Haar measure).

    A product of Householder reflections (Stewart 1980, "The efficient generation of random orthogonal matrices"), not
    `jax.random.orthogonal`: several LAPACK calls in one compiled program dead-lock XLA on a CPU with two threads, see
    benchmarks/lapack_deadlock.py.
    """
    # Reflection i leaves the first i rows alone, so its vector is zero there.
    vectors = jnp.triu(jax.random.normal(key, (size, size)))

    def reflect(i, q):
        row = size - 1 - i
        x = vectors[row]
        sign = jnp.where(x[row] < 0, -1.0, 1.0)
        # A vector of zeros would have no direction.
        u = x.at[row].add(sign * jnp.maximum(jnp.linalg.norm(x), 1e-6))
        # Its image of axis `row` is -sign x / |x|; without the sign it is uniform on the sphere.
        q = q - jnp.outer(u, (2 / jnp.sum(u**2)) * (u @ q))
        return q.at[:, row].multiply(-sign)

    return jax.lax.fori_loop(0, size, reflect, jnp.eye(size))


# Larger sizes are mistakes: the state of a memory or its weights would take terabytes.
_LARGEST_SIZE = 2**20


def check_size(name: str, value: object, minimum: int = 1) -> int:
    """Return `value` if it is a whole number from `minimum` to 2**20, else raise `ValueError` naming the option."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
    if value > _LARGEST_SIZE:
        shown = str(value) if value < 10**30 else f"a number of {len(str(value))} digits"
        raise ValueError(f"{name} must be at most {_LARGEST_SIZE:,}, got {shown}")
    return value


def check_between(name: str, value: object, low: float, high: float) -> float:
    """Return `value` as a float if low <= value <= high, else raise `ValueError` naming the option."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number between {low:g} and {high:g}, got {repr(value)[:50]}")
    return float(value)
