"""Nonlinear recurrences (GRU, LSTM, ...): a sequential scan whose weight gradient is one matrix product.

A cell is split into an affine map of the hidden state, `v_t = product(weights, h_{t-1})`, and an element-wise rest. The
input's share is computed for all steps before the scan. In the backward scan only the gradients of `v_t` and of the inputs
are formed; the gradient of `weights` follows outside, from one product over batch and time together.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from memax_rl.ops._checks import check_starts

State = TypeVar("State", bound=tuple)
Weights = PyTree[Float[Array, "..."]]


def nonlinear_recurrence(
    cell: Callable[[PyTree, PyTree, State], State],
    product: Callable[[Weights, Array], PyTree],
    weights: Weights,
    inputs: PyTree[Float[Array, "T ..."]],
    state: State,
    starts: Bool[Array, " T"],
) -> tuple[State, Float[Array, "T ..."]]:
    """Run s_t = cell(inputs_t, product(weights, h_{t-1}), s_{t-1}) and return the last state and all h_t.

    h is the first element of the tuple s. At a start flag all of s_{t-1} counts as zero. First derivatives only.

    **Cost.** T dependent steps, each with the multiply-adds of one `product` forward and one backward; O(T * size of
    inputs, products and states) memory. Keep gates as separate arrays in `inputs` and `weights`: slices of one wide array
    inside the loop are more than twice as slow on a CPU.

    **Arguments:**

    - `cell`: element-wise, closes over no arrays.
    - `product`: affine in h and in `weights`, closes over no arrays.
    - `weights`: parameters of `product`.
    - `inputs`: the input's share of each step, time first.
    - `state`: the tuple s_0; it counts until the first start flag.
    - `starts`: true where a step begins a new sequence.

    **Raises:** `ValueError` if `starts` is not `bool[T]`.
    """
    length = jax.tree.leaves(inputs)[0].shape[0]
    check_starts(starts, length)
    frozen = jax.lax.stop_gradient((weights, inputs, state))
    last, hs, before, products = _forward(cell, product, *frozen, starts)
    # The value is unused, and removed by the compiler: this is here for its transpose, the weight gradient.
    h_before = jax.lax.stop_gradient(before[0])
    traced = jax.vmap(product, in_axes=(None, 0))(weights, h_before)
    return _attach(cell, product, frozen[0], inputs, traced, state, starts, (last, hs, before, products))


def _reset(start: Array, state: State) -> State:
    return jax.tree.map(lambda s: jnp.where(start, jnp.zeros_like(s), s), state)


def _forward(cell, product, weights, inputs, state, starts):
    """Return the last state, all h_t, the states before each step (after the reset) and the products."""

    def step(state, now):
        x, start = now
        state = _reset(start, state)
        v = product(weights, state[0])
        new = cell(x, v, state)
        return new, (new[0], state, v)

    last, (hs, before, products) = jax.lax.scan(step, state, (inputs, starts))
    return last, hs, before, products


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attach(cell, product, weights, inputs, traced, state, starts, trajectory):
    """Return the results of the forward scan and give them their derivative."""
    del cell, product, weights, inputs, traced, state, starts
    last, hs, _, _ = trajectory
    return last, hs


def _attach_fwd(cell, product, weights, inputs, traced, state, starts, trajectory):
    del cell, product, traced, state
    last, hs, before, products = trajectory
    return (last, hs), (weights, inputs, products, before, starts)


def _attach_bwd(cell, product, residuals, cotangents):
    weights, inputs, products, before, starts = residuals
    dlast, dhs = cotangents

    def step(dstate, now):
        x, v, state, start, dh = now
        dstate = (dstate[0] + dh, *dstate[1:])
        _, cell_vjp = jax.vjp(cell, x, v, state)
        dx, dv, dbefore = cell_vjp(dstate)
        _, product_vjp = jax.vjp(lambda h: product(weights, h), state[0])
        (dh_before,) = product_vjp(dv)
        dbefore = (dbefore[0] + dh_before, *dbefore[1:])
        return _reset(start, dbefore), (dx, dv)

    dstate, (dinputs, dproducts) = jax.lax.scan(
        step, dlast, (inputs, products, before, starts, dhs), reverse=True
    )
    return None, dinputs, dproducts, dstate, None, None


_attach.defvjp(_attach_fwd, _attach_bwd)
