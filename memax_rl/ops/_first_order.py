"""Guards for hand-written derivatives, which support neither second derivatives nor forward mode.

JAX computes a second derivative of a `jax.custom_vjp` by differentiating its two rules. The rules here stop gradients
and update buffers in place, so a second derivative would be silently wrong or fail with an obscure error; forward mode
does not use the rules at all. Both guards are the identity and add nothing to the compiled program.
"""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import equinox as eqx
import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree

T = TypeVar("T", bound=PyTree)

_WAY_OUT = (
    "use the plain form: method='reference' in the call of the op or of memory.make, network.scan: reference in a "
    "configuration"
)


def no_second(op: str, arrays: T) -> T:
    """Return `arrays`; raise `ValueError` if they are differentiated. For use inside the rules of a `custom_vjp`.

    Only second derivatives differentiate the rules themselves.

    Args:
        op: The name of the op, for the message.
    """
    return _on_floats(_fixed_p, op, arrays)


def no_forward(op: str, arrays: T) -> T:
    """Return `arrays`; raise `ValueError` in forward mode. For the arguments of a `custom_vjp`."""
    return _on_floats(_reverse_p, op, arrays)


def define(function: Any, op: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
    """Give a `jax.custom_vjp` its two rules, with a guard against second derivatives in both.

    Args:
        op: The name of the op, for the message.
    """

    def guarded(rule: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: rule(*no_second(op, args))

    function.defvjp(guarded(forward), guarded(backward))


def _on_floats(primitive: Primitive, op: str, arrays: T) -> T:
    def mark(x: Any) -> Any:
        return primitive.bind(x, op=op) if eqx.is_inexact_array(x) else x

    return jax.tree.map(mark, arrays)


def _refuse_second(op: str) -> NoReturn:
    raise ValueError(f"{op} has no second derivative, because its first is written by hand; {_WAY_OUT}")


def _refuse_forward(op: str) -> NoReturn:
    raise ValueError(f"{op} has no derivative in forward mode, because its derivative is written by hand; {_WAY_OUT}")


def _identity(name: str) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(lambda x, op: x)
    primitive.def_abstract_eval(lambda x, op: ShapedArray(x.shape, x.dtype))
    batching.defvectorized(primitive)
    mlir.register_lowering(primitive, lambda ctx, x, op: [x])
    return primitive


# For values in the forward rule of a derivative, which must not have a tangent.
_fixed_p = _identity("no_second_derivative")
# For arguments of a hand-written derivative. Reverse mode transposes the tangent away; only forward mode runs it.
_reverse_p, _tangent_p = _identity("reverse_mode_only"), _identity("reverse_mode_tangent")


def _fixed_jvp(primals, tangents, *, op):
    (x,), (dx,) = primals, tangents
    if type(dx) is not ad.Zero:
        _refuse_second(op)
    return _fixed_p.bind(x, op=op), dx


def _reverse_jvp(primals, tangents, *, op):
    (x,), (dx,) = primals, tangents
    if type(dx) is ad.Zero:
        return _reverse_p.bind(x, op=op), dx
    # Without the guard in the value: forward mode around reverse mode differentiates the rules, not the function.
    return x, _tangent_p.bind(dx, op=op)


def _tangent_run(dx, *, op):
    _refuse_forward(op)


def _tangent_batched(args, axes, *, op):
    # In reverse mode a tangent is transposed before anything is done to it.
    _refuse_forward(op)


def _tangent_lowering(ctx, dx, *, op) -> NoReturn:
    _refuse_forward(op)


ad.primitive_jvps[_fixed_p] = _fixed_jvp
ad.primitive_jvps[_reverse_p] = _reverse_jvp
ad.deflinear2(_tangent_p, lambda dy, x, op: [dy])
_tangent_p.def_impl(_tangent_run)
batching.primitive_batchers[_tangent_p] = _tangent_batched
mlir.register_lowering(_tangent_p, _tangent_lowering)
