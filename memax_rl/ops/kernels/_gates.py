"""Cells with gates (GRU, LSTM, ...): all steps of a sequence in one program, forward and backward.

A loop of small kernels pays for a launch, and for reading the weights, in every step. Here a program keeps the state of
its sequence in registers through all steps, and as much of the gates' matrices as the registers of a multiprocessor
hold; the rest is read again in each step, from the cache next to it. Products are sums of float32 products, not those
of the tensor cores: exact to rounding, whatever the precision of other products. The row of the next step is requested
before this one is computed.

The backward kernel returns the gradients of the pre-activations; those of the weights are one product outside of it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from memax_rl.ops.kernels._batch import like, over_groups, pallas, power_of_two

# Entries of matrices that stay in registers forward and backward, and how many of them a warp of 32 threads has. Of the
# 65,536 registers of a multiprocessor a product takes some, and a sum of products, backward, as many as a matrix. With
# more in them the compiler moves others out, which costs more than to read a matrix again.
_RESIDENT, _RESIDENT_BACKWARD, _EACH_WARP = 2 * 128 * 128, 128 * 128, 64 * 32
# Entries of matrices altogether: what the cache next to a multiprocessor can hold.
_MOST = 4 * 128 * 128
_WIDEST = 128


class Cell(NamedTuple):
    """A cell of `nonlinear_recurrence`, and the structure of its gates, whose leaves may be None.

    Attributes:
        cell: (gates, state) -> state, element by element.
        inputs: Which gates the input adds to.
        products: Which gates a matrix adds to.
        structure: Of the gates, with None as a leaf.
        width: Units.
    """

    cell: Callable[[Any, Any], Any]
    inputs: tuple[bool, ...]
    products: tuple[bool, ...]
    structure: Any
    width: int

    def next(self, gates: Sequence[Array], state: tuple[Array, ...]) -> tuple[Array, ...]:
        """Return the state after one step from all gates, in a list."""
        return self.cell(jax.tree.unflatten(self.structure, gates), state)


def fits(width: int, matrices: int) -> bool:
    """Return whether there is a kernel for so many units and matrices."""
    return 0 < width <= _WIDEST and matrices * power_of_two(width) ** 2 <= _MOST


def gates_forward(
    cell: Cell,
    matrices: Array,
    biases: Array,
    inputs: tuple[Array, ...],
    state: tuple[Array, ...],
    starts: Array,
    *,
    interpret: bool,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the pre-activations of all gates and the states, each [T, width].

    Args:
        cell: The cell.
        matrices: The matrix of each gate that has one, [m, width, width], from state to gate.
        biases: What is added to it, [m, width].
        inputs: Each [T, width].
        state: The tuple before the first step, each [width].
        starts: True where the state before the step counts as zero.
        interpret: Run by Pallas' interpreter.
    """

    def run(weights, arrays):
        out = tuple(like(arrays[0]) for _ in (*cell.inputs, *state))
        plan = _plan(cell, arrays[0], len(matrices), _RESIDENT)
        kernel = functools.partial(_forward_kernel, cell, plan, len(state))
        call = pallas(kernel, "gates_forward", plan.grid, out, warps=plan.warps, interpret=interpret)
        return call(*weights, *arrays)

    out = over_groups(run, (matrices, biases), (*inputs, *state, starts.astype(jnp.int8)))
    return out[: len(cell.inputs)], out[len(cell.inputs) :]


