"""sLSTM: an LSTM with exponential input gates, a normalizer, and memory mixing within heads.

Beck et al. 2024, xLSTM: Extended Long Short-Term Memory, https://arxiv.org/abs/2405.04517, section 2.2.

    z, i, f, o = W x + b + R h each with its own W, b and block-diagonal R, a block for each head
    m' = max(log sigmoid(f) + m, i),    m' = i in the first step
    c = exp(log sigmoid(f) + m - m') o c + exp(i - m') o tanh(z)
    n = exp(log sigmoid(f) + m - m') o n + exp(i - m')
    h = sigmoid(o) o c / n,    y = layer_norm(h)

m keeps the exponentials in range and cancels in c / n. After any step n >= 1, so that n = 0 marks the first step.
layer_norm normalizes each head and multiplies by a weight, as the authors' layer (https://github.com/NX-AI/xlstm,
blocks/slstm) does after the cell: h is an average over the past, whose size falls below 0.1 on independent inputs.
Their block has more that is left out here: a convolution of 4 and SiLU before i and f, block-diagonal input weights,
and a feed-forward layer after it.

State: h, c, n, m [out_size]. Reset: all zero.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.heads import each_row, layer_norm
from memax_rl.memory.layers.weights import check_size, normal, orthogonal, select, state_zeros
from memax_rl.ops import linear, nonlinear_recurrence, nonlinear_step

State = tuple[Float[Array, " out_size"], ...]


def _cell(gates, state):
    _, c, n, m = state
    z, i, f, o = gates
    kept = jax.nn.log_sigmoid(f) + m
    top = jnp.where(n == 0, i, jnp.maximum(kept, i))
    # Masked before exp: at the first step the exponent may be large, and c and n are zero.
    forget, write = jnp.exp(jnp.where(n == 0, 0, kept - top)), jnp.exp(i - top)
    c = forget * c + write * jnp.tanh(z)
    n = forget * n + write
    return jax.nn.sigmoid(o) * c / n, c, n, top


def _product(weights, h):
    heads, size, _ = weights[0].shape
    split = h.reshape(*h.shape[:-1], heads, size)
    return tuple(jnp.einsum("...hi,hij->...hj", split, r).reshape(h.shape) for r in weights)


def _normed(heads, weight, h):
    return layer_norm(h.reshape(heads, -1), weight)


class SLSTM(Memory):
    """Scalar-memory xLSTM cell: an LSTM with exponential input gates and a normalizer.

    For state tracking with revisable decisions; sequential in time. Gates are in the order z, i, f, o; the forget
    biases are spread over [3, 6] at the start.

    Args:
        heads: blocks of the recurrent matrices. None: out_size // 32 where that divides out_size, else 1.

    Raises:
        ValueError: If `heads` does not divide `out_size`.
    """

    family: ClassVar[str] = "nonlinear"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.04517"
    verified: ClassVar[str] = "NX-AI/xlstm, pointwise cell; the norm behind it: read against blocks/slstm"

    in_size: int
    out_size: int
    w: tuple[Float[Array, "in_size out_size"], ...]
    b: tuple[Float[Array, " out_size"], ...]
    r: tuple[Float[Array, "heads head_size head_size"], ...]
    norm: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray, heads: int | None = None):
        self.in_size, self.out_size = in_size, out_size
        if heads is None:
            heads = out_size // 32 if out_size % 32 == 0 else 1
        check_size("heads", heads)
        if out_size % heads:
            raise ValueError(f"heads must divide out_size, got heads={heads} and out_size={out_size}")
        size = out_size // heads
        if size == 1:
            # The norm of a single number is zero.
            raise ValueError(f"heads must leave each head 2 units or more, got heads={heads} and out_size={out_size}")
        keys = jax.random.split(key, 8)
        self.w = tuple(normal(k, in_size, out_size) for k in keys[:4])
        self.r = tuple(jax.vmap(orthogonal, (0, None))(jax.random.split(k, heads), size) for k in keys[4:])
        self.norm = jnp.ones(out_size)
        zero = jnp.zeros(out_size)
        self.b = zero, zero, jnp.linspace(3.0, 6.0, out_size), zero

    def _inputs(self, x):
        return tuple(linear(x, w) + b for w, b in zip(self.w, self.b, strict=True))

    def initial_state(self) -> State:
        return tuple(state_zeros(self.norm, self.out_size) for _ in range(4))

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        state = select(start, self.initial_state(), state)
        state = nonlinear_step(_cell, _product, self.r, self._inputs(x), state)
        return state, _normed(len(self.r[0]), self.norm, state[0])

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        state, hs = nonlinear_recurrence(_cell, _product, self.r, jax.vmap(self._inputs)(xs), state, starts)
        return state, each_row(functools.partial(_normed, len(self.r[0])), (hs,), self.norm)
