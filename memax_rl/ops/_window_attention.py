"""Softmax attention over a sliding window with resets, in blocks.

    y_t = sum_j p_tj v_j,    p_t = softmax over j of q_t . k_j / sqrt(dk) + bias[t - j],
    0 <= t - j < window, with no start flag in j+1 .. t

Time is cut into blocks. The queries of a block see its own keys and those of as many steps before it as the
window reaches back: one masked matrix product a block, as in the local attention of Beltagy et
al. 2020, Longformer, https://arxiv.org/abs/2004.05150, section 3.1. Nothing of size T x window x dk is
formed.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memax_rl.ops._checks import check_starts, is_reference
from memax_rl.ops._first_order import no_forward

_SMALL_BLOCK, _BLOCK = 32, 64


def window_attention(
    q: Float[Array, "T dk"],
    k: Float[Array, "T dk"],
    v: Float[Array, "T dv"],
    starts: Bool[Array, " T"],
    window: int,
    *,
    past_k: Float[Array, "P dk"] | None = None,
    past_v: Float[Array, "P dv"] | None = None,
    past_valid: Bool[Array, " P"] | None = None,
    bias: Float[Array, " window"] | None = None,
    block: int | None = None,
    method: Literal["reference"] | None = None,
) -> Float[Array, "T dv"]:
    """Return all y_t. A step sees itself and at most `window - 1` steps before it, back to the last start.

    **Cost.** O(T * (window + block) * (dk + dv)) multiply-adds and O(T * (window + block)) memory; nothing in
    sequence.

    Args:
        q, k, v: Queries, keys, values.
        starts: True where a step begins a new sequence.
        window: How many steps a step sees, itself included.
        past_k, past_v: Keys and values of the P steps before the first, oldest first: what an earlier call left. They
            count until the first start flag. Of more than `window - 1` only the last can be seen.
        past_valid: False where an entry of the past is empty; all count by default.
        bias: Added to the score of the key that lies 0, 1, ..., window - 1 steps back.
        block: Steps a block; 32 or 64 by default, by the window. It need divide neither T nor the window.
        method: `"reference"` for the scores of all pairs of steps, O(T * (T + P)), differentiable any number of times
            and in forward mode; by default in blocks.

    Raises:
        ValueError: If `starts` is not `bool[T]`, `window` or `block` is below 1, or only a part of the past is given.
    """
    length = k.shape[0]
    check_starts(starts, length)
    _check_whole("window", window)
    if block is None:
        block = min(_SMALL_BLOCK if window <= _SMALL_BLOCK else _BLOCK, length)
    _check_whole("block", block)
    if (past_k is None) != (past_v is None) or (past_valid is not None and past_k is None):
        raise ValueError("give both past_k and past_v, or neither; past_valid needs them")
    dtype, compute = v.dtype, jnp.promote_types(jnp.result_type(q, k, v), jnp.float32)
    if is_reference(method):
        past = past_k, past_v, past_valid
        q, k, v = (x.astype(compute) for x in (q, k, v))
        return _plain(q, k, v, starts, window, past, bias).astype(dtype)
    return _in_blocks(q, k, v, starts, window, (past_k, past_v, past_valid), bias, block, compute).astype(dtype)


def _in_blocks(q, k, v, starts, window, past, bias, block, compute):
    """Return all y_t in the dtype `compute`: each block of steps sees itself and the steps before it."""
    length = k.shape[0]
    # The rows before a block that its steps can see, rounded up to a multiple of eight, the width of the processor.
    before = -(-(window - 1) // 8) * 8
    past_k, past_v, past_segment = _past(past[0], past[1], past[2], before, k, v)

    def padded(x: Array) -> Array:
        """Return the tape [T, ...] padded at the end to whole blocks."""
        return jnp.pad(x, [(0, -length % block)] + [(0, 0)] * (x.ndim - 1))

    def blocks(x: Array) -> Array:
        return x.reshape(-1, block, *x.shape[1:])

    def joined(past: Array, x: Array) -> Array:
        """Return the blocks of the padded tape, each with the `before` rows ahead of it."""
        # Without the barrier XLA would slice every block from the array of q, k and v together, of which x is a part:
        # three times as large, and in memory until all blocks are joined.
        rows = jax.lax.optimization_barrier(jnp.concatenate([past.astype(x.dtype), x]))
        rest = before % block
        first = blocks(rows[: len(x)])[:, :rest]
        others = [blocks(rows[i : i + len(x)]) for i in range(rest, before + 1, block)]
        return jnp.concatenate([first, *others], axis=1)

    q, k, v = (padded(x.astype(compute)) for x in (q, k, v))
    keys, values = joined(past_k, k), joined(past_v, v)
    segment = padded(jnp.cumsum(starts.astype(jnp.int32)))
    distance = before + jnp.arange(block)[None, :] - jnp.arange(before + block)[:, None]
    near = (distance >= 0) & (distance < window)
    offset = None if bias is None else bias.astype(compute)[jnp.clip(distance, 0, window - 1)]

    def attend(q, k, v, q_segment, k_segment):
        seen = near & (k_segment[:, None] == q_segment[None, :])
        q, k, v, shift = no_forward("ops.window_attention", (q, k, v, offset))
        return _attend(q, k, v, seen, shift)

    ys = jax.vmap(attend)(blocks(q), keys, values, blocks(segment), joined(past_segment, segment))
    return ys.reshape(-1, v.shape[-1])[:length]


def _plain(q, k, v, starts, window, past, bias):
    past_k, past_v, past_valid = past
    length, size = len(q), 0 if past_k is None else len(past_k)
    segment = jnp.cumsum(starts.astype(jnp.int32))
    past_k, past_v, past_segment = _past(past_k, past_v, past_valid, size, k, v)
    k, v = jnp.concatenate([past_k.astype(k.dtype), k]), jnp.concatenate([past_v.astype(v.dtype), v])
    distance = size + jnp.arange(length)[:, None] - jnp.arange(size + length)[None, :]
    seen = (distance >= 0) & (distance < window)
    seen = seen & (segment[:, None] == jnp.concatenate([past_segment, segment])[None, :])
    scores = (q @ k.T) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)[jnp.clip(distance, 0, window - 1)]
    return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1) @ v


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, seen: Array, offset: Array | None) -> Array:
    """Return softmax(q k^T / sqrt(dk) + offset where seen) v. Every query sees at least one key.

    Scores, `seen` and `offset` are [keys, queries], so that the products transpose q and dy rather than k and v, which
    have more rows.
    """
    return _attend_fwd(q, k, v, seen, offset)[0]


def _attend_fwd(q, k, v, seen, offset):
    scores = (k @ q.T) * q.shape[-1] ** -0.5
    if offset is not None:
        scores = scores + offset
    top = jnp.max(jnp.where(seen, scores, -jnp.inf), axis=0, keepdims=True)
    weights = jnp.exp(jnp.where(seen, scores - top, -jnp.inf))
    weights = weights / jnp.sum(weights, axis=0, keepdims=True)
    return weights.T @ v, (q, k, v, offset, weights)


def _attend_bwd(residuals, dys):
    """d score = weight * (dy . v - its mean): fewer passes over the scores than plain differentiation takes."""
    q, k, v, offset, weights = residuals
    dweights = v @ dys.T
    dscores = weights * (dweights - jnp.sum(weights * dweights, axis=0, keepdims=True))
    doffset = None if offset is None else dscores
    dscores = dscores * q.shape[-1] ** -0.5
    return dscores.T @ k, dscores @ q, weights @ dys, None, doffset


_attend.defvjp(_attend_fwd, _attend_bwd)


def _past(past_k, past_v, past_valid, size, k, v):
    """Return the last `size` keys and values of the past and their segments: 0, or -1 where there is none."""
    if past_k is None:
        return jnp.zeros((size, k.shape[1])), jnp.zeros((size, v.shape[1])), jnp.full(size, -1, jnp.int32)
    if past_valid is None:
        past_valid = jnp.ones(past_k.shape[0], bool)
    # An empty entry may hold any value, also nan, and 0 * nan is nan.
    past_k, past_v = (jnp.where(past_valid[:, None], p, 0) for p in (past_k, past_v))
    past = past_k, past_v, jnp.where(past_valid, 0, -1).astype(jnp.int32)
    fills = (0, 0, -1)
    missing = max(0, size - past_k.shape[0])
    padded = (
        jnp.pad(p, [(missing, 0)] + [(0, 0)] * (p.ndim - 1), constant_values=c)
        for p, c in zip(past, fills, strict=True)
    )
    return tuple(p[p.shape[0] - size :] for p in padded)


def _check_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
