"""A memory model from four functions, with the reset added to any associative update.

Morad et al. 2024, Recurrent Reinforcement Learning with Memoroids, https://arxiv.org/abs/2402.09900: a memory whose
update is associative, h_t = combine(h_{t-1}, lift(x_t)), is given resets by carrying a flag beside each element
(section 3.2),

    (a, f_a) o (b, f_b) = (combine(identity if f_b else a, b), f_a or f_b).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import select


class Memoroid(Memory):
    """A memory model whose state is h_t = combine(h_{t-1}, lift(x_t)) and whose output is y_t = read(h_t, x_t).

    Args:
        in_size: Size of an input x.
        out_size: Size of an output y.
        lift: x -> an element, a pytree of arrays. A module with parameters or a plain function.
        combine: (earlier element, later element) -> element; associative.
        identity: The neutral element, combine(identity, e) = e: a pytree of arrays of the element's shapes and dtypes.
        read: (element, x) -> y. A module with parameters or a plain function.

    For example a sum of everything seen, in_size = out_size = 3:

    >>> import jax.numpy as jnp
    >>> memory = Memoroid(lift=lambda x: x, combine=lambda a, b: a + b, identity=jnp.zeros(3),
    ...                   read=lambda h, x: h, in_size=3, out_size=3)
    """

    in_size: int
    out_size: int
    lift: Callable[[Array], PyTree[Array]]
    combine: Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]]
    identity: PyTree[Array]
    read: Callable[[PyTree[Array], Array], Array]

    def initial_state(self) -> Any:
        """Return the neutral element."""
        # Neutral by definition, so it is no parameter and gets no gradient.
        return jax.lax.stop_gradient(self.identity)

    def step(self, state, x, start):
        """Reset if asked, then combine with the lifted input."""
        state = self.combine(select(start, self.initial_state(), state), self.lift(x))
        return state, self.read(state, x)

    def scan(self, state, xs, starts):
        """All elements by one associative scan over pairs of element and flag."""
        identity = self.initial_state()

        def with_reset(left, right):
            (a, flag_a), (b, flag_b) = left, right
            # The reset replaces `a` before `combine`, so that neither its value nor its gradient passes.
            a = jax.vmap(select, in_axes=(0, None, 0))(flag_b, identity, a)
            return jax.vmap(self.combine)(a, b), flag_a | flag_b

        lifted = jax.vmap(self.lift)(xs)
        elements = jax.tree.map(lambda s, e: jnp.concatenate([s[None], e]), state, lifted)
        flags = jnp.concatenate([jnp.zeros((1,), bool), starts])
        elements, _ = jax.lax.associative_scan(with_reset, (elements, flags))
        hs = jax.tree.map(lambda e: e[1:], elements)
        return jax.tree.map(lambda e: e[-1], elements), jax.vmap(self.read)(hs, xs)
