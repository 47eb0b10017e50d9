"""What a training will take of the device's memory, before anything is compiled."""

import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from memax_rl.agents import Agent
from memax_rl.runs.config import TrainConfig

_FIELDS_SHOWN = 3


def state_bytes(state: PyTree, seeds: int) -> dict[str, int]:
    """Return the bytes of each field of the state of all seeds, from the shapes of one seed's."""
    names = [name for name in vars(state) if not name.startswith("_")]
    return {name: seeds * _bytes(getattr(state, name)) for name in names}


def _bytes(tree: PyTree) -> int:
    shapes = eqx.filter(tree, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    # The bits of random keys.
    plain = jax.eval_shape(lambda t: jax.tree.map(_bits, t), shapes)
    return sum(int(np.prod(x.shape, dtype=np.float64)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(plain))


def _bits(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def device_bytes() -> int:
    """Return the memory of the device: an accelerator's own, or the machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe_sizes(config: TrainConfig, agent: Agent[Any], state: PyTree) -> str:
    """Return in a line what the state takes, from the shapes of one seed's.

    Raises:
        ValueError: If it cannot fit: an update holds the state twice, before and after it.
    """
    sizes = state_bytes(state, config.num_seeds)
    total, room = sum(sizes.values()), device_bytes()
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_FIELDS_SHOWN]
    parts = ", ".join(f"{name} {_human(sizes[name])}" for name in largest)
    text = f"the state of {config.num_seeds} seed{'s' if config.num_seeds > 1 else ''} takes {_human(total)} ({parts})"
    if 2 * total > room:
        raise ValueError(f"{text}, twice within an update, and the device has {_human(room)}; {agent.size_hint}")
    return text


def _human(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB"
