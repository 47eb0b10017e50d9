"""The linear recurrence h_t = a_t * h_{t-1} + b_t with resets: sequential, parallel or a GPU kernel, with its own VJP.

The backward pass of a linear recurrence is the same recurrence run in reverse,
    g_t = dh_t + a_{t+1} g_{t+1},    da_t = g_t h_{t-1},    db_t = g_t,
so nothing but h is stored (Martin and Cundy 2018, https://arxiv.org/abs/1709.04057, section 2.2).
"""

import functools
import math
from typing import TYPE_CHECKING, Literal, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from memax_rl.ops import kernels
from memax_rl.ops._checks import check_starts
from memax_rl.ops._first_order import define, no_forward, no_second
from memax_rl.ops._loop import loop, row, row_before

_OP = "ops.linear_recurrence"

if TYPE_CHECKING:
    from memax_rl.ops.kernels._diagonal import Layout

Method = Literal["sequential", "associative", "reference"]


def linear_recurrence(
    a: Inexact[Array, "..."],
    b: Inexact[Array, " T *shape"],
    h0: Inexact[Array, " *shape"],
    starts: Bool[Array, " T"],
    *,
    method: Method | None = None,
) -> Inexact[Array, " T *shape"]:
    """Return all h_t of h_t = a_t * h_{t-1} + b_t, where h_{t-1} counts as 0 at a start flag.

    The state is float32 at least, whatever the inputs, and the result has the promoted dtype of `a`, `b` and `h0`.

    **Cost.** O(T * prod(shape)) memory. `"sequential"` does T dependent steps, `"associative"` (an associative scan)
    O(log T) of them at about twice the arithmetic.

    Args:
        a: The decay, real or complex: one a step, [T, ...], or one for all steps, [...], which is faster than the same
            broadcast.
        b: What is written in each step.
        h0: The state before the first step; it counts until the first start flag.
        starts: True where a step begins a new sequence.
        method: `"sequential"` or `"associative"`. By default sequential on a CPU, where a loop over time is several
            times faster than a tree, a kernel on an NVIDIA GPU (`ops.kernels`), and associative elsewhere. Or
            `"reference"`, a plain `jax.lax.scan`, which is differentiable any number of times and in forward mode.

    Raises:
        ValueError: If `starts` is not `bool[T]`, shapes disagree or `method` is unknown.
    """
    how = kernels.chosen() if method is None else None
    method = check_method(method)
    if a.shape not in (b.shape, b.shape[1:]) or h0.shape != b.shape[1:]:
        raise ValueError(
            "b must have the shape [T, ...], h0 the same without T, and a either of the two, "
            f"got a {list(a.shape)}, b {list(b.shape)}, h0 {list(h0.shape)}"
        )
    check_starts(starts, b.shape[0])
    dtype = jnp.result_type(a, b, h0)
    state_dtype = jnp.promote_types(dtype, jnp.float32)
    # The decay may stay real where the state is complex: half the traffic.
    a = a.astype(jnp.promote_types(a.dtype, jnp.float32))
    if method == "reference":
        return _plain(jnp.broadcast_to(a, b.shape), b.astype(state_dtype), h0.astype(state_dtype), starts).astype(dtype)
    a, b, h0 = no_forward(_OP, (a, b.astype(state_dtype), h0.astype(state_dtype)))
    if how and b.size and state_dtype in (jnp.float32, jnp.complex64):
        return cast(Array, _by_kernel(how, a, b, h0, starts)).astype(dtype)
    if method == "associative":
        a = jnp.broadcast_to(a, b.shape)
    hs = _recurrence(method, a, b, h0, starts)
    return cast(Array, hs).astype(dtype)


def check_method(method: str | None) -> Method:
    """Return the method, by default the backend's. Raises `ValueError` if it is unknown."""
    if method is None:
        return "sequential" if jax.default_backend() == "cpu" else "associative"
    if method == "sequential" or method == "associative" or method == "reference":
        return method
    raise ValueError(f"method must be 'sequential', 'parallel', 'reference' or None, got {method!r}")


