"""Linear attention in chunks, forward and backward, as `ops._linear_attention` writes it down.

Only the state before a chunk depends on the chunks before it. So one kernel runs along the chunks and stores it for
each, with one product a chunk; a program has a tile of it, whose entries do not depend on each other. All the rest is
done by a second kernel for all chunks at once. Backward the first one runs from the last chunk to the first with the
gradient by the state; two more compute the scores again and return all other gradients, for all chunks at once.

With a decay a channel, the scores are no product of matrices. They are summed up channel by channel in chunks of
`_CHANNEL_CHUNK` steps, where this is less work than it takes to split them up into products.
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
    read,
    read_decays,
    sums_back,
    value_gradients,
    whole,
    write,
)

# Steps a chunk at most, with a decay a step or none, and with one a channel. With 64, which is half of the states, the
# registers are too few where a product is three, or where the tensor cores take it from them (before 9.0).
_CHUNK, _CHANNEL_CHUNK = 32, 16
# Rows and columns of the state in a program that runs along the chunks: small, for only so many programs run at once.
_KEYS, _VALUES = 64, 32

_NAME = "linear_attention"


def layout(how: Launch, q: Array, v: Array, log_decay: Array | None, chunk: int | None) -> Layout | None:
    """Return how a kernel divides these [T, ...] into chunks, of `chunk` steps if given; None where there is none."""
    if log_decay is not None and log_decay.ndim == 2:
        return _chunks.layout(how, q, v, log_decay, chunk, _CHANNEL_CHUNK, (_CHANNEL_CHUNK,))
    return _chunks.layout(how, q, v, log_decay, chunk, _CHUNK, (16, 32, 64))


def linear_attention_forward(
    layout: Layout,
    state: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None,
    starts: Array,
    *,
    interpret: bool,
) -> tuple[Array, Array, Array]:
    """Return the last state [dk, dv], all y_t [chunks, steps, dv], and the state before each chunk [chunks, dk, dv].

    Args:
        layout: What the arrays hold.
        state: S before the first step, [dk, dv].
        q, k, v: [chunks, steps, dk], the same and [chunks, steps, dv].
        log_decay: [chunks, steps], [chunks, steps, dk] or None.
        starts: True where the state before the step counts as zero, [chunks, steps].
        interpret: Run by Pallas' interpreter.
    """

    def run(state, q, k, v, *sums):
        states, last = _states(layout, False, interpret, state, k, v, sums)
        return last, outputs(layout, _NAME, q, k, v, states, sums, interpret=interpret), states

    return over_sequences(run, state, q, k, v, *decay_sums(starts, log_decay))


def linear_attention_backward(
    layout: Layout,
    states: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None,
    starts: Array,
    dlast: Array,
    dys: Array,
    *,
    interpret: bool,
) -> tuple[Array, Array, Array, Array, Array | None]:
    """Return the gradients by state, q, k, v and log_decay. Arguments: see `linear_attention_forward`.

    Args:
        states: Its third result.
        dlast, dys: The gradients by its first two.
    """

    def run(states, q, k, v, dlast, dys, *sums):
        dstates, dstate = _states(layout, True, interpret, dlast, q, dys, sums)
        dv = value_gradients(layout, _NAME, q, k, dys, dstates, sums, interpret=interpret)
        return dstate, dv, *gradients(layout, _NAME, q, k, v, dys, states, dstates, sums, interpret=interpret)

    dstate, dv, dq, dk, *dsums = over_sequences(run, states, q, k, v, dlast, dys, *decay_sums(starts, log_decay))
    return dstate, dq, dk, dv, sums_back(starts, log_decay, dsums)


def _states(layout: Layout, reverse: bool, interpret: bool, state, rows, values, sums):
    """Return the state before each chunk and after the last, in reverse as its gradient."""
    name = "linear_attention_state_gradients" if reverse else "linear_attention_states"
    keys, columns = _blocks(layout)
    grid = len(rows), -(-layout.keys // keys), -(-layout.values // columns)
    out = like(state, *rows.shape[:2], layout.keys, layout.values), like(state)
    kernel = functools.partial(_states_kernel, layout, reverse, rows.shape[1])
    return pallas(kernel, name, grid, out, warps=4, interpret=interpret)(state, rows, values, *sums)


def _blocks(layout: Layout) -> tuple[int, int]:
    keys, columns = power_of_two(layout.keys), power_of_two(layout.values)
    return max(LEAST, min(keys, _KEYS)), max(LEAST, min(columns, _VALUES))


def _states_kernel(layout: Layout, reverse: bool, chunks: int, first_ref, rows_ref, values_ref, *refs) -> None:
    *sum_refs, states_ref, last_ref = refs
    sequence, steps = pl.program_id(0), whole(layout.steps)
    keys, columns = _blocks(layout)
    keys = Run(pl.program_id(1) * keys, keys, layout.keys)
    columns = Run(pl.program_id(2) * columns, columns, layout.values)

    def at(i):
        return chunks - 1 - i if reverse else i

    def part(i):
        index = sequence, at(i)
        decays = read_decays(layout, sum_refs, index, keys)
        rows = read(rows_ref, index, steps, keys) * (decays.from_before if reverse else decays.to_end)
        return rows, read(values_ref, index, steps, columns), decays.total

    def chunk(i, carry):
        (rows, values, total), state = carry
        ahead = part(jnp.minimum(i + 1, chunks - 1))
        write(states_ref, state, (sequence, at(i)), keys, columns)
        total = total[:, None] if layout.decay == "channel" else total
        return ahead, total * state + dot(layout, rows, values, (0, 0))

    carry = part(jnp.int32(0)), read(first_ref, (sequence,), keys, columns)
    write(last_ref, jax.lax.fori_loop(0, chunks, chunk, carry)[1], (sequence,), keys, columns)
