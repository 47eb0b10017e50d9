"""The delta rule on a matrix state, gated or not, with resets, in chunks.

    S_t = decay_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    y_t = S_t^T q_t

Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule over Sequence Length,
https://arxiv.org/abs/2406.06484, with the decay of Gated Delta Networks, https://arxiv.org/abs/2412.06464.
S_{t-1} counts as 0 at a start flag. A step writes beta_t k_t e_t^T with the error e_t = v_t - decay_t S_{t-1}^T k_t,
and within a chunk the rows of E solve a triangular system:

    (I + A) E = V - c o (K S),    A_ij = Gamma_ij k_i . k_j beta_j for j < i
    Y = c o (Q S) + (Gamma o Q K^T) U with U = beta o E,     S <- c_C S + (Gamma_C o K)^T U

with Gamma_ij the decay from step j to step i and c_i that from before the chunk, both zero across a start
flag.

The derivative is written out. E and the inverse of I + A are kept, [T, dv + chunk] in all, so that the backward loop
solves nothing again. That of the running sums g of log decays needs no matrix: y_i is proportional to exp(g_i), and so
is every e_i - v_i, while what step j writes is so to exp(-g_j). With dL/dv_i = dL/de_i through the system, all terms
but two cancel: dL/dg_i = dq_i . q_i - dv_i . v_i, where dq_i . q_i is dy_i . y_i; to the last of a chunk comes the sum
over dS o S.
"""

import functools
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from memax_rl.ops import kernels
from memax_rl.ops._checks import check_chunk, check_matrix_state, check_starts, is_reference
from memax_rl.ops._chunks import (
    LEAST_LOG_DECAY,
    Decays,
    Segments,
    channel_decays,
    channel_scores,
    chunk_size,
    decays,
    loop_chunks,
    segments,
    split_chunks,
    transposed,
    unit_lower_inverse,
    unit_lower_solve,
)
from memax_rl.ops._first_order import define, no_forward
from memax_rl.ops._loop import loop, row

_OP = "ops.delta_rule"


