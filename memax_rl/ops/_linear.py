"""The product of vectors with a weight matrix, x W, that stays one product of matrices under `vmap`.

Under `jax.vmap`, `x @ w` becomes a product over [batch, time, features] whose weight gradient contracts two axes. For
that XLA on a CPU copies one side to [features, batch * time], and forward and backward pass take more than twice as
long. Here all leading axes, also those that `vmap` adds, are flattened into one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_products() -> Iterator[None]:
    """Trace `linear` as `x @ w` inside, for converters of programs that know JAX's own primitives alone."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def linear(x: Float[Array, "*axes n"], w: Float[Array, "rows m"]) -> Float[Array, "*axes m"]:
    """Return x W for each vector of `x`, that is `x @ w`; so `rows` must be n.

    **Cost.** n * m multiply-adds a vector, and twice as many for the derivatives.

    Raises:
        ValueError: If the vectors have not as many entries as `w` has rows.
    """
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"x must have the shape [..., n] and w [n, m], got {list(x.shape)} and {list(w.shape)}")
    dtype = jnp.result_type(x, w)
    if _plain.get():
        return x.astype(dtype) @ w.astype(dtype)
    return cast(Array, linear_p.bind(x.astype(dtype), w.astype(dtype), precision=_precision()))


def _precision() -> Any:
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _product(x: Array, y: Array) -> Array:
    """Return x @ y. Where JAX's `default_matmul_precision` is "bfloat16", float32 factors are rounded to that first.

    By itself JAX does so on TPUs alone. The sums are float32.
    """
    if _precision() != "bfloat16" or x.dtype != jnp.float32 or y.dtype != jnp.float32:
        return x @ y
    # XLA takes a conversion there and back for none where it may be more exact, but not this.
    x, y = (jax.lax.reduce_precision(a, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16) for a in (x, y))
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _linear(x: Array, w: Array) -> Array:
    return _product(_rows(x), w).reshape(*x.shape[:-1], w.shape[1])


def _outer(x: Array, y: Array) -> Array:
    """Return the sum over all leading axes of the outer products of x and y: the gradient of W if that of x W is y."""
    x, y = _rows(x), _rows(y)
    if y.shape[1] == 1:
        # As a product of a matrix and a vector, x would be copied to its transpose first.
        return jnp.sum(x * y, axis=0)[:, None]
    return _product(x.T, y)


def _outer_on_cpu(x: Array, y: Array) -> Array:
    """Return `_outer(x, y)` in the form that is fastest in XLA on a CPU.

    The narrower side comes first and is transposed as a copy: products of matrices in plain row-major layout go to a
    faster library than others. The barriers keep XLA from folding the transpose into the product. From about two
    thousand rows on, the copy costs more than it gains.
    """
    x, y = _rows(x), _rows(y)
    barrier = jax.lax.optimization_barrier

    def turned(rows: Array) -> Array:
        return barrier(barrier(rows).T) if len(rows) <= 2048 else rows.T

    if y.shape[1] == 1:
        return _outer(x, y)
    if x.shape[1] <= y.shape[1]:
        return barrier(_product(turned(x), y))
    return barrier(_product(turned(y), x)).T


def _lowering(run: Callable[..., Array]) -> Callable:
    # A primitive is lowered later than it is bound, when another precision may be set.
    def function(x, y, *, precision):
        with jax.default_matmul_precision(precision):
            return run(x, y)

    return mlir.lower_fun(function, multiple_results=False)


def _primitive(name: str, run: Callable[..., Array], on_cpu: Callable[..., Array] | None = None) -> Primitive:
    """Return a primitive whose products have the precision that was set where it was bound."""
    primitive = Primitive(name)

    def shape(*args, precision):
        out = jax.eval_shape(run, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args))
        return ShapedArray(out.shape, out.dtype)

    # Outside of a program it is compiled too, so that it is lowered in the same way.
    primitive.def_impl(
        jax.jit(lambda x, y, *, precision: primitive.bind(x, y, precision=precision), static_argnames="precision")
    )
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, _lowering(run))
    if on_cpu is not None:
        mlir.register_lowering(primitive, _lowering(on_cpu), platform="cpu")
    return primitive


# Both are linear in each argument, and each is the other's derivative.
linear_p, outer_p = _primitive("linear", _linear), _primitive("outer", _outer, on_cpu=_outer_on_cpu)
ad.defbilinear(
    linear_p, lambda dy, x, w, **how: linear_p.bind(dy, w.T, **how), lambda dy, x, w, **how: outer_p.bind(x, dy, **how)
)
ad.defbilinear(
    outer_p, lambda dw, x, y, **how: linear_p.bind(y, dw.T, **how), lambda dw, x, y, **how: linear_p.bind(x, dw, **how)
)


def _batch_linear(args, axes, *, precision):
    (x, w), (x_axis, w_axis) = args, axes
    if w_axis is None:
        return linear_p.bind(jnp.moveaxis(x, x_axis, 0), w, precision=precision), 0
    w = jnp.moveaxis(w, w_axis, 0)
    x = jnp.broadcast_to(x, (len(w), *x.shape)) if x_axis is None else jnp.moveaxis(x, x_axis, 0)
    if len(w) == 1:
        return linear_p.bind(x[0], w[0], precision=precision)[None], 0
    flat = x.reshape(len(x), -1, x.shape[-1])
    with jax.default_matmul_precision(precision):
        return _product(flat, w).reshape(*x.shape[:-1], w.shape[-1]), 0


def _batch_outer(args, axes, *, precision):
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    x, y = (
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(args, axes, strict=True)
    )
    if size == 1:
        return outer_p.bind(x[0], y[0], precision=precision)[None], 0
    x, y = (a.reshape(size, -1, a.shape[-1]) for a in (x, y))
    with jax.default_matmul_precision(precision):
        return _product(jnp.swapaxes(x, 1, 2), y), 0


batching.primitive_batchers[linear_p] = _batch_linear
batching.primitive_batchers[outer_p] = _batch_outer
