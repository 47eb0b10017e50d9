"""mLSTM: a matrix memory with exponential input gates, the parallel cell of xLSTM.

Beck et al. 2024, xLSTM: Extended Long Short-Term Memory, https://arxiv.org/abs/2405.04517, equations 19 to
27.

    q, k, v = W_q x, W_k x / sqrt(head_size), W_v x,    o = sigmoid(W_o x + b_o)
    i_log = w_i x + b_i,    f_log = log_sigmoid(w_f x + b_f)    (one a head)
    m_new = max(f_log + m, i_log),    f = exp(f_log + m - m_new),    i = exp(i_log - m_new)
    C = f C + i k v^T,    n = f n + i k,    y = W_y (o o layer_norm(C^T q / max(|n . q|, exp(-m_new))))

C and n are stored divided by exp(m), which cancels in y, so no gradient flows through m. layer_norm normalizes each
head and multiplies by a weight: without it y grows with the number of steps, because n . q is a sum of terms of either
sign. State: per head C [head_size, head_size] and n [head_size], stored as one matrix, and m; a start zeroes all three.
At the start the gates do not depend on the input and the forget biases are spread over [3, 6].

The cell, the norm after it and the sigmoid gate after the norm are those of the authors' xLSTM-7B layer
(https://github.com/NX-AI/xlstm, xlstm_large). What differs there: q and k have half the size of v, the inputs of both
gates are capped softly at 15, the divisor has 1e-6 added, the norm has 1e-6 in place of 1e-5, and the output gate has
no bias. Their first block (blocks/mlstm) has, around the same cell and norm, a projection to twice the width, a
convolution of 4 before q and k, gates that see q, k and v, a trained skip from the convolution to behind the norm, and
a SiLU gate of its own projection in place of o.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.heads import check_heads, check_norm, each_head, each_row, layer_norm
from memax_rl.memory.layers.weights import normal, state_zeros
from memax_rl.ops import linear, linear_attention

State = tuple[Float[Array, "heads head_size width"], Float[Array, " heads"]]


class MLSTM(Memory):
    """Linear attention with a forget gate, an exponential input gate and a normalizer.

    For associative recall where a late and strong input must outweigh all earlier ones; parallel in time.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
    """

    family: ClassVar[str] = "matrix"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.04517"
    verified: ClassVar[str] = (
        "NX-AI's xlstm and xlstm-jax, cell and norm of each head; the gate: read against xlstm_large"
    )

    in_size: int
    out_size: int
    heads: int
    head_size: int
    w_q: Float[Array, "in_size inner"]
    w_k: Float[Array, "in_size inner"]
    w_v: Float[Array, "in_size inner"]
    w_o: Float[Array, "in_size inner"]
    b_o: Float[Array, " inner"]
    w_i: Float[Array, "in_size heads"]
    b_i: Float[Array, " heads"]
    w_f: Float[Array, "in_size heads"]
    b_f: Float[Array, " heads"]
    norm: Float[Array, " inner"]
    w_y: Float[Array, "inner out_size"]

    def __init__(
        self, *, in_size: int, out_size: int, key: PRNGKeyArray, heads: int | None = None, head_size: int = 32
    ):
        self.in_size, self.out_size = in_size, out_size
        check_norm("head_size", head_size)
        self.heads, self.head_size = check_heads(out_size, heads, head_size)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 5)
        self.w_q, self.w_k, self.w_v, self.w_o = (normal(k, in_size, inner) for k in keys[:4])
        self.b_o = jnp.zeros(inner)
        self.w_i = self.w_f = jnp.zeros((in_size, self.heads))
        self.b_i, self.b_f = jnp.zeros(self.heads), jnp.linspace(3.0, 6.0, self.heads)
        self.norm = jnp.ones(inner)
        self.w_y = normal(keys[4], inner, out_size)

    def _project(self, x):
        """Return q, k and [v, 1], each [heads, size], and the logarithms of both gates [heads]."""
        q, k, v = (linear(x, w).reshape(self.heads, self.head_size) for w in (self.w_q, self.w_k, self.w_v))
        v = jnp.concatenate([v, jnp.ones_like(v[:, :1])], axis=1)
        return (
            q,
            k * self.head_size**-0.5,
            v,
            linear(x, self.w_i) + self.b_i,
            jax.nn.log_sigmoid(linear(x, self.w_f) + self.b_f),
        )

    def initial_state(self) -> State:
        return state_zeros(self.norm, (self.heads, self.head_size, self.head_size + 1)), state_zeros(
            self.norm, self.heads
        )

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        c, m = (jnp.where(start, 0, s) for s in state)
        q, k, v, i_log, f_log = self._project(x)
        m_new = jax.lax.stop_gradient(jnp.maximum(f_log + m, i_log))
        f, i = jnp.exp(f_log + jax.lax.stop_gradient(m) - m_new), jnp.exp(i_log - m_new)
        c = f[:, None, None] * c + (i[:, None] * k)[:, :, None] * v[:, None, :]
        h = _gated(self.norm, self.b_o, jnp.einsum("hk,hkv->hv", q, c), m_new, linear(x, self.w_o))
        return (c, m_new), linear(h, self.w_y)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """All m by an associative scan; then both gates are known and the rest is `ops.linear_attention`."""
        c, m0 = state
        q, k, v, i_log, f_log = jax.vmap(self._project)(xs)
        m = _running_max(i_log, f_log, m0, starts)
        m_before = jnp.where(starts[:, None], 0, jnp.concatenate([jax.lax.stop_gradient(m0)[None], m[:-1]]))
        c, reads = each_head(
            linear_attention, (q, jnp.exp(i_log - m)[:, :, None] * k, v, f_log + m_before - m), c, starts
        )
        hs = each_row(_gated, (reads, m, linear(xs, self.w_o)), self.norm, self.b_o)
        return (c, m[-1]), linear(hs, self.w_y)


def _gated(norm, bias, reads, m, o):
    """Return sigmoid(o + b_o) o layer_norm(C^T q / max(|n . q|, exp(-m))), from `reads` = [C^T q, n . q]."""
    divisor = jnp.maximum(jnp.abs(reads[:, -1:]), jnp.exp(-m)[:, None])
    return jax.nn.sigmoid(o + bias) * layer_norm(reads[:, :-1] / divisor, norm)


def _running_max(i_log: Array, f_log: Array, m0: Array, starts: Array) -> Float[Array, "T heads"]:
    """Return all m_t = max(f_log_t + m_{t-1}, i_log_t), where m_{t-1} counts as 0 at a start flag."""
    i_log, f_log, m0 = jax.lax.stop_gradient((i_log, f_log, m0))
    # A start forgets what came before: its map is constant, with minus infinity added to m.
    add = jnp.where(starts[:, None], -jnp.inf, f_log)
    least = jnp.where(starts[:, None], jnp.maximum(f_log, i_log), i_log)

    def compose(left, right):
        (add_left, least_left), (add_right, least_right) = left, right
        return add_left + add_right, jnp.maximum(add_right + least_left, least_right)

    add, least = jax.lax.associative_scan(compose, (add, least))
    return jnp.maximum(add + m0[None], least)
