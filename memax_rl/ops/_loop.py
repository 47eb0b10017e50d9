"""A loop over time that leaves every array where it lies.

`jax.lax.scan` wants time first, so that under `jax.vmap` its inputs and outputs, [batch, T, ...], are copied to [T,
batch, ...] and back. Rows taken and put by index stay in place: a recurrence over a batch of sequences takes a third of
the time on a CPU. The price is that JAX cannot differentiate it backwards: only for use inside rules of one's own.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

Carry = TypeVar("Carry", bound=PyTree[Array])


def row(arrays: PyTree[Array], t: Int[Array, ""]) -> PyTree[Array]:
    """Return row t of each array."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, 0, keepdims=False), arrays)


def put(arrays: PyTree[Array], rows: PyTree[Array], t: Int[Array, ""]) -> PyTree[Array]:
    """Return the arrays with row t replaced."""
    return jax.tree.map(lambda x, r: jax.lax.dynamic_update_index_in_dim(x, r, t, 0), arrays, rows)


def row_before(arrays: PyTree[Array], first: PyTree[Array], t: Int[Array, ""]) -> PyTree[Array]:
    """Return row t - 1 of each array, and `first` for t = 0."""
    before = row(arrays, jnp.maximum(t - 1, 0))
    return jax.tree.map(lambda f, b: jnp.where(t == 0, f, b), first, before)


def loop(
    step: Callable[[Int[Array, ""], Carry], tuple[Carry, PyTree[Array]]],
    carry: Carry,
    length: int,
    *,
    reverse: bool = False,
) -> tuple[Carry, Any]:
    """Return the last carry, and with time first what `step(t, carry) -> (carry, y)` returned at each t."""
    _, y = jax.eval_shape(step, jnp.int32(0), carry)
    ys = jax.tree.map(lambda a: jnp.zeros((length, *a.shape), a.dtype), y)

    def body(i, carry_ys):
        carry, ys = carry_ys
        t = length - 1 - i if reverse else i
        carry, y = step(t, carry)
        return carry, put(ys, y, t)

    return jax.lax.fori_loop(0, length, body, (carry, ys))
