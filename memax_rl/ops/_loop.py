"""A loop over time that reads and writes rows in place.

`jax.lax.scan` wants time first, so that under `jax.vmap` its inputs and outputs, [batch, T, ...], are copied to [T,
batch, ...] and back. Here rows are read and written by index, without that copy, which takes half of the time of a
recurrence with short steps on a CPU. JAX cannot differentiate this loop in reverse mode: it is for use inside the rules
of a `custom_vjp`.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

Carry = TypeVar("Carry", bound=PyTree[Array])


def loop(
    step: Callable[[Int[Array, ""], Carry, Any], tuple[Carry, Any]],
    carry: Carry,
    rows: PyTree[Array],
    length: int,
    *,
    reverse: bool = False,
    read_ahead: bool = False,
) -> tuple[Carry, Any]:
    """Return the last carry, and `rows` with each row t replaced.

    `step(t, carry, rows[t])` returns the carry and the new row t. So results reuse the buffers of the inputs; if
    something else still uses the inputs, the compiler copies them first.

    With `read_ahead` a row is read at the end of the step before. Where several kernels of a step use its row, one of
    them might read it after it is replaced, and the compiler would copy the whole array in each step.
    """

    def at(i):
        return length - 1 - i if reverse else i

    def body(i, now):
        carry, rows, ahead = now
        carry, new = step(at(i), carry, ahead if read_ahead else row(rows, at(i)))
        rows = put_row(rows, new, at(i))
        return carry, rows, row(rows, at(jnp.minimum(i + 1, length - 1))) if read_ahead else None

    ahead = row(rows, jnp.asarray(at(0))) if read_ahead else None
    carry, rows, _ = jax.lax.fori_loop(0, length, body, (carry, rows, ahead))
    return carry, rows


def row(arrays: PyTree[Array], t: Int[Array, ""]) -> Any:
    """Return row t of each array."""
    return jax.tree.map(lambda x: _row(0)(x, t), arrays)


def put_row(arrays: PyTree[Array], rows: Any, t: Int[Array, ""]) -> Any:
    """Return the arrays with row t of each replaced."""
    return jax.tree.map(lambda x, r: _put(0)(x, r, t), arrays, rows)


def row_before(arrays: PyTree[Array], first: PyTree[Array], t: Int[Array, ""]) -> Any:
    """Return row t - 1 of each array, and `first` for t = 0."""
    before = row(arrays, jnp.maximum(t - 1, 0))
    return jax.tree.map(lambda f, b: jnp.where(t == 0, f, b), first, before)


# Batched by JAX itself, an index becomes a gather or a scatter with a bounds check, several kernels a step.


@functools.cache
def _row(axis: int) -> Callable:
    @jax.custom_batching.custom_vmap
    def get(x, t):
        index, sizes = [0] * x.ndim, list(x.shape)
        index[axis], sizes[axis] = t, 1
        return jax.lax.dynamic_slice(x, index, sizes, allow_negative_indices=False).squeeze(axis)

    @get.def_vmap
    def batched(size, is_batched, x, t):
        del size
        _only_rows(is_batched[1])
        return _row(axis + 1)(x, t), True

    return get


@functools.cache
def _put(axis: int) -> Callable:
    @jax.custom_batching.custom_vmap
    def put(x, r, t):
        index: list[Any] = [0] * x.ndim
        index[axis] = t
        return jax.lax.dynamic_update_slice(x, jnp.expand_dims(r, axis), index, allow_negative_indices=False)

    @put.def_vmap
    def batched(size, is_batched, x, r, t):
        _only_rows(is_batched[2])
        x, r = (a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip((x, r), is_batched[:2], strict=True))
        return _put(axis + 1)(x, r, t), True

    return put


def _only_rows(t_is_batched: bool) -> None:
    if t_is_batched:
        raise NotImplementedError("a loop over time has one time for the whole batch")
