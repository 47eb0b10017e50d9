"""Parts that the chunked matrix-state recurrences share.

Within a chunk of C steps, seg is the running count of start flags and g the running sum of log decays since
the last start flag (or the chunk's beginning). Step i sees step j <= i of its own segment with weight exp(g_i
- g_j), and the state from before the chunk with weight exp(g_i) where seg_i = 0.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from memax_rl.ops._first_order import define, no_forward, no_second
from memax_rl.ops._loop import loop, row

State = TypeVar("State", bound=PyTree[Array])

# The name that error messages use for internals of a memory.
_SCAN = "the `scan` of this memory"

# Steps per block of `rematerialized`, where the size does not affect the arithmetic: enough for XLA to use all cores.
_BLOCK = 128

_SUB_CHUNK = 8
_BASE = 32
# exp of it is below the smallest float32 that matters; a bound keeps running sums exact.
LEAST_LOG_DECAY = -80.0
_GRID = 1024.0


def chunk_size(chunk: int | None, length: int) -> int:
    """Return the number of steps per chunk: the given one, or by default 32 on a CPU, where that is faster, else 64.

    Rounded up to whole sub-chunks; the sequence is padded to whole chunks.
    """
    if chunk is None:
        chunk = 32 if jax.default_backend() == "cpu" else 64
    chunk = min(chunk, length)
    return chunk if chunk <= _SUB_CHUNK else -(-chunk // _SUB_CHUNK) * _SUB_CHUNK


def scan_chunks(
    body: Callable[..., tuple[State, Array]], state: State, inputs: PyTree[Array], length: int, chunk: int
) -> tuple[State, Array]:
    """Run `state, ys = body(state, inputs of one chunk)` over all chunks; the last one is padded with zeros.

    The backward pass rematerializes each chunk, so that only one state per chunk is stored.
    """
    remat = jax.checkpoint(lambda state, now: body(state, *now), prevent_cse=False)
    state, ys = jax.lax.scan(remat, state, split_chunks(inputs, length, chunk))
    return state, ys.reshape(-1, *ys.shape[2:])[:length]


def loop_chunks(
    op: str,
    body: Callable[..., tuple[State, Any]],
    state: State,
    inputs: PyTree[Array],
    length: int,
    chunk: int,
) -> tuple[State, Array]:
    """As `scan_chunks`, faster under `vmap`, for a `body` that closes over no arrays. First derivatives only.

    `op` is the name for the message that says so.
    """
    state, inputs = no_forward(op, (state, split_chunks(inputs, length, chunk)))
    state, ys = cast(tuple[State, Array], _loop_chunks(op, body, state, inputs))
    return state, _joined(ys, length)


def rematerialized(
    body: Callable[..., tuple[State, Any]],
    befores: Callable[[State, PyTree[Array]], State],
    state: State,
    inputs: PyTree[Array],
    *params: PyTree[Array],
) -> Any:
    """Return the ys of `state, ys = body(*params, state, *inputs)`, rematerialized in the backward pass.

    The backward pass goes block by block: `befores(state, inputs)` returns the state before each block from inputs
    [blocks, steps, ...]. Only the inputs are stored, and their gradients reuse their buffers. `body` closes over no
    arrays. First derivatives only.
    """
    return _remade(body, befores, *no_forward(_SCAN, (params, state, inputs)))


def split_chunks(inputs: PyTree[Array], length: int, chunk: int) -> PyTree[Array]:
    """Return each [length, ...] as [chunks, chunk, ...], with zeros at the end."""

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, -length % chunk)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, chunk, *x.shape[1:])

    return jax.tree.map(split, inputs)


def _joined(ys: PyTree[Array], length: int) -> PyTree[Array]:
    return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:length], ys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loop_chunks(op, body, state, inputs):
    return _loop_chunks_fwd(op, body, state, inputs)[0]


def _loop_chunks_fwd(op, body, state, inputs):
    state, inputs = no_second(op, (state, inputs))
    (last, ys), states = loop_chunks_forward(body, state, inputs)
    return (last, ys), (inputs, states)


def loop_chunks_forward(
    body: Callable[..., tuple[State, Any]], state: State, inputs: PyTree[Array]
) -> tuple[tuple[State, Any], State]:
    """Return the last state and all ys of chunks of inputs, and the state before each chunk."""
    count = _length(inputs)

    def step(t, state, _):
        after, ys = body(state, *row(inputs, t))
        return after, (ys, state)

    _, y = jax.eval_shape(body, state, *jax.tree.map(lambda x: x[0], inputs))
    rows = jax.tree.map(lambda a: jnp.zeros((count, *a.shape), a.dtype), (y, state))
    last, (ys, states) = loop(step, state, rows, count)
    return (last, ys), states


def _loop_chunks_bwd(op, body, residuals, cotangents):
    (inputs, states), cotangents = residuals, no_second(op, cotangents)
    return loop_chunks_back(body, states, inputs, *cotangents)


def loop_chunks_back(
    body: Callable[..., tuple[State, Any]], states: State, inputs: PyTree[Array], dlast: State, dys: Any
) -> tuple[State, Any]:
    """Return the gradients by the first state and the inputs, from those by the results of `loop_chunks_forward`.

    Args:
        body: See `scan_chunks`.
        states: The state before each chunk.
        inputs: Chunks of inputs.
        dlast, dys: The gradients by the last state and all ys.
    """
    return _loop_back(body, (), states, inputs, dlast, dys)[1:]


_loop_chunks.defvjp(_loop_chunks_fwd, _loop_chunks_bwd)


def _loop_back(body, params, states, inputs, dlast, dys):
    """Return the gradients by `params`, the first state and all inputs, given the state before each chunk."""
    floats, rest = eqx.partition(inputs, eqx.is_inexact_array)

    def step(t, carry, x):
        dstate, dparams = carry
        state, other, dy = row((states, rest, dys), t)
        _, pull_back = jax.vjp(lambda params, state, x: body(*params, state, *eqx.combine(x, other)), params, state, x)
        more, dstate, dx = pull_back((dstate, dy))
        return (dstate, jax.tree.map(jnp.add, dparams, more)), dx

    # The gradients of a chunk's inputs reuse their buffers.
    carry = dlast, jax.tree.map(jnp.zeros_like, params)
    (dstate, dparams), dinputs = loop(step, carry, floats, _length(inputs), reverse=True, read_ahead=True)
    return dparams, dstate, dinputs


def _length(inputs):
    return len(jax.tree.leaves(inputs)[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _remade(body, befores, params, state, inputs):
    del befores
    return body(*params, state, *inputs)[1]


def _remade_fwd(body, befores, params, state, inputs):
    return _remade(body, befores, params, state, inputs), (params, state, inputs)


def _remade_bwd(body, befores, residuals, dys):
    params, state, inputs = residuals
    length = _length(inputs)
    blocks, dys = split_chunks((inputs, dys), length, min(_BLOCK, length))
    dlast = jax.tree.map(jnp.zeros_like, state)
    dparams, dstate, dinputs = _loop_back(body, params, befores(state, blocks), blocks, dlast, dys)
    return dparams, dstate, _joined(dinputs, length)


define(_remade, _SCAN, _remade_fwd, _remade_bwd)


def transposed(x: Float[Array, "n m"]) -> Float[Array, "m n"]:
    """Return x.T for the left side of a product; on a CPU as a copy, which makes the product faster."""
    return jax.lax.optimization_barrier(x.T) if jax.default_backend() == "cpu" else x.T


class Segments(NamedTuple):
    """Which steps see which: `same[i, j]` is j <= i in i's segment, `first[i]` is i before any start flag."""

    same: Bool[Array, "C C"]
    first: Bool[Array, " C"]
    starts: Bool[Array, " C"]


