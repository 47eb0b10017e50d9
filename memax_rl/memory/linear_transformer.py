"""Linear transformer: attention with a positive feature map instead of the softmax, as a recurrence.

Katharopoulos et al. 2020, Transformers are RNNs, https://arxiv.org/abs/2006.16236, equations 16 to 20, with several
heads.

    q, k, v = W_q x, W_k x, W_v x,    phi(u) = 1 + elu(u)
    S = S + phi(k) v^T,    n = n + phi(k),    y = W_o (S^T phi(q) / (n . phi(q) + eps))

State: per head S [head_size, head_size] and n [head_size], held side by side as one matrix [head_size, head_size + 1].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from memax_rl.memory._contract import Memory
from memax_rl.memory._heads import each_head
from memax_rl.memory._layers import check_size, matrix
from memax_rl.ops import linear_attention

_EPS = 1e-6


def _phi(u):
    return 1 + jax.nn.elu(u)


class LinearTransformer(Memory):
    """Linear attention with normalisation by the sum of the keys."""

    in_size: int
    out_size: int
    heads: int
    head_size: int
    w_q: Float[Array, "inner in_size"]
    w_k: Float[Array, "inner in_size"]
    w_v: Float[Array, "inner in_size"]
    w_o: Float[Array, "out_size inner"]

    def __init__(
        self, *, in_size: int, out_size: int, key: PRNGKeyArray, heads: int | None = None, head_size: int = 32
    ):
        self.in_size, self.out_size = in_size, out_size
        self.head_size = check_size("head_size", head_size)
        self.heads = max(1, out_size // head_size) if heads is None else check_size("heads", heads)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 4)
        self.w_q, self.w_k, self.w_v = (matrix(k, in_size, inner) for k in keys[:3])
        self.w_o = matrix(keys[3], inner, out_size)

    def _project(self, xs):
        """Return phi(q), phi(k) and [v, 1], each [..., heads, size]."""
        # One product for the three: it reads the inputs once, and so does its gradient.
        qkv = xs @ jnp.concatenate([self.w_q, self.w_k, self.w_v]).T
        q, k, v = (u.reshape(*u.shape[:-1], self.heads, self.head_size) for u in jnp.split(qkv, 3, axis=-1))
        return _phi(q), _phi(k), jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)

    def _read(self, reads):
        ys = reads[..., :-1] / (reads[..., -1:] + _EPS)
        return ys.reshape(*ys.shape[:-2], -1) @ self.w_o.T

    def initial_state(self):
        """Return S = 0 and n = 0 for each head."""
        return jnp.zeros((self.heads, self.head_size, self.head_size + 1))

    def step(self, state, x, start):
        """One step of the recurrence, as in the paper."""
        q, k, v = self._project(x)
        state = jnp.where(start, 0, state) + k[:, :, None] * v[:, None, :]
        return state, self._read(jnp.einsum("hd,hde->he", q, state))

    def scan(self, state, xs, starts):
        """The recurrence over all steps by `ops.linear_attention`, one call a head."""
        q, k, v = self._project(xs)
        state, reads = each_head(linear_attention, (q, k, v, None), state, starts)
        return state, self._read(reads)
