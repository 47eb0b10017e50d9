"""The laws of the memory contract, as functions that raise `AssertionError`. The tests run them over the registry.

Run them on a model of your own: `memax_rl.memory.laws.check(memory, key)`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from memax_rl.memory._contract import Memory

TOLERANCE = 2e-4


def check(memory: Memory, key: PRNGKeyArray, *, length: int = 37) -> None:
    """Check all laws on random inputs of `length` steps, with a start flag at about every sixth step."""
    keys = jax.random.split(key, 3)
    xs = jax.random.normal(keys[0], (length, memory.in_size))
    starts = jax.random.bernoulli(keys[1], 1 / 6, (length,))
    state = reachable_state(memory, keys[2])
    scan_equals_steps(memory, state, xs, starts)
    resets(memory, state, xs)
    gradients_stop_at_starts(memory, state, xs)
    step_does_not_keep_nan(memory, xs[0])


def reachable_state(memory: Memory, key: PRNGKeyArray, *, steps: int = 5) -> PyTree[Array]:
    """Return the state after a few random inputs: some states, such as a negative sum of keys, cannot occur."""
    xs = jax.random.normal(key, (steps, memory.in_size))
    return eqx.filter_jit(memory.scan)(memory.initial_state(), xs, jnp.zeros(steps, bool))[0]


def loop(
    memory: Memory, state: PyTree[Array], xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
) -> tuple[PyTree[Array], Float[Array, "T out_size"]]:
    """Return what `memory.scan` must return, by calling `step` T times."""

    def body(state, now):
        return memory.step(state, *now)

    return jax.lax.scan(body, state, (xs, starts))


def scan_equals_steps(
    memory: Memory,
    state: PyTree[Array],
    xs: Float[Array, "T in_size"],
    starts: Bool[Array, " T"],
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """`scan` and `step` in a loop agree: outputs, last state, and the gradients by parameters, state and inputs."""

    def objective(differentiable, run):
        memory, state, xs = differentiable
        last, ys = run(memory, state, xs, starts)
        # Every element of the outputs and of the last state enters, each with its own weight.
        total = _weighted_sum(ys) + sum(_weighted_sum(leaf) for leaf in _inexact(last))
        return total, (last, ys)

    run = eqx.filter_jit(eqx.filter_value_and_grad(objective, has_aux=True))
    (_, fast), fast_grads = run((memory, state, xs), lambda m, *args: m.scan(*args))
    (_, slow), slow_grads = run((memory, state, xs), loop)
    _agree("outputs and last state", fast, slow, tolerance)
    _agree("gradients", fast_grads, slow_grads, tolerance)


def resets(memory: Memory, state: PyTree[Array], xs: Float[Array, "T in_size"]) -> None:
    """From a start flag on, the outputs and the last state are those of a fresh state, whatever came before."""
    length = xs.shape[0]
    scan = eqx.filter_jit(memory.scan)
    initial = memory.initial_state()
    _agree("a start at 0", scan(state, xs, jnp.arange(length) == 0), scan(initial, xs, jnp.zeros(length, bool)), 1e-5)
    for at in sorted({1, length // 2, length - 1} & set(range(length))):
        starts = jnp.arange(length) == at
        last, ys = scan(state, xs, starts)
        other = jnp.where((jnp.arange(length) < at)[:, None], xs[::-1], xs)
        other_last, other_ys = scan(initial, other, starts)
        _agree(f"what follows a start at {at}", (last, ys[at:]), (other_last, other_ys[at:]), 1e-5)


def gradients_stop_at_starts(memory: Memory, state: PyTree[Array], xs: Float[Array, "T in_size"]) -> None:
    """The derivative of any output by an input, or by a state, of an earlier episode is exactly zero."""
    length = xs.shape[0]
    at = length // 2
    starts = jnp.arange(length) == at

    def later(differentiable):
        state, xs = differentiable
        return _weighted_sum(memory.scan(state, xs, starts)[1][at:])

    state_grad, xs_grad = eqx.filter_jit(eqx.filter_grad(later))((state, xs))
    for leaf in (*_inexact(state_grad), xs_grad[:at]):
        if not bool(jnp.all(leaf == 0)):
            raise AssertionError("a gradient crosses a start flag; use `where` on the state, not on the output")


def step_does_not_keep_nan(memory: Memory, x: Float[Array, " in_size"]) -> None:
    """A state of nan or infinity is gone after one `step` with a start flag."""
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
    got = jax.tree.leaves_with_path(eqx.filter(got, eqx.is_array))
    want = jax.tree.leaves(eqx.filter(want, eqx.is_array))
    if len(got) != len(want):
        raise AssertionError(f"{what}: {len(got)} arrays where {len(want)} were expected")
    # A gradient that is zero but for rounding is compared with the size of the others.
    floor = 1e-2 * max([float(jnp.max(jnp.where(jnp.isfinite(w), jnp.abs(w), 0), initial=0)) for w in want], default=0)
    for (path, g), w in zip(got, want, strict=True):
        if g.shape != w.shape or g.dtype != w.dtype:
            raise AssertionError(f"{what}{jax.tree_util.keystr(path)}: {g.dtype}{g.shape}, expected {w.dtype}{w.shape}")
        # Non-finite entries of the state (minus infinity as a neutral maximum) must be equal; the rest is compared.
        finite = jnp.isfinite(w)
        scale = jnp.maximum(jnp.max(jnp.where(finite, jnp.abs(w), 0), initial=0), floor) + 1e-6
        same = jnp.where(finite, jnp.abs(g - w) <= tolerance * scale, g == w)
        if not bool(jnp.all(same)):
            worst = float(jnp.max(jnp.where(finite, jnp.abs(g - w), 0)) / scale)
            raise AssertionError(f"{what}{jax.tree_util.keystr(path)} differ by {worst:.1e} of their size")
