"""Linear transformer: attention with a positive feature map instead of the softmax, as a recurrence.

Katharopoulos et al. 2020, Transformers are RNNs, https://arxiv.org/abs/2006.16236, equations 16 to 20, with several
heads.

    q, k, v = W_q x, W_k x, W_v x,    phi(u) = 1 + elu(u)
    S = S + phi(k) v^T,    n = n + phi(k),    y = W_o (S^T phi(q) / (n . phi(q) + eps))

y is a mean over all steps of the episode with the weights phi(k) . phi(q) > 0. On independent inputs its size therefore
shrinks as t^-1/2 (0.04 after 1,000 steps); on a constant input it stays near 1. That is the paper's form; a norm after
it would hide how much of the past agrees.

State: per head S [head_size, head_size] and n [head_size], stored as one matrix [head_size, head_size + 1].

The sums do not depend on the order of the inputs. With `rotary_base`, queries and keys are rotated as in section 3.3 of
Su et al. 2021, https://arxiv.org/abs/2104.09864: with R the rotary matrix of one step (layers/rotary.py),

    S = R^-1 S + phi(k) v^T,    n as above,

so that a key from s steps ago is read through R^-s, and a query can select a distance.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.heads import each_head
from memax_rl.memory.layers.rotary import turn
from memax_rl.memory.layers.weights import check_between, check_size, normal, state_zeros
from memax_rl.ops import linear, linear_attention

State = Float[Array, "heads head_size width"]

_EPS = 1e-6


def _phi(u):
    return 1 + jax.nn.elu(u)


class LinearTransformer(Memory):
    """Linear attention, normalized by the sum of the keys.

    A mean of the whole episode by content; without `rotary_base` it does not know when something was seen.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
        rotary_base: base of the rotary embedding of queries and keys, for instance 100; 0: none.

    Raises:
        ValueError: If heads and sizes do not fit, or `head_size` is odd with rotary positions.
    """

    family: ClassVar[str] = "matrix"
    paper: ClassVar[str] = "https://arxiv.org/abs/2006.16236"
    verified: ClassVar[str] = "fla, naive linear attention; transformers' rotary embedding"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    rotary_base: float
    w_q: Float[Array, "in_size inner"]
    w_k: Float[Array, "in_size inner"]
    w_v: Float[Array, "in_size inner"]
    w_o: Float[Array, "inner out_size"]

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        heads: int | None = None,
        head_size: int = 32,
        rotary_base: float = 0.0,
    ):
        self.in_size, self.out_size = in_size, out_size
        self.head_size = check_size("head_size", head_size)
        self.rotary_base = check_between("rotary_base", rotary_base, 0, 1e12)
        if 0 < rotary_base <= 1 or (rotary_base and head_size % 2):
            raise ValueError(
                "rotary_base must be 0 (off), or more than 1 beside an even head_size, "
                f"got rotary_base={rotary_base} and head_size={head_size}"
            )
        self.heads = max(1, out_size // head_size) if heads is None else check_size("heads", heads)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 4)
        self.w_q, self.w_k, self.w_v = (normal(k, in_size, inner) for k in keys[:3])
        self.w_o = normal(keys[3], inner, out_size)

    def _project(self, xs):
        """Return phi(q), phi(k) and [v, 1], each [..., heads, size]."""
        # One product for the three: it reads the inputs once, and so does its gradient.
        qkv = linear(xs, jnp.concatenate([self.w_q, self.w_k, self.w_v], axis=1))
        q, k, v = (u.reshape(*u.shape[:-1], self.heads, self.head_size) for u in jnp.split(qkv, 3, axis=-1))
        return _phi(q), _phi(k), jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)

    def _read(self, reads):
        ys = reads[..., :-1] / (reads[..., -1:] + _EPS)
        return linear(ys.reshape(*ys.shape[:-2], -1), self.w_o)

    def initial_state(self) -> State:
        return state_zeros(self.w_q, (self.heads, self.head_size, self.head_size + 1))

    def _turn(self, x, steps):
        """Return R^steps applied to x [heads, head_size, ...] along its second axis."""
        columns = jnp.moveaxis(x, 1, -1).reshape(1, -1, self.head_size)
        turned = turn(columns, steps, self.rotary_base).reshape(*x.shape[:1], *x.shape[2:], self.head_size)
        return jnp.moveaxis(turned, -1, 1)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        q, k, v = self._project(x)
        state = jnp.where(start, 0, state)
        if self.rotary_base:
            s, n = state[..., :-1], state[..., -1:]
            state = jnp.concatenate([self._turn(s, -1), n], axis=-1)
        state = state + k[:, :, None] * v[:, None, :]
        return state, self._read(jnp.einsum("hd,hde->he", q, state))

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        q, k, v = self._project(xs)
        if not self.rotary_base:
            state, reads = each_head(linear_attention, (q, k, v, None), state, starts)
            return state, self._read(reads)
        # Rotated by their positions on the tape, keys and queries leave a sum without decay.
        turned = [turn(u, 1, self.rotary_base) for u in (q, k)]
        s, reads = each_head(linear_attention, (*turned, v[..., :-1], None), state[..., :-1], starts)
        n, weights = each_head(linear_attention, (q, k, v[..., -1:], None), state[..., -1:], starts)
        state = jnp.concatenate([self._turn(s, -len(xs)), n], axis=-1)
        return state, self._read(jnp.concatenate([reads, weights], axis=-1))
