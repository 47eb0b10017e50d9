"""States of JAX as flat dicts of numpy arrays by name, as checkpoints hold them, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def rekey(state: PyTree, impl: str) -> PyTree:
    """Return a state with random keys of another implementation, drawn from those that it has."""

    def new(leaf):
        if not _is_key(leaf) or str(jax.random.key_impl(leaf)) == impl:
            return leaf
        bits = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(leaf.reshape(-1))
        return jax.vmap(lambda seed: jax.random.key(seed, impl=impl))(bits).reshape(leaf.shape)

    return jax.tree.map(new, state)


def array_name(path: Any) -> str:
    """Return the name of an array in a checkpoint, from its path in a pytree."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def to_plain(state: PyTree, prefix: str = "") -> dict[str, Any]:
    """Return a flat dict from path to plain array; random keys as their bits. Arrays without a number are left out."""
    leaves = [(prefix + array_name(path), leaf) for path, leaf in jax.tree.leaves_with_path(state) if leaf.size]
    return {name: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for name, leaf in leaves}


def from_plain(plain: Mapping[str, Any], like: PyTree, prefix: str = "") -> PyTree:
    """Return a state of the structure of `like` from what `to_plain` returned."""

    def leaf(path, old):
        if not old.size:
            return jnp.zeros(old.shape, old.dtype)
        new = jnp.asarray(plain[prefix + array_name(path)])
        return jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if _is_key(old) else new

    return jax.tree.map_with_path(leaf, like)


def expected_arrays(like: PyTree, prefix: str = "") -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return shape and dtype of each array of a checkpoint by name."""
    # Keys are saved as their bits.
    plain = jax.tree.map(lambda x: jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x, like)
    leaves = jax.tree.leaves_with_path(plain)
    return {prefix + array_name(where): (leaf.shape, np.dtype(leaf.dtype)) for where, leaf in leaves if leaf.size}
