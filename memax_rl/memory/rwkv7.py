"""RWKV-7: a matrix state with a decay per channel and a delta rule whose removal and writing strengths differ.

Peng et al. 2025, RWKV-7 "Goose" with Expressive Dynamic State Evolution, https://arxiv.org/abs/2503.14456.
One memory is one layer, so the mixing of values with those of the first layer is left out.

    x_u = x + mu_u o (x_prev - x)    for u = r, w, k, v, a, g
    r, k, v = W_r x_r, W_k x_k, W_v x_v,    a = sigmoid(a_0 + A_2 A_1 x_a),    g = G_2 sigmoid(G_1 x_g)
    log_decay = -exp(-0.5) sigmoid(w_0 + W_2 tanh(W_1 x_w))
    kappa = unit(k o k_k),    k = k o (1 + (a - 1) o k_a)
    S = diag(exp(log_decay)) S - (a o kappa) (S^T kappa)^T + k v^T
    y = W_o ((group_norm(S^T r) + (r . (r_k o k)) v) o g)

State: per head S [head_size, head_size], transposed with respect to the paper, and x_prev [in_size]; a start
zeroes both.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.heads import check_heads, check_norm, each_head, unit
from memax_rl.memory.layers.weights import normal, state_zeros
from memax_rl.ops import generalized_delta_rule, linear

State = tuple[Float[Array, "heads head_size head_size"], Float[Array, " in_size"]]

_RANK = 16
_FASTEST = math.exp(-0.5)


class RWKV7(Memory):
    """Matrix memory with the generalized delta rule: decay for each channel, separate strengths of removal and writing.

    For associative recall and state tracking over long episodes; parallel in time.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
    """

    family: ClassVar[str] = "delta"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.14456"
    verified: ClassVar[str] = "fla, RWKV-7 recurrence"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    mu: tuple[Float[Array, " in_size"], ...]
    w_rkv: tuple[Float[Array, "in_size inner"], ...]
    w_0: Float[Array, " inner"]
    a_0: Float[Array, " inner"]
    lora_in: tuple[Float[Array, "in_size rank"], ...]
    lora_out: tuple[Float[Array, "rank inner"], ...]
    k_k: Float[Array, " inner"]
    k_a: Float[Array, " inner"]
    r_k: Float[Array, " inner"]
    norm: Float[Array, " inner"]
    norm_bias: Float[Array, " inner"]
    w_o: Float[Array, "inner out_size"]

    def __init__(
        self, *, in_size: int, out_size: int, key: PRNGKeyArray, heads: int | None = None, head_size: int = 32
    ):
        self.in_size, self.out_size = in_size, out_size
        check_norm("head_size", head_size)
        self.heads, self.head_size = check_heads(out_size, heads, head_size)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 10)
        self.mu = tuple(jnp.full(in_size, 0.5) for _ in range(6))
        self.w_rkv = tuple(normal(k, in_size, inner) for k in keys[:3])
        # Time constants from a few to hundreds of steps, over the channels of each head.
        self.w_0 = jnp.tile(jnp.linspace(-6.5, -1.5, self.head_size), self.heads)
        self.a_0 = jnp.zeros(inner)
        self.lora_in = tuple(normal(k, in_size, _RANK) for k in keys[3:6])
        self.lora_out = tuple(
            normal(k, _RANK, inner, scale) for k, scale in zip(keys[6:9], (0.3, 0.3, 2.0), strict=True)
        )
        self.k_k, self.k_a = jnp.full(inner, 0.85), jnp.ones(inner)
        self.r_k = jnp.zeros(inner)
        self.norm, self.norm_bias = jnp.ones(inner), jnp.zeros(inner)
        self.w_o = normal(keys[9], inner, out_size)

    def _project(self, x, x_prev):
        """Return r, k, v, kappa, a, log_decay and g, each [heads, head_size]."""
        x_r, x_w, x_k, x_v, x_a, x_g = (x + mu * (x_prev - x) for mu in self.mu)
        r, k, v = (linear(u, w) for u, w in zip((x_r, x_k, x_v), self.w_rkv, strict=True))
        (w_1, a_1, g_1), (w_2, a_2, g_2) = self.lora_in, self.lora_out
        log_decay = -_FASTEST * jax.nn.sigmoid(self.w_0 + linear(jnp.tanh(linear(x_w, w_1)), w_2))
        a = jax.nn.sigmoid(self.a_0 + linear(linear(x_a, a_1), a_2))
        g = linear(jax.nn.sigmoid(linear(x_g, g_1)), g_2)
        kappa, k = k * self.k_k, k * (1 + (a - 1) * self.k_a)
        r, k, v, kappa, a, log_decay, g = (
            u.reshape(self.heads, self.head_size) for u in (r, k, v, kappa, a, log_decay, g)
        )
        return r, k, v, unit(kappa), a, log_decay, g

    def _read(self, reads, r, k, v, g):
        centred = reads - jnp.mean(reads, axis=1, keepdims=True)
        normal_reads = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=1, keepdims=True) + 64e-5)
        own = jnp.sum(r * self.r_k.reshape(r.shape) * k, axis=1, keepdims=True) * v
        y = normal_reads.reshape(-1) * self.norm + self.norm_bias + own.reshape(-1)
        return linear(y * g.reshape(-1), self.w_o)

    def initial_state(self) -> State:
        return state_zeros(self.norm, (self.heads, self.head_size, self.head_size)), state_zeros(
            self.norm, self.in_size
        )

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        s, x_prev = (jnp.where(start, 0, u) for u in state)
        r, k, v, kappa, a, log_decay, g = self._project(x, x_prev)
        removed = (a * kappa)[:, :, None] * jnp.einsum("hk,hkv->hv", kappa, s)[:, None, :]
        s = jnp.exp(log_decay)[:, :, None] * s - removed + k[:, :, None] * v[:, None, :]
        return (s, x.astype(s.dtype)), self._read(jnp.einsum("hk,hkv->hv", r, s), r, k, v, g)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        s, x_prev = state
        x_prev = jnp.where(starts[:, None], 0, jnp.concatenate([x_prev[None], xs[:-1]]))
        r, k, v, kappa, a, log_decay, g = jax.vmap(self._project)(xs, x_prev)
        s, reads = each_head(generalized_delta_rule, (r, k, v, kappa, -a * kappa, log_decay), s, starts)
        return (s, xs[-1].astype(s.dtype)), jax.vmap(self._read)(reads, r, k, v, g)
