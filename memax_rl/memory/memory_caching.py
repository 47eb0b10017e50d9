"""Memory caching: linear attention in segments; the last states of earlier segments are cached and can be read.

Memory Caching: RNNs with Growing Memory, 2026, https://arxiv.org/abs/2602.24281. Written from a second-hand description
of its gated form: a segment starts from an empty state and is addressed by the mean of its keys.

    q, k, v, u = unit(W_q x), unit(W_k x), W_v x, W_u x
    at the first step of a segment: cache (S, mean of k) of the one before, S = 0
    S = S + k v^T
    gamma = softmax_i(u . mean_i) over the cached segments and the present one
    y = W_o rms_norm(sum_i gamma_i S_i^T q)

Segments have `segment_size` steps and count from the episode's start. Only the last `cached` ones are kept,
so that the state is bounded. State: per head the cached S [cached, head_size, head_size] and means [cached,
head_size], oldest first, the present S and sum of k; and the numbers of steps in the segment and of cached
segments. A start empties all. As in TTT-Linear, a tape chunk of at most `segment_size` steps holds at most
one segment that begins without a start, before its first start.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.heads import check_heads, rms_norm, unit
from memax_rl.memory.layers.phase import unit_begins
from memax_rl.memory.layers.weights import check_size, normal, select, state_zeros
from memax_rl.ops import linear
from memax_rl.ops._chunks import scan_chunks, segments

State = tuple[Any, Any, Int[Array, ""], Int[Array, ""]]


class MemoryCaching(Memory):
    """Linear attention in segments; the states of earlier segments are cached and read with gates.

    For recall of when as well as what: a query selects a segment, then a key in it.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
        segment_size: steps a segment.
        cached: segments whose state is kept.
    """

    family: ClassVar[str] = "matrix"
    paper: ClassVar[str] = "https://arxiv.org/abs/2602.24281"
    verified: ClassVar[str] = "from the paper's text only, at second hand"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    segment_size: int
    cached: int
    w_q: Float[Array, "in_size inner"]
    w_k: Float[Array, "in_size inner"]
    w_v: Float[Array, "in_size inner"]
    w_u: Float[Array, "in_size inner"]
    norm: Float[Array, " inner"]
    w_o: Float[Array, "inner out_size"]

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        heads: int | None = None,
        head_size: int = 32,
        segment_size: int = 32,
        cached: int = 8,
    ):
        self.in_size, self.out_size = in_size, out_size
        self.heads, self.head_size = check_heads(out_size, heads, head_size)
        self.segment_size = check_size("segment_size", segment_size)
        self.cached = check_size("cached", cached)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 5)
        self.w_q, self.w_k, self.w_v, self.w_u = (normal(k, in_size, inner) for k in keys[:4])
        self.norm = jnp.ones(inner)
        self.w_o = normal(keys[4], inner, out_size)

    def _project(self, x):
        """Return q, k, v and u, each [heads, head_size]."""
        q, k, v, u = (
            linear(x, w).reshape(self.heads, self.head_size) for w in (self.w_q, self.w_k, self.w_v, self.w_u)
        )
        return unit(q), unit(k), v, u

    def _read(self, reads):
        return linear(rms_norm(reads, self.norm), self.w_o)

    def initial_state(self) -> State:
        shape = (self.heads, self.cached, self.head_size)
        empty = state_zeros(self.norm, (*shape, self.head_size)), state_zeros(self.norm, shape)
        present = (
            state_zeros(self.norm, (self.heads, self.head_size, self.head_size)),
            state_zeros(self.norm, (self.heads, self.head_size)),
        )
        return empty, present, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        cache, present, phase, held = select(start, self.initial_state(), state)
        full = phase == self.segment_size
        cache = select(full, jax.vmap(self._push)(cache, present), cache)
        present = select(full, jax.tree.map(jnp.zeros_like, present), present)
        held, phase = jnp.where(full, jnp.minimum(held + 1, self.cached), held), jnp.where(full, 0, phase) + 1
        q, k, v, u = self._project(x)
        (s_old, means), (s, keys) = cache, present
        s, keys = s + k[:, :, None] * v[:, None, :], keys + k
        scores = jnp.concatenate(
            [jnp.einsum("hd,hnd->hn", u, means), jnp.sum(u * keys / phase, axis=1, keepdims=True)], axis=1
        )
        counts = jnp.arange(self.cached + 1) >= self.cached - held
        gamma = jax.nn.softmax(jnp.where(counts[None], scores, -jnp.inf), axis=1)
        reads = jnp.einsum("hd,hnde->hne", q, jnp.concatenate([s_old, s[:, None]], axis=1))
        y = self._read(jnp.einsum("hn,hne->he", gamma, reads))
        return ((s_old, means), (s, keys), phase, held), y

    def _push(self, cache, present):
        """Return the cache of one head with one more segment, without its oldest."""
        (s_old, means), (s, keys) = cache, present
        s_old, means = (
            jnp.concatenate([s_old, s[None]]),
            jnp.concatenate([means, keys[None] / self.segment_size]),
        )
        return s_old[1:], means[1:]

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """In chunks of at most one segment's size."""
        cache, present, phase, held = state
        begins, last_phase = unit_begins(phase, starts, self.segment_size)
        q, k, v, u = jax.vmap(self._project)(xs)
        count = _steps_so_far(phase, starts | begins)
        length, chunk = len(starts), min(self.segment_size, len(starts))

        def run(q, k, v, u, cache, present):
            inputs = (q, k, v, u, count, starts, begins)
            return scan_chunks(self._chunk, (cache, present, held), inputs, length, chunk)

        (cache, present, held), reads = jax.vmap(run, in_axes=(1, 1, 1, 1, 0, 0), out_axes=((0, 0, None), 1))(
            q, k, v, u, cache, present
        )
        return (cache, present, last_phase, held), jax.vmap(self._read)(reads)

    def _chunk(self, state, q, k, v, u, count, starts, begins):
        """One head and chunk. A step is in the present segment, in the next, or behind a start."""
        cache, (s, keys), held = state
        unit_of = segments(starts | begins)
        fresh = ~segments(starts).first
        after = ~fresh & ~unit_of.first
        same, first = unit_of.same.astype(k.dtype), unit_of.first[:, None]

        closed_k = jnp.where(first, k, 0)
        closed = s + closed_k.T @ v, keys + jnp.sum(closed_k, axis=0)
        # One more than `cached`: the segment that may end in this chunk. The current segment comes last.
        s_all, means = (
            jnp.concatenate([old, new])
            for old, new in zip(cache, (closed[0][None], closed[1][None] / self.segment_size), strict=True)
        )
        keys_so_far = jnp.where(first, keys[None], 0) + same @ k
        own_score = jnp.sum(u * keys_so_far, axis=1, keepdims=True) / jnp.maximum(count, 1)[:, None]
        slot = jnp.arange(self.cached + 1)[None]
        oldest = jnp.maximum(self.cached - held, jnp.where(after, 1, 0))[:, None]
        newest = jnp.where(fresh, -1, jnp.where(after, self.cached, self.cached - 1))[:, None]
        seen = (slot >= oldest) & (slot <= newest)
        scores = jnp.concatenate([jnp.where(seen, u @ means.T, -jnp.inf), own_score], axis=1)
        gamma = jax.nn.softmax(scores, axis=1)
        own = jnp.where(first, q @ s, 0) + (same * (q @ k.T)) @ v
        old = jnp.einsum("cn,cne->ce", gamma[:, :-1], jnp.einsum("cd,nde->cne", q, s_all))

        present = (jnp.where(first[-1], s, 0) + (k * same[-1][:, None]).T @ v, keys_so_far[-1])
        empty = jax.tree.map(jnp.zeros_like, cache)
        cache = select(fresh[-1], empty, select(after[-1], (s_all[1:], means[1:]), cache))
        held = jnp.where(fresh[-1], 0, jnp.where(after[-1], jnp.minimum(held + 1, self.cached), held))
        return (cache, present, held), old + gamma[:, -1:] * own


def _steps_so_far(phase: Array, begins: Array) -> Float[Array, " T"]:
    """Return how many steps of its segment each step has seen, itself included."""
    time = jnp.arange(begins.shape[0])
    last = jax.lax.cummax(jnp.where(begins, time, -1))
    return jnp.where(last >= 0, time - last + 1, time + 1 + phase).astype(jnp.float32)
