"""Linear attention with a decaying matrix state and resets, in chunks.

    S_t = diag(decay_t) S_{t-1} + k_t v_t^T,    y_t = S_t^T q_t,    S_{t-1} := 0 at a start flag

Yang et al. 2024, Gated Linear Attention, https://arxiv.org/abs/2312.06635, section 4. Within a chunk the
steps see each other through a masked matrix product; between chunks only the state is carried:

    Y = c o (Q S) + (Gamma o Q K^T) V,     S <- c_C S + (Gamma_C o K)^T V

with Gamma_ij the decay from step j to step i and c_i that from before the chunk, both zero across a start
flag. With a decay per channel, Gamma belongs inside the product over channels, see `_chunks.channel_scores`.
"""

import functools
from typing import Literal, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memax_rl.ops import kernels
from memax_rl.ops._checks import check_chunk, check_matrix_state, check_starts, is_reference
from memax_rl.ops._chunks import (
    LEAST_LOG_DECAY,
    channel_decays,
    channel_scores,
    chunk_size,
    decays,
    loop_chunks,
    loop_chunks_back,
    loop_chunks_forward,
    segments,
    split_chunks,
    transposed,
)
from memax_rl.ops._first_order import define, no_forward

_OP = "ops.linear_attention"


def linear_attention(
    q: Float[Array, "T dk"],
    k: Float[Array, "T dk"],
    v: Float[Array, "T dv"],
    log_decay: Float[Array, " T"] | Float[Array, "T dk"] | None,
    state: Float[Array, "dk dv"],
    starts: Bool[Array, " T"],
    *,
    chunk: int | None = None,
    method: Literal["reference"] | None = None,
) -> tuple[Float[Array, "dk dv"], Float[Array, "T dv"]]:
    """Return the last state and all y_t. No scaling and no normalization: the models do that.

    **Cost.** O(T * (chunk * (dk + dv) + dk * dv)) multiply-adds, with a decay per channel also O(T * dk * (16
    + chunk / 16)) exponentials; T / chunk dependent steps; besides inputs, outputs and their gradients one
    state a chunk and O(chunk * (chunk + dk + dv)) memory.

    Args:
        q, k, v: Queries, keys, values.
        log_decay: The logarithm of the decay, at most 0: one a step, one a step and key channel, or None for no decay.
            What is below -80 counts as -80.
        state: S before the first step; it counts until the first start flag.
        starts: True where a step begins a new sequence.
        chunk: Steps a chunk, by default 32 on a CPU, 64 elsewhere, and what suits a kernel where one runs. It need not
            divide T.
        method: `"reference"` for a plain `jax.lax.scan` over time, differentiable any number of times and in forward
            mode; by default the fast form, for first derivatives in reverse mode.

    Raises:
        ValueError: If `starts` is not `bool[T]`, shapes disagree or `chunk` is below 1.
    """
    length = k.shape[0]
    check_starts(starts, length)
    per_channel = log_decay is not None and log_decay.ndim == 2
    keys, numbers = {"q": q, "k": k}, {"log_decay": log_decay}
    if per_channel:
        keys, numbers = keys | numbers, {}
    check_matrix_state(state, length, keys=keys, values=v, numbers=numbers)
    if chunk is not None:
        check_chunk(chunk)
    compute = jnp.promote_types(jnp.result_type(q, k, v, state), jnp.float32)
    floats = [None if x is None else x.astype(compute) for x in (q, k, v, log_decay)]
    body = _channel_chunk if per_channel else _scalar_chunk
    # A padded step has k = 0 and decay 1: it does not change the state.
    if is_reference(method):
        last, ys = _plain(state.astype(compute), (*floats, starts))
        return last.astype(state.dtype), ys.astype(v.dtype)
    how, first, inputs = kernels.chosen(tf32=True), state.astype(compute), (*floats, starts)
    if how and compute == jnp.float32:
        # It imports Pallas, which a CPU does without.
        from memax_rl.ops.kernels._linear_attention import layout

        if found := layout(how, q, v, log_decay, chunk):
            last, ys = _by_kernel(how, body, found, first, inputs)
            return last.astype(state.dtype), ys.astype(v.dtype)
    last, ys = loop_chunks(_OP, body, first, inputs, length, chunk_size(chunk, length))
    return last.astype(state.dtype), ys.astype(v.dtype)


def _plain(state, inputs):
    def step(s, now):
        q, k, v, log_decay, start = now
        s = jnp.where(start, 0, s)
        if log_decay is not None:
            # One a step, or one a channel: a row of the state.
            s = jnp.exp(jnp.maximum(log_decay, LEAST_LOG_DECAY)).reshape(-1, 1) * s
        s = s + k[:, None] * v[None, :]
        return s, q @ s

    return jax.lax.scan(step, state, inputs)


def _scalar_chunk(state, q, k, v, log_decay, starts):
    seg = segments(starts)
    within, from_before = decays(log_decay, seg, q.dtype)
    ys = from_before[:, None] * (q @ state) + (within * (q @ k.T)) @ v
    return from_before[-1] * state + transposed(k * within[-1][:, None]) @ v, ys


def _channel_chunk(state, q, k, v, log_decay, starts):
    seg = segments(starts)
    decay = channel_decays(log_decay, seg)
    (scores,) = channel_scores(q, [k], decay.g, decay.g, seg.same, seg)
    ys = (q * decay.from_before) @ state + scores @ v
    return decay.from_before[-1][:, None] * state + transposed(k * decay.to_end) @ v, ys


def _by_kernel(how, body, layout, state, inputs):
    length = len(inputs[-1])
    state, chunks = no_forward(_OP, (state, split_chunks(inputs, length, layout.steps)))
    last, ys = cast(tuple[Array, Array], _kernels(how, body, layout, state, chunks))
    return last, ys.reshape(-1, ys.shape[-1])[:length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _kernels(how, body, layout, state, inputs):
    return _kernels_fwd(how, body, layout, state, inputs)[0]


def _kernels_fwd(how, body, layout, state, inputs):
    from memax_rl.ops.kernels._linear_attention import linear_attention_forward

    def plain(state, *inputs):
        (last, ys), states = loop_chunks_forward(body, state, inputs)
        return last, ys, states

    kernel = functools.partial(linear_attention_forward, layout)
    last, ys, states = kernels.launch(how, kernel, plain, state, *inputs)
    return (last, ys), (states, inputs)


def _kernels_bwd(how, body, layout, residuals, cotangents):
    from memax_rl.ops.kernels._linear_attention import linear_attention_backward

    (states, inputs), (dlast, dys) = residuals, cotangents

    def plain(states, q, k, v, log_decay, starts, dlast, dys):
        dstate, dinputs = loop_chunks_back(body, states, (q, k, v, log_decay, starts), dlast, dys)
        return dstate, *dinputs[:-1]

    kernel = functools.partial(linear_attention_backward, layout)
    dstate, *dinputs = kernels.launch(how, kernel, plain, states, *inputs, dlast, dys)
    return dstate, (*dinputs, None)


define(_kernels, _OP, _kernels_fwd, _kernels_bwd)
