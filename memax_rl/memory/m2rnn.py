"""M2RNN: a nonlinear recurrence on a matrix for each head.

Mishra et al. 2026, M2RNN: Non-Linear RNNs with Matrix-Valued States, https://arxiv.org/abs/2603.14360.

    q, k, v = W_q x, W_k x, W_v x, split into heads
    f = exp(-exp(a_log) softplus(W_f x + f_bias)), one number for each head
    S = f S + (1 - f) tanh(S W + k v^T)
    y = W_o norm((S^T q + D o v) o silu(W_g x))

norm is an RMS norm over all heads together. This is the authors' layer (https://github.com/open-lm-engine/lm-engine,
sequence_mixer_blocks/m2rnn.py) without its optional convolution and activation of q, k, v, without heads that share q,
k, v, f, g or W, and without its clipping of the gradient of S; exp(a_log) is initialized in [1, 16], theirs by default
in [0, 16].

W starts as the identity. State: per head S [head_size, head_size]. Reset: S = 0. `scan` materializes S for one chunk of
time, and rematerializes it for the gradient.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.heads import rms_norm
from memax_rl.memory.layers.rematerialization import scan_chunks
from memax_rl.memory.layers.weights import check_size, normal, state_zeros
from memax_rl.ops import linear, nonlinear_recurrence, nonlinear_step

State = tuple[Float[Array, "heads head_size head_size"], ...]

_CHUNK = 32


def _cell(gates, state):
    f, new = gates
    (s,) = state
    return (f * s + (1 - f) * jnp.tanh(new),)


def _product(w, s):
    return None, jnp.einsum("hkv,hvu->hku", s, w)


class M2RNN(Memory):
    """Gated nonlinear recurrence on a matrix for each head, read by a query.

    For associative recall and state tracking at once; sequential in time, and the costliest of the nonlinear models.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
    """

    family: ClassVar[str] = "nonlinear"
    paper: ClassVar[str] = "https://arxiv.org/abs/2603.14360"
    verified: ClassVar[str] = "open-lm-engine's _m2rnn_torch (the recurrence); the layer around it: read against theirs"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    w_q: Float[Array, "in_size inner"]
    w_k: Float[Array, "in_size inner"]
    w_v: Float[Array, "in_size inner"]
    w_g: Float[Array, "in_size inner"]
    w_f: Float[Array, "in_size heads"]
    f_bias: Float[Array, " heads"]
    a_log: Float[Array, " heads"]
    w: Float[Array, "heads head_size head_size"]
    d: Float[Array, "heads head_size"]
    norm: Float[Array, " inner"]
    w_o: Float[Array, "inner out_size"]

    def __init__(
        self, *, in_size: int, out_size: int, key: PRNGKeyArray, heads: int | None = None, head_size: int = 32
    ):
        self.in_size, self.out_size = in_size, out_size
        self.head_size = check_size("head_size", head_size)
        self.heads = max(1, out_size // head_size) if heads is None else check_size("heads", heads)
        inner = self.heads * head_size
        keys = jax.random.split(key, 8)
        self.w_q, self.w_k, self.w_v, self.w_g = (normal(k, in_size, inner) for k in keys[:4])
        self.w_f = normal(keys[4], in_size, self.heads)
        dt = jnp.exp(jax.random.uniform(keys[5], (self.heads,), minval=math.log(1e-3), maxval=math.log(0.1)))
        self.f_bias = dt + jnp.log(-jnp.expm1(-dt))
        self.a_log = jnp.log(jax.random.uniform(keys[6], (self.heads,), minval=1.0, maxval=16.0))
        self.w = jnp.broadcast_to(jnp.eye(head_size), (self.heads, head_size, head_size))
        self.d = jnp.ones((self.heads, head_size))
        self.norm = jnp.ones(inner)
        self.w_o = normal(keys[7], inner, out_size)

    def _inputs(self, x):
        """Return q, k, v [heads, head_size] and f [heads]."""
        q, k, v = (linear(x, w).reshape(self.heads, self.head_size) for w in (self.w_q, self.w_k, self.w_v))
        f = jnp.exp(-jnp.exp(self.a_log) * jax.nn.softplus(linear(x, self.w_f) + self.f_bias))
        return q, k, v, f

    def _read(self, read, v, x):
        gated = (read + self.d * v).reshape(-1) * jax.nn.silu(linear(x, self.w_g))
        return linear(rms_norm(gated[None], self.norm), self.w_o)

    def initial_state(self) -> State:
        return (state_zeros(self.norm, (self.heads, self.head_size, self.head_size)),)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        q, k, v, f = self._inputs(x)
        state = (jnp.where(start, 0, state[0]),)
        inputs = f[:, None, None], k[:, :, None] * v[:, None, :]
        state = nonlinear_step(_cell, _product, self.w, inputs, state)
        return state, self._read(jnp.einsum("hkv,hk->hv", state[0], q), v, x)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """All input products at once, then the sequential recurrence, chunk by chunk."""
        qs, ks, vs, fs = jax.vmap(self._inputs)(xs)

        def chunk(state, now):
            qs, ks, vs, fs, starts = now
            written = ks[:, :, :, None] * vs[:, :, None, :]
            inputs = jnp.broadcast_to(fs[:, :, None, None], written.shape), written
            state, ss = nonlinear_recurrence(_cell, _product, self.w, inputs, state, starts)
            return state, jnp.einsum("thkv,thk->thv", ss, qs)

        state, reads = scan_chunks(chunk, state, (qs, ks, vs, fs, starts), _CHUNK)
        return state, jax.vmap(self._read)(reads, vs, xs)