def segments(starts: Bool[Array, " C"]) -> Segments:
    """Return the segments of a chunk."""
    earlier = jnp.tri(starts.shape[0], dtype=bool)
    # One masked sum: a cumsum is several kernels on a CPU, an overhead in each iteration over chunks.
    segment = jnp.sum(earlier & starts[None, :], axis=1)
    return Segments(earlier & (segment[:, None] == segment[None, :]), segment == 0, starts)


class Decays(NamedTuple):
    """Decays from step j to step i and from before the chunk to step i. Zero across a start flag."""

    within: Float[Array, "C C"]
    from_before: Float[Array, " C"]


def decays(log_decay: Float[Array, " C"] | None, seg: Segments, dtype: Any) -> Decays:
    """Return exp(g_i - g_j) and exp(g_i): ones, up to a start flag, where there is no decay."""
    if log_decay is None:
        return Decays(seg.same.astype(dtype), seg.first.astype(dtype))
    g_coarse, g_fine = step_sums(log_decay, seg)
    exponent = (g_coarse[:, None] - g_coarse[None, :]) + (g_fine[:, None] - g_fine[None, :])
    # Masked before exp: above the diagonal the exponent is positive, exp may overflow, and inf * 0 is nan.
    within = jnp.exp(jnp.where(seg.same, exponent, -jnp.inf))
    return Decays(within, jnp.where(seg.first, jnp.exp(g_coarse + g_fine), 0))


def step_sums(log_decay: Float[Array, " C"], seg: Segments) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    """Return g in two parts that add up to it, multiples of 1/1024 and the rest.

    The first is exact, so that the difference of two large sums is as good as the sum of the few decays in between.
    """
    log_decay = jnp.where(seg.starts, 0, jnp.maximum(log_decay, LEAST_LOG_DECAY))
    coarse = jax.lax.stop_gradient(jnp.round(log_decay * _GRID) / _GRID)
    fine = log_decay - coarse
    return _running_sum(coarse, seg), _running_sum(fine, seg)


def _running_sum(x: Float[Array, " C"], seg: Segments) -> Float[Array, " C"]:
    # Not a cumsum over all: its derivative would let rounding errors cross a start flag.
    return jnp.sum(jnp.where(seg.same, x[None, :], 0), axis=1)


class ChannelDecays(NamedTuple):
    """Log decays a channel (zero at a start), their running sums g, exp(g_i) and exp(g_C - g_i)."""

    own: Float[Array, "C d"]
    g: Float[Array, "C d"]
    from_before: Float[Array, "C d"]
    to_end: Float[Array, "C d"]


