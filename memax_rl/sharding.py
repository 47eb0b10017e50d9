"""Sharing training out over several devices: the rows of a tape, or whole seeds.

Rows: each device acts in its share of the environments and learns from its share of every minibatch. Network and
optimizer are the same on all: gradients are summed over the devices before each step. On a CPU the devices are threads
of this process, and worth it because the products of a small network keep no more than one core busy. Seeds: each
device trains some of them, and sends the others nothing.

The first functions here are called in a program that `shard_map` runs on every device at once, and return their
arguments where there is one device only. The devices may be those of several processes (memax_rl/distributed.py), as
many of each.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, PyTree

from memax_rl import distributed

T = TypeVar("T", bound=PyTree[Array])

_AXIS = "devices"


def require(count: int) -> None:
    """Raise `ValueError` unless JAX has `count` devices, and of each process as many.

    It counts them once, when it is first used, which importing gymnax already does. So nothing can be made good here.
    """
    found, processes = jax.devices(), distributed.count()
    most = processes * min(sum(d.process_index == p for d in found) for p in range(processes))
    if processes > 1 and (count % processes != 0 or count > most):
        raise ValueError(
            f"devices={count}, but {processes} processes with {len(found)} devices train together, each with as many "
            f"of them; set devices to a multiple of {processes} up to {most}"
        )
    if len(found) < count:
        raise ValueError(
            f"devices={count}, but JAX has {len(found)} ({found[0].platform}); set devices to at most {len(found)}, "
            f"or, on a CPU, set the environment variable JAX_NUM_CPU_DEVICES={count} before Python starts"
        )


def index(devices: int) -> Array | int:
    """Return which of the devices this is."""
    return 0 if devices == 1 else jax.lax.axis_index(_AXIS)


def psum(tree: T, devices: int) -> T:
    """Return the sum over the devices of each array. One message for all of them: each costs a wait for the slowest."""
    if devices == 1:
        return tree
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.psum(flat, _AXIS))


def pmax(x: Array, devices: int) -> Array:
    """Return the largest over the devices of each number."""
    return x if devices == 1 else jax.lax.pmax(x, _AXIS)


def any_of(flags: Bool[Array, "*axes"], devices: int) -> Bool[Array, "*axes"]:
    """Return which of the flags are true on any of the devices."""
    return flags if devices == 1 else pmax(flags.astype(jnp.int32), devices) > 0


def share_out(tree: T, held: Bool[Array, " rows"], devices: int) -> T:
    """Return this device's share of rows, of which each is held by one device.

    Args:
        tree: Arrays with a leading axis of all rows. Where `held` is false they are not read.
        held: Whether this device holds the row.
    """
    if devices == 1:
        return tree

    def share(leaf):
        # A sum in which all terms but one are zero.
        mine = jnp.where(held.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, jnp.zeros((), leaf.dtype))
        numbers = mine.astype(jnp.uint8) if leaf.dtype == bool else mine
        return jax.lax.psum_scatter(numbers, _AXIS, scatter_dimension=0, tiled=True).astype(leaf.dtype)

    return jax.tree.map(share, tree)


def all_gather(tree: T, devices: int, axis: int = 0) -> T:
    """Return the arrays of all devices, in their order along `axis`."""
    if devices == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, _AXIS, axis=axis, tiled=True), tree)


def local_shard(tree: T, devices: int, axis: int = 0) -> T:
    """Return this device's share along `axis`."""
    if devices == 1:
        return tree

    def share(leaf):
        size = leaf.shape[axis] // devices
        return jax.lax.dynamic_slice_in_dim(leaf, index(devices) * size, size, axis)

    return jax.tree.map(share, tree)


