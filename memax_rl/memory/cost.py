"""The cost of a memory model, without running it: the size of its state and the arithmetic of learning."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, primitives
from jax.interpreters.partial_eval import dce_jaxpr

from memax_rl.memory.base import Memory
from memax_rl.ops import kernels
from memax_rl.ops._linear import linear_p, outer_p

# They move numbers and compute none.
_MOVES = frozenset(
    [
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "dynamic_slice",
        "dynamic_update_slice",
        "gather",
        "imag",
        "no_second_derivative",
        "pad",
        "real",
        "reshape",
        "rev",
        "reverse_mode_only",
        "scatter",
        "select_n",
        "slice",
        "split",
        "squeeze",
        "stop_gradient",
        "transpose",
    ]
)


def state_size(memory: Memory) -> int:
    """Return how many numbers the model carries from step to step; a complex number counts as two."""
    arrays, static = eqx.partition(memory, _is_array)
    state = jax.eval_shape(lambda arrays: eqx.combine(arrays, static).initial_state(), arrays)
    return sum(s.size * (2 if jnp.issubdtype(s.dtype, jnp.complexfloating) else 1) for s in jax.tree.leaves(state))


def training_flops(memory: Memory, *, steps: int = 256) -> float:
    """Return the floating-point operations of a step of learning: forward, and the gradient by parameters and inputs.

    Counted in the traced program of `steps` steps for the backend that runs now, without kernels. A multiply-add counts
    as two operations, any function of an element as one. A loop that runs until convergence counts as one iteration.
    """
    with kernels.use("0"):
        traced = _learning(memory, steps).jaxpr
    # What no gradient needs, the compiler leaves out.
    needed, _ = dce_jaxpr(traced, [True] * len(traced.outvars))
    return _count(needed) / steps


def gpu_kernels(memory: Memory, *, steps: int = 256) -> tuple[str, ...]:
    """Return the names of the kernels that a step of learning runs on an NVIDIA GPU, unless they are switched off.

    Args:
        steps: Length of the sequence that is traced.
    """
    with kernels.use("1"):
        return tuple(kernels.names(_learning(memory, steps)))


def _learning(memory: Memory, steps: int) -> ClosedJaxpr:
    """Return the traced program of outputs and gradients of one sequence."""
    arrays, static = eqx.partition(memory, _is_array)
    floats, rest = eqx.partition(arrays, lambda x: jnp.issubdtype(x.dtype, jnp.inexact))

    def learn(floats, rest, xs, starts):
        def outputs(floats, xs):
            memory = eqx.combine(floats, rest, static)
            return memory.scan(memory.initial_state(), xs, starts)[1]

        ys, pull_back = jax.vjp(outputs, floats, xs)
        return pull_back(ys)

    xs = jax.ShapeDtypeStruct((steps, memory.in_size), jnp.float32)
    return jax.make_jaxpr(learn)(floats, rest, xs, jax.ShapeDtypeStruct((steps,), jnp.bool_))


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _count(jaxpr: Jaxpr) -> float:
    return sum(_operations(equation) for equation in jaxpr.eqns)


def _operations(equation: Any) -> float:
    inner = [_count(part) for value in equation.params.values() for part in _jaxprs(value)]
    if equation.primitive is primitives.cond_p:
        return max(inner)
    if equation.primitive is primitives.scan_p:
        return equation.params["length"] * sum(inner)
    if inner:
        return sum(inner)
    size = sum(out.aval.size for out in equation.outvars if jnp.issubdtype(out.aval.dtype, jnp.inexact))
    if equation.primitive is primitives.dot_general_p:
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if equation.primitive in (linear_p, outer_p):
        # Contracted is the last axis, or all others.
        *rows, last = equation.invars[0].aval.shape
        return 2 * size * (last if equation.primitive is linear_p else math.prod(rows))
    name = equation.primitive.name
    if name in _MOVES:
        return 0
    if name.startswith(("reduce_", "cum", "arg")):
        return sum(x.aval.size for x in equation.invars) if size else 0
    return size


def _jaxprs(value: Any) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    return [part for item in value for part in _jaxprs(item)] if isinstance(value, list | tuple) else []
