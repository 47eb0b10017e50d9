"""Element-wise recurrences h_t = cell(weights, x_t, h_{t-1}), linear or not, with resets.

The derivative of a solved recurrence needs no trace of how it was solved: with J_t the Jacobian of the cell
at h_{t-1},
    g_t = dh_t + J_{t+1}^T g_{t+1}
is one linear recurrence in reverse, and the gradients of weights and inputs follow from g outside of it. The
states may thus come from a plain loop, from a tree where the cell's maps compose in closed form, or from
Newton's method, which repeats
    h <- solution of the linear recurrence h_t = f_t + J_t (h_{t-1} - p_{t-1}),    f, J taken at the last
    iterate p
(Lim et al. 2023, https://arxiv.org/abs/2309.12252; Danieli et al. 2025, ParaRNN,
https://arxiv.org/abs/2510.21450). Iteration i is exact for the first i steps of each episode whatever the
cell, and converges quadratically before that.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from memax_rl.ops._checks import check_starts, widened
from memax_rl.ops._first_order import define, no_forward

State = tuple[Array, ...]
Cell = Callable[[PyTree, PyTree, State], State]

_OP = "ops.elementwise_recurrence"

# Residual, relative to the size of the states, at which Newton's method stops: some ten units in the last
# place.
_RESIDUAL = 1e-6


class Maps(NamedTuple):
    """How the cell's maps compose, for the method "associative".

    Attributes:
        lift: (weights, x) -> the map h -> cell(weights, x, h) as a pytree of arrays.
        constant: H -> the map whose value is always h.
        combine: (earlier map, later map) -> map; associative.
        value: A map whose value is always h -> h.
    """

    lift: Callable[[PyTree, PyTree], PyTree]
    constant: Callable[[State], PyTree]
    combine: Callable[[PyTree, PyTree], PyTree]
    value: Callable[[PyTree], State]


def elementwise_recurrence(
    cell: Cell,
    weights: PyTree[Float[Array, "..."]],
    inputs: PyTree[Float[Array, "T ..."]],
    state: State,
    starts: Bool[Array, " T"],
    *,
    initial: State | None = None,
    method: str | None = None,
    maps: Maps | None = None,
) -> State:
    """Return all h_t of h_t = cell(weights, x_t, h_{t-1}), where h_{t-1} counts as `initial` at a start flag.

    A state is a tuple of arrays of one shape, each element of which meets only the same element of the
    others, float32 at least whatever the inputs. First derivatives only; none by `initial`.

    **Cost.** O(T * size) memory. `"sequential"` does T dependent steps of the cell; `"associative"` O(log T) of
    `combine`; `"newton"` O(log T) an iteration, of which there are few where states forget and up to T where
    they do not.

    Args:
        cell: Element-wise; closes over no traced arrays.
        weights, inputs: What the cell takes beside the state; `inputs` with time first.
        state: H_0; it counts until the first start flag.
        starts: True where a step begins a new sequence.
        initial: The state at a start flag; zeros by default.
        method: By default sequential on a CPU, and elsewhere `"associative"` where `maps` are given, else `"newton"`.
            Or `"reference"`, a plain `jax.lax.scan` that is differentiable any number of times and in forward mode.
        maps: How the cell's maps compose.

    Raises:
        ValueError: If `starts` is not `bool[T]`, or `method` is unknown or needs `maps`.
    """
    length = jax.tree.leaves(inputs)[0].shape[0]
    check_starts(starts, length)
    method = _choose(method, maps)
    weights, inputs, state = widened((weights, inputs, state))
    if initial is None:
        initial = tuple(map(jnp.zeros_like, state))
    initial = tuple(jax.lax.stop_gradient(i.astype(s.dtype)) for i, s in zip(initial, state, strict=True))
    if method == "reference":
        return _loop(cell, weights, inputs, state, starts, initial)
    weights, inputs, state = no_forward(_OP, (weights, inputs, state))
    frozen = jax.lax.stop_gradient((weights, inputs, state))
    if method == "sequential":
        hs = _loop(cell, *frozen, starts, initial)
    elif method == "newton":
        hs = _newton(cell, *frozen, starts, initial)
    else:
        assert maps is not None
        hs = _tree(maps, *frozen, starts, initial)
    before = _before(hs, frozen[2], starts, initial)
    values = jax.vmap(cell, in_axes=(None, 0, 0))(weights, inputs, before)
    jacobian = jax.vmap(functools.partial(_jacobian, cell, frozen[0]))(frozen[1], before)
    return _attach(method == "sequential", values, state, jacobian, hs, starts)


def _choose(method: str | None, maps: Maps | None) -> str:
    """Return the method, chosen by the backend where it is None. Raises `ValueError` as `elementwise_recurrence`."""
    if method is None:
        parallel = "newton" if maps is None else "associative"
        return "sequential" if jax.default_backend() == "cpu" else parallel
    if method not in ("sequential", "newton", "associative", "reference"):
        raise ValueError(f"method must be 'sequential', 'newton', 'associative', 'reference' or None, got {method!r}")
    if method == "associative" and maps is None:
        raise ValueError("method 'associative' needs maps, the composition of the cell's maps in closed form")
    return method


def _before(hs: State, state: State, starts: Array, initial: State) -> State:
    """Return h_{t-1} of every step, after the reset."""
    return tuple(
        jnp.where(_like(starts, h), i[None], jnp.concatenate([s[None], h[:-1]]))
        for h, s, i in zip(hs, state, initial, strict=True)
    )


def _like(flags: Array, h: Array) -> Array:
    return flags.reshape(-1, *(1,) * (h.ndim - 1))


def _jacobian(cell: Cell, weights, x, h: State) -> tuple[State, ...]:
    """Return the columns of the Jacobian, [j][i] = d h_i / d h_j before, each of the shape of the state."""
    columns = []
    for j in range(len(h)):
        direction = tuple(jnp.full_like(s, float(i == j)) for i, s in enumerate(h))
        columns.append(jax.jvp(functools.partial(cell, weights, x), (h,), (direction,))[1])
    return tuple(columns)


def _loop(cell, weights, inputs, state, starts, initial):
    def step(h, now):
        x, start = now
        h = tuple(jnp.where(start, i, s) for i, s in zip(initial, h, strict=True))
        h = cell(weights, x, h)
        return h, h

    return jax.lax.scan(step, state, (inputs, starts))[1]


def _tree(maps: Maps, weights, inputs, state, starts, initial):
    lifted = jax.vmap(maps.lift, in_axes=(None, 0))(weights, inputs)
    constant = maps.constant(initial)

    def with_reset(left, right):
        (a, flag_a), (b, flag_b) = left, right
        # At a start the initial state replaces everything before, so that nan there cannot get through.
        a = jax.tree.map(lambda e, c: jnp.where(_like(flag_b, e), c[None], e), a, constant)
        return jax.vmap(maps.combine)(a, b), flag_a | flag_b

    elements = jax.tree.map(lambda s, e: jnp.concatenate([s[None], e]), maps.constant(state), lifted)
    flags = jnp.concatenate([jnp.zeros((1,), bool), starts])
    elements, _ = jax.lax.associative_scan(with_reset, (elements, flags))
    return jax.vmap(maps.value)(jax.tree.map(lambda e: e[1:], elements))


def _newton(cell, weights, inputs, state, starts, initial):
    length = starts.shape[0]
    run = jax.vmap(functools.partial(cell, weights))
    # No product of `length` Jacobians may overflow. A smaller one costs iterations, never exactness: once
    # h_{t-1} is right its change is zero, and h_t becomes f_t.
    limit = 2.0 ** (64 / length)

    everywhere = tuple(jnp.broadcast_to(i, (length, *i.shape)) for i in initial)
    first = run(inputs, everywhere)
    # Where an input is nan there is nothing to solve.
    broken = tuple(~jnp.isfinite(h) for h in first)

    def evaluate(hs):
        before = _before(hs, state, starts, initial)
        values = run(inputs, before)
        gaps = tuple(jnp.abs(h - v) / (1 + jnp.abs(v)) for h, v in zip(hs, values, strict=True))
        # Nan counts as not converged: steps after the solved ones may overflow until they are solved.
        wide = [~(gap <= _RESIDUAL) & ~skip for gap, skip in zip(gaps, broken, strict=True)]
        return before, values, jnp.stack([jnp.any(w) for w in wide]).any()

    def unfinished(carry):
        count, _, _, _, wide = carry
        # An iteration solves one more step; two do, where the last iterate was so large that its change is rounded.
        return (count < 2 * length) & wide

    def iterate(carry):
        count, hs, before, values, _ = carry
        jacobian = jax.vmap(functools.partial(_jacobian, cell, weights))(inputs, before)
        rows = [_sum(jnp.abs(column[i]) for column in jacobian) for i in range(len(hs))]
        norm = functools.reduce(jnp.maximum, rows)
        jacobian = jax.tree.map(lambda j: _finite(j * (limit / jnp.maximum(norm, limit))), jacobian)
        change = tuple(_finite(v - h) for v, h in zip(values, hs, strict=True))
        change = _linear(jacobian, change, starts, reverse=False)
        hs = tuple(_finite(h + c) for h, c in zip(hs, change, strict=True))
        return count + 1, hs, *evaluate(hs)

    hs = tuple(map(_finite, first))
    _, _, _, values, _ = jax.lax.while_loop(unfinished, iterate, (0, hs, *evaluate(hs)))
    return values


def _linear(jacobian, b: State, starts: Array, *, reverse: bool) -> State:
    """Return all g of g_t = J_t g_{t-1} + b_t from zero; `jacobian` is in columns, [j][i].

    By doubling, T log T work in one short loop: a balanced tree would do less work, but takes many times
    longer to compile.
    """
    size, length = len(b), starts.shape[0]
    if reverse:
        jacobian, b, starts = jax.tree.map(lambda a: a[::-1], (jacobian, b, starts))

    def double(k, carry):
        # Element t covers the 2^k steps up to t, or those since the last start.
        j, b, closed = carry
        reach = 2**k
        j_1, b_1, closed_1 = jax.tree.map(lambda a: jnp.roll(a, reach, axis=0), carry)
        closed = closed | (jnp.arange(length) < reach)
        b = tuple(
            jnp.where(_like(closed, b[i]), b[i], b[i] + _sum(j[k][i] * b_1[k] for k in range(size)))
            for i in range(size)
        )
        j = tuple(tuple(_sum(j[k][i] * j_1[c][k] for k in range(size)) for i in range(size)) for c in range(size))
        return j, b, closed | closed_1

    b = jax.lax.fori_loop(0, (length - 1).bit_length(), double, (jacobian, b, starts))[1]
    return jax.tree.map(lambda a: a[::-1], b) if reverse else b


def _finite(x):
    return jnp.where(jnp.isfinite(x), x, 0)


def _sum(terms):
    return functools.reduce(jnp.add, terms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attach(sequential: bool, values: State, state: State, jacobian, hs: State, starts: Array) -> State:
    """Return hs, and give it its derivative by the values of the cell and by the first state."""
    del sequential, values, state, jacobian, starts
    return hs


def _attach_fwd(sequential, values, state, jacobian, hs, starts):
    del sequential, values, state
    return hs, (jacobian, starts)


def _attach_bwd(sequential, residuals, dhs):
    jacobian, starts = residuals
    size = len(dhs)

    def pull_back(jacobian, g, reset):
        return tuple(jnp.where(reset, 0, _sum(jacobian[j][i] * g[i] for i in range(size))) for j in range(size))

    if sequential:

        def step(carry, now):
            j, dh, start = now
            g = tuple(map(jnp.add, dh, carry))
            return pull_back(j, g, start), g

        dstate, gs = jax.lax.scan(step, tuple(jnp.zeros_like(d[0]) for d in dhs), (jacobian, dhs, starts), reverse=True)
        return gs, dstate, None, None, None
    # g_t takes J_{t+1} transposed, unless t+1 is a start.
    shifted = jax.tree.map(lambda j: jnp.concatenate([j[1:], jnp.zeros_like(j[:1])]), jacobian)
    transposed = tuple(tuple(shifted[i][j] for i in range(size)) for j in range(size))
    ends = jnp.concatenate([starts[1:], jnp.ones((1,), bool)])
    # Rows of J^T in columns: column j holds what g_j of t+1 gives to each g_i of t.
    gs = _linear(transposed, dhs, ends, reverse=True)
    dstate = pull_back(jax.tree.map(lambda j: j[0], jacobian), tuple(g[0] for g in gs), starts[0])
    return gs, dstate, None, None, None


# A second derivative would treat hs as a constant: only this rule states what it depends on.
define(_attach, _OP, _attach_fwd, _attach_bwd)