def gates_backward(
    cell: Cell,
    matrices: Array,
    gates: tuple[Array, ...],
    states: tuple[Array, ...],
    state: tuple[Array, ...],
    starts: Array,
    dhs: Array,
    dlast: tuple[Array, ...],
    *,
    interpret: bool,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the gradients by the pre-activations of all gates, and by the first state.

    Args:
        cell: The cell.
        matrices: As in `gates_forward`.
        gates, states: The results of `gates_forward`.
        state, starts: As in `gates_forward`.
        dhs: The gradient by the first part of the states, [T, width].
        dlast: That by the last state.
        interpret: Run by Pallas' interpreter.
    """

    def run(weights, arrays):
        sequences = arrays[len(gates) + len(states)]
        out = (*(like(arrays[0]) for _ in gates), *(like(sequences) for _ in state))
        plan = _plan(cell, arrays[0], len(matrices), _RESIDENT_BACKWARD)
        kernel = functools.partial(_backward_kernel, cell, plan, len(state))
        call = pallas(kernel, "gates_backward", plan.grid, out, warps=plan.warps, interpret=interpret)
        return call(*weights, *arrays)

    arrays = (*gates, *states, *state, starts.astype(jnp.int8), dhs, *dlast)
    out = over_groups(run, (jnp.swapaxes(matrices, -1, -2),), arrays)
    return out[: len(gates)], out[len(gates) :]


class _Plan(NamedTuple):
    """How the work is shared out: `length` steps, a `tile` of units, `resident` matrices in registers of `warps`."""

    grid: tuple[int, int]
    length: int
    tile: int
    resident: int
    warps: int


def _plan(cell: Cell, rows: Array, matrices: int, registers: int) -> _Plan:
    groups, sequences, length, _ = rows.shape
    tile = power_of_two(cell.width)
    # The first matrix is in registers whatever its size, for it is there while it is multiplied.
    resident = min(matrices, max(1, registers // tile**2))
    warps = min(8, power_of_two(-(-resident * tile**2 // _EACH_WARP)))
    return _Plan((groups, sequences), length, tile, resident, warps)


class _Sequence:
    """The matrices and the sequence of this program, and how to read and write rows."""

    def __init__(self, cell: Cell, plan: _Plan, matrices_ref):
        self.cell, self.plan, self.matrices_ref = cell, plan, matrices_ref
        self.group, self.sequence = pl.program_id(0), pl.program_id(1)
        self.inside = jnp.arange(plan.tile) < cell.width
        self.resident = [self._matrix(m) for m in range(plan.resident)]

    def _matrix(self, m):
        tile = pl.ds(0, self.plan.tile)
        mask = self.inside[:, None] & self.inside[None, :]
        return plgpu.load(self.matrices_ref.at[self.group, jnp.int32(m), tile, tile], mask=mask, other=0)

    def matrix(self, m):
        """Return the matrix of a gate."""
        return self.resident[m] if m < self.plan.resident else self._matrix(m)

    def _at(self, *index):
        # The interpreter takes no index that is a number of Python's.
        return self.group, *map(jnp.int32, index), pl.ds(0, self.plan.tile)

    def bias(self, ref, m):
        """Return the bias of a gate."""
        return plgpu.load(ref.at[self._at(m)], mask=self.inside, other=0)

    def read(self, refs, *t):
        """Return the row of each array, at step t where it has steps."""
        return tuple(plgpu.load(ref.at[self._at(self.sequence, *t)], mask=self.inside, other=0) for ref in refs)

    def write(self, refs, values, *t):
        """Write the row of each array, at step t where it has steps."""
        for ref, value in zip(refs, values, strict=True):
            plgpu.store(ref.at[self._at(self.sequence, *t)], value, mask=self.inside)

    def begins(self, ref, t):
        """Return the start flag."""
        return ref[self.group, self.sequence, t] != 0

    def clean(self, values):
        """Return the rows with zeros beyond the width, where a cell may have made nan of them."""
        if self.cell.width == self.plan.tile:
            return tuple(values)
        return tuple(jnp.where(self.inside, value, 0) for value in values)


def _reset(start, values):
    return tuple(jnp.where(start, 0, x) for x in values)


def _split(refs, *counts):
    """Return the references in groups of these sizes, and a single one for None."""
    refs, groups = list(refs), []
    for count in counts:
        groups.append(refs[0] if count is None else tuple(refs[:count]))
        refs = refs[count or 1 :]
    return groups


def _gates(cell: Cell, inputs, products):
    """Return the pre-activations of all gates from what the inputs and the state add to those that they add to."""
    inputs, products, gates = iter(inputs), iter(products), []
    for from_input, from_state in zip(cell.inputs, cell.products, strict=True):
        parts = [next(part) for part, there in ((inputs, from_input), (products, from_state)) if there]
        gates.append(functools.reduce(jnp.add, parts))
    return gates


def _forward_kernel(cell: Cell, plan: _Plan, size: int, matrices_ref, biases_ref, *refs) -> None:
    inputs, first, starts, gates, states = _split(refs, sum(cell.inputs), size, None, len(cell.inputs), size)
    sequence = _Sequence(cell, plan, matrices_ref)
    biases = [sequence.bias(biases_ref, m) for m in range(sum(cell.products))]

    def rows(t):
        return sequence.read(inputs, t), sequence.begins(starts, t)

    def step(t, carry):
        (x, start), state = carry
        ahead = rows(jnp.minimum(t + 1, plan.length - 1))
        state = _reset(start, state)
        products = [jnp.sum(sequence.matrix(m) * state[0][:, None], axis=0) + bias for m, bias in enumerate(biases)]
        values = _gates(cell, x, products)
        state = sequence.clean(cell.next(values, state))
        sequence.write(gates, values, t)
        sequence.write(states, state, t)
        return ahead, state

    jax.lax.fori_loop(0, plan.length, step, (rows(jnp.int32(0)), sequence.read(first)))


def _backward_kernel(cell: Cell, plan: _Plan, size: int, matrices_ref, *refs) -> None:
    count = len(cell.inputs)
    counts = count, size, size, None, None, size, count, size
    gates, states, first, starts, dhs, dlast, dgates, dstate = _split(refs, *counts)
    sequence = _Sequence(cell, plan, matrices_ref)
    initial = sequence.read(first)

    def rows(t):
        before = sequence.read(states, jnp.maximum(t - 1, 0))
        before = tuple(jnp.where(t == 0, x, y) for x, y in zip(initial, before, strict=True))
        return sequence.read(gates, t), before, sequence.begins(starts, t), *sequence.read([dhs], t)

    def step(i, carry):
        (values, before, start, dh), later = carry
        t = plan.length - 1 - i
        ahead = rows(jnp.maximum(t - 1, 0))
        _, pull_back = jax.vjp(cell.next, list(values), _reset(start, before))
        dvalues, dbefore = pull_back((later[0] + dh, *later[1:]))
        dvalues = sequence.clean(dvalues)
        sequence.write(dgates, dvalues, t)
        total = jnp.zeros((plan.tile, plan.tile), dh.dtype)
        from_state = [d for d, there in zip(dvalues, cell.products, strict=True) if there]
        for m, d in enumerate(from_state):
            total += sequence.matrix(m) * d[:, None]
        dbefore = dbefore[0] + jnp.sum(total, axis=0), *dbefore[1:]
        return ahead, _reset(start, sequence.clean(dbefore))

    carry = rows(jnp.int32(plan.length - 1)), sequence.read(dlast)
    sequence.write(dstate, jax.lax.fori_loop(0, plan.length, step, carry)[1])