def delta_rule(
    q: Float[Array, "R dk"],
    k: Float[Array, "T dk"],
    v: Float[Array, "T dv"],
    beta: Float[Array, " T"],
    log_decay: Float[Array, " T"] | None,
    state: Float[Array, "dk dv"],
    starts: Bool[Array, " T"],
    *,
    chunk: int | None = None,
    method: Literal["reference"] | None = None,
) -> tuple[Float[Array, "dk dv"], Float[Array, "R dv"]]:
    """Return the last state and all y_t. No scaling and no normalization: the models do that.

    **Cost.** O(T * (chunk * (dk + dv) + chunk^2 + dk * dv)) multiply-adds, T / chunk dependent steps, and
    besides inputs, outputs and their gradients one state a chunk and O(T * (dv + chunk)) memory.

    Args:
        q, k, v: Queries, keys, values. With |k| = 1 the state stays bounded for beta in [0, 2]. With R = T / r queries,
            for a whole r, only every r-th step is read.
        beta: How far the value under k is moved towards v; 1 overwrites it.
        log_decay: The logarithm of the decay, at most 0, or None for no decay. What is below -80 counts as -80.
        state: S before the first step; it counts until the first start flag.
        starts: True where a step begins a new sequence.
        chunk: Steps a chunk, by default 32 on a CPU, 64 elsewhere, and what suits a kernel where one runs. It need not
            divide T.
        method: `"reference"` for a plain `jax.lax.scan` over time, differentiable any number of times and in forward
            mode; by default the fast form, for first derivatives in reverse mode.

    Raises:
        ValueError: If `starts` is not `bool[T]`, shapes disagree, `chunk` is below 1 or T is no multiple of R.
    """
    length, reads = _checked(q, k, v, beta, log_decay, state, starts, chunk)
    every = length // reads
    compute = jnp.promote_types(jnp.result_type(q, k, v, state), jnp.float32)
    steps = tuple(None if x is None else x.astype(compute) for x in (k, v, beta, log_decay))
    if is_reference(method):
        last, ys = _plain(jnp.repeat(q.astype(compute), every, axis=0), steps, state.astype(compute), starts)
        return last.astype(state.dtype), ys[every - 1 :: every].astype(v.dtype)
    if (how := kernels.chosen(tf32=True)) and compute == jnp.float32:
        # It imports Pallas, which a CPU does without.
        from memax_rl.ops.kernels._delta_rule import layout

        if found := layout(how, k, v, log_decay, chunk):
            last, ys = _by_kernel(how, found, state.astype(compute), q.astype(compute), steps, starts)
            return last.astype(state.dtype), ys.astype(v.dtype)
    chunk = -(-chunk_size(chunk, length) // every) * every
    # A padded step has beta = 0 and decay 1: it does not change the state.
    inputs = split_chunks(steps, length, chunk), split_chunks(starts, length, chunk)
    queries = split_chunks(q.astype(compute), reads, chunk // every)
    first, queries, inputs = no_forward(_OP, (state.astype(compute), queries, inputs))
    last, ys = cast(tuple[Array, Array], _delta_rule(first, queries, *inputs))
    return last.astype(state.dtype), ys.reshape(-1, ys.shape[-1])[:reads].astype(v.dtype)


def _checked(q, k, v, beta, log_decay, state, starts, chunk) -> tuple[int, int]:
    """Return the numbers of steps and of queries. Raises `ValueError` as `delta_rule` does."""
    length, reads = k.shape[0], q.shape[0]
    check_starts(starts, length)
    if chunk is not None:
        check_chunk(chunk)
    if reads == 0 or length % reads:
        raise ValueError(f"q must have a row for each of the {length} keys or for every r-th of them, got {reads} rows")
    check_matrix_state(state, length, keys={"k": k}, values=v, numbers={"beta": beta, "log_decay": log_decay})
    if q.shape[1:] != k.shape[1:]:
        raise ValueError(f"q and k must have the same size of a key, got {list(q.shape)} and {list(k.shape)}")
    return length, reads


def _plain(q, steps, state, starts):
    def step(s, now):
        q, (k, v, beta, log_decay), start = now
        s = jnp.where(start, 0, s)
        if log_decay is not None:
            s = jnp.exp(jnp.maximum(log_decay, LEAST_LOG_DECAY)) * s
        s = s + (beta * k)[:, None] * (v - k @ s)[None, :]
        return s, q @ s

    return jax.lax.scan(step, state, (q, steps, starts))


class _Chunk(NamedTuple):
    """What a chunk of `size` steps needs of its decays: those of the rows that are read, and those of all."""

    reads: Decays
    all: Decays
    seg: Segments


def _chunk_decays(reads: int, log_decay: Array | None, starts: Array, dtype: Any) -> _Chunk:
    seg = segments(starts)
    every = len(starts) // reads
    within, from_before = decays(log_decay, seg, dtype)
    return _Chunk(Decays(within[every - 1 :: every], from_before[every - 1 :: every]), Decays(within, from_before), seg)


@jax.custom_vjp
def _delta_rule(state, q, inputs, starts):
    return _delta_rule_fwd(state, q, inputs, starts)[0]


def _delta_rule_fwd(state, q, inputs, starts):
    """Run over all chunks: `q` [chunks, reads, dk], the others [chunks, size, ...]."""
    (count, size), reads = starts.shape, q.shape[1]
    earlier = np.tri(size, k=-1, dtype=bool)

    def step(t, state, _):
        q_now, (k, v, beta, log_decay), starts_now = row((q, inputs, starts), t)
        decay = _chunk_decays(reads, log_decay, starts_now, k.dtype)
        inverse = unit_lower_inverse(jnp.where(earlier, decay.all.within * (k @ (beta[:, None] * k).T), 0))
        error = inverse @ (v - decay.all.from_before[:, None] * (k @ state))
        u = beta[:, None] * error
        ys = decay.reads.from_before[:, None] * (q_now @ state) + (decay.reads.within * (q_now @ k.T)) @ u
        after = decay.all.from_before[-1] * state + transposed(k * decay.all.within[-1][:, None]) @ u
        return after, (ys, error, inverse, state.T)

    # Results reuse the buffers of inputs of their shape where possible: XLA fills new zeros long before they are used.
    v, every = inputs[1], size // reads
    rows = (
        v[:, every - 1 :: every],
        v,
        jnp.zeros((count, size, size), v.dtype),
        jnp.zeros((count, *state.T.shape), v.dtype),
    )
    last, (ys, errors, inverses, states) = loop(step, state, rows, count)
    return (last, ys), (q, inputs, starts, errors, inverses, states, last)


def _delta_rule_bwd(residuals, cotangents):
    q, (k, v, beta, log_decay), starts, errors, inverses, states, last = residuals
    dlast, dys = cotangents
    (count, size), reads = starts.shape, q.shape[1]
    later = np.tri(size, k=-1, dtype=bool).T

    def step(t, carry, x):
        dstate, after = carry
        q, k, beta, log_decay, error = x
        inverse, state_t, dy, starts_now = row((inverses, states, dys, starts), t)
        decay = _chunk_decays(reads, log_decay, starts_now, k.dtype)
        u, to_end = beta[:, None] * error, decay.all.within[-1][:, None]
        dstate_t = transposed(dstate)
        # Scores as [key, query]: a product with its first factor transposed is the slower one on a CPU.
        within, solved = decay.reads.within.T, jnp.where(later, decay.all.within.T, 0)
        du = (within * (k @ q.T)) @ dy + to_end * (k @ dstate)
        dv = transposed(inverse) @ (beta[:, None] * du)
        dsystem = -solved * (error @ dv.T)
        dbeta = jnp.vecdot(error, du) + jnp.vecdot(dsystem, k @ k.T)
        dsystem = beta[:, None] * dsystem
        dscores = within * (u @ dy.T)
        # The part that was read from the state before the chunk.
        dy_held, dv_held = decay.reads.from_before[:, None] * dy, -decay.all.from_before[:, None] * dv
        dq = dy_held @ state_t + transposed(dscores) @ k
        dk = dv_held @ state_t + dscores @ q + (dsystem + dsystem.T) @ k + to_end * (u @ dstate_t)
        dlog_decay = None
        if log_decay is not None:
            same = decay.seg.same.astype(k.dtype)
            dg = jnp.pad(jnp.vecdot(dq, q)[:, None], ((0, 0), (size // reads - 1, 0))).reshape(-1)
            # A running sum's gradient goes to all steps before it, up to the start flag.
            dlog_decay = (dg - jnp.vecdot(dv, row(v, t))) @ same + same[-1] * jnp.vdot(dstate_t, after)
            dlog_decay = jnp.where(starts_now | (log_decay < LEAST_LOG_DECAY), 0, dlog_decay)
        dheld = transposed(jnp.concatenate([q, k])) @ jnp.concatenate([dy_held, dv_held])
        dstate = decay.all.from_before[-1] * dstate + dheld
        return (dstate, state_t), (dq, dk, dbeta, dlog_decay, dv)

    # Gradients reuse their primals' buffers, and that of v reuses the errors'.
    rows = (q, k, beta, log_decay, errors)
    (dstate, _), (dq, dk, dbeta, dlog_decay, dv) = loop(
        step, (dlast, last.T), rows, count, reverse=True, read_ahead=True
    )
    return dstate, dq, (dk, dv, dbeta, dlog_decay), None


define(_delta_rule, _OP, _delta_rule_fwd, _delta_rule_bwd)


def _by_kernel(how, layout, state, q, steps, starts):
    length, reads = len(starts), len(q)
    every = length // reads
    if every > 1:
        # A kernel reads every step: without a query, zero.
        q = jnp.pad(q[:, None], ((0, 0), (every - 1, 0), (0, 0))).reshape(length, -1)
    q, inputs, starts = split_chunks((q, steps, starts), length, layout.steps)
    state, q, inputs = no_forward(_OP, (state, q, inputs))
    last, ys = cast(tuple[Array, Array], _kernels(how, layout, state, q, inputs, starts))
    return last, ys.reshape(-1, ys.shape[-1])[every - 1 : length : every]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernels(how, layout, state, q, inputs, starts):
    return _kernels_fwd(how, layout, state, q, inputs, starts)[0]


def _kernels_fwd(how, layout, state, q, inputs, starts):
    from memax_rl.ops.kernels._delta_rule import delta_rule_forward

    def plain(state, q, k, v, beta, log_decay, starts):
        (last, ys), residuals = _delta_rule_fwd(state, q, (k, v, beta, log_decay), starts)
        errors, inverses, states = residuals[3:6]
        return last, ys, errors, inverses, jnp.swapaxes(states, 1, 2)

    kernel = functools.partial(delta_rule_forward, layout)
    last, ys, errors, inverses, states = kernels.launch(how, kernel, plain, state, q, *inputs, starts)
    return (last, ys), (q, inputs, starts, errors, inverses, states, last)


def _kernels_bwd(how, layout, residuals, cotangents):
    from memax_rl.ops.kernels._delta_rule import delta_rule_backward

    q, (k, v, beta, log_decay), starts, errors, inverses, states, last = residuals

    def plain(q, k, beta, log_decay, starts, errors, inverses, states, dlast, dys):
        residuals = q, (k, v, beta, log_decay), starts, errors, inverses, jnp.swapaxes(states, 1, 2), last
        dstate, dq, (dk, dv, dbeta, dlog_decay), _ = _delta_rule_bwd(residuals, (dlast, dys))
        return dstate, dq, dk, dv, dbeta, dlog_decay

    kernel = functools.partial(delta_rule_backward, layout)
    arrays = q, k, beta, log_decay, starts, errors, inverses, states, *cotangents
    dstate, dq, *dinputs = kernels.launch(how, kernel, plain, *arrays)
    return dstate, dq, tuple(dinputs), None


define(_kernels, _OP, _kernels_fwd, _kernels_bwd)


def generalized_delta_rule(
    q: Float[Array, "T dk"],
    k: Float[Array, "T dk"],
    v: Float[Array, "T dv"],
    a: Float[Array, "T dk"],
    b: Float[Array, "T dk"],
    log_decay: Float[Array, "T dk"],
    state: Float[Array, "dk dv"],
    starts: Bool[Array, " T"],
    *,
    chunk: int | None = None,
    method: Literal["reference"] | None = None,
) -> tuple[Float[Array, "dk dv"], Float[Array, "T dv"]]:
    """Return the last state and all y_t, with S_t = (diag(decay_t) + b_t a_t^T) S_{t-1} + k_t v_t^T.

    The form of RWKV-7 (Peng et al. 2025, https://arxiv.org/abs/2503.14456): a decay per channel, and what is
    read (a) and where it is written back (b) need not agree. With U the rows a_t^T S_{t-1}, within a chunk

        (I - A_ab) U = (a o decay from before) S + A_ak V,     Y = (q o decay from before) S + A_qk V + A_qb U

    where A_xy holds the scores of x and y with the decay in between, up to the step before for x = a.

    **Cost.** As `linear_attention` with a decay per channel, about four times its scores, plus O(T *
    chunk^2).

    The state stays bounded where diag(decay) + b a^T does not expand.

    Args:
        q, k, v, log_decay, state, starts, method: As in `linear_attention`; `log_decay` is of each channel of k.
        a, b: What is read from the state, and where it is written back.
        chunk: Steps that are computed together.

    Raises:
        ValueError: If `starts` is not `bool[T]`, shapes disagree or `chunk` is below 1.
    """
    length = k.shape[0]
    check_starts(starts, length)
    keys = {"q": q, "k": k, "a": a, "b": b, "log_decay": log_decay}
    check_matrix_state(state, length, keys=keys, values=v, numbers={})
    if chunk is not None:
        check_chunk(chunk)
    compute = jnp.promote_types(jnp.result_type(q, k, v, state), jnp.float32)
    floats = [x.astype(compute) for x in (q, k, v, a, b, log_decay)]
    if is_reference(method):
        last, ys = _generalized_plain(state.astype(compute), (*floats, starts))
        return last.astype(state.dtype), ys.astype(v.dtype)
    # A padded step has k = b = 0 and decay 1: it does not change the state.
    first, inputs, size = state.astype(compute), (*floats, starts), chunk_size(chunk, length)
    last, ys = loop_chunks("ops.generalized_delta_rule", _generalized_chunk, first, inputs, length, size)
    return last.astype(state.dtype), ys.astype(v.dtype)


def _generalized_plain(state, inputs):
    def step(s, now):
        q, k, v, a, b, log_decay, start = now
        s = jnp.where(start, 0, s)
        decay = jnp.exp(jnp.maximum(log_decay, LEAST_LOG_DECAY))
        s = decay[:, None] * s + b[:, None] * (a @ s)[None, :] + k[:, None] * v[None, :]
        return s, q @ s

    return jax.lax.scan(step, state, inputs)


def _generalized_chunk(state, q, k, v, a, b, log_decay, starts):
    seg = segments(starts)
    decay = channel_decays(log_decay, seg)
    g_before = decay.g - decay.own
    a_first = a * jnp.where(seg.first[:, None], jnp.exp(g_before), 0)
    earlier = seg.same & np.tri(starts.shape[0], k=-1, dtype=bool)
    a_k, a_b = channel_scores(a, [k, b], g_before, decay.g, earlier, seg)
    q_k, q_b = channel_scores(q, [k, b], decay.g, decay.g, seg.same, seg)
    u = unit_lower_solve(-a_b, a_first @ state + a_k @ v)
    ys = (q * decay.from_before) @ state + q_k @ v + q_b @ u
    state = decay.from_before[-1][:, None] * state + (k * decay.to_end).T @ v + (b * decay.to_end).T @ u
    return state, ys