def channel_decays(log_decay: Float[Array, "C d"], seg: Segments) -> ChannelDecays:
    """Return the decays of a chunk for one log decay a channel."""
    log_decay = jnp.where(seg.starts[:, None], 0, jnp.maximum(log_decay, LEAST_LOG_DECAY))
    g = jnp.matmul(seg.same.astype(log_decay.dtype), log_decay, precision=jax.lax.Precision.HIGHEST)
    to_end = jnp.exp(jnp.where(seg.same[-1][:, None], g[-1:] - g, -jnp.inf))
    return ChannelDecays(log_decay, g, jnp.where(seg.first[:, None], jnp.exp(g), 0), to_end)


def channel_scores(
    q: Float[Array, "C d"],
    keys: Sequence[Float[Array, "C d"]],
    g_q: Float[Array, "C d"],
    g_k: Float[Array, "C d"],
    mask: Bool[Array, "C C"],
    seg: Segments,
) -> list[Float[Array, "C C"]]:
    """Return for each k of `keys` the matrix sum_d q_id k_jd exp(g_q_id - g_k_jd) where `mask`, else 0.

    Steps in one sub-chunk are compared directly. For steps j of earlier sub-chunks the exponent is split at
    the last step b before i's sub-chunk into (g_q_i - g_k_b) + (g_k_b - g_k_j), neither positive, so that
    both factors join a product.
    """
    size, channels = q.shape
    sub = _SUB_CHUNK if size % _SUB_CHUNK == 0 else size
    parts = size // sub
    part = np.arange(parts)

    def split(x: Array) -> Array:
        return x.reshape(parts, sub, channels)

    own = mask.reshape(parts, sub, parts, sub)[part, :, part, :]
    exponent = jnp.where(own[..., None], split(g_q)[:, :, None] - split(g_k)[:, None, :], -jnp.inf)
    q_decayed = split(q)[:, :, None] * jnp.exp(exponent)
    own_scores = [jnp.sum(q_decayed * split(k)[:, None, :], axis=-1) for k in keys]
    if parts == 1:
        return [scores[0] for scores in own_scores]

    before = part[1:] * sub - 1
    g_before = g_k[before][:, None, :]
    seen = seg.same[:, before].reshape(parts, sub, parts - 1)[part[1:], :, part[:-1]]
    q_later = split(q)[1:] * jnp.exp(jnp.where(seen[..., None], split(g_q)[1:] - g_before, -jnp.inf))
    to_before = jnp.exp(jnp.where(seg.same[before][..., None], g_before - g_k[None], -jnp.inf))
    block = np.eye(parts, dtype=bool)[:, None, :, None]

    def whole(k: Array, own: Array) -> Array:
        across = jnp.einsum("pid,pjd->pij", q_later, k[None] * to_before)
        across = jnp.pad(across, [(1, 0), (0, 0), (0, 0)]).reshape(parts, sub, parts, sub)
        return jnp.where(block, own[:, :, None, :], across).reshape(size, size)

    return [whole(k, own) for k, own in zip(keys, own_scores, strict=True)]


def unit_lower_inverse(a: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return (I + a)^{-1} for a strictly lower triangular `a`, by halves.

    The inverse of [[A, 0], [B, D]] is [[A', 0], [-D' B A', D']]. Unlike the power series of `a`, whose terms
    grow like binomial coefficients when keys repeat, no intermediate result is larger than the inverse
    itself.
    """
    size = a.shape[0]
    if size <= _BASE:
        inverse = jnp.eye(size, dtype=a.dtype)
        half = 1
        while half < size:
            # `inverse` holds diagonal blocks of `half` rows; this couples each pair of them.
            block = np.arange(size) // half
            pair = (block[:, None] == block[None, :] + 1) & (block[None, :] % 2 == 0)
            coupling = jnp.where(pair, a, 0)
            inverse = inverse - (coupling if half == 1 else inverse @ (coupling @ inverse))
            half *= 2
        return inverse
    half = size // 2
    upper, lower = unit_lower_inverse(a[:half, :half]), unit_lower_inverse(a[half:, half:])
    corner = -lower @ (a[half:, :half] @ upper)
    return jnp.block([[upper, jnp.zeros((half, size - half), a.dtype)], [corner, lower]])


def unit_lower_solve(a: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Return x of (I + a) x = b for a strictly lower triangular `a`."""
    return cast(Array, _solve(*no_forward(_SCAN, (a, b))))


@jax.custom_vjp
def _solve(a: Array, b: Array) -> Array:
    return unit_lower_inverse(a) @ b


def _solve_fwd(a: Array, b: Array) -> tuple[Array, Any]:
    inverse = unit_lower_inverse(a)
    x = inverse @ b
    return x, (inverse, x)


def _solve_bwd(residuals: Any, dx: Array) -> tuple[Array, Array]:
    inverse, x = residuals
    db = inverse.T @ dx
    return -db @ x.T, db


_solve.defvjp(_solve_fwd, _solve_bwd)
