"""Checks of the memory contract, for the registered models and for your own.

`memax_rl.memory.testing.check_memory(memory, key)` runs all of them; each raises `AssertionError` if it is violated.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from memax_rl.memory.base import Memory

TOLERANCE = 2e-4


def check_memory(memory: Memory, key: PRNGKeyArray, *, length: int = 37) -> None:
    """Check a model on random inputs, with a start flag at about every sixth step.

    Args:
        memory: The model.
        key: For the inputs.
        length: Number of steps.

    Raises:
        AssertionError: If `scan` and `step` differ, or anything crosses a start flag.
    """
    keys = jax.random.split(key, 3)
    xs = jax.random.normal(keys[0], (length, memory.in_size))
    starts = jax.random.bernoulli(keys[1], 1 / 6, (length,))
    state = reachable_state(memory, keys[2], steps=length)
    scan_equals_steps(memory, state, xs, starts)
    resets(memory, state, xs)
    gradients_stop_at_starts(memory, state, xs)
    step_does_not_keep_nan(memory, xs[0])


def reachable_state(memory: Memory, key: PRNGKeyArray, *, steps: int = 5) -> PyTree[Array]:
    """Return the state after `steps` random inputs. An arbitrary state may be impossible, as a negative sum of keys."""
    xs = jax.random.normal(key, (steps, memory.in_size))
    return values_and_gradients(memory, memory.initial_state(), xs, jnp.zeros(steps, bool))[0][0]


def loop(
    memory: Memory, state: PyTree[Array], xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
) -> tuple[PyTree[Array], Float[Array, "T out_size"]]:
    """Return what `memory.scan` must return, by calling `step` T times."""

    def body(state, now):
        return memory.step(state, *now)

    return jax.lax.scan(body, state, (xs, starts))


def _scan(memory, state, xs, starts):
    return memory.scan(state, xs, starts)


def values_and_gradients(
    memory: Memory,
    state: PyTree[Array],
    xs: Float[Array, "T in_size"],
    starts: Bool[Array, " T"],
    counts: Float[Array, " T"] | None = None,
    *,
    run: Callable[..., Any] = _scan,
) -> tuple[Any, Any]:
    """Return the results of a scan, and the gradients of a weighted sum of them.

    All checks share this one compiled program, because compilation is most of their cost.

    Args:
        memory: The model.
        state: The state before the first input.
        xs: The inputs.
        starts: True on the first input of an episode.
        counts: Weight of each step's outputs in the sum; 1 by default.
        run: The memory's `scan` by default, or `loop`.

    Returns:
        (last state, outputs), and the gradients with respect to (memory, state, inputs).
    """
    counts = jnp.ones(xs.shape[0]) if counts is None else counts
    (_, values), gradients = _compiled((memory, state, xs), starts, counts, run)
    return values, gradients


def _objective(differentiable, starts, counts, run):
    memory, state, xs = differentiable
    last, ys = run(memory, state, xs, starts)
    # Every element of the outputs and of the last state enters, each with its own weight.
    total = _weighted_sum(ys * counts[:, None]) + sum(_weighted_sum(leaf) for leaf in _inexact(last))
    return total, (last, ys)


_compiled = eqx.filter_jit(eqx.filter_value_and_grad(_objective, has_aux=True))


def scan_equals_steps(
    memory: Memory,
    state: PyTree[Array],
    xs: Float[Array, "T in_size"],
    starts: Bool[Array, " T"],
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Check that `scan` equals `step` in a loop: outputs, last state, gradients of parameters, state and inputs.

    Args:
        memory: The model.
        state: The state before the first input.
        xs: The inputs.
        starts: True on the first input of an episode.
        tolerance: Largest difference, relative to the largest entry of an array.

    Raises:
        AssertionError: If they differ. The message names the array.
    """
    fast, fast_grads = values_and_gradients(memory, state, xs, starts)
    slow, slow_grads = values_and_gradients(memory, state, xs, starts, run=loop)
    _agree("outputs and last state", fast, slow, tolerance)
    _agree("gradients", fast_grads, slow_grads, tolerance)


