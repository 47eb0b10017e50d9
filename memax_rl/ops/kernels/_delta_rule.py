"""The delta rule in chunks, forward and backward, as `ops._delta_rule` writes it down.

A step writes under its key the error of what is stored there, times beta. So with the errors, in place of the values,
the rest is linear attention, and its kernels return outputs and gradients for all chunks at once. The errors of a chunk
solve a triangular system, which depends on the state before it:

    E = X V - X (c o K) S,    X the inverse of I + A

One kernel computes X, its product with the keys and that with the values for all chunks at once. What is left runs
along the chunks: two products a chunk for errors and states. Backward the same with X^T: dL/dV is linear in the
gradient by the state after the chunk. The error is also a value less what is read by the key before the step writes;
so the gradients by keys are those of linear attention once more, where a step sees the earlier ones only.

X is computed in products of three (see `_chunks`), whatever the setting of precision: their errors would add up.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from memax_rl.ops.kernels import _chunks
from memax_rl.ops.kernels._batch import like, over_sequences, pallas, power_of_two
from memax_rl.ops.kernels._choice import Launch
from memax_rl.ops.kernels._chunks import (
    LEAST,
    Layout,
    Run,
    decay_sums,
    dot,
    gradients,
    outputs,
    over_columns,
    read,
    read_decays,
    sums_back,
    warps,
    whole,
    within,
    write,
)

# Steps a chunk at most. The inverse costs its third power.
_CHUNK = 32
# Columns of the state in a program that runs along the chunks.
_VALUES = 32

_NAME = "delta_rule"


def layout(how: Launch, k: Array, v: Array, log_decay: Array | None, chunk: int | None) -> Layout | None:
    """Return how a kernel divides these [T, ...] into chunks, of `chunk` steps if given; None where there is none."""
    return _chunks.layout(how, k, v, log_decay, chunk, _CHUNK, (16, 32))


def delta_rule_forward(
    layout: Layout,
    state: Array,
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    log_decay: Array | None,
    starts: Array,
    *,
    interpret: bool,
) -> tuple[Array, Array, Array, Array, Array]:
    """Return the last state, all y_t, the errors, and for each chunk the inverse X and the state before it.

    Args:
        layout: What the arrays hold.
        state: S before the first step, [dk, dv].
        q, k, v: [chunks, steps, dk], the same and [chunks, steps, dv].
        beta: [chunks, steps].
        log_decay: [chunks, steps] or None.
        starts: True where the state before the step counts as zero, [chunks, steps].
        interpret: Run by Pallas' interpreter.
    """

    def run(state, q, k, writes, v, *sums):
        inverses, held, free = _solutions(layout, interpret, k, writes, v, sums)
        errors, states, last = _states(layout, interpret, state, held, free, writes, sums)
        ys = outputs(layout, _NAME, q, writes, errors, states, sums, interpret=interpret)
        return last, ys, errors, inverses, states

    return over_sequences(run, state, q, k, beta[:, :, None] * k, v, *decay_sums(starts, log_decay))


def delta_rule_backward(
    layout: Layout,
    q: Array,
    k: Array,
    beta: Array,
    log_decay: Array | None,
    starts: Array,
    errors: Array,
    inverses: Array,
    states: Array,
    dlast: Array,
    dys: Array,
    *,
    interpret: bool,
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return the gradients by state, q, k, v, beta and log_decay. Arguments: see `delta_rule_forward`.

    Args:
        errors, inverses, states: Its last three results.
        dlast, dys: The gradients by its first two.
    """

    def run(q, k, writes, errors, inverses, states, dlast, dys, *sums):
        held, free = _solution_gradients(layout, interpret, q, writes, inverses, dys, sums)
        dvs, dstates, dstate = _state_gradients(layout, interpret, dlast, held, free, q, k, dys, sums)
        given = layout, _NAME, q, writes, errors, dys, states, dstates, sums
        dq, dwrites, *dsums = gradients(*given, interpret=interpret)
        given = layout, f"{_NAME}_error", k, writes, errors, dvs, states, None, sums
        read = gradients(*given, earlier=True, interpret=interpret)
        # What is read counts against the value.
        dk, dwrites, *dsums = -read[0], *(a - b for a, b in zip((dwrites, *dsums), read[1:], strict=True))
        return dstate, dq, dk, dwrites, dvs, *dsums

    arrays = q, k, beta[:, :, None] * k, errors, inverses, states, dlast, dys
    dstate, dq, dk, dwrites, dv, *dsums = over_sequences(run, *arrays, *decay_sums(starts, log_decay))
    dlog_decay = sums_back(starts, log_decay, dsums)
    return dstate, dq, dk + beta[:, :, None] * dwrites, dv, jnp.vecdot(k, dwrites), dlog_decay


