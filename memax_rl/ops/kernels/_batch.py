"""Kernels under `jax.vmap`: the axes that it adds become axes of the kernel's grid, in the layout that it wants."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, PyTree


def over_sequences(run: Callable[..., PyTree[Array]], *args: Array) -> PyTree[Array]:
    """Return `run` of one sequence, where `run` takes and returns arrays with an axis of sequences first.

    All axes that `jax.vmap` adds become one. What has no such axis is repeated, which is for small arrays.
    """

    @jax.custom_batching.custom_vmap
    def call(*args):
        return run(*args)

    @call.def_vmap
    def batched(size, is_batched, *args):
        def merged(x, has_axis):
            x = x if has_axis else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        out = call(*map(merged, args, is_batched))
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), jax.tree.map(lambda _: True, out)

    return jax.tree.map(lambda x: x[0], call(*(x[None] for x in args)))


def over_groups(run: Callable[..., PyTree[Array]], weights: Sequence[Array], arrays: Sequence[Array]) -> PyTree[Array]:
    """Return `run(weights, arrays)` of one sequence, where sequences with the same weights form a group.

    `run` takes weights with an axis of groups first, and takes and returns arrays with an axis of groups and one of
    sequences first. An axis that `jax.vmap` adds to arrays alone makes more sequences, one that it adds to weights
    more groups: so a vmap over batches shares the weights, and one over seeds does not.
    """

    @jax.custom_batching.custom_vmap
    def call(weights, arrays):
        return run(weights, arrays)

    @call.def_vmap
    def batched(size, is_batched, weights, arrays):
        def full(x, has_axis):
            return x if has_axis else jnp.broadcast_to(x, (size, *x.shape))

        own = any(is_batched[0])
        arrays = tuple(map(full, arrays, is_batched[1]))
        if own:
            weights = tuple(map(full, weights, is_batched[0]))
            weights = tuple(w.reshape(-1, *w.shape[2:]) for w in weights)
            arrays = tuple(x.reshape(-1, *x.shape[2:]) for x in arrays)
        else:
            arrays = tuple(jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]) for x in arrays)

        def apart(x):
            if own:
                return x.reshape(size, -1, *x.shape[1:])
            return jnp.moveaxis(x.reshape(x.shape[0], size, -1, *x.shape[2:]), 1, 0)

        out = jax.tree.map(apart, call(weights, arrays))
        return out, jax.tree.map(lambda _: True, out)

    out = call(tuple(w[None] for w in weights), tuple(x[None, None] for x in arrays))
    return jax.tree.map(lambda x: x[0, 0], out)


def pallas(
    kernel: Callable[..., None],
    name: str,
    grid: tuple[int, ...],
    out: PyTree[jax.ShapeDtypeStruct],
    *,
    warps: int,
    interpret: bool,
) -> Callable[..., Any]:
    """Return the kernel as a function of whole arrays. Each program of the grid indexes them itself."""
    # Loops are not pipelined by the compiler: a step needs the one before.
    params = plgpu.CompilerParams(num_warps=warps, num_stages=1)
    return pl.pallas_call(kernel, out, grid=grid, compiler_params=params, interpret=interpret, name=name)


def pallas_flat(
    kernel: Callable[..., None],
    name: str,
    grid: tuple[int, ...],
    out: Sequence[jax.ShapeDtypeStruct],
    *,
    interpret: bool,
) -> Callable[..., tuple[Array, ...]]:
    """Return a kernel of one warp as a function of whole arrays, all of which it sees with a single axis.

    An index then takes few operations. The time to compile grows with the square of the operations about reads and
    writes, of which a kernel that takes many rows at once has many.
    """
    flat = tuple(jax.ShapeDtypeStruct((math.prod(x.shape),), x.dtype) for x in out)
    run = pallas(kernel, name, grid, flat, warps=1, interpret=interpret)

    def call(*args):
        results = run(*(x.reshape(-1) for x in args))
        return tuple(x.reshape(o.shape) for x, o in zip(results, out, strict=True))

    return call


class Lanes:
    """A block of features of one sequence, one a thread of a warp, and how to read and write them in flat arrays."""

    SIZE = 32

    def __init__(self, features: int):
        self.sequence, self.block = pl.program_id(0), pl.program_id(1)
        self.first = self.block * self.SIZE
        # Where the last block is full too, there is nothing to mask.
        self.inside = self.first + jnp.arange(self.SIZE) < features if features % self.SIZE else None

    def read(self, ref: Any, start: Any) -> Array:
        """Return the features of a row that begins at `start`, zero beyond the last one."""
        at = ref.at[pl.ds(start + self.first, self.SIZE)]
        return plgpu.load(at) if self.inside is None else plgpu.load(at, mask=self.inside, other=0)

    def write(self, ref: Any, value: Array, start: Any) -> None:
        """Write the features of a row that begins at `start`."""
        plgpu.store(ref.at[pl.ds(start + self.first, self.SIZE)], value, mask=self.inside)


def blocks(features: int) -> int:
    """Return how many blocks of lanes so many features take."""
    return -(-features // Lanes.SIZE)


def like(x: Array, *shape: int) -> jax.ShapeDtypeStruct:
    """Return what describes an array of this shape and x's dtype; by default, of x's shape."""
    return jax.ShapeDtypeStruct(shape or x.shape, x.dtype)


def power_of_two(size: int) -> int:
    """Return the least power of two that is at least `size`: a tile of Triton has such sides."""
    return 1 << (size - 1).bit_length()
