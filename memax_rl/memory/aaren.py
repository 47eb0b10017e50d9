"""Aaren: attention with one trained query, as a recurrence of fixed size.

Feng et al. 2024, Attention as an RNN, https://arxiv.org/abs/2405.13956. The query is trained and does not see
the input; with several heads.

    k, v = W_k x, W_v x, split into heads;    s = query . k / sqrt(head_size)
    m' = max(m, s)
    u = u exp(m - m') + exp(s - m'),    w = w exp(m - m') + v exp(s - m')
    y = W_o (w / u)

y is a weighted mean over all steps of the episode. On independent inputs its size therefore shrinks with the number of
steps (0.13 after 1,000); on a constant input it stays near 1. That is the paper's form.

State: per head m, u and w [head_size]. Reset: m = -inf, u = 0, w = 0. m is a cumulative maximum; given m, u and w
follow linear recurrences whose decays exp(m - m') are at most 1.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import check_size, normal, select, state_dtype, state_zeros
from memax_rl.ops import Maps, elementwise_recurrence, linear, linear_recurrence

State = tuple[Float[Array, " heads"], Float[Array, "heads width"]]


def _maximum(weights, s, state):
    del weights
    (m,) = state
    return (jnp.maximum(m, s),)


def _combine(earlier, later):
    return jnp.maximum(earlier, later)


_MAPS = Maps(lambda weights, s: s, lambda state: state[0], _combine, lambda element: (element,))


class Aaren(Memory):
    """Softmax attention over the whole episode, each head with one trained query that does not see the input.

    For tasks that need an average of the episode, weighted by what each input is; the weight of a step never fades with
    time.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: features of a head.
    """

    family: ClassVar[str] = "attention"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.13956"
    verified: ClassVar[str] = "attention with a constant query by torch's scaled_dot_product_attention"

    in_size: int
    out_size: int
    query: Float[Array, "heads head_size"]
    w_k: Float[Array, "in_size inner"]
    w_v: Float[Array, "in_size inner"]
    w_o: Float[Array, "inner out_size"]

    def __init__(
        self, *, in_size: int, out_size: int, key: PRNGKeyArray, heads: int | None = None, head_size: int = 32
    ):
        self.in_size, self.out_size = in_size, out_size
        size = check_size("head_size", head_size)
        count = max(1, out_size // size) if heads is None else check_size("heads", heads)
        keys = jax.random.split(key, 4)
        self.query = jax.random.normal(keys[0], (count, size))
        self.w_k, self.w_v = (normal(k, in_size, count * size) for k in keys[1:3])
        self.w_o = normal(keys[3], count * size, out_size)

    def _project(self, x):
        """Return the scores [heads] and [v, 1] for each head: u is the running sum of ones."""
        k, v = (linear(x, w).reshape(self.query.shape) for w in (self.w_k, self.w_v))
        s = jnp.sum(self.query * k, axis=-1) * k.shape[-1] ** -0.5
        return s, jnp.concatenate([v, jnp.ones_like(v[:, :1])], axis=-1)

    def _read(self, wu):
        return linear((wu[:, :-1] / wu[:, -1:]).reshape(-1), self.w_o)

    def initial_state(self) -> State:
        heads, size = self.query.shape
        return jnp.full(heads, -jnp.inf, state_dtype(self.query)), state_zeros(self.query, (heads, size + 1))

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        m, wu = select(start, self.initial_state(), state)
        s, v = self._project(x)
        top = jnp.maximum(m, s)
        wu = wu * jnp.exp(m - top)[:, None] + v * jnp.exp(s - top)[:, None]
        return (top, wu), self._read(wu)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """The cumulative maximum, then one linear recurrence."""
        m, wu = state
        s, v = jax.vmap(self._project)(xs)
        low = self.initial_state()[0]
        (tops,) = elementwise_recurrence(_maximum, (), s, (m,), starts, initial=(low,), maps=_MAPS)
        before = jnp.where(starts[:, None], low[None], jnp.concatenate([m[None], tops[:-1]]))
        decays = jnp.broadcast_to(jnp.exp(before - tops)[:, :, None], v.shape)
        wus = linear_recurrence(decays, v * jnp.exp(s - tops)[:, :, None], wu, starts)
        return (tops[-1], wus[-1]), jax.vmap(self._read)(wus)
