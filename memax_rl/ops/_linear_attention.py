"""Linear attention with a decaying matrix state and resets, in chunks.

    S_t = diag(decay_t) S_{t-1} + k_t v_t^T,    y_t = S_t^T q_t,    S_{t-1} := 0 at a start flag

Within a chunk the steps see each other through a masked matrix product; between chunks only one state a chunk is formed
(Yang et al. 2024, Gated Linear Attention, https://arxiv.org/abs/2312.06635, section 4). With g the running sum of log
decays in a chunk and seg the running count of its start flags, step j reaches step i >= j with weight
Gamma_ij = exp(g_i - g_j) where seg_i = seg_j, and the incoming state reaches i with exp(g_i) where seg_i = 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memax_rl.ops._checks import check_chunk, check_starts
from memax_rl.ops._linear_recurrence import linear_recurrence

_CHUNK_SCALAR = 64
_CHUNK_CHANNEL = 16


def linear_attention(
    q: Float[Array, "T dk"],
    k: Float[Array, "T dk"],
    v: Float[Array, "T dv"],
    log_decay: Float[Array, " T"] | Float[Array, "T dk"] | None,
    state: Float[Array, "dk dv"],
    starts: Bool[Array, " T"],
    *,
    chunk: int | None = None,
) -> tuple[Float[Array, "dk dv"], Float[Array, "T dv"]]:
    """Return the last state and all y_t. No scaling and no normalisation: the models do that.

    **Cost.** O(T * (chunk * (dk + dv) + dk * dv)) multiply-adds (with a decay per channel the first term is
    chunk * dk element-wise exponentials), O(T * (chunk + dk * dv / chunk)) memory, T / chunk dependent steps.

    **Arguments:**

    - `q`, `k`, `v`: queries, keys, values.
    - `log_decay`: the logarithm of the decay, at most 0: one a step, one a step and key channel, or None for no decay.
    - `state`: S before the first step; it counts until the first start flag.
    - `starts`: true where a step begins a new sequence.
    - `chunk`: steps a chunk; 64 by default, 16 with a decay per channel. It need not divide T.

    **Raises:** `ValueError` if `starts` is not `bool[T]` or `chunk` is below 1.
    """
    length, dk = k.shape
    dv = v.shape[-1]
    check_starts(starts, length)
    per_channel = log_decay is not None and log_decay.ndim == 2
    if chunk is None:
        chunk = _CHUNK_CHANNEL if per_channel else _CHUNK_SCALAR
    check_chunk(chunk)
    chunk = min(chunk, length)
    out_dtype, state_dtype = v.dtype, state.dtype
    compute = jnp.promote_types(jnp.result_type(q, k, v, state), jnp.float32)

    def chunked(x: Array) -> Array:
        x = x.astype(compute) if jnp.issubdtype(x.dtype, jnp.floating) else x
        x = jnp.pad(x, [(0, -length % chunk)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, chunk, *x.shape[1:])

    # A padded step writes k = 0 with decay 1 and never starts a segment: it leaves the state as it is.
    if log_decay is None:
        log_decay = jnp.zeros(length, compute)
    decay = log_decay if per_channel else log_decay[:, None]
    q, k, v, g, starts = chunked(q), chunked(k), chunked(v), jnp.cumsum(chunked(decay), axis=1), chunked(starts)
    segment = jnp.cumsum(starts.astype(jnp.int32), axis=1)

    within = jax.vmap(_scores_per_channel if per_channel else _scores)(q, k, g, segment)
    from_start = jnp.where((segment == 0)[..., None], jnp.exp(g), 0)
    to_end = jnp.where((segment == segment[:, -1:])[..., None], jnp.exp(g[:, -1:] - g), 0)
    written = jnp.einsum("ncd,nce->nde", k * to_end, v)
    kept = jnp.broadcast_to(from_start[:, -1, :, None], written.shape)
    first = jnp.zeros(written.shape[0], bool)
    after = linear_recurrence(kept, written, state.astype(compute), first)
    before = jnp.concatenate([state.astype(compute)[None], after[:-1]])

    ys = jnp.einsum("ncs,nse->nce", within, v) + jnp.einsum("ncd,nde->nce", q * from_start, before)
    ys = ys.reshape(-1, dv)[:length].astype(out_dtype)
    return after[-1].astype(state_dtype), ys


def _mask(segment: Array) -> Array:
    """Return bool[C, C], true at [i, j] where step i may see step j: not later, and in the same segment."""
    steps = jnp.arange(segment.shape[0])
    return (steps[:, None] >= steps[None, :]) & (segment[:, None] == segment[None, :])


def _scores(q: Array, k: Array, g: Array, segment: Array) -> Array:
    mask = _mask(segment)
    # The exponent is masked before exp: above the diagonal it is positive and may overflow, and inf * 0 is nan.
    gamma = jnp.exp(jnp.where(mask, g - g.T, 0))
    return jnp.where(mask, (q @ k.T) * gamma, 0)


def _scores_per_channel(q: Array, k: Array, g: Array, segment: Array) -> Array:
    mask = _mask(segment)
    gamma = jnp.exp(jnp.where(mask[:, :, None], g[:, None, :] - g[None, :, :], 0))
    return jnp.where(mask, jnp.einsum("id,jd,ijd->ij", q, k, gamma), 0)
