"""TTT-Linear: the state is a linear model that is trained on each input by a step of gradient descent.

Sun et al. 2024, Learning to (Learn at Test Time): RNNs with Expressive Hidden States,
https://arxiv.org/abs/2407.04620.

    q, k, v = W_q x, W_k x, W_v x,    eta = rate sigmoid(w_eta x + b_eta) / head_size
    f(z; W) = z + LN([z, 1] W)
    at the first step of a mini-batch: base = W, total = 0
    total = total + eta [k, 1]^T d/dz (|LN(z) - (v - k)|^2 / 2) at z = [k, 1] base
    W = base - max(1 / i + share_i, 0) total    in the mini-batch's step i = 1, ..., batch_size
    y = W_o layer_norm(f(q; W))

LN is over each head, layer_norm over all of them together. The trained share_i starts at zero: W moves by the mean of
the gradients so far, not by their sum. That is the authors' layer (https://github.com/test-time-training/ttt-lm-jax,
ttt_layer.py, TTTLinearBase), whose norms have 1e-6 in place of 1e-5, but for the rotary embedding of q and k. There the
position restarts with each mini-batch, so that a key and a query of two mini-batches turn by the difference of their
places in them; an agent has to find the same key wherever in a mini-batch it was written. What their language model
puts around the layer (convolution, gate) is left out.

Mini-batches have `batch_size` steps and count from the episode's start; a start ends one early. W holds the
weights and, as its last row, the bias. State: per head base and total [head_size + 1, head_size], and the steps
in the mini-batch so far. A start sets base to a trained W_0. In a tape chunk of `batch_size` steps there is at
most one mini-batch that begins without a start, and it does so before the chunk's first start. So each step's
base is one of three: the incoming one, the W that the incoming mini-batch ends with, or W_0. That is what
`scan` uses.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.heads import check_heads, check_norm
from memax_rl.memory.layers.phase import unit_begins
from memax_rl.memory.layers.weights import check_between, check_size, normal, state_dtype
from memax_rl.ops import linear
from memax_rl.ops._chunks import scan_chunks, segments

State = tuple[Float[Array, "heads rows head_size"], Float[Array, "heads rows head_size"], Int[Array, ""]]


def _layer_norm(z):
    z = z - jnp.mean(z, axis=-1, keepdims=True)
    return z * jax.lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + 1e-5)


def _with_one(z):
    return jnp.concatenate([z, jnp.ones_like(z[..., :1])], axis=-1)


def _places(phase, starts, size):
    """Return the place of each step in its mini-batch, from 0."""
    time = jnp.arange(len(starts))
    last_start = jax.lax.cummax(jnp.where(starts, time, -1))
    return jnp.where(last_start >= 0, time - last_start, time + phase) % size


class TTTLinear(Memory):
    """A linear model as the state, trained by gradient descent on each input.

    For associative recall and in-context regression; near to the delta rule, with a norm in the inner model.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: rows and columns of a head's state.
        batch_size: steps whose gradients share one base.
        rate: learning rate of the inner model.
    """

    family: ClassVar[str] = "delta"
    paper: ClassVar[str] = "https://arxiv.org/abs/2407.04620"
    verified: ClassVar[str] = (
        "ttt-lm-jax, TTTLinearBase without rotary embedding, whole layer; fla's chunk_ttt_linear_ref"
    )

    in_size: int
    out_size: int
    heads: int
    head_size: int
    batch_size: int
    rate: float
    w_qkv: tuple[Float[Array, "in_size inner"], ...]
    w_eta: Float[Array, "in_size heads"]
    b_eta: Float[Array, " heads"]
    share: Float[Array, " batch_size"]
    w_0: Float[Array, "heads head_size+1 head_size"]
    inner_weight: Float[Array, "heads head_size"]
    inner_bias: Float[Array, "heads head_size"]
    norm: Float[Array, " inner"]
    norm_bias: Float[Array, " inner"]
    w_o: Float[Array, "inner out_size"]

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        heads: int | None = None,
        head_size: int = 32,
        batch_size: int = 16,
        rate: float = 1.0,
    ):
        self.in_size, self.out_size = in_size, out_size
        check_norm("head_size", head_size)
        self.heads, self.head_size = check_heads(out_size, heads, head_size)
        self.batch_size = check_size("batch_size", batch_size)
        self.rate = check_between("rate", rate, 0, 100)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, 6)
        self.w_qkv = tuple(normal(k, in_size, inner) for k in keys[:3])
        self.w_eta, self.b_eta = normal(keys[3], in_size, self.heads), jnp.zeros(self.heads)
        self.share = jnp.zeros(self.batch_size)
        weights = 0.02 * jax.random.normal(keys[4], (self.heads, self.head_size, self.head_size))
        self.w_0 = jnp.concatenate([weights, jnp.zeros_like(weights[:, :1])], axis=1)
        self.inner_weight = jnp.ones((self.heads, self.head_size))
        self.inner_bias = jnp.zeros((self.heads, self.head_size))
        self.norm, self.norm_bias = jnp.ones(inner), jnp.zeros(inner)
        self.w_o = normal(keys[5], inner, out_size)

    def _project(self, x):
        """Return q, k, v [heads, head_size] and eta [heads]."""
        q, k, v = (linear(x, w).reshape(self.heads, self.head_size) for w in self.w_qkv)
        return q, k, v, self.rate * jax.nn.sigmoid(linear(x, self.w_eta) + self.b_eta) / self.head_size

    def _shares(self):
        """Return by how much of the gradients' sum W moves in each step of a mini-batch [batch_size]."""
        mean = 1 / jnp.arange(1, self.batch_size + 1, dtype=self.share.dtype)
        return jnp.maximum(mean + self.share, 0)

    def _inner(self, weight, bias, z):
        """Return LN(z) of one head."""
        return weight * _layer_norm(z) + bias

    def _gradient(self, weight, bias, z, target):
        """Return the derivative of |LN(z) - target|^2 / 2 by z, for one head."""
        out, transpose = jax.vjp(lambda z: self._inner(weight, bias, z), z)
        return transpose(out - target)[0]

    def _read(self, reads):
        return linear(_layer_norm(reads.reshape(-1)) * self.norm + self.norm_bias, self.w_o)

    def initial_state(self) -> State:
        w_0 = self.w_0.astype(state_dtype(self.w_0))
        return w_0, jnp.zeros_like(w_0), jnp.zeros((), jnp.int32)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        base, total, phase = state
        shares, full = self._shares(), phase == self.batch_size
        base = jnp.where(start, self.w_0, jnp.where(full, base - shares[-1] * total, base))
        total = jnp.where(start | full, 0, total)
        phase = jnp.where(start | full, 0, phase) + 1
        q, k, v, eta = self._project(x)
        z = jnp.einsum("hk,hkv->hv", _with_one(k), base)
        gradient = jax.vmap(self._gradient)(self.inner_weight, self.inner_bias, z, v - k)
        total = total + _with_one(k)[:, :, None] * (eta[:, None] * gradient)[:, None, :]
        z = jnp.einsum("hk,hkv->hv", _with_one(q), base - shares[phase - 1] * total)
        return (base, total, phase), self._read(q + self._inner(self.inner_weight, self.inner_bias, z))

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """In chunks of one mini-batch's size: all gradients of a chunk at once, reads in the dual form."""
        base, total, phase = state
        shares = self._shares()
        now = shares[_places(phase, starts, self.batch_size)]
        begins, phase = unit_begins(phase, starts, self.batch_size)
        q, k, v, eta = jax.vmap(self._project)(xs)

        def run(q, k, v, eta, base, total, w_0, weight, bias):
            def body(carry, *inputs):
                return self._chunk(w_0, weight, bias, shares[-1], *carry, *inputs)

            chunk = min(self.batch_size, len(starts))
            return scan_chunks(body, (base, total), (q, k, v, eta, now, starts, begins), len(starts), chunk)

        (base, total), reads = jax.vmap(run, in_axes=(1, 1, 1, 1, 0, 0, 0, 0, 0), out_axes=(0, 1))(
            q, k, v, eta, base, total, self.w_0, self.inner_weight, self.inner_bias
        )
        return (base, total, phase), jax.vmap(self._read)(reads)

    def _chunk(self, w_0, weight, bias, last_share, base, total, q, k, v, eta, share, starts, begins):
        """One head and chunk. A step is in the incoming mini-batch, in the next, or behind a start."""
        unit = segments(starts | begins)
        fresh = ~segments(starts).first
        after = ~fresh & ~unit.first

        def by_base(incoming, second, reset):
            return jnp.where(fresh[:, None], reset, jnp.where(after[:, None], second, incoming))

        def gradient(z):
            return jax.vmap(lambda z, target: self._gradient(weight, bias, z, target))(z, v - k)

        k_one, q_one, target_rate = _with_one(k), _with_one(q), eta[:, None]
        z = k_one @ base
        first_steps = jnp.where(unit.first[:, None], target_rate * gradient(z), 0)
        second = base - last_share * (total + k_one.T @ first_steps)
        steps = target_rate * gradient(by_base(z, k_one @ second, k_one @ w_0))
        moved = jnp.where(unit.first[:, None], q_one @ total, 0) + jnp.where(unit.same, q_one @ k_one.T, 0) @ steps
        reads = by_base(q_one @ base, q_one @ second, q_one @ w_0) - share[:, None] * moved
        ys = q + jax.vmap(lambda z: self._inner(weight, bias, z))(reads)

        def last(incoming, second, reset):
            return jnp.where(fresh[-1], reset, jnp.where(after[-1], second, incoming))

        total = jnp.where(unit.first[-1], total, 0) + k_one.T @ jnp.where(unit.same[-1][:, None], steps, 0)
        return (last(base, second, w_0), total), ys
