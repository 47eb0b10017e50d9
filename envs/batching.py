"""Functions that are given a whole batch at once, however many vmaps surround them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray


def one_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of arrays without a batch axis, vmapped to any depth, as one call of `function`.

    `function` takes and returns pytrees of arrays with one leading axis.
    """

    @jax.custom_batching.custom_vmap
    def batched(*args):
        return function(*args)

    @batched.def_vmap
    def rule(size, is_batched, *args):
        def flat(x, has_axis):
            x = x if has_axis else jnp.broadcast_to(x[None], (size, *x.shape))
            return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

        flat_result = batched(*jax.tree.map(flat, args, tuple(is_batched)))
        result = jax.tree.map(lambda x: x.reshape(size, x.shape[0] // size, *x.shape[1:]), flat_result)
        return result, jax.tree.map(lambda _: True, result)

    def single(*args):
        return jax.tree.map(lambda x: x[0], batched(*jax.tree.map(lambda x: x[None], args)))

    return single


def replace_where(
    condition: Bool[Array, ""], make: Callable[[PRNGKeyArray, Any], Any], key: PRNGKeyArray, params: Any, old: Any
) -> Any:
    """Return `make(key, params)` where the condition holds, else `old`; `make` runs if it holds anywhere in the batch.

    Under `vmap` a `lax.cond` computes both of its branches. This asks once for the whole batch, so that what is rarely
    needed, such as a costly reset, is rarely computed.

    Args:
        condition: Whether to replace.
        make: Returns what `old` is: the same structure, shapes and dtypes. It closes over no traced array.
        key: For `make`.
        params: Arrays for `make`, the same for the whole batch or not.
        old: What else to return.
    """

    def batch(condition, key, params, old):
        def chosen(a, b):
            return jnp.where(condition.reshape(-1, *[1] * (b.ndim - 1)), a, b)

        return jax.lax.cond(
            condition.any(), lambda: jax.tree.map(chosen, jax.vmap(make)(key, params), old), lambda: old
        )

    return one_call(batch)(condition, key, params, old)