def shard_map(run: Callable[..., Any], devices: int, sharded_fields: Sequence[str], axis: int) -> Callable[..., Any]:
    """Return `run(state, *arguments) -> (state, *results)` as a program on several devices.

    Args:
        sharded_fields: The fields of the state whose arrays are split along `axis`, those that have it; all else is the
            same everywhere. `run` returns two results beside the state.
    """

    def everywhere(state, *arguments):
        specs = _specs(state, sharded_fields, axis)
        return jax.shard_map(
            run,
            mesh=_mesh(devices),
            in_specs=(specs, *(PartitionSpec() for _ in arguments)),
            out_specs=(specs, PartitionSpec(), PartitionSpec()),
            # It cannot tell that an optimizer's step from summed gradients is the same on all devices.
            check_vma=False,
        )(state, *arguments)

    return everywhere


def shard_seeds(run: Callable[..., Any], devices: int) -> Callable[..., Any]:
    """Return `run(state, n, sound, until) -> (state, sound, metrics)` as a program in which devices share the seeds.

    They are the first axis of the arrays of `state`, of `sound` and of results, and the second of the metrics.
    """
    split, same = PartitionSpec(_AXIS), PartitionSpec()
    return jax.shard_map(
        run,
        mesh=_mesh(devices),
        in_specs=(split, same, split, same),
        out_specs=(split, split, PartitionSpec(None, _AXIS)),
        check_vma=False,
    )


def place_seeds(tree: T, devices: int) -> T:
    """Return arrays where `shard_seeds` wants those with a first axis of seeds."""
    where = NamedSharding(_mesh(devices), PartitionSpec(_AXIS))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, where), tree)


def place(state: T, devices: int, sharded_fields: Sequence[str], axis: int) -> T:
    """Return the state with its arrays where `shard_map` wants them; arguments are as `shard_map`'s."""
    mesh = _mesh(devices)
    specs = _specs(state, sharded_fields, axis)
    return jax.tree.map(lambda leaf, spec: _put(leaf, NamedSharding(mesh, spec)), state, specs)


def replicate(tree: T, devices: int) -> T:
    """Return the arrays on every device, where there are several.

    An argument of a compiled function must lie alike at every call, or the function is compiled again.
    """
    if devices == 1:
        return tree
    everywhere = NamedSharding(_mesh(devices), PartitionSpec())
    return jax.tree.map(lambda leaf: _put(leaf, everywhere), tree)


def _put(leaf: Array, where: NamedSharding) -> Array:
    """Return an array on the devices of a mesh; what is the same on all of them is as process 0 has it."""
    if distributed.count() == 1:
        return jax.device_put(leaf, where)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), where), impl=jax.random.key_impl(leaf))
    # Each process computed it, perhaps on another kind of machine.
    whole = distributed.from_first(leaf).astype(leaf.dtype) if where.is_fully_replicated else np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, where, lambda index: whole[index])


def on_one(tree: T) -> T:
    """Return arrays on the first device of this process; of several processes each has the whole of them."""
    if distributed.count() > 1:
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
    return jax.device_put(tree, jax.devices()[0])


def gather(tree: T, devices: int) -> T:
    """Return the whole of all arrays in this process; with several processes each of them calls this."""
    if distributed.count() == 1:
        return tree
    # Array by array, so that no device holds the whole state.
    everywhere = jax.jit(lambda x: x, out_shardings=NamedSharding(_mesh(devices), PartitionSpec()))

    def whole(leaf):
        one = (leaf if leaf.is_fully_replicated else everywhere(leaf)).addressable_data(0)
        return one if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(one)

    return jax.tree.map(whole, tree)


def _mesh(devices: int) -> Mesh:
    processes = distributed.count()
    of_each = [[d for d in jax.devices() if d.process_index == p] for p in range(processes)]
    chosen = [device for own in of_each for device in own[: devices // processes]]
    return Mesh(np.array(chosen), (_AXIS,), axis_types=(AxisType.Auto,))


def _specs(state: Any, sharded_fields: Sequence[str], axis: int) -> Any:
    def fields(tree):
        return [getattr(tree, name) for name in sharded_fields]

    same = jax.tree.map(lambda _: PartitionSpec(), state)
    split = PartitionSpec(*(None,) * axis, _AXIS)
    shares = jax.tree.map(lambda leaf: split if leaf.ndim > axis else PartitionSpec(), fields(state))
    return eqx.tree_at(fields, same, shares)
