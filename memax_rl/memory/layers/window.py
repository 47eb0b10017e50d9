"""Parts of the attention models: projections to heads, the ring buffer of past keys and values, attention over it.

The ring buffer holds the rows of the last window - 1 steps, oldest first and right-aligned, and how many of them are
valid. Invalid rows are zero, so that nothing of an earlier episode is kept.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from memax_rl.memory.layers.weights import check_size, normal, state_zeros
from memax_rl.ops import linear, window_attention


class Heads(eqx.Module):
    """Projections to queries, keys and values of several heads, and the output projection."""

    heads: int
    head_size: int
    w_q: Float[Array, "in_size inner"]
    w_k: Float[Array, "in_size inner"]
    w_v: Float[Array, "in_size inner"]
    w_o: Float[Array, "inner out_size"]

    def __init__(self, in_size: int, out_size: int, heads: int | None, head_size: int, key: PRNGKeyArray):
        self.head_size = check_size("head_size", head_size)
        self.heads = max(1, out_size // head_size) if heads is None else check_size("heads", heads)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 4)
        self.w_q, self.w_k, self.w_v = (normal(k, in_size, inner) for k in keys[:3])
        self.w_o = normal(keys[3], inner, out_size)

    def split(self, xs: Float[Array, "*T in_size"]) -> tuple[Float[Array, "*T heads head_size"], ...]:
        """Return q, k and v of one input or of many."""
        # One product for the three: it reads the inputs once, and so does its gradient.
        qkv = linear(xs, jnp.concatenate([self.w_q, self.w_k, self.w_v], axis=1))
        return tuple(a.reshape(*a.shape[:-1], self.heads, self.head_size) for a in jnp.split(qkv, 3, axis=-1))

    def merge(self, ys: Float[Array, "*T heads head_size"]) -> Float[Array, "*T out_size"]:
        """Return the output from what the heads read."""
        return linear(ys.reshape(*ys.shape[:-2], -1), self.w_o)


def empty_rings(heads: Heads, window: int) -> tuple["Ring", "Ring"]:
    """Return empty rings of keys and values."""
    shape = (window - 1, heads.heads, heads.head_size)
    return empty_ring(heads.w_k, *shape), empty_ring(heads.w_v, *shape)


def _as_it_is(x: Array, first: int) -> Array:
    del first
    return x


def attend_step(
    heads: Heads,
    state: tuple["Ring", "Ring"],
    x: Float[Array, " in_size"],
    start: Bool[Array, ""],
    *,
    turn: Callable[[Array, int], Array] = _as_it_is,
    bias: Float[Array, "heads window"] | None = None,
) -> tuple[tuple["Ring", "Ring"], Float[Array, " out_size"]]:
    """Return the rings with the new key and value, and the output of attention over them.

    `turn(ks, first)` is applied to the keys before they meet the query, `first` being the position of the first of them
    where that of the query is 0; `bias` is added to the score of the key that lies 0, 1, ... steps back.
    """
    q, k, v = heads.split(x)
    past_k, past_v = (ring.reset(start) for ring in state)
    seen = jnp.append(past_k.valid(), True)
    past_k, ks = past_k.push(k)
    past_v, vs = past_v.push(v)
    scores = jnp.einsum("hd,whd->hw", q, turn(ks, 1 - len(ks))) * heads.head_size**-0.5
    if bias is not None:
        scores = scores + bias[:, ::-1]
    weights = jax.nn.softmax(jnp.where(seen[None], scores, -jnp.inf), axis=-1)
    return (past_k, past_v), heads.merge(jnp.einsum("hw,whd->hd", weights, vs))


def attend_scan(
    heads: Heads,
    state: tuple["Ring", "Ring"],
    xs: Float[Array, "T in_size"],
    starts: Bool[Array, " T"],
    window: int,
    *,
    turn: Callable[[Array, int], Array] = _as_it_is,
    bias: Float[Array, "heads window"] | None = None,
) -> tuple[tuple["Ring", "Ring"], Float[Array, "T out_size"]]:
    """All steps of `attend_step` by `ops.window_attention`, one call a head."""
    q, k, v = heads.split(xs)
    past_k, past_v = state
    valid = past_k.valid()

    def attend(q, k, v, past_k, past_v, bias):
        past = {"past_k": past_k, "past_v": past_v, "past_valid": valid}
        return window_attention(q, k, v, starts, window, bias=bias, **past)

    # Only distances matter, so positions on the tape can replace those in the episode.
    turned = turn(q, 0), turn(k, 0), v.astype(past_v.rows.dtype), turn(past_k.rows, 1 - window), past_v.rows
    ys = jax.vmap(attend, in_axes=(1, 1, 1, 1, 1, None if bias is None else 0), out_axes=1)(*turned, bias)
    return (past_k.extend(k, starts), past_v.extend(v, starts)), heads.merge(ys)


class Ring(eqx.Module):
    """A ring buffer: the last rows of a sequence, oldest first, and how many of them are valid."""

    rows: Float[Array, " size *shape"]
    count: Int[Array, ""]

    def valid(self) -> Bool[Array, " size"]:
        """Return which rows are valid: the last `count`."""
        size = self.rows.shape[0]
        return jnp.arange(size) >= size - self.count

    def reset(self, start: Bool[Array, ""]) -> "Ring":
        """Return an empty ring at a start flag."""
        return Ring(self.rows, jnp.where(start, 0, self.count)).clear()

    def clear(self) -> "Ring":
        """Return the ring with zeros in the invalid rows."""
        keep = self.valid().reshape(-1, *(1,) * (self.rows.ndim - 1))
        return Ring(jnp.where(keep, self.rows, 0), self.count)

    def push(self, row: Float[Array, " *shape"]) -> tuple["Ring", Float[Array, " size_plus_1 *shape"]]:
        """Return the ring after one more row, and all rows with it as the last."""
        window = jnp.concatenate([self.rows, row[None]])
        return Ring(window[1:], jnp.minimum(self.count + 1, self.rows.shape[0])), window

    def extend(self, rows: Float[Array, " T *shape"], starts: Bool[Array, " T"]) -> "Ring":
        """Return the ring after many more rows."""
        length, size = rows.shape[0], self.rows.shape[0]
        last_start = jnp.max(jnp.where(starts, jnp.arange(length), -1))
        count = jnp.minimum(jnp.where(last_start < 0, self.count + length, length - last_start), size)
        return Ring(jnp.concatenate([self.rows, rows])[length:], count.astype(jnp.int32)).clear()


def empty_ring(parameter: Array, size: int, *shape: int) -> Ring:
    """Return a ring that nothing was pushed to, in the dtype of the states beside a parameter."""
    return Ring(state_zeros(parameter, (size, *shape)), jnp.zeros((), jnp.int32))
