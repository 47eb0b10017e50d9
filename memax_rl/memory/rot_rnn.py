"""RotRNN: a linear recurrence by rotation matrices, in heads.

Dimitriou et al. 2024, RotRNN: Modelling Long Sequences with Rotations, https://arxiv.org/abs/2407.07239.

    per head:  h = gamma Theta h + xi P^T (B x)
    y = C concat over heads (P h) + D x

Theta rotates pairs of state variables by the angles theta; P = expm(M - M^T) is orthogonal; gamma = exp(-exp(log_rate))
is one decay for the head; xi = sqrt((1 - gamma^2) / tr(B B^T)) gives h the size of x. Rotation by theta and scaling by
gamma is the product with the complex number gamma e^(i theta), which is how `scan` computes it. State: h [heads,
head_size / 2, 2], pairs last. Reset: h = 0. At the start gamma is in [gamma_min, gamma_max] and theta uniform in [0, 2
pi]. D is diagonal where the sizes of input and output agree, else a matrix.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import check_between, check_size, normal, state_zeros
from memax_rl.ops import complex_diagonal_recurrence, linear

State = Float[Array, "heads pairs 2"]


def _exponential(a: Float[Array, "heads n n"]) -> Float[Array, "heads n n"]:
    """Return expm(a) by scaling, a Taylor series of order 10, and squaring, for norms up to 2^8.

    `jax.scipy.linalg.expm` takes seconds to compile and, in a batch, computes five approximations to use one.
    """
    norm = jax.lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(a), axis=1)))
    squarings = jnp.clip(jnp.ceil(jnp.log2(norm + 1e-30)), 0, 8)
    a = a * 2.0**-squarings
    identity = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    p = identity
    for order in range(10, 0, -1):
        p = identity + a @ p / order
    for count in range(8):
        p = jnp.where(count < squarings, p @ p, p)
    return p


class RotRNN(Memory):
    """Linear recurrence by rotations, with one decay for each head.

    For long dependencies at regular delays, as the LRU, with a state normalized to the size of the input by
    construction.

    Args:
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: state variables of a head, even.
        gamma_min: smallest decay of a head at the start.
        gamma_max: largest decay of a head at the start.

    Raises:
        ValueError: If a number is out of its range, or `head_size` is odd.
    """

    family: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "https://arxiv.org/abs/2407.07239"
    verified: ClassVar[str] = "the paper's equations with a dense matrix gamma P Theta P^T"

    in_size: int
    out_size: int
    log_rate: Float[Array, " heads"]
    theta: Float[Array, "heads pairs"]
    m: Float[Array, "heads head_size head_size"]
    b: Float[Array, "heads in_size head_size"]
    c: Float[Array, "heads head_size out_size"]
    d: Float[Array, " out_size"] | Float[Array, "in_size out_size"]

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        heads: int | None = None,
        head_size: int = 32,
        gamma_min: float = 0.9,
        gamma_max: float = 0.999,
    ):
        self.in_size, self.out_size = in_size, out_size
        size = check_size("head_size", head_size, 2)
        if size % 2:
            raise ValueError(f"head_size must be even, because state variables turn in pairs, got {size}")
        count = max(1, out_size // size) if heads is None else check_size("heads", heads)
        low, high = (
            check_between("gamma_min", gamma_min, 1e-6, 1),
            check_between("gamma_max", gamma_max, 0, 1 - 1e-6),
        )
        if not low < high:
            raise ValueError(f"gamma_min must be below gamma_max, got gamma_min={low:g} and gamma_max={high:g}")
        keys = jax.random.split(key, 6)
        gamma = jax.random.uniform(keys[0], (count,), minval=low, maxval=high)
        self.log_rate = jnp.log(-jnp.log(gamma))
        self.theta = jax.random.uniform(keys[1], (count, size // 2), maxval=2 * math.pi)
        self.m = jax.random.normal(keys[2], (count, size, size)) * size**-0.5
        self.b = jax.random.normal(keys[3], (count, in_size, size)) * in_size**-0.5
        self.c = jax.random.normal(keys[4], (count, size, out_size)) * (count * size) ** -0.5
        square = in_size == out_size
        self.d = jax.random.normal(keys[5], (out_size,)) if square else normal(keys[5], in_size, out_size)

    def _gamma(self) -> Float[Array, " heads"]:
        return jnp.exp(-jnp.exp(self.log_rate))

    def _matrices(
        self,
    ) -> tuple[Float[Array, "heads in_size head_size"], Float[Array, "heads head_size out_size"]]:
        """Return (xi P^T B)^T and (C P)^T for each head: P is applied to the parameters once, not at each step."""
        p = _exponential(self.m - self.m.swapaxes(1, 2))
        xi = jnp.sqrt(-jnp.expm1(-2 * jnp.exp(self.log_rate)) / jnp.sum(self.b**2, axis=(1, 2)))
        into = jnp.einsum("hnp,hin->hip", p, self.b) * xi[:, None, None]
        return into, jnp.einsum("hnp,hno->hpo", p, self.c)

    def _skip(self, x):
        return x * self.d if self.d.ndim == 1 else linear(x, self.d)

    def initial_state(self) -> State:
        return state_zeros(self.theta, (*self.theta.shape, 2))

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        into, out = self._matrices()
        a, b = jnp.moveaxis(jnp.where(start, 0, state), -1, 0)
        cos, sin = jnp.cos(self.theta), jnp.sin(self.theta)
        turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
        h = self._gamma()[:, None, None] * turned + jnp.einsum("i,hip->hp", x, into).reshape(state.shape)
        return h, jnp.einsum("hp,hpo->o", h.reshape(h.shape[0], -1), out) + self._skip(x)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        into, out = self._matrices()
        # All heads in one matrix product.
        into = into.reshape(*into.shape[:2], -1, 2).transpose(1, 3, 0, 2).reshape(self.in_size, -1)
        gamma = self._gamma()[:, None]
        re, im = (gamma * jnp.cos(self.theta)).reshape(-1), (gamma * jnp.sin(self.theta)).reshape(-1)
        first = state.reshape(-1, 2).T
        hs = complex_diagonal_recurrence(re, im, linear(xs, into).reshape(len(xs), 2, -1), first, starts)
        out = out.reshape(-1, 2, self.out_size).swapaxes(0, 1).reshape(-1, self.out_size)
        return hs[-1].T.reshape(state.shape), linear(hs.reshape(len(xs), -1), out) + jax.vmap(self._skip)(xs)
