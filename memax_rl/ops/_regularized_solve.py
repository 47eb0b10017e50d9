"""Solve a linear system with the decayed sum of outer products of keys at each step, in chunks.

    H_t = decay_t H_{t-1} + beta_t k_t k_t^T,    x_t = (H_t + diag(regularizer))^{-1} q_t

von Oswald et al. 2025, MesaNet, https://arxiv.org/abs/2506.05233. H_{t-1} counts as 0 at a start flag. Conjugate
gradients need only products H_t p_t, and those of all steps of a chunk are linear attention with queries p and values
k: H is materialized between chunks only.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memax_rl.ops._checks import check_chunk, check_starts, is_reference
from memax_rl.ops._chunks import LEAST_LOG_DECAY, chunk_size, decays, scan_chunks, segments

_TINY = 1e-20


def conjugate_gradients(
    product: Callable[[Array], Array],
    regularizer: Float[Array, "... d"],
    b: Float[Array, "... d"],
    iterations: int,
) -> Float[Array, "... d"]:
    """Return x of product(x) + regularizer * x = b, for each row of `b` by itself.

    `product` multiplies each row by a symmetric positive semi-definite matrix. The derivative is that of the
    exact solution.

    Args:
        iterations: How many steps of the method; d of them are enough but for rounding.
    """

    def whole(p: Array) -> Array:
        return product(p) + regularizer * p

    def solve(whole: Callable[[Array], Array], b: Array) -> Array:
        def body(_, carry):
            x, r, p, rr = carry
            ap = whole(p)
            pap = jnp.sum(p * ap, axis=-1, keepdims=True)
            # A row that is solved stays as it is.
            step = jnp.where(pap > _TINY, rr / jnp.maximum(pap, _TINY), 0)
            x, r = x + step * p, r - step * ap
            new = jnp.sum(r**2, axis=-1, keepdims=True)
            p = r + jnp.where(rr > _TINY, new / jnp.maximum(rr, _TINY), 0) * p
            return x, r, p, new

        rr = jnp.sum(b**2, axis=-1, keepdims=True)
        return jax.lax.fori_loop(0, iterations, body, (jnp.zeros_like(b), b, b, rr))[0]

    return jax.lax.custom_linear_solve(whole, b, solve, symmetric=True)


def regularized_solve(
    q: Float[Array, "T d"],
    k: Float[Array, "T d"],
    beta: Float[Array, " T"],
    log_decay: Float[Array, " T"],
    regularizer: Float[Array, " d"],
    state: Float[Array, "d d"],
    starts: Bool[Array, " T"],
    *,
    iterations: int = 30,
    chunk: int | None = None,
    method: Literal["reference"] | None = None,
) -> tuple[Float[Array, "d d"], Float[Array, "T d"]]:
    """Return the last H and all x_t.

    **Cost.** O(T * iterations * d * (chunk + d)) multiply-adds, T / chunk * iterations dependent steps;
    besides inputs, outputs and their gradients one state a chunk and O(chunk * (chunk + d)) memory.

    Args:
        q, k: Right-hand sides and keys.
        beta: The weight of each key, at least 0.
        log_decay: The logarithm of the decay, at most 0.
        regularizer: The diagonal added to H, above 0.
        state: H before the first step, symmetric; it counts until the first start flag.
        starts: True where a step begins a new sequence.
        iterations: Steps of conjugate gradients. d of them are exact but for rounding.
        chunk: Steps a chunk; 32 by default on a CPU and 64 elsewhere. It need not divide T.
        method: `"reference"` for a plain `jax.lax.scan` over time, differentiable any number of times and in forward
            mode; by default in chunks.

    Raises:
        ValueError: If `starts` is not `bool[T]` or `chunk` is below 1.
    """
    length = k.shape[0]
    check_starts(starts, length)
    if chunk is not None:
        check_chunk(chunk)
    compute = jnp.promote_types(jnp.result_type(q, k, state), jnp.float32)
    floats = [x.astype(compute) for x in (q, k, beta, log_decay)]
    regularizer = regularizer.astype(compute)

    if is_reference(method):
        last, xs = _plain(state.astype(compute), (*floats, starts), regularizer, iterations)
        return last.astype(state.dtype), xs.astype(q.dtype)

    def body(h, q, k, beta, log_decay, starts):
        seg = segments(starts)
        decay = decays(log_decay, seg, log_decay.dtype)
        written = beta[:, None] * k

        def product(p):
            return (decay.within * (p @ k.T)) @ written + decay.from_before[:, None] * (p @ h)

        x = conjugate_gradients(product, regularizer[None], q, iterations)
        return decay.from_before[-1] * h + (k * decay.within[-1][:, None]).T @ written, x

    last, xs = scan_chunks(body, state.astype(compute), (*floats, starts), length, chunk_size(chunk, length))
    return last.astype(state.dtype), xs.astype(q.dtype)


def _plain(state, inputs, regularizer, iterations):
    def step(h, now):
        q, k, beta, log_decay, start = now
        h = jnp.exp(jnp.maximum(log_decay, LEAST_LOG_DECAY)) * jnp.where(start, 0, h) + beta * k[:, None] * k[None, :]
        return h, conjugate_gradients(lambda p: p @ h, regularizer, q, iterations)

    return jax.lax.scan(step, state, inputs)
