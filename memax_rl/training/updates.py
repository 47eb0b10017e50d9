"""Many updates in one program: what the training loop calls on the device."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from memax_rl import sharding
from memax_rl.agents import Agent

# Updates in one jitted call: as many as take about this long, so that the host is rarely in the way and still answers.
_SECONDS_A_CALL = 1.0
_MOST_UPDATES_A_CALL = 256
# The axis of rows in the arrays of a state, behind that of seeds.
_ROWS = 1


@runtime_checkable
class Updates(Protocol):
    """What `make_many_updates` uses of an agent, or of anything else that learns by updates."""

    learned_fields: tuple[str, ...]
    sharded_fields: tuple[str, ...]
    devices: int

    def update(self, state: Any) -> tuple[Any, dict[str, Any]]:
        """Return the new state and metrics, with `loss` and `env_steps` among them."""
        ...


def make_many_updates(
    agent: Updates, static: PyTree, total_steps: int, *, stop_at_divergence: bool = False, seed_devices: int = 1
) -> Callable[..., tuple[PyTree, Bool[Array, " seeds"], Any]]:
    """Return (arrays, n, sound, until) -> (arrays, sound, metrics [_MOST_UPDATES_A_CALL, seeds]), for up to n updates.

    `sound` says which seeds have not diverged. A seed diverges in the update after which its loss or anything that it
    has learned is not finite; from there on it keeps what it had learned before that update.

    It stops early at the first update by which every sound seed has made `until` steps, a `StepCount` that is by
    default `total_steps`, no seed is sound or, with `stop_at_divergence`, one is not. The arrays are donated; they must
    be where `place` puts them, or, where `seed_devices` share the seeds, `sharding.place_seeds`.
    """

    def update(arrays, sound):
        state, metrics = agent.update(eqx.combine(arrays, static))
        finite = _is_finite(agent, state, metrics)
        sound = sound & finite
        new = eqx.filter(state, eqx.is_array)
        learned = [jax.tree.map(functools.partial(jnp.where, sound), *pair) for pair in _learned(agent, new, arrays)]
        # A field may be None: an auxiliary loss that there is not.
        where_learned = functools.partial(_fields, names=agent.learned_fields)
        new = eqx.tree_at(where_learned, new, learned, is_leaf=lambda x: x is None)
        return new, sound, metrics | {"finite": finite.astype(jnp.float32)}

    def update_seeds(arrays, sound):
        if sound.shape[0] > 1:
            return jax.vmap(update)(arrays, sound)
        # A batch axis of one seed would make every matrix product a batched one, which is much slower on a CPU.
        result = update(*jax.tree.map(lambda leaf: leaf[0], (arrays, sound)))
        return jax.tree.map(lambda leaf: leaf[None], result)

    # Traced once, for its shapes and for the loop.
    update_seeds = jax.jit(update_seeds, inline=True)

    def many(arrays, n, sound, until=None):
        until = total_steps if until is None else until
        shapes = jax.eval_shape(update_seeds, arrays, sound)[2]
        empty = jax.tree.map(lambda s: jnp.zeros((_MOST_UPDATES_A_CALL, *s.shape), s.dtype), shapes)

        def goes_on(carry):
            i, arrays, sound, _ = carry
            trains = jnp.any(sound & ~arrays.env_steps.reached(until))
            unwanted = ~jnp.all(sound) if stop_at_divergence else jnp.zeros((), bool)
            trains, unwanted = sharding.any_of(jnp.stack([trains, unwanted]), seed_devices)
            return (i < n) & trains & ~unwanted

        def body(carry):
            i, arrays, sound, log = carry
            arrays, sound, metrics = update_seeds(arrays, sound)
            return i + 1, arrays, sound, jax.tree.map(lambda rows, row: rows.at[i].set(row), log, metrics)

        # A loop with a bound known only at run time: one compilation serves every n.
        _, arrays, sound, log = jax.lax.while_loop(goes_on, body, (0, arrays, sound, empty))
        return arrays, sound, log

    if agent.devices > 1:
        many = sharding.shard_map(many, agent.devices, agent.sharded_fields, _ROWS)
    if seed_devices > 1:
        many = sharding.shard_seeds(many, seed_devices)
    return jax.jit(many, donate_argnums=0)


def _fields(state: PyTree, names: Iterable[str]) -> list[PyTree]:
    return [getattr(state, name) for name in names]


def _learned(agent: Updates, *states: PyTree) -> Iterable[tuple[PyTree, ...]]:
    """Yield what the agent has learned, part by part, each as a tuple over the states."""
    return (tuple(getattr(state, name) for state in states) for name in agent.learned_fields)


def _is_finite(agent: Updates, state: PyTree, metrics: dict[str, Any]) -> Bool[Array, ""]:
    """Return whether loss and all that was learned are finite. A finite loss is no proof: its gradient may be nan."""
    learned = [eqx.filter(part, eqx.is_inexact_array) for (part,) in _learned(agent, state)]
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(learned)]))
    # An agent that fills a replay first has no loss yet.
    return finite & (jnp.isfinite(metrics["loss"]) | (metrics.get("gradient_steps", 1) == 0))


def place(agent: Agent[Any], arrays: PyTree) -> PyTree:
    """Return the arrays of the state on the agent's devices."""
    if agent.devices == 1:
        return arrays
    return sharding.place(arrays, agent.devices, agent.sharded_fields, _ROWS)


def updates_a_call(seconds_an_update: float) -> int:
    """Return how many updates take about as long as the host may be away."""
    return int(np.clip(_SECONDS_A_CALL / max(seconds_an_update, 1e-6), 1, _MOST_UPDATES_A_CALL))
