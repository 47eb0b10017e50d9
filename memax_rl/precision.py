"""How exactly products of matrices are computed. Parameters, sums and the states of memories are float32 always."""

from contextlib import AbstractContextManager
from typing import Literal

import jax

# Factors are rounded to 24, 11 or 8 binary digits before they are multiplied.
Precision = Literal["highest", "tensorfloat32", "bfloat16"]


def products_in(precision: Precision) -> AbstractContextManager[None]:
    """Return a context in which what is compiled multiplies in this precision.

    - "highest": float32 everywhere.
    - "tensorfloat32": as JAX does by itself on NVIDIA GPUs that have it; elsewhere float32.
    - "bfloat16": `memax_rl.ops.linear`, the products with weights outside of a recurrence's own loop, rounds its
      factors to bfloat16, on every device; other products are as with "tensorfloat32" (on TPUs bfloat16).
    """
    return jax.default_matmul_precision(precision)


def describe(precision: Precision) -> str:
    """Return in a line what a precision means on this device."""
    device = jax.local_devices()[0]
    meaning = {
        "highest": "products in float32",
        "tensorfloat32": "products in tensorfloat32 where the device has it",
        "bfloat16": "products with weights in bfloat16",
    }[precision]
    if precision == "tensorfloat32" and device.platform == "cpu":
        meaning = "products in float32, because a CPU has no tensorfloat32"
    return f"precision {precision}: {meaning}; parameters and states in float32, on {device.device_kind}"