def _solutions(layout: Layout, interpret: bool, k, writes, v, sums):
    """Return X, X (c o K) and X V of all chunks."""
    out = like(k, *k.shape[:2], layout.steps, layout.steps), like(k), like(v)
    kernel = functools.partial(_solutions_kernel, layout)
    run = pallas(kernel, f"{_NAME}_solutions", k.shape[:2], out, warps=4, interpret=interpret)
    return run(k, writes, v, *sums)


def _solutions_kernel(layout: Layout, k_ref, writes_ref, v_ref, *refs) -> None:
    *sum_refs, inverses_ref, held_ref, free_ref = refs
    index = pl.program_id(0), pl.program_id(1)
    steps, keys = whole(layout.steps), whole(layout.keys)
    k, writes = read(k_ref, index, steps, keys), read(writes_ref, index, steps, keys)
    decays = read_decays(layout, sum_refs, index, keys)
    inverse = _inverse(layout, within(decays, earlier=True) * dot(layout, k, writes, (1, 1)))
    write(inverses_ref, inverse, index, steps, steps)
    write(held_ref, dot(layout, inverse, k * decays.from_before), index, steps, keys)

    def some(columns, _):
        write(free_ref, dot(layout, inverse, read(v_ref, index, steps, columns)), index, steps, columns)

    over_columns(layout.values, some, None)


def _inverse(layout: Layout, a):
    """Return the inverse of I + a for a strictly lower triangular `a`, by halves as `ops._chunks` does it."""
    step = jnp.arange(layout.steps)
    inverse = (step[:, None] == step[None, :]).astype(a.dtype)
    for level in range((layout.steps - 1).bit_length()):
        # `inverse` holds diagonal blocks of 2^level rows; this couples each pair of them.
        block = step >> level
        pair = (block[:, None] == block[None, :] + 1) & ((block & 1) == 0)[None, :]
        coupling = jnp.where(pair, a, 0)
        if level:
            coupling = dot(layout, inverse, dot(layout, coupling, inverse, exact=True), exact=True)
        inverse = inverse - coupling
    return inverse


