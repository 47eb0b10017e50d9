"""Spherical memory: a vector that each input rotates, so that its length never changes and nothing fades.

After the rotations of memax (Morad et al. 2024, https://arxiv.org/abs/2402.09900) and, for the product of
reflections, Mhammedi et al. 2017, https://arxiv.org/abs/1612.00188. No one paper gives this form; the
recurrence below is its definition.

    k_j = unit(W_j x + b_j)    for j = 1 .. reflections
    h = (I - 2 k_r k_r^T) ... (I - 2 k_1 k_1^T) h,    y = W_o h + W_d x

Two reflections are a rotation in the plane of their keys, none if the keys agree. State: per head h
[head_size]. A start sets it to a trained h_0, and `scan` solves for all reflections of a chunk at once, as in
`ops.delta_rule`.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.heads import check_heads, unit
from memax_rl.memory.layers.weights import check_size, normal, state_dtype
from memax_rl.ops import linear
from memax_rl.ops._chunks import chunk_size, scan_chunks, segments, unit_lower_solve

State = Float[Array, "heads head_size"]


class Spherical(Memory):
    """A vector for each head that each input rotates, by products of reflections.

    For tracking of states that compose as rotations do (parity, position, order); its length is constant, nothing
    fades.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: size of a head's vector.
        reflections: reflections an input; two are a rotation.
    """

    family: ClassVar[str] = "delta"
    paper: ClassVar[str] = "https://arxiv.org/abs/1612.00188"
    verified: ClassVar[str] = "fla, delta rule with beta 2 and no values"

    in_size: int
    out_size: int
    heads: int
    head_size: int
    reflections: int
    w_k: tuple[Float[Array, "in_size inner"], ...]
    b_k: tuple[Float[Array, " inner"], ...]
    h_0: Float[Array, "heads head_size"]
    w_o: Float[Array, "inner out_size"]
    w_d: Float[Array, "in_size out_size"]

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        heads: int | None = None,
        head_size: int = 32,
        reflections: int = 2,
    ):
        self.in_size, self.out_size = in_size, out_size
        self.heads, self.head_size = check_heads(out_size, heads, head_size)
        self.reflections = check_size("reflections", reflections)
        inner = self.heads * self.head_size
        keys = jax.random.split(key, reflections + 4)
        self.w_k = tuple(normal(k, in_size, inner) for k in keys[4:])
        # One bias for all reflections: an input of zero then does little.
        self.b_k = tuple(jax.random.normal(keys[0], (inner,)) for _ in range(reflections))
        self.h_0 = jax.random.normal(keys[1], (self.heads, self.head_size))
        self.w_o = normal(keys[2], inner, out_size)
        self.w_d = normal(keys[3], in_size, out_size)

    def _keys(self, x):
        """Return all k_j, [reflections, heads, head_size]."""
        shape = (self.heads, self.head_size)
        return jnp.stack([unit((linear(x, w) + b).reshape(shape)) for w, b in zip(self.w_k, self.b_k, strict=True)])

    def _read(self, h, x):
        return linear(h.reshape(-1), self.w_o) + linear(x, self.w_d)

    def initial_state(self) -> State:
        return self.h_0.astype(state_dtype(self.h_0))

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        h = jnp.where(start, self.initial_state(), state)
        for k in self._keys(x):
            h = h - 2 * k * jnp.sum(k * h, axis=-1, keepdims=True)
        return h, self._read(h, x)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """The reflections of a chunk by one triangular system a head."""
        length = self.reflections * len(starts)
        keys = jax.vmap(self._keys)(xs).reshape(length, self.heads, self.head_size).astype(state.dtype)
        first = jnp.arange(self.reflections) == 0
        starts = (starts[:, None] & first[None, :]).reshape(-1)

        def run(k, h_0, h):
            def body(h, k, starts):
                return _chunk(h_0, h, k, starts)

            return scan_chunks(body, h, (k, starts), length, chunk_size(None, length))

        state, hs = jax.vmap(run, in_axes=(1, 0, 0), out_axes=(0, 1))(keys, self.initial_state(), state)
        return state, jax.vmap(self._read)(hs[self.reflections - 1 :: self.reflections], xs)


def _chunk(h_0, h, k, starts):
    """One head and chunk: h_i = base_i + sum_j k_j u_j over j <= i since the start, u_j = -2 k_j . h_j-1."""
    seg = segments(starts)
    base = jnp.where(seg.first[:, None], h[None], h_0[None])
    earlier = seg.same & np.tri(starts.shape[0], k=-1, dtype=bool)
    u = unit_lower_solve(jnp.where(earlier, 2 * (k @ k.T), 0), -2 * jnp.sum(k * base, axis=1, keepdims=True))
    hs = base + jnp.where(seg.same, 1.0, 0.0) @ (k * u)
    return hs[-1], hs
