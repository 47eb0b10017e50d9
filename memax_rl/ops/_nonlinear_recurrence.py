"""Nonlinear recurrences (GRU, LSTM, ...): a sequential scan that does nothing in the loop that can be done outside.

A cell is split into an affine map of the hidden state, `v_t = product(weights, h_{t-1})`, and an element-wise rest
`s_t = cell(x_t, v_t, s_{t-1})`.

- The input's share `x_t` is computed for all steps before the scan.
- The element-wise rest has a diagonal Jacobian. Its entries are formed for all steps at once before the backward scan,
  which is then a linear recurrence with one matrix product a step, and no exponentials.
- The backward scan returns the gradients of the states alone. Those of `x` and `v` follow element-wise, and that of
  `weights` from one matrix product over batch and time together.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from memax_rl.ops._checks import check_starts
from memax_rl.ops._loop import loop, row

State = tuple[Float[Array, "..."], ...]


def nonlinear_recurrence(
    cell: Callable[[Any, Any, Any], Any],
    product: Callable[[Any, Array], Any],
    weights: PyTree[Float[Array, "..."]],
    inputs: PyTree[Float[Array, "T ..."]],
    state: State,
    starts: Bool[Array, " T"],
) -> tuple[State, Float[Array, "T ..."]]:
    """Run s_t = cell(inputs_t, product(weights, h_{t-1}), s_{t-1}) and return the last state and all h_t.

    h is the first element of the tuple s. At a start flag all of s_{t-1} counts as zero. First derivatives only.

    **Cost.** T dependent steps, each with the multiply-adds of one `product` forward and one backward; O(T * size of
    states, products and inputs) memory. Keep gates as separate arrays in `inputs`: slices of one wide array inside the
    loop are several times as slow on a CPU. In the product, one wide array [gates, ...] saves calls, which is what a
    step of few rows costs most.

    **Arguments:**

    - `cell`: element-wise over arrays of h's shape; closes over no arrays.
    - `product`: affine in h and in `weights`; closes over no arrays. Its arrays have h's shape, or more axes in front.
    - `weights`: parameters of `product`.
    - `inputs`: the input's share of each step, time first, in the same shapes.
    - `state`: the tuple s_0; it counts until the first start flag.
    - `starts`: true where a step begins a new sequence.

    **Raises:** `ValueError` if `starts` is not `bool[T]`, or a state has not h's shape, or an input
    or a product does not end in it.
    """
    check_starts(starts, jax.tree.leaves(inputs)[0].shape[0])
    shape = state[0].shape
    of_gates = jax.tree.leaves((jax.eval_shape(product, weights, state[0]), jax.tree.map(lambda x: x[0], inputs)))
    parts = [leaf.shape[leaf.ndim - len(shape) :] for leaf in of_gates] + [leaf.shape for leaf in state]
    for part in parts:
        if part != shape:
            raise ValueError(
                "every state must have the shape of the hidden state, and every input and product must end in it: "
                f"{list(shape)}, got {list(part)}; broadcast it first"
            )
    frozen = jax.lax.stop_gradient((weights, inputs, state))
    states, products = _forward(cell, product, *frozen, starts)
    # The value is unused, and removed by the compiler: this is here for its transpose, the weight gradient.
    h_before = jax.lax.stop_gradient(_before(state, states, starts)[0])
    traced = jax.vmap(product, in_axes=(None, 0))(weights, h_before)
    out = _attach(cell, product, frozen[0], inputs, traced, state, starts, (states, products))
    hs, last = cast(tuple[Array, State], out)
    return last, hs


def _turn(weight: Array) -> Array:
    return jnp.swapaxes(weight, -1, -2) if weight.ndim >= 2 else weight


def _reset(start: Array, state: State) -> State:
    return jax.tree.map(lambda s: jnp.where(start, jnp.zeros_like(s), s), state)


def _before(state: State, states: State, starts: Array) -> State:
    """Return the state before each step, after the reset."""

    def shift(first, rest):
        return jnp.concatenate([first[None], rest[:-1]])

    return jax.vmap(_reset)(starts, jax.tree.map(shift, state, states))


def _forward(cell, product, weights, inputs, state, starts):
    """Return the state after each step, and the products in it."""
    length = len(starts)
    # Products are by transposed weights, h @ w.T, whose weight gradient needs no transposed copy. In a loop of small
    # products those take twice as long as plain ones. So they are transposed once, out here; inside, the two transposes
    # cancel.
    turned = jax.tree.map(_turn, weights)

    def step(t, state, _):
        state = _reset(row(starts, t), state)
        v = product(jax.tree.map(_turn, turned), state[0])
        state = cell(row(inputs, t), v, state)
        return state, (state, v)

    shapes = state, jax.eval_shape(product, weights, state[0])
    # What the rows were before does not matter; from an input, they have its batch.
    like = jax.tree.leaves(inputs)[0].reshape(length, -1)[:, 0]

    def empty(s):
        like_s = jnp.broadcast_to(like.reshape(length, *(1 for _ in s.shape)), (length, *s.shape))
        return jnp.zeros_like(like_s, s.dtype)

    rows = jax.tree.map(empty, shapes)
    return loop(step, state, rows, length)[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attach(cell, product, weights, inputs, traced, state, starts, trajectory):
    """Return all h and the last state of the forward scan, and give them their derivative."""
    del cell, product, weights, inputs, traced, state, starts
    states, _ = trajectory
    return states[0], jax.tree.map(lambda s: s[-1], states)


def _attach_fwd(cell, product, weights, inputs, traced, state, starts, trajectory):
    out = _attach(cell, product, weights, inputs, traced, state, starts, trajectory)
    return out, (weights, inputs, state, starts, trajectory)


def _attach_bwd(cell, product, residuals, cotangents):
    weights, inputs, state, starts, (states, products) = residuals
    dhs, dlast = cotangents

    def diagonals(x, v, before):
        """Return the diagonals of a step's Jacobians, by input, product and state, of each part of the state after."""
        _, cell_vjp = jax.vjp(cell, x, v, before)
        # Element-wise, so a cotangent of ones picks the diagonal.
        picks = [
            cell_vjp(tuple(jnp.ones_like(s) if i == j else jnp.zeros_like(s) for i, s in enumerate(before)))
            for j in range(len(before))
        ]
        return tuple(zip(*picks, strict=True))

    by_input, by_product, by_state = jax.vmap(diagonals)(inputs, products, _before(state, states, starts))

    def pull(blocks, dstate):
        """Return the sum over the parts of the state of their gradients times their Jacobians' diagonals."""
        terms = [
            jax.tree.map(lambda d, ds=ds: d * jnp.broadcast_to(ds, d.shape), block)
            for block, ds in zip(blocks, dstate, strict=True)
        ]
        return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), terms)

    def step(t, dstate, _):
        dstate = (dstate[0] + row(dhs, t), *dstate[1:])
        _, product_vjp = jax.vjp(lambda h: product(weights, h), jnp.zeros_like(dstate[0]))
        (dh_before,) = product_vjp(pull(row(by_product, t), dstate))
        dbefore = pull(row(by_state, t), dstate)
        return _reset(row(starts, t), (dbefore[0] + dh_before, *dbefore[1:])), dstate

    # Not into dhs: what is read in a step before it is written may be read again, and then be copied whole.
    dstate, dstates = loop(step, dlast, jax.tree.map(jnp.zeros_like, states), len(starts), reverse=True)
    return None, jax.vmap(pull)(by_input, dstates), jax.vmap(pull)(by_product, dstates), dstate, None, None


_attach.defvjp(_attach_fwd, _attach_bwd)
