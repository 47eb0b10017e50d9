"""The linear recurrence with one complex decay for all steps, on pairs of real numbers.

    h_t = (re + i im) h_{t-1} + b_t,    h_{t-1} := 0 at a start flag

To assemble a complex array from the real results of matrix products costs a pass over memory, and to split it again two
more. Here real and imaginary parts are stored one after the other, [T, 2, n], which is the layout of a product with one
real matrix of 2n columns. With J (a, b) = (-b, a) a step is h = re h + im J h + b.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from memax_rl.ops import kernels
from memax_rl.ops._checks import check_starts, widened
from memax_rl.ops._first_order import define, no_forward
from memax_rl.ops._linear_recurrence import Method, check_method, linear_recurrence, tree_backward, tree_forward
from memax_rl.ops._loop import loop, row, row_before

_OP = "ops.complex_diagonal_recurrence"


def complex_diagonal_recurrence(
    re: Float[Array, " n"],
    im: Float[Array, " n"],
    b: Float[Array, "T 2 n"],
    h0: Float[Array, "2 n"],
    starts: Bool[Array, " T"],
    *,
    method: Method | None = None,
) -> Float[Array, "T 2 n"]:
    """Return all h_t, real parts first: as `linear_recurrence` with the decay re + i im, on a CPU in half of the time.

    The state is float32 at least, whatever the inputs, and the result has the promoted dtype of all four.

    **Cost.** As `linear_recurrence`.

    Args:
        re, im: The decay.
        b: What is written in each step, real parts and imaginary parts.
        h0: The state before the first step; it counts until the first start flag.
        starts: True where a step begins a new sequence.
        method: As for `linear_recurrence`.

    Raises:
        ValueError: If `starts` is not `bool[T]`, shapes disagree or `method` is unknown.
    """
    if re.shape != im.shape or b.shape[1:] != (2, *re.shape) or h0.shape != b.shape[1:]:
        raise ValueError(
            "re and im must have the shape [n], b [T, 2, n] and h0 [2, n], "
            f"got {list(re.shape)}, {list(im.shape)}, {list(b.shape)} and {list(h0.shape)}"
        )
    check_starts(starts, len(b))
    dtype = jnp.result_type(re, im, b, h0)
    re, im, b, h0 = widened((re, im, b, h0))
    how = kernels.chosen() if method is None else None
    method = check_method(method)
    if method == "reference":
        return _plain(re[None], im[None], b, h0, starts).astype(dtype)
    re, im, b, h0 = no_forward(_OP, (re, im, b, h0))
    if how and b.size and b.dtype == jnp.float32:
        return cast(Array, _by_kernel(how, re, im, b, h0, starts)).astype(dtype)
    if method == "associative":
        a = jax.lax.complex(re, im)
        hs = linear_recurrence(a, jax.lax.complex(b[:, 0], b[:, 1]), jax.lax.complex(*h0), starts, method="associative")
        return jnp.stack([hs.real, hs.imag], axis=1).astype(dtype)
    return cast(Array, _recurrence(re, im, b, h0, starts)).astype(dtype)


def _turn(h: Array) -> Array:
    """Return J h for the last but one axis."""
    return jnp.flip(h, axis=-2) * jnp.array([-1.0, 1.0], h.dtype)[:, None]


def _plain(re: Array, im: Array, b: Array, h0: Array, starts: Array) -> Array:
    def step(h, now):
        b_t, start = now
        h = jnp.where(start, 0, re * h + im * _turn(h)) + b_t
        return h, h

    return jax.lax.scan(step, h0, (b, starts))[1]


@jax.custom_vjp
def _recurrence(re: Array, im: Array, b: Array, h0: Array, starts: Array) -> Array:
    return _recurrence_fwd(re, im, b, h0, starts)[0]


def _recurrence_fwd(re, im, b, h0, starts):
    re_2, im_2 = re[None], im[None]

    def step(t, h, b_t):
        h = jnp.where(row(starts, t), 0, re_2 * h + im_2 * _turn(h)) + b_t
        return h, h

    hs = loop(step, h0, b, len(b))[1]
    return hs, (re, im, h0, starts, hs)


def _recurrence_bwd(residuals, dhs):
    re, im, h0, starts, hs = residuals
    re_2, im_2, length = re[None], im[None], len(hs)

    def step(t, later, dh):
        after = jnp.minimum(t + 1, length - 1)
        gone = row(starts, after) | (t == length - 1)
        # The transpose of J is -J.
        g = dh + jnp.where(gone, 0, re_2 * later - im_2 * _turn(later))
        return g, g

    first, gs = loop(step, jnp.zeros_like(h0), dhs, length, reverse=True)

    def add(t, sums, _):
        h, g = jnp.where(row(starts, t), 0, row_before(hs, h0, t)), row(gs, t)
        return (sums[0] + g * h, sums[1] + g * _turn(h)), ()

    (dre, dim), _ = loop(add, (jnp.zeros_like(h0), jnp.zeros_like(h0)), (), length)
    dh0 = jnp.where(starts[0], 0, re_2 * first - im_2 * _turn(first))
    return jnp.sum(dre, axis=0), jnp.sum(dim, axis=0), gs, dh0, None


define(_recurrence, _OP, _recurrence_fwd, _recurrence_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernel(how: kernels.Launch, re: Array, im: Array, b: Array, h0: Array, starts: Array) -> Array:
    return _by_kernel_fwd(how, re, im, b, h0, starts)[0]


def _by_kernel_fwd(how, re, im, b, h0, starts):
    # It imports Pallas, which a CPU does without.
    from memax_rl.ops.kernels._diagonal import Layout, diagonal_forward

    layout, shape = Layout(len(re), parts=2, decay_parts=2, constant=True), b.shape

    def kernel(re, im, b, h0, starts, *, interpret):
        lanes = jnp.concatenate([re, im]), b.reshape(len(b), -1), h0.reshape(-1)
        tree = functools.partial(tree_forward, layout)
        return diagonal_forward(layout, tree, *lanes, starts, interpret=interpret).reshape(shape)

    def plain(re, im, b, h0, starts):
        return _recurrence_fwd(re, im, b, h0, starts)[0]

    hs = kernels.launch(how, kernel, plain, re, im, b, h0, starts)
    return hs, (re, im, h0, starts, hs)


def _by_kernel_bwd(how, residuals, dhs):
    from memax_rl.ops.kernels._diagonal import Layout, diagonal_backward

    layout, shape = Layout(len(residuals[0]), parts=2, decay_parts=2, constant=True), dhs.shape

    def kernel(re, im, h0, starts, hs, dhs, *, interpret):
        lanes = jnp.concatenate([re, im]), h0.reshape(-1), starts, hs.reshape(len(hs), -1), dhs.reshape(len(dhs), -1)
        tree = functools.partial(tree_backward, layout)
        da, db, dh0 = diagonal_backward(layout, tree, *lanes, interpret=interpret)
        return *jnp.split(da, 2), db.reshape(shape), dh0.reshape(shape[1:])

    def plain(re, im, h0, starts, hs, dhs):
        return _recurrence_bwd((re, im, h0, starts, hs), dhs)[:4]

    return *kernels.launch(how, kernel, plain, *residuals, dhs), None


define(_by_kernel, _OP, _by_kernel_fwd, _by_kernel_bwd)
