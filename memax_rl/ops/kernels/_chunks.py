"""What the kernels of the matrix-state recurrences in chunks share: tiles, decays, and what is computed for all chunks.

Given the state before each chunk, a program has one chunk. Its scores are in registers; nothing of their size is read
or written. The state before a chunk depends on the chunks before it; that is for the kernels of each recurrence.

Products follow JAX's setting of precision; states, decays and sums are float32. With "highest" each product is three of
TF32 numbers, the larger and the smaller half of each factor: 22 of float32's 24 binary digits.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from memax_rl.ops._chunks import channel_decays, segments, step_sums
from memax_rl.ops.kernels._batch import like, pallas, power_of_two
from memax_rl.ops.kernels._choice import Launch

# A product of tensor cores has no smaller sides.
LEAST = 16
# Columns of values at a time in a program for a chunk.
_COLUMNS = 32
# Rows and columns of a state at most: what a program for a chunk has in registers grows with the first.
_MOST_KEYS, _MOST_VALUES = 128, 256

# What `decay_sums` returns so many arrays for.
_SUMS = {"none": 1, "step": 3, "channel": 2}


class Layout(NamedTuple):
    """What the arrays hold, and how they are multiplied.

    Attributes:
        keys, values: Sizes of a key and of a value.
        steps: Steps of a chunk.
        decay: For what there is one.
        products: What JAX calls the algorithm of a product; None for what its setting of precision says.
        exact: The same of one that is as good as one of float32 numbers, whatever the setting.
    """

    keys: int
    values: int
    steps: int
    decay: Literal["none", "step", "channel"]
    products: jax.lax.DotAlgorithmPreset | None
    exact: jax.lax.DotAlgorithmPreset | None


def layout(
    how: Launch, q: Array, v: Array, log_decay: Array | None, chunk: int | None, longest: int, chunks: Sequence[int]
) -> Layout | None:
    """Return how a kernel divides these [T, ...] into chunks, None where there is none.

    Args:
        how: How it runs.
        q, v, log_decay: Queries, values, and decays a step, a step and channel, or none.
        chunk: Steps of a chunk that are asked for, if any.
        longest: As many as there are by default in a long sequence.
        chunks: How many there may be.
    """
    (length, keys), values = q.shape, v.shape[1]
    steps = min(longest, max(LEAST, power_of_two(max(length, 1)))) if chunk is None else chunk
    if not length or not 0 < keys <= _MOST_KEYS or not 0 < values <= _MOST_VALUES or steps not in chunks:
        return None
    decay = "none" if log_decay is None else ("step" if log_decay.ndim == 1 else "channel")
    # A CPU has nothing but float32. On a GPU such products take many times as long, and more registers than there are.
    exact = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if how == "cuda" else None
    highest = jax.config.jax_default_matmul_precision in ("highest", "float32")  # pyright: ignore[reportAttributeAccessIssue]
    return Layout(keys, values, steps, decay, exact if highest else None, exact)


def sums_back(starts: Array, log_decay: Array | None, dsums: Sequence[Array]) -> Array | None:
    """Return the gradient by log decays from that by their sums."""
    if log_decay is None:
        return None
    # Whole and fractional parts of a sum, where it has both, are as one in an exponent.
    _, pull_back = jax.vjp(lambda log_decay: decay_sums(starts, log_decay)[-1], log_decay)
    return pull_back(dsums[0])[0]


def outputs(
    layout: Layout, op: str, q: Array, k: Array, v: Array, states: Array, sums: Sequence[Array], *, interpret: bool
) -> Array:
    """Return all y of sequences, [sequences, chunks, steps, dv].

    Args:
        layout: What the arrays hold.
        op: The name of the kernel begins with it.
        q, k, v: [sequences, chunks, steps, ...].
        states: The state before each chunk, [sequences, chunks, dk, dv].
        sums: See `decay_sums`.
        interpret: Run by Pallas' interpreter.
    """
    kernel = functools.partial(_outputs_kernel, layout)
    run = pallas(kernel, f"{op}_outputs", v.shape[:2], like(v), warps=warps(layout), interpret=interpret)
    return run(q, k, v, states, *sums)


def gradients(
    layout: Layout,
    op: str,
    q: Array,
    k: Array,
    v: Array,
    dys: Array,
    states: Array,
    dstates: Array | None,
    sums: Sequence[Array],
    *,
    earlier: bool = False,
    interpret: bool,
) -> tuple[Array, ...]:
    """Return the gradients by q, k, and the sums of log decays where there are any.

    Args:
        layout: What the arrays hold.
        op: The name of the kernel begins with it.
        q, k, v: As in `outputs`.
        dys: The gradient by its result.
        states: The state before each chunk.
        dstates: The gradient by the state after each chunk, None where this is for another call.
        sums: See `decay_sums`.
        earlier: Whether a step sees the earlier ones only, and not itself.
        interpret: Run by Pallas' interpreter.
    """
    kernel = functools.partial(_gradients_kernel, layout, earlier, dstates is not None)
    out = like(q), like(k), *map(like, sums[1:2])
    # It has twice as many tiles as others.
    more = min(8, 2 * warps(layout))
    run = pallas(kernel, f"{op}_gradients", v.shape[:2], out, warps=more, interpret=interpret)
    return tuple(run(q, k, v, dys, states, *([] if dstates is None else [dstates]), *sums))


def value_gradients(
    layout: Layout, op: str, q: Array, k: Array, dys: Array, dstates: Array, sums: Sequence[Array], *, interpret: bool
) -> Array:
    """Return the gradient by v. Arguments: see `gradients`, which would need too many registers with it."""
    kernel = functools.partial(_value_gradients_kernel, layout)
    run = pallas(kernel, f"{op}_value_gradients", q.shape[:2], like(dys), warps=warps(layout), interpret=interpret)
    return run(q, k, dys, dstates, *sums)


def warps(layout: Layout) -> int:
    """Return how many warps have registers for some tiles of a chunk."""
    return 8 if layout.keys > 64 else 4


def decay_sums(starts: Array, log_decay: Array | None) -> tuple[Array, ...]:
    """Return for each step the number of start flags since the chunk began, and the sums of log decays since the last.

    These are none, two parts of one number a step, or one a channel.
    """
    count = jnp.sum(jnp.tri(starts.shape[1], dtype=bool)[None] & starts[:, None, :], axis=2)
    if log_decay is None:
        return (count,)
    if log_decay.ndim == 3:
        return count, jax.vmap(lambda x, s: channel_decays(x, segments(s)).g)(log_decay, starts)
    return count, *jax.vmap(lambda x, s: step_sums(x, segments(s)))(log_decay, starts)


class Run(NamedTuple):
    """`size` entries of an axis of `count`, from `first` on; what is beyond the axis counts as zero."""

    first: Any
    size: int
    count: int

    def inside(self) -> Array | None:
        """Return which entries are there, None for all."""
        if self.count % self.size == 0 or (isinstance(self.first, int) and self.first + self.size <= self.count):
            return None
        return self.first + jnp.arange(self.size) < self.count

    def slice(self) -> Any:
        """Return the index of these entries."""
        # Pallas refuses one that is known to go beyond the axis, whatever the mask; a sum is not known.
        return pl.ds(jax.lax.add(jnp.int32(self.first), jnp.int32(0)), self.size)


def whole(size: int) -> Run:
    return Run(0, max(LEAST, power_of_two(size)), size)


def over_columns(count: int, body: Callable[[Run, Any], Any], carry: Any) -> Any:
    """Return `carry = body(columns, carry)` over all columns of values, some at a time.

    In a loop, so that the compiler does not read all of them at once, for which there are no registers.
    """
    size, whole = _COLUMNS, count // _COLUMNS
    if whole:
        carry = jax.lax.fori_loop(0, whole, lambda i, carry: body(Run(i * size, size, whole * size), carry), carry)
    if rest := count % size:
        # One column more is common: the sum of the weights beside the values.
        carry = body(Run(whole * size, max(LEAST, power_of_two(rest)), count), carry)
    return carry


def _at(ref, index, runs):
    # The interpreter takes no index that is a number of Python's.
    return ref.at[(*map(jnp.int32, index), *(run.slice() for run in runs))]


def _mask(runs):
    masks = [run.inside() for run in runs]
    if len(runs) == 1:
        return masks[0]
    rows, columns = masks
    rows, columns = None if rows is None else rows[:, None], None if columns is None else columns[None, :]
    return rows & columns if rows is not None and columns is not None else (columns if rows is None else rows)


def read(ref, index, *runs):
    mask = _mask(runs)
    at = _at(ref, index, runs)
    return plgpu.load(at) if mask is None else plgpu.load(at, mask=mask, other=0)


def number(ref, index):
    return ref[tuple(map(jnp.int32, index))]


def write(ref, value, index, *runs):
    plgpu.store(_at(ref, index, runs), value, mask=_mask(runs))


def dot(layout: Layout, a: Array, b: Array, over: tuple[int, int] = (1, 0), *, exact: bool = False) -> Array:
    """Return the product of two matrices, over the first or second axis of each."""
    axes = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=layout.exact if exact else layout.products)


class Decays(NamedTuple):
    """The decays of a chunk: from before it to each step, from each step to its end, and over all of it.

    Attributes:
        count: Start flags since the chunk began.
        sums: The sums of log decays.
        from_before, to_end: [steps, 1] or [steps, keys]; zero across a start flag.
        total: A number, or [keys].
    """

    count: Array
    sums: tuple[Array, ...]
    from_before: Array
    to_end: Array
    total: Array


def read_decays(layout: Layout, refs: Sequence[Any], index: Sequence[Any], keys: Run) -> Decays:
    """Return the decays of a chunk from the references to `decay_sums`."""
    count_ref, *sum_refs = refs
    steps, last = whole(layout.steps), (*index, layout.steps - 1)
    count, count_last = read(count_ref, index, steps), number(count_ref, last)
    first, same, unbroken = (count == 0)[:, None], (count == count_last)[:, None], count_last == 0
    if layout.decay == "none":
        return Decays(count, (), *(mask.astype(jnp.float32) for mask in (first, same, unbroken)))
    if layout.decay == "channel":
        sums, end = (read(sum_refs[0], index, steps, keys),), read(sum_refs[0], last, keys)
        since, rest = sums[0], end[None, :] - sums[0]
    else:
        sums, ends = tuple(read(ref, index, steps) for ref in sum_refs), [number(ref, last) for ref in sum_refs]
        since, end = (sums[0] + sums[1])[:, None], ends[0] + ends[1]
        rest = ((ends[0] - sums[0]) + (ends[1] - sums[1]))[:, None]
    # Masked before exp, which may overflow across a start flag.
    to_end = jnp.exp(jnp.where(same, rest, -jnp.inf))
    return Decays(count, sums, jnp.where(first, jnp.exp(since), 0), to_end, jnp.where(unbroken, jnp.exp(end), 0))


def seen(decays: Decays, earlier: bool = False):
    """Return which step sees which: the earlier ones of its segment, and itself."""
    step = jnp.arange(decays.count.shape[0])
    order = step[:, None] > step[None, :] if earlier else step[:, None] >= step[None, :]
    return order & (decays.count[:, None] == decays.count[None, :])


def within(decays: Decays, earlier: bool = False):
    """Return the decays from step to step, [steps, steps], zero where one does not see the other."""
    if not decays.sums:
        return seen(decays, earlier).astype(jnp.float32)
    coarse, fine = (part[:, None] - part[None, :] for part in decays.sums)
    return jnp.exp(jnp.where(seen(decays, earlier), coarse + fine, -jnp.inf))


def _channel_decays(decays: Decays):
    """Return the decays from step to earlier step for each channel, [steps, steps, keys]."""
    (g,) = decays.sums
    return jnp.exp(jnp.where(seen(decays, earlier=True)[:, :, None], g[:, None, :] - g[None, :, :], -jnp.inf))


def _diagonal(matrix):
    """Return the diagonal as a column."""
    step = jnp.arange(matrix.shape[0])
    return jnp.sum(jnp.where(step[:, None] == step[None, :], matrix, 0), axis=1)[:, None]


def _outputs_kernel(layout: Layout, q_ref, k_ref, v_ref, states_ref, *refs) -> None:
    *sum_refs, ys_ref = refs
    index = pl.program_id(0), pl.program_id(1)
    steps, keys = whole(layout.steps), whole(layout.keys)
    q, k = read(q_ref, index, steps, keys), read(k_ref, index, steps, keys)
    decays = read_decays(layout, sum_refs, index, keys)
    scores = _scores(layout, q, k, decays)
    q = q * decays.from_before

    def some(columns, _):
        v, state = read(v_ref, index, steps, columns), read(states_ref, index, keys, columns)
        write(ys_ref, dot(layout, q, state) + dot(layout, scores, v), index, steps, columns)

    over_columns(layout.values, some, None)


def _scores(layout: Layout, q, k, decays, earlier=False):
    if layout.decay != "channel":
        return within(decays, earlier) * dot(layout, q, k, (1, 1))
    scores = jnp.sum(q[:, None, :] * _channel_decays(decays) * k[None, :, :], axis=2)
    step = jnp.arange(layout.steps)
    return jnp.where(step[:, None] == step[None, :], jnp.sum(q * k, axis=1)[:, None], scores)


def _value_gradients_kernel(layout: Layout, q_ref, k_ref, dys_ref, dstates_ref, *refs) -> None:
    *sum_refs, dv_ref = refs
    index = pl.program_id(0), pl.program_id(1)
    steps, keys = whole(layout.steps), whole(layout.keys)
    q, k = read(q_ref, index, steps, keys), read(k_ref, index, steps, keys)
    decays = read_decays(layout, sum_refs, index, keys)
    scores, k = _scores(layout, q, k, decays), k * decays.to_end

    def some(columns, _):
        dy, dstate = read(dys_ref, index, steps, columns), read(dstates_ref, index, keys, columns)
        write(dv_ref, dot(layout, scores, dy, (0, 0)) + dot(layout, k, dstate), index, steps, columns)

    over_columns(layout.values, some, None)


def _gradients_kernel(
    layout: Layout, earlier: bool, after: bool, q_ref, k_ref, v_ref, dys_ref, states_ref, *refs
) -> None:
    dstates_ref, *refs = refs if after else (None, *refs)
    sum_refs, (dq_ref, dk_ref, *dg_ref) = refs[: _SUMS[layout.decay]], refs[_SUMS[layout.decay] :]
    index = pl.program_id(0), pl.program_id(1)
    steps, keys = whole(layout.steps), whole(layout.keys)
    q, k = read(q_ref, index, steps, keys), read(k_ref, index, steps, keys)
    decays = read_decays(layout, sum_refs, index, keys)
    scores = _scores(layout, q, k, decays, earlier)

    def add(columns, sums):
        dscores, dfirst, dlast, dtotal = sums
        v, dy = read(v_ref, index, steps, columns), read(dys_ref, index, steps, columns)
        state = read(states_ref, index, keys, columns)
        dscores, dfirst = dscores + dot(layout, dy, v, (1, 1)), dfirst + dot(layout, dy, state, (1, 1))
        if after:
            dstate = read(dstates_ref, index, keys, columns)
            dlast, dtotal = dlast + dot(layout, v, dstate, (1, 1)), dtotal + jnp.sum(state * dstate, axis=1)
        return dscores, dfirst, dlast, dtotal

    # The gradients by scores, by the queries of the state before and the keys of that after, and by its decay.
    sums = jnp.zeros_like(scores), jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros(keys.size, q.dtype)
    dscores, dfirst, dlast, dtotal = over_columns(layout.values, add, sums)
    dfirst, dlast = dfirst * decays.from_before, dlast * decays.to_end
    dq, dk, dg = _score_gradients(layout, earlier, q, k, decays, scores, dscores)
    write(dq_ref, dq + dfirst, index, steps, keys)
    write(dk_ref, dk + dlast, index, steps, keys)
    if layout.decay == "none":
        return
    # Exponents hold the sum of log decays at the step of a query, less that at a key's, and that at the end.
    from_first, to_last = q * dfirst, k * dlast
    last = jnp.arange(layout.steps) == layout.steps - 1
    if layout.decay == "channel":
        end = jnp.sum(to_last, axis=0) + decays.total * dtotal
        dg = dg + from_first - to_last + jnp.where(last[:, None], end[None, :], 0)
        write(dg_ref[0], dg, index, steps, keys)
    else:
        to_last = jnp.sum(to_last, axis=1)
        end = jnp.sum(to_last) + decays.total * jnp.sum(dtotal)
        dg = dg + jnp.sum(from_first, axis=1) - to_last + jnp.where(last, end, 0)
        write(dg_ref[0], dg, index, steps)


def _score_gradients(layout: Layout, earlier: bool, q, k, decays, scores, dscores):
    """Return the gradients by q, k and the sums of log decays of what the steps see of each other."""
    if layout.decay != "channel":
        product = scores * dscores
        dscores = within(decays, earlier) * dscores
        # A step's own score has no decay; its share of both sums is the same number.
        dg = jnp.sum(product, axis=1) - jnp.sum(product, axis=0)
        return dot(layout, dscores, k), dot(layout, dscores, q, (0, 0)), dg
    weights = dscores[:, :, None] * _channel_decays(decays)
    dq, dk, own = jnp.sum(weights * k[None, :, :], axis=1), jnp.sum(weights * q[:, None, :], axis=0), _diagonal(dscores)
    return dq + own * k, dk + own * q, dq * q - dk * k