def _plain(a: Array, b: Array, h0: Array, starts: Array) -> Array:
    def step(h, now):
        a_t, b_t, start = now
        h = jnp.where(start, 0, a_t * h) + b_t
        return h, h

    return jax.lax.scan(step, h0, (a, b, starts))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(method: Method, a: Array, b: Array, h0: Array, starts: Array) -> Array:
    return _forward(method, a, b, h0, starts)


def _recurrence_fwd(method, a, b, h0, starts):
    # The rules of the parallel form are plain, and may be differentiated again.
    if method == "sequential":
        a, b, h0 = no_second(_OP, (a, b, h0))
    hs = _forward(method, a, b, h0, starts)
    return hs, (a, h0, starts, hs)


def _recurrence_bwd(method, residuals, dhs):
    a, h0, starts, hs = residuals
    if method == "sequential":
        return *_backward_loop(a, h0, starts, hs, no_second(_OP, dhs)), None
    return *_backward_tree(a, h0, starts, hs, dhs), None


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


def _forward(method: Method, a: Array, b: Array, h0: Array, starts: Array) -> Array:
    if method == "associative":
        first = jnp.where(starts[0], 0, a[0] * h0) + b[0]
        return _tree(a, jnp.concatenate([first[None], b[1:]]), starts, reverse=False)
    constant = a.ndim < b.ndim

    def step(t, h, b_t):
        h = jnp.where(row(starts, t), 0, (a if constant else row(a, t)) * h) + b_t
        return h, h

    return loop(step, h0, b, len(b))[1]


def _backward_loop(a: Array, h0: Array, starts: Array, hs: Array, dhs: Array) -> tuple[Array, Array, Array]:
    """Return the gradients by a, b and h0."""
    length, constant = len(hs), a.ndim < hs.ndim

    def step(t, later, dh):
        # The carry of the loop is also its output: one array to write, not two.
        after = jnp.minimum(t + 1, length - 1)
        gone = row(starts, after) | (t == length - 1)
        g = dh + jnp.where(gone, 0, (a if constant else row(a, after)) * later)
        return g, g

    first, gs = loop(step, jnp.zeros_like(h0), dhs, length, reverse=True)
    dh0 = jnp.where(starts[0], 0, (a if constant else a[0]) * first)
    if constant:

        def add(t, da, _):
            return da + jnp.where(row(starts, t), 0, row(gs, t) * row_before(hs, h0, t)), ()

        return _like(loop(add, jnp.zeros_like(h0), (), length)[0], a), gs, dh0
    h_before = jnp.concatenate([h0[None], hs[:-1]])
    return _like(jnp.where(_expand(starts, gs), 0, gs * h_before), a), gs, dh0


def _like(da: Array, a: Array) -> Array:
    """Return the gradient by a real decay of a complex state: the real part."""
    return da if jnp.issubdtype(a.dtype, jnp.complexfloating) else da.real


def _backward_tree(a: Array, h0: Array, starts: Array, hs: Array, dhs: Array) -> tuple[Array, Array, Array]:
    """Return the gradients by a, b and h0."""
    later = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
    ends = jnp.concatenate([starts[1:], jnp.ones_like(starts[:1])])
    # g_t = dh_t + a_{t+1} g_{t+1}, without the second term where t+1 is a start.
    gs = _tree(later, dhs, ends, reverse=True)
    h_before = jnp.concatenate([h0[None], hs[:-1]])
    reset = _expand(starts, gs)
    da = _like(jnp.where(reset, 0, gs * h_before), a)
    return da, gs, jnp.where(reset[0], 0, a[0] * gs[0])


def _tree(a: Array, b: Array, resets: Array, *, reverse: bool) -> Array:
    def combine(left, right):
        a_left, b_left, reset_left = left
        a_right, b_right, reset_right = right
        # `where` rather than a zero in `a`: 0 * nan is nan, and would carry a broken sequence into the next.
        b = jnp.where(reset_right, 0, a_right * b_left) + b_right
        return a_left * a_right, b, reset_left | reset_right

    _, hs, _ = jax.lax.associative_scan(combine, (a, b, _expand(resets, b)), reverse=reverse)
    return hs