def resets(memory: Memory, state: PyTree[Array], xs: Float[Array, "T in_size"]) -> None:
    """Check that from a start flag on, outputs and last state do not depend on what came before.

    Raises:
        AssertionError: If they do.
    """
    time, inputs = np.arange(xs.shape[0]), np.asarray(xs)
    initial = memory.initial_state()

    def scan(state, xs, starts):
        last, ys = values_and_gradients(memory, state, xs, jnp.asarray(starts))[0]
        return last, np.asarray(ys)

    _agree("a start at 0", scan(state, xs, time == 0), scan(initial, xs, time < 0), 1e-5)
    for at in sorted({1, len(time) // 2, len(time) - 1} & set(time.tolist())):
        last, ys = scan(state, xs, time == at)
        other = jnp.asarray(np.where((time < at)[:, None], inputs[::-1], inputs))
        other_last, other_ys = scan(initial, other, time == at)
        _agree(f"what follows a start at {at}", (last, ys[at:]), (other_last, other_ys[at:]), 1e-5)


def gradients_stop_at_starts(memory: Memory, state: PyTree[Array], xs: Float[Array, "T in_size"]) -> None:
    """Check that no output and no last state has a gradient with respect to an earlier episode: exactly zero.

    Raises:
        AssertionError: If there is one.
    """
    time = np.arange(xs.shape[0])
    at = len(time) // 2
    counts = jnp.asarray(time >= at, jnp.float32)
    _, (_, state_grad, xs_grad) = values_and_gradients(memory, state, xs, jnp.asarray(time == at), counts)
    for leaf in (*map(np.asarray, _inexact(state_grad)), np.asarray(xs_grad)[:at]):
        if np.any(leaf != 0):
            raise AssertionError("a gradient crosses a start flag; use `where` on the state, not on the output")


def step_does_not_keep_nan(memory: Memory, x: Float[Array, " in_size"]) -> None:
    """Check that a `step` with a start flag replaces a state of nan or infinity.

    Raises:
        AssertionError: If the output is not that of the initial state.
    """
    step = eqx.filter_jit(memory.step)
    _, want = step(memory.initial_state(), x, jnp.array(True))
    for bad in (jnp.nan, jnp.inf):
        broken = jax.tree.map(
            lambda s, bad=bad: jnp.full_like(s, bad) if jnp.issubdtype(s.dtype, jnp.inexact) else s,
            memory.initial_state(),
        )
        _, got = step(broken, x, jnp.array(True))
        if not bool(jnp.all(got == want)):
            raise AssertionError(
                f"a state of {bad} survives a start flag in `step`; use `where`, never multiply by a flag"
            )


def _inexact(tree: PyTree) -> list[Array]:
    return jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))


def _weighted_sum(x: Array) -> Float[Array, ""]:
    """Return a sum in which every element of `x` has a weight of its own, imaginary parts included."""
    angle = 0.7 * jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)
    return jnp.sum(x.real * jnp.cos(angle) + x.imag * jnp.sin(angle))


def _agree(what: str, got: PyTree, want: PyTree, tolerance: float) -> None:
    # With numpy: as small JAX programs, one for each shape, the comparisons would cost as much as the checks.
    got = [(path, np.asarray(g)) for path, g in jax.tree.leaves_with_path(eqx.filter(got, eqx.is_array))]
    want = [np.asarray(w) for w in jax.tree.leaves(eqx.filter(want, eqx.is_array))]
    if len(got) != len(want):
        raise AssertionError(f"{what}: {len(got)} arrays where {len(want)} were expected")
    # A gradient that is zero up to rounding is compared relative to the size of the others.
    floor = 1e-2 * max((_size(w) for w in want), default=0.0)
    for (path, g), w in zip(got, want, strict=True):
        if g.shape != w.shape or g.dtype != w.dtype:
            raise AssertionError(f"{what}{jax.tree_util.keystr(path)}: {g.dtype}{g.shape}, expected {w.dtype}{w.shape}")
        # Non-finite entries of the state (minus infinity as a neutral maximum) must be equal; the rest is compared.
        finite = np.isfinite(w)
        scale = max(_size(w), floor) + 1e-6
        with np.errstate(invalid="ignore"):
            difference = np.abs(np.where(finite, g, 0) - np.where(finite, w, 0))
        if not np.all(np.where(finite, difference <= tolerance * scale, g == w)):
            raise AssertionError(
                f"{what}{jax.tree_util.keystr(path)} differ by {np.max(difference) / scale:.1e} of their size"
            )


def _size(x: np.ndarray) -> float:
    return float(np.max(np.abs(x), where=np.isfinite(x), initial=0))
