"""Nonlinear recurrences (GRU, LSTM, ...): a sequential scan with everything hoisted out of the loop that can be.

A cell is split into the pre-activations of its gates, `a_t = inputs_t + product(weights, h_{t-1})`, and an element-wise
function of them and the state, `s_t = cell(a_t, s_{t-1})`.

- `inputs_t` is computed for all steps before the scan; a_t reuses its buffer.
- Each step of the backward scan has one matrix product and the derivative of `cell`, rematerialized from a_t and
  s_{t-1}; the gradient of a_t reuses the buffer of a_t. So little memory is needed besides the states.
- The gradients of the inputs are those of a_t, and that of `weights` is one matrix product over batch and time.

On an NVIDIA GPU both loops are one kernel each, where `kernels._gates` has one for the number of units and gates.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from memax_rl.ops import kernels
from memax_rl.ops._checks import check_starts, is_reference, widened
from memax_rl.ops._first_order import define, no_forward
from memax_rl.ops._linear import plain_products
from memax_rl.ops._loop import loop, row, row_before

_OP = "ops.nonlinear_recurrence"

State = tuple[Float[Array, "..."], ...]


def nonlinear_recurrence(
    cell: Callable[[Any, Any], Any],
    product: Callable[[Any, Array], Any],
    weights: PyTree[Float[Array, "..."]],
    inputs: PyTree[Float[Array, "T ..."] | None],
    state: State,
    starts: Bool[Array, " T"],
    *,
    method: Literal["reference"] | None = None,
) -> tuple[State, Float[Array, "T ..."]]:
    """Run s_t = cell(inputs_t + product(weights, h_{t-1}), s_{t-1}) and return the last state and all h_t.

    h is the first element of the tuple s. At a start flag all of s_{t-1} counts as zero. States are float32 at least,
    whatever the inputs. First derivatives only.

    **Cost.** T dependent steps, each with the multiply-adds of one `product` forward and one backward; O(T * size of
    states and inputs) memory. Keep gates as separate arrays in `inputs`: slices of one wide array inside the loop are
    several times as slow on a CPU.

    Args:
        cell: Element-wise over arrays of h's shape; closes over no arrays.
        product: Affine in h and in `weights`; closes over no arrays. Returns what is added to `inputs`, in the same
            structure.
        weights: Parameters of `product`.
        inputs: What the input adds to each gate, time first. It is None for a gate that does not see the input;
            `product` returns None for one that does not see the state.
        state: The tuple s_0; it counts until the first start flag.
        starts: True where a step begins a new sequence.
        method: `"reference"` for a plain `jax.lax.scan` over time, differentiable any number of times and in forward
            mode; by default the fast form, for first derivatives in reverse mode.

    Raises:
        ValueError: If `starts` is not `bool[T]`, or a state, an input or a product has not h's shape.
    """
    check_starts(starts, jax.tree.leaves(inputs)[0].shape[0])
    shape = state[0].shape
    first = jax.tree.map(lambda x: x[0], inputs)
    for part in jax.tree.leaves((jax.eval_shape(product, weights, state[0]), first, state)):
        if part.shape != shape:
            raise ValueError(
                "every state, input and product must have the shape of the hidden state: "
                f"{list(shape)}, got {list(part.shape)}; broadcast it first"
            )
    if is_reference(method):
        return _plain(cell, product, weights, inputs, state, starts)
    weights, inputs, state = no_forward(_OP, widened((weights, inputs, state)))
    frozen = jax.lax.stop_gradient((weights, inputs, state))
    how = _kernel_for(product, weights, state)
    gates, states = _trajectory(how, cell, product, *frozen, starts)
    # The value is unused and removed by the compiler. What counts is its transpose, the weight gradient.
    h_before = jax.lax.stop_gradient(_before(state, states, starts)[0])
    traced = jax.vmap(product, in_axes=(None, 0))(jax.tree.map(_with_transposed_gradient, weights), h_before)
    out = _attach(how, cell, product, frozen[0], inputs, traced, state, starts, (gates, states))
    hs, last = cast(tuple[Array, State], out)
    return last, hs


def _plain(cell, product, weights, inputs, state, starts):
    def step(state, now):
        x, start = now
        state = nonlinear_step(cell, product, weights, x, _reset(start, state))
        return state, state[0]

    return jax.lax.scan(step, widened((weights, inputs, state))[2], (inputs, starts))


def nonlinear_step(
    cell: Callable[[Any, Any], Any],
    product: Callable[[Any, Array], Any],
    weights: PyTree[Float[Array, "..."]],
    inputs: PyTree[Float[Array, "..."] | None],
    state: State,
) -> State:
    """Return the state after one step of `nonlinear_recurrence`, without a reset.

    Args:
        cell, product, weights, inputs: As in `nonlinear_recurrence`, but the inputs of one step.
    """
    weights, inputs, state = widened((weights, inputs, state))
    return cell(_gates(inputs, product(weights, state[0])), state)


def _gates(x: Any, v: Any) -> Any:
    """Return x + v; where one of them is None, the other."""

    def add(x, v):
        return v if x is None else x if v is None else x + v

    return jax.tree.map(add, x, v, is_leaf=_is_none)


def _where_there(like: Any, gates: Any) -> Any:
    """Return `gates` with None where `like` has None."""
    return jax.tree.map(lambda there, gate: None if there is None else gate, like, gates, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _transpose(weight: Array) -> Array:
    return jnp.swapaxes(weight, -1, -2) if weight.ndim >= 2 else weight


def _with_transposed_gradient(weight: Array) -> Array:
    """Return the weight; if it is a stack of matrices, its gradient is computed transposed, and then transposed back.

    On a CPU, XLA is up to 15 % faster with that product. The barrier keeps it from folding the transpose into the
    product.
    """
    if weight.ndim < 3:
        return weight
    return _transpose(jax.lax.optimization_barrier(_transpose(weight)))


def _reset(start: Array, state: State) -> State:
    return jax.tree.map(lambda s: jnp.where(start, jnp.zeros_like(s), s), state)


def _before(state: State, states: State, starts: Array) -> State:
    """Return the state before each step, after the reset."""

    def shift(first, rest):
        return jnp.concatenate([first[None], rest[:-1]])

    return jax.vmap(_reset)(starts, jax.tree.map(shift, state, states))


def _forward(cell, product, weights, inputs, state, starts):
    """Return the pre-activations of the gates at each step, and the state after it."""
    length = len(starts)

    def step(t, state, now):
        state = _reset(row(starts, t), state)
        gates = _gates(_where_there(inputs, now[0]), product(weights, state[0]))
        state = cell(gates, state)
        return state, (gates, state)

    # Buffers for the results. Their values do not matter; made from an input, they have its batch axes.
    like = jax.tree.leaves(inputs)[0]

    def empty(s):
        return jnp.zeros_like(like, s.dtype)

    added = jax.tree.map(empty, jax.eval_shape(product, weights, state[0]))
    rows = jax.tree.map(lambda x, v: v if x is None else x, inputs, added, is_leaf=_is_none)
    rows = rows, jax.tree.map(empty, state)
    return loop(step, state, rows, length, read_ahead=True)[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attach(how, cell, product, weights, inputs, traced, state, starts, trajectory):
    """Return all h and the last state of the forward scan, and give them their derivative."""
    del how, cell, product, weights, inputs, traced, state, starts
    _, states = trajectory
    return states[0], jax.tree.map(lambda s: s[-1], states)


def _attach_fwd(how, cell, product, weights, inputs, traced, state, starts, trajectory):
    out = _attach(how, cell, product, weights, inputs, traced, state, starts, trajectory)
    return out, (weights, inputs, traced, state, starts, trajectory)


def _attach_bwd(how, cell, product, residuals, cotangents):
    weights, inputs, traced, state, starts, trajectory = residuals
    dhs, dlast = cotangents
    dstate, dgates = _gradients(how, cell, product, weights, inputs, state, starts, trajectory, dhs, dlast)
    return None, _where_there(inputs, dgates), _where_there(traced, dgates), dstate, None, None


define(_attach, _OP, _attach_fwd, _attach_bwd)


def _backward(cell, product, weights, state, starts, trajectory, dhs, dlast):
    """Return the gradients by the first state and by the pre-activations of all gates."""
    gates, states = trajectory
    # The derivative of h @ w is a product by w.T. In a loop of small products those take twice as long as plain ones on
    # a CPU. So the weights are transposed once, out here; inside, the two transposes cancel.
    transposed = jax.tree.map(_transpose, weights)

    def step(t, dstate, gates):
        dstate = (dstate[0] + row(dhs, t), *dstate[1:])
        before = _reset(row(starts, t), row_before(states, state, t))
        _, cell_vjp = jax.vjp(cell, gates, before)
        dgates, dbefore = cell_vjp(dstate)
        v, product_vjp = jax.vjp(lambda h: product(jax.tree.map(_transpose, transposed), h), jnp.zeros_like(before[0]))
        (dh_before,) = product_vjp(_where_there(v, dgates))
        return _reset(row(starts, t), (dbefore[0] + dh_before, *dbefore[1:])), dgates

    return loop(step, dlast, gates, len(starts), reverse=True, read_ahead=True)


def _kernel_for(product: Callable[[Any, Array], Any], weights: Any, state: State) -> kernels.Launch | None:
    """Return how to launch the kernel for these shapes, None where there is none or it is not wanted."""
    how = kernels.chosen()
    if how is None or state[0].ndim != 1 or state[0].dtype != jnp.float32:
        return None
    # It imports Pallas, which a CPU does without.
    from memax_rl.ops.kernels._gates import fits

    return how if fits(len(state[0]), len(jax.tree.leaves(jax.eval_shape(product, weights, state[0])))) else None


def _trajectory(how, cell, product, weights, inputs, state, starts):
    """Return what `_forward` does, by a kernel where `how` is not None."""
    plain = functools.partial(_forward, cell, product)
    if how is None:
        return plain(weights, inputs, state, starts)
    from memax_rl.ops.kernels._gates import gates_forward

    def kernel(weights, inputs, state, starts, *, interpret):
        described, structure = _described(cell, product, weights, inputs, state)
        matrices, biases = _affine(product, weights, len(state[0]))
        rows = tuple(jax.tree.leaves(inputs))
        gates, states = gates_forward(described, matrices, biases, rows, state, starts, interpret=interpret)
        return jax.tree.unflatten(structure, gates), states

    return kernels.launch(how, kernel, plain, weights, inputs, state, starts)


def _gradients(how, cell, product, weights, inputs, state, starts, trajectory, dhs, dlast):
    """Return what `_backward` does, by a kernel where `how` is not None."""
    plain = functools.partial(_backward, cell, product)
    arguments = weights, state, starts, trajectory, dhs, dlast
    if how is None:
        return plain(*arguments)
    from memax_rl.ops.kernels._gates import gates_backward

    def kernel(weights, state, starts, trajectory, dhs, dlast, *, interpret):
        described, structure = _described(cell, product, weights, inputs, state)
        matrices, _ = _affine(product, weights, len(state[0]))
        gates, states = tuple(jax.tree.leaves(trajectory[0])), trajectory[1]
        dgates, dstate = gates_backward(
            described, matrices, gates, states, state, starts, dhs, dlast, interpret=interpret
        )
        return dstate, jax.tree.unflatten(structure, dgates)

    return kernels.launch(how, kernel, plain, *arguments)


def _described(cell, product, weights, inputs, state):
    """Return the cell as the kernels take it, and the structure of its gates."""
    from memax_rl.ops.kernels._gates import Cell

    def present(parts):
        return tuple(part is not None for part in jax.tree.leaves(parts, is_leaf=_is_none))

    structure = jax.tree.structure(inputs, is_leaf=_is_none)
    added = jax.eval_shape(product, weights, state[0])
    return Cell(cell, present(inputs), present(added), structure, len(state[0])), structure


def _affine(product: Callable[[Any, Array], Any], weights: Any, width: int) -> tuple[Array, Array]:
    """Return A and c of each part A^T h + c of a product, [m, width, width] and [m, width]."""
    zero = jnp.zeros(width, jnp.float32)
    # As products by a unit matrix, which are exact in float32 alone.
    with plain_products(), jax.default_matmul_precision("float32"):

        def row_of(unit):
            return jax.jvp(functools.partial(product, weights), (zero,), (unit,))

        biases, rows = jax.vmap(row_of, out_axes=(None, 0))(jnp.eye(width, dtype=jnp.float32))
    return jnp.stack(jax.tree.leaves(rows), axis=0), jnp.stack(jax.tree.leaves(biases))