def _expand(flags: Array, like: Array) -> Array:
    return jnp.reshape(flags, flags.shape + (1,) * (like.ndim - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernel(how: kernels.Launch, a: Array, b: Array, h0: Array, starts: Array) -> Array:
    return _by_kernel_fwd(how, a, b, h0, starts)[0]


def _by_kernel_fwd(how, a, b, h0, starts):
    # It imports Pallas, which a CPU does without.
    from memax_rl.ops.kernels._diagonal import diagonal_forward

    def kernel(a, b, h0, starts, *, interpret):
        layout, a, (b_lanes, h0) = _layout(a, b), _rows(a, b), (_rows(b, b), _rows(h0, b))
        lanes = to_lanes(a), to_lanes(b_lanes), to_lanes(h0)
        hs = diagonal_forward(layout, functools.partial(tree_forward, layout), *lanes, starts, interpret=interpret)
        return to_numbers(hs, layout.parts).reshape(b.shape)

    hs = kernels.launch(how, kernel, functools.partial(_forward, "sequential"), a, b, h0, starts)
    return hs, (a, h0, starts, hs)


def _by_kernel_bwd(how, residuals, dhs):
    from memax_rl.ops.kernels._diagonal import diagonal_backward

    a, h0, starts, hs = residuals

    def kernel(a, h0, starts, hs, dhs, *, interpret):
        layout, like = _layout(a, hs), (a, hs, h0)
        lanes = (to_lanes(_rows(x, hs)) for x in (a, h0, hs, _conjugate(dhs)))
        a, h0, states, dhs = lanes
        tree = functools.partial(tree_backward, layout)
        grads = diagonal_backward(layout, tree, a, h0, starts, states, dhs, interpret=interpret)
        parts = layout.decay_parts, layout.parts, layout.parts
        return tuple(_conjugate(to_numbers(g, n)).reshape(x.shape) for g, n, x in zip(grads, parts, like, strict=True))

    return *kernels.launch(how, kernel, _backward_loop, a, h0, starts, hs, dhs), None


define(_by_kernel, _OP, _by_kernel_fwd, _by_kernel_bwd)


def _layout(a: Array, b: Array) -> "Layout":
    from memax_rl.ops.kernels._diagonal import Layout

    parts, decay_parts = (2 if jnp.iscomplexobj(x) else 1 for x in (b, a))
    return Layout(math.prod(b.shape[1:]), parts, decay_parts, constant=a.ndim < b.ndim)


def _rows(x: Array, b: Array) -> Array:
    """Return x, which has b's axes or those but time, with one axis of features."""
    return x.reshape(len(x), -1) if x.ndim == b.ndim else x.reshape(-1)


def to_lanes(x: Array) -> Array:
    """Return the arrays of a kernel: of complex numbers all real parts, then all imaginary ones."""
    return jnp.concatenate([x.real, x.imag], axis=-1) if jnp.iscomplexobj(x) else x


def to_numbers(lanes: Array, parts: int) -> Array:
    """Return the inverse of `to_lanes`."""
    return jax.lax.complex(*jnp.split(lanes, 2, axis=-1)) if parts == 2 else lanes


def _conjugate(x: Array) -> Array:
    """JAX's gradient by a complex number is that by its real part minus i times that by its imaginary part."""
    return jnp.conj(x) if jnp.iscomplexobj(x) else x


def tree_forward(layout: "Layout", a: Array, b: Array, h0: Array, starts: Array) -> Array:
    """Return what `diagonal_forward` does for one sequence, by an associative scan."""
    a, b, h0 = to_numbers(a, layout.decay_parts), to_numbers(b, layout.parts), to_numbers(h0, layout.parts)
    return to_lanes(_forward("associative", jnp.broadcast_to(a, b.shape), b, h0, starts))


def tree_backward(
    layout: "Layout", a: Array, h0: Array, starts: Array, hs: Array, dhs: Array
) -> tuple[Array, Array, Array]:
    """Return what `diagonal_backward` does for one sequence, by an associative scan."""
    a = to_numbers(a, layout.decay_parts)
    h0, hs, dhs = (to_numbers(x, layout.parts) for x in (h0, hs, dhs))
    da, db, dh0 = _backward_tree(jnp.broadcast_to(a, hs.shape), h0, starts, hs, _conjugate(dhs))
    da = jnp.sum(da, axis=0) if layout.constant else da
    return to_lanes(_conjugate(da)), to_lanes(_conjugate(db)), to_lanes(_conjugate(dh0))
