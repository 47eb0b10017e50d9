"""Sharing the rows of a tape out over several devices: data parallelism.

Each device acts in its share of the environments and learns from its share of every minibatch. Network and optimizer
are the same on all: gradients are summed over the devices before each step. On a CPU the devices are threads of this
process, and worth it because the products of a small network keep no more than one core busy.

The functions here are called in a program that `shard_map` runs on every device at once, and return their arguments
where there is one device only.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

T = TypeVar("T", bound=PyTree[Array])

_AXIS = "devices"


def require(count: int) -> None:
    """Raise `ValueError` unless JAX has `count` devices.

    It counts them once, when it is first used, which importing gymnax already does. So nothing can be made good here.
    """
    found = jax.devices()
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
        sharded_fields: The fields of the state whose arrays are split along `axis`; all else is the same everywhere.
            `run` returns two results beside the state.
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


def place(state: T, devices: int, sharded_fields: Sequence[str], axis: int) -> T:
    """Return the state with its arrays where `shard_map` wants them."""
    mesh = _mesh(devices)
    specs = _specs(state, sharded_fields, axis)
    return jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), state, specs)


def _mesh(devices: int) -> Mesh:
    return jax.make_mesh((devices,), (_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def _specs(state: Any, sharded_fields: Sequence[str], axis: int) -> Any:
    def fields(tree):
        return [getattr(tree, name) for name in sharded_fields]

    same = jax.tree.map(lambda _: PartitionSpec(), state)
    shares = jax.tree.map(lambda _: PartitionSpec(*(None,) * axis, _AXIS), fields(state))
    return eqx.tree_at(fields, same, shares)
