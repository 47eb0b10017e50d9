"""The selective scan of Mamba's diagonal state space, with resets and its own VJP.

    h_t = exp(dt_t a) o h_{t-1} + b_t (dt_t o u_t)^T,    y_t = h_t^T c_t

with h and a [n, d], dt and u [d], b and c [n]. Gu and Dao 2023, Mamba, https://arxiv.org/abs/2312.00752, algorithm 2
and section 3.3.2. Decays and writes have the size of h, n times that of the inputs. So they are computed inside the
loop over time, where they stay in the cache; one h per chunk is stored for the gradient, and those in between are
rematerialized.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memax_rl.ops import kernels
from memax_rl.ops._checks import check_starts, widened
from memax_rl.ops._chunks import scan_chunks
from memax_rl.ops._first_order import define, no_forward
from memax_rl.ops._linear_recurrence import Method, check_method, linear_recurrence
from memax_rl.ops._loop import loop, put_row, row

_OP = "ops.selective_scan"

_CHUNK = 16


def selective_scan(
    dt: Float[Array, "T d"],
    u: Float[Array, "T d"],
    b: Float[Array, "T n"],
    c: Float[Array, "T n"],
    a: Float[Array, "n d"],
    state: Float[Array, "n d"],
    starts: Bool[Array, " T"],
    *,
    method: Method | None = None,
) -> tuple[Float[Array, "n d"], Float[Array, "T d"]]:
    """Return the last h and all y_t, where h_{t-1} counts as 0 at a start flag. First derivatives only.

    The state and all y_t are float32 at least, whatever the inputs.

    **Cost.** O(T * n * d) exponentials and multiply-adds; besides inputs and outputs O((T / 16 + 16) * n * d) memory.
    `"sequential"` does T dependent steps, `"associative"` T / 16 times O(log 16) of them, with a tree in each chunk.

    Args:
        dt, u: Step sizes and inputs.
        b, c: How a step writes, and how it reads.
        a: Rates of growth, negative for a decay.
        state: H before the first step; it counts until the first start flag.
        starts: True where a step begins a new sequence.
        method: `"sequential"`, `"associative"` or `"reference"`, by default as in `linear_recurrence`.

    Raises:
        ValueError: If `starts` is not `bool[T]`, shapes disagree or `method` is unknown.
    """
    how = kernels.chosen() if method is None else None
    method = check_method(method)
    length, (n, d) = len(dt), a.shape
    check_starts(starts, length)
    expected = {"dt": (length, d), "u": (length, d), "b": (length, n), "c": (length, n), "state": (n, d)}
    for (name, shape), x in zip(expected.items(), (dt, u, b, c, state), strict=True):
        if x.shape != shape:
            raise ValueError(f"{name} must have the shape {list(shape)} beside an a of {[n, d]}, got {list(x.shape)}")
    dt, u, b, c, a, state = widened((dt, u, b, c, a, state))
    if method == "reference":
        return _plain(a, state, dt, u, b, c, starts)
    dt, u, b, c, a, state = no_forward(_OP, (dt, u, b, c, a, state))
    if how and u.size and u.dtype == jnp.float32:
        # It imports Pallas, which a CPU does without.
        from memax_rl.ops.kernels._selective import fits

        if fits(n):
            return _by_kernel(how, a, state, dt, u, b, c, starts)
    if method == "associative":
        return _chunks(a, state, dt, u, b, c, starts)
    last, ys = cast(tuple[Array, Array], _loops(a, state, *_padded(-length % _CHUNK, dt, u, b, c, starts)))
    return last, ys[:length]


def _padded(missing: int, *arrays: Array) -> list[Array]:
    """Return the arrays with so many more steps, of which dt = 0: they do not change h."""
    return [jnp.pad(x, ((0, missing), (0, 0))[: x.ndim]) for x in arrays]


def _chunks(a, state, dt, u, b, c, starts):
    def chunk(h, dt, u, b, c, starts):
        decays = jnp.exp(dt[:, None, :] * a[None])
        hs = linear_recurrence(decays, b[:, :, None] * (dt * u)[:, None, :], h, starts, method="associative")
        return hs[-1], jnp.einsum("tnd,tn->td", hs, c)

    return scan_chunks(chunk, state, (dt, u, b, c, starts), len(dt), _CHUNK)


def _step(a, h, dt, u, b):
    return jnp.exp(dt[None, :] * a) * h + b[:, None] * (dt * u)[None, :]


def _plain(a, state, dt, u, b, c, starts):
    def step(h, now):
        dt_t, u_t, b_t, c_t, start = now
        h = _step(a, jnp.where(start, 0, h), dt_t, u_t, b_t)
        return h, c_t @ h

    return jax.lax.scan(step, state, (dt, u, b, c, starts))


@jax.custom_vjp
def _loops(a, h, dt, u, b, c, starts):
    return _loops_fwd(a, h, dt, u, b, c, starts)[0]


def _loops_fwd(a, h, dt, u, b, c, starts):
    def chunk(k, carry, _):
        first = carry[0]

        def step(i, carry, _):
            t = k * _CHUNK + i
            h, ys = carry
            h = _step(a, jnp.where(row(starts, t), 0, h), *row((dt, u, b), t))
            return (h, put_row(ys, jnp.sum(row(c, t)[:, None] * h, axis=0), t)), ()

        return loop(step, carry, (), _CHUNK)[0], first

    firsts = jnp.zeros((len(dt) // _CHUNK, *h.shape), h.dtype)
    (last, ys), firsts = loop(chunk, (h, jnp.zeros_like(u)), firsts, len(firsts))
    return (last, ys), (a, dt, u, b, c, starts, firsts)


def _loops_bwd(residuals, cotangents):
    a, dt, u, b, c, starts, firsts = residuals
    dlast, dys = cotangents

    def chunk(k, carry, _):
        def again(i, h, _):
            t = k * _CHUNK + i
            h = jnp.where(row(starts, t), 0, h)
            return _step(a, h, *row((dt, u, b), t)), h

        befores = loop(again, row(firsts, k), jnp.zeros((_CHUNK, *a.shape), a.dtype), _CHUNK)[1]

        def back(i, carry, _):
            """From the gradient of h_t to that of h_{t-1}. Sums over d as products, which are faster here."""
            t = k * _CHUNK + i
            dh, da, grads = carry
            (dt_t, u_t, b_t, c_t, dy), before = row((dt, u, b, c, dys), t), row(befores, i)
            decay, write = jnp.exp(dt_t[None, :] * a), dt_t * u_t
            dh = dh + c_t[:, None] * dy[None, :]
            dc = (decay * before) @ dy + b_t * jnp.sum(write * dy)
            db, dwrite = dh @ write, b_t @ dh
            dh = dh * decay
            dlog_decay = dh * before
            ddt = jnp.sum(dlog_decay * a, axis=0) + dwrite * u_t
            grads = put_row(grads, (ddt, dwrite * dt_t, db, dc), t)
            return (jnp.where(row(starts, t), 0, dh), da + dlog_decay * dt_t[None, :], grads), ()

        return loop(back, carry, (), _CHUNK, reverse=True)[0], ()

    zeros = tuple(jnp.zeros_like(x) for x in (dt, u, b, c))
    (dh, da, grads), _ = loop(chunk, (dlast, jnp.zeros_like(a), zeros), (), len(firsts), reverse=True)
    return da, dh, *grads, None


define(_loops, _OP, _loops_fwd, _loops_bwd)


def _by_kernel(how, a, state, dt, u, b, c, starts):
    from memax_rl.ops.kernels._selective import padding

    inputs = _padded(padding(len(u)), dt, u, b, c, starts)
    last, ys = cast(tuple[Array, Array], _kernels(how, a, state, *inputs))
    return last, ys[: len(u)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernels(how, a, h, dt, u, b, c, starts):
    return _kernels_fwd(how, a, h, dt, u, b, c, starts)[0]


def _kernels_fwd(how, a, h, dt, u, b, c, starts):
    from memax_rl.ops.kernels._selective import selective_forward

    def plain(a, h, dt, u, b, c, starts):
        (last, ys), residuals = _loops_fwd(a, h, dt, u, b, c, starts)
        return last, ys, residuals[-1]

    last, ys, firsts = kernels.launch(how, selective_forward, plain, a, h, dt, u, b, c, starts)
    return (last, ys), (a, dt, u, b, c, starts, firsts)


def _kernels_bwd(how, residuals, cotangents):
    from memax_rl.ops.kernels._selective import selective_backward

    def plain(*arrays):
        return _loops_bwd(arrays[:-2], arrays[-2:])[:-1]

    return *kernels.launch(how, selective_backward, plain, *residuals, *cotangents), None


define(_kernels, _OP, _kernels_fwd, _kernels_bwd)
