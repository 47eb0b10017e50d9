"""The delta rule on a matrix state, gated or not, with resets, in chunks.

    S_t = decay_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    y_t = S_t^T q_t

Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule over Sequence Length,
https://arxiv.org/abs/2406.06484, with the decay of Gated Delta Networks, https://arxiv.org/abs/2412.06464.
S_{t-1} counts as 0 at a start flag. A step writes k_t u_t^T with u_t = beta_t (v_t - decay_t S_{t-1}^T k_t),
and within a chunk the rows of U solve a triangular system:

    (I + A) U = beta o (V - c o (K S)),    A_ij = beta_i Gamma_ij k_i . k_j for j < i
    Y = c o (Q S) + (Gamma o Q K^T) U,     S <- c_C S + (Gamma_C o K)^T U

with Gamma_ij the decay from step j to step i and c_i that from before the chunk, both zero across a start
flag.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from memax_rl.ops._checks import check_chunk, check_starts
from memax_rl.ops._chunks import (
    channel_decays,
    channel_scores,
    chunk_size,
    decays,
    loop_chunks,
    segments,
    unit_lower_solve,
)


def delta_rule(
    q: Float[Array, "T dk"],
    k: Float[Array, "T dk"],
    v: Float[Array, "T dv"],
    beta: Float[Array, " T"],
    log_decay: Float[Array, " T"] | None,
    state: Float[Array, "dk dv"],
    starts: Bool[Array, " T"],
    *,
    chunk: int | None = None,
) -> tuple[Float[Array, "dk dv"], Float[Array, "T dv"]]:
    """Return the last state and all y_t. No scaling and no normalisation: the models do that.

    **Cost.** O(T * (chunk * (dk + dv) + chunk^2 + dk * dv)) multiply-adds, T / chunk dependent steps, and
    besides inputs, outputs and their gradients one state a chunk and O(chunk * (chunk + dk + dv)) memory.

    **Arguments:**

    - `q`, `k`, `v`: queries, keys, values. With |k| = 1 the state stays bounded for beta in [0, 2].
    - `beta`: how far the value under k is moved towards v; 1 overwrites it.
    - `log_decay`: the logarithm of the decay, at most 0, or None for no decay. What is below -80 counts as
        -80.
    - `state`: S before the first step; it counts until the first start flag.
    - `starts`: true where a step begins a new sequence.
    - `chunk`: steps a chunk; 32 by default on a CPU and 64 elsewhere. It need not divide T.

    **Raises:** `ValueError` if `starts` is not `bool[T]` or `chunk` is below 1.
    """
    length = k.shape[0]
    check_starts(starts, length)
    if chunk is not None:
        check_chunk(chunk)
    compute = jnp.promote_types(jnp.result_type(q, k, v, state), jnp.float32)
    floats = [None if x is None else x.astype(compute) for x in (q, k, v, beta, log_decay)]
    # A padded step has beta = 0 and decay 1: it leaves the state as it is.
    last, ys = loop_chunks(_delta_chunk, state.astype(compute), (*floats, starts), length, chunk_size(chunk, length))
    return last.astype(state.dtype), ys.astype(v.dtype)


def _delta_chunk(state, q, k, v, beta, log_decay, starts):
    seg = segments(starts)
    within, from_before = decays(log_decay, seg, q.dtype)
    earlier = np.tri(starts.shape[0], k=-1, dtype=bool)
    a = jnp.where(earlier, within * (k @ k.T), 0) * beta[:, None]
    u = unit_lower_solve(a, beta[:, None] * (v - from_before[:, None] * (k @ state)))
    ys = from_before[:, None] * (q @ state) + (within * (q @ k.T)) @ u
    return from_before[-1] * state + (k * within[-1][:, None]).T @ u, ys


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
) -> tuple[Float[Array, "dk dv"], Float[Array, "T dv"]]:
    """Return the last state and all y_t, with S_t = (diag(decay_t) + b_t a_t^T) S_{t-1} + k_t v_t^T.

    The form of RWKV-7 (Peng et al. 2025, https://arxiv.org/abs/2503.14456): a decay per channel, and what is
    read (a) and where it is written back (b) need not agree. With U the rows a_t^T S_{t-1}, within a chunk

        (I - A_ab) U = (a o decay from before) S + A_ak V,     Y = (q o decay from before) S + A_qk V + A_qb U

    where A_xy holds the scores of x and y with the decay in between, up to the step before for x = a.

    **Cost.** As `linear_attention` with a decay per channel, about four times its scores, plus O(T *
    chunk^2).

    **Arguments:** as for `linear_attention`; the state stays bounded where diag(decay) + b a^T does not
    expand.

    **Raises:** `ValueError` if `starts` is not `bool[T]` or `chunk` is below 1.
    """
    length = k.shape[0]
    check_starts(starts, length)
    if chunk is not None:
        check_chunk(chunk)
    compute = jnp.promote_types(jnp.result_type(q, k, v, state), jnp.float32)
    floats = [x.astype(compute) for x in (q, k, v, a, b, log_decay)]
    # A padded step has k = b = 0 and decay 1: it leaves the state as it is.
    last, ys = loop_chunks(
        _generalized_chunk, state.astype(compute), (*floats, starts), length, chunk_size(chunk, length)
    )
    return last.astype(state.dtype), ys.astype(v.dtype)


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
