"""Sharing the rows of a tape out over several devices: data parallelism.

Each device acts in its share of the environments and learns from its share of every minibatch. Network and optimiser
are the same on all: gradients are summed over the devices before each step. On a CPU the devices are threads of this
process, and worth it because the products of a small network keep no more than one core busy.

The functions here are called in a program that `over_devices` runs on every device at once, and return their arguments
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


def total(tree: T, devices: int) -> T:
    """Return the sum over the devices of each array. One message for all of them: each costs a wait for the slowest."""
    if devices == 1:
        return tree
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.psum(flat, _AXIS))


def total_of_every_second(tree: T, devices: int) -> T:
    """Return the sum over the devices 0, 2, 4, ... for these, and over 1, 3, 5, ... for those."""
    if devices == 2:
        return tree
    flat, unravel = ravel_pytree(tree)
    groups = [list(range(first, devices, 2)) for first in (0, 1)]
    return unravel(jax.lax.psum(flat, _AXIS, axis_index_groups=groups))


def gather(tree: T, devices: int, axis: int = 0) -> T:
    """Return the arrays of all devices, in their order along `axis`."""
    if devices == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, _AXIS, axis=axis, tiled=True), tree)


def gather_pairs(tree: T, devices: int) -> T:
    """Return the arrays of this device and of its neighbour, devices 0 and 1, 2 and 3, ..., along the first axis."""
    return jax.tree.map(lambda leaf: _gather_pair(leaf, devices, tiled=True), tree)


def both_of_pair(tree: T, devices: int) -> tuple[T, T]:
    """Return the tree of the even device of each pair, and that of the odd one."""
    stacked = jax.tree.map(lambda leaf: _gather_pair(leaf, devices, tiled=False), tree)
    return jax.tree.map(lambda leaf: leaf[0], stacked), jax.tree.map(lambda leaf: leaf[1], stacked)


def _gather_pair(leaf: Array, devices: int, *, tiled: bool) -> Array:
    pairs = [[i, i + 1] for i in range(0, devices, 2)]
    return jax.lax.all_gather(leaf, _AXIS, axis_index_groups=pairs, tiled=tiled)


def own(tree: T, devices: int, axis: int = 0) -> T:
    """Return this device's share along `axis`."""
    if devices == 1:
        return tree

    def share(leaf):
        size = leaf.shape[axis] // devices
        return jax.lax.dynamic_slice_in_dim(leaf, index(devices) * size, size, axis)

    return jax.tree.map(share, tree)


def over_devices(run: Callable[..., Any], devices: int, shared_out: Sequence[str], axis: int) -> Callable[..., Any]:
    """Return `run(state, *arguments) -> (state, *results)` as a program on several devices.

    **Arguments:**

    - `shared_out`: the fields of the state whose arrays are shared out along `axis`; all else is the same everywhere.
        `run` returns two results beside the state.
    """

    def everywhere(state, *arguments):
        specs = _specs(state, shared_out, axis)
        return jax.shard_map(
            run,
            mesh=_mesh(devices),
            in_specs=(specs, *(PartitionSpec() for _ in arguments)),
            out_specs=(specs, PartitionSpec(), PartitionSpec()),
            # It cannot tell that an optimiser's step from summed gradients is the same on all devices.
            check_vma=False,
        )(state, *arguments)

    return everywhere


def place(state: T, devices: int, shared_out: Sequence[str], axis: int) -> T:
    """Return the state with its arrays where `over_devices` wants them."""
    mesh = _mesh(devices)
    specs = _specs(state, shared_out, axis)
    return jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), state, specs)


def _mesh(devices: int) -> Mesh:
    return jax.make_mesh((devices,), (_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def _specs(state: Any, shared_out: Sequence[str], axis: int) -> Any:
    def fields(tree):
        return [getattr(tree, name) for name in shared_out]

    same = jax.tree.map(lambda _: PartitionSpec(), state)
    shares = jax.tree.map(lambda _: PartitionSpec(*(None,) * axis, _AXIS), fields(state))
    return eqx.tree_at(fields, same, shares)