def _grid(layout: Layout, sequences: int) -> tuple[int, int]:
    return sequences, -(-layout.values // _columns(layout))


def _columns(layout: Layout) -> int:
    return max(LEAST, min(power_of_two(layout.values), _VALUES))


def _own_columns(layout: Layout) -> Run:
    size = _columns(layout)
    return Run(pl.program_id(1) * size, size, layout.values)


def _states(layout: Layout, interpret: bool, state, held, free, writes, sums):
    """Return the errors, the state before each chunk, and the last one."""
    out = like(free), like(state, *free.shape[:2], layout.keys, layout.values), like(state)
    kernel = functools.partial(_states_kernel, layout, free.shape[1])
    run = pallas(kernel, f"{_NAME}_states", _grid(layout, len(free)), out, warps=warps(layout), interpret=interpret)
    return run(state, held, free, writes, *sums)


def _states_kernel(layout: Layout, chunks: int, first_ref, held_ref, free_ref, writes_ref, *refs) -> None:
    *sum_refs, errors_ref, states_ref, last_ref = refs
    sequence, steps, keys, columns = pl.program_id(0), whole(layout.steps), whole(layout.keys), _own_columns(layout)

    def part(i):
        index = sequence, i
        decays = read_decays(layout, sum_refs, index, keys)
        writes = read(writes_ref, index, steps, keys) * decays.to_end
        return read(held_ref, index, steps, keys), read(free_ref, index, steps, columns), writes, decays.total

    def chunk(i, carry):
        (held, free, writes, total), state = carry
        ahead = part(jnp.minimum(i + 1, chunks - 1))
        write(states_ref, state, (sequence, i), keys, columns)
        error = free - dot(layout, held, state)
        write(errors_ref, error, (sequence, i), steps, columns)
        return ahead, total * state + dot(layout, writes, error, (0, 0))

    carry = part(jnp.int32(0)), read(first_ref, (sequence,), keys, columns)
    write(last_ref, jax.lax.fori_loop(0, chunks, chunk, carry)[1], (sequence,), keys, columns)


def _solution_gradients(layout: Layout, interpret: bool, q, writes, inverses, dys, sums):
    """Return for all chunks what dL/dV is by the gradient by the state after them, and what it is without that."""
    kernel = functools.partial(_solution_gradients_kernel, layout)
    out = like(q), like(dys)
    run = pallas(kernel, f"{_NAME}_solution_gradients", q.shape[:2], out, warps=4, interpret=interpret)
    return run(q, writes, inverses, dys, *sums)


def _solution_gradients_kernel(layout: Layout, q_ref, writes_ref, inverses_ref, dys_ref, *refs) -> None:
    *sum_refs, held_ref, free_ref = refs
    index = pl.program_id(0), pl.program_id(1)
    steps, keys = whole(layout.steps), whole(layout.keys)
    q, writes = read(q_ref, index, steps, keys), read(writes_ref, index, steps, keys)
    inverse = read(inverses_ref, index, steps, steps)
    decays = read_decays(layout, sum_refs, index, keys)
    scores = within(decays) * dot(layout, q, writes, (1, 1))
    write(held_ref, dot(layout, inverse, writes * decays.to_end, (0, 0)), index, steps, keys)

    def some(columns, _):
        derrors = dot(layout, scores, read(dys_ref, index, steps, columns), (0, 0))
        write(free_ref, dot(layout, inverse, derrors, (0, 0)), index, steps, columns)

    over_columns(layout.values, some, None)


def _state_gradients(layout: Layout, interpret: bool, dlast, held, free, q, k, dys, sums):
    """Return dL/dV, the gradient by the state after each chunk, and that by the first one."""
    out = like(free), like(dlast, *free.shape[:2], layout.keys, layout.values), like(dlast)
    kernel = functools.partial(_state_gradients_kernel, layout, free.shape[1])
    grid = _grid(layout, len(free))
    run = pallas(kernel, f"{_NAME}_state_gradients", grid, out, warps=warps(layout), interpret=interpret)
    return run(dlast, held, free, q, k, dys, *sums)


def _state_gradients_kernel(
    layout: Layout, chunks: int, dlast_ref, held_ref, free_ref, q_ref, k_ref, dys_ref, *refs
) -> None:
    *sum_refs, dvs_ref, dstates_ref, dfirst_ref = refs
    sequence, steps, keys, columns = pl.program_id(0), whole(layout.steps), whole(layout.keys), _own_columns(layout)

    def part(i):
        index = sequence, i
        decays = read_decays(layout, sum_refs, index, keys)
        q, k = (read(ref, index, steps, keys) * decays.from_before for ref in (q_ref, k_ref))
        free, dy = (read(ref, index, steps, columns) for ref in (free_ref, dys_ref))
        return read(held_ref, index, steps, keys), free, q, k, dy, decays.total

    def chunk(j, carry):
        i = chunks - 1 - j
        (held, free, q, k, dy, total), dstate = carry
        ahead = part(jnp.maximum(i - 1, 0))
        write(dstates_ref, dstate, (sequence, i), keys, columns)
        dv = free + dot(layout, held, dstate)
        write(dvs_ref, dv, (sequence, i), steps, columns)
        return ahead, total * dstate + dot(layout, q, dy, (0, 0)) - dot(layout, k, dv, (0, 0))

    carry = part(jnp.int32(chunks - 1)), read(dlast_ref, (sequence,), keys, columns)
    write(dfirst_ref, jax.lax.fori_loop(0, chunks, chunk, carry)[1], (sequence,), keys, columns)
