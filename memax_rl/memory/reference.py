"""Any memory with the plain form of `scan`: `step` in a loop.

The `scan` of most models has a hand-written derivative, which is fast but supports only first derivatives in reverse
mode. Here all derivatives are JAX's own: meta-gradients, Hessian-vector products and forward mode work, at the cost of
T dependent steps and of the residuals that each of them stores.
"""

import jax

from memax_rl.memory.base import Memory
from memax_rl.ops._checks import check_starts


class Reference(Memory):
    """Another memory with `scan` as `jax.lax.scan` over `step`: differentiable any number of times, in both modes.

    The same function with the same parameters, `memory`. `memax_rl.memory.make(..., method="reference")` returns one.
    """

    in_size: int
    out_size: int
    memory: Memory

    def __init__(self, memory: Memory):
        self.in_size, self.out_size = memory.in_size, memory.out_size
        self.memory = memory

    def initial_state(self):
        """Return the memory's own."""
        return self.memory.initial_state()

    def step(self, state, x, start):
        """Return what the memory's own returns."""
        return self.memory.step(state, x, start)

    def scan(self, state, xs, starts):
        """All steps, one after the other."""
        check_starts(starts, len(xs))
        return jax.lax.scan(lambda state, now: self.memory.step(state, *now), state, (xs, starts))
