"""A guard for derivatives that must not be differentiated again."""

import functools
from typing import Any

import jax


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def first_order_only(op: str, x: Any) -> Any:
    """Return `x`, a pytree, and raise `ValueError` where it is differentiated.

    For the forward rule of a `jax.custom_vjp` whose backward rule holds values fixed: a first derivative does not
    differentiate the rule itself, a second one does, and would be wrong without a word.

    **Arguments:**

    - `op`: the name of the op, for the message.
    """
    del op
    return x


@first_order_only.defjvp
def _refuse(op: str, primals: Any, tangents: Any) -> Any:
    del primals, tangents
    raise ValueError(
        f"ops.{op} has no second derivative: its backward rule holds the Jacobians of its steps fixed. Differentiate "
        "jax.lax.scan over the memory's `step` instead, which is the same function in plain JAX"
    )
