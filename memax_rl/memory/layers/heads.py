"""Small functions that the models with one matrix state per head share."""

import functools
import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.layers.weights import check_size
from memax_rl.ops._chunks import rematerialized


def check_heads(out_size: int, heads: int | None, head_size: int) -> tuple[int, int]:
    """Return the number of heads, by default as many as fit into `out_size`, and their size."""
    check_size("head_size", head_size)
    return max(1, out_size // head_size) if heads is None else check_size("heads", heads), head_size


def check_norm(name: str, size: int) -> None:
    """Raise `ValueError` if a layer norm would see a single number, which it maps to zero."""
    if check_size(name, size) == 1:
        raise ValueError(f"{name} must be 2 or more, got 1: the layer norm of a single number is always zero")


def unit(x: Float[Array, "*shape size"]) -> Float[Array, "*shape size"]:
    """Return x / |x| over the last axis. Zero stays zero, with a finite derivative."""
    return cast(Array, _over_root(x, 1e-6))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _over_root(x: Array, epsilon: float) -> Array:
    """Return x / sqrt(x . x + epsilon) over the last axis."""
    return x * jax.lax.rsqrt(jnp.vecdot(x, x) + epsilon)[..., None]


@_over_root.defjvp
def _over_root_jvp(epsilon, primals, tangents):
    """Dot products forward and backward: for one head, XLA on a CPU is eight times slower at a sum of products.

    The last product has a matrix of one column, so that its transpose is a dot product too.
    """
    (x,), (dx,) = primals, tangents
    over = jax.lax.rsqrt(jnp.vecdot(x, x) + epsilon)[..., None]
    along = over**3 * jnp.vecdot(x, dx)[..., None]
    return x * over, over * dx - jnp.matmul(x[..., None], along[..., None])[..., 0]


def activated_qkv(heads: int, qkv: Float[Array, " width"]) -> tuple[Float[Array, "heads size"], ...]:
    """Return unit(silu(q)), unit(silu(k)) and silu(v) for each head, from q, k, v concatenated."""
    q, k, v = jax.nn.silu(qkv).reshape(3, heads, -1)
    return unit(q), unit(k), v


def rms_norm(x: Float[Array, "heads size"], weight: Float[Array, " inner"]) -> Float[Array, " inner"]:
    """Return all heads concatenated, each divided by its root mean square, times a weight."""
    size = x.shape[-1]
    return (math.sqrt(size) * cast(Array, _over_root(x, size * 1e-5))).reshape(-1) * weight


def layer_norm(x: Float[Array, "heads size"], weight: Float[Array, " inner"]) -> Float[Array, " inner"]:
    """Return all heads concatenated, each minus its mean and divided by its standard deviation, times a weight."""
    return rms_norm(x - jnp.mean(x, axis=-1, keepdims=True), weight)


def head_norm(heads: int, weight: Float[Array, " inner"], reads: Float[Array, " inner"]) -> Float[Array, " inner"]:
    """Return rms_norm of all heads, concatenated."""
    return rms_norm(reads.reshape(heads, -1), weight)


def gated_norm(
    heads: int, weight: Float[Array, " inner"], reads: Float[Array, " inner"], g: Float[Array, " inner"]
) -> Float[Array, " inner"]:
    """Return rms_norm(reads / sqrt(size)) o silu(g), with the norm over each head."""
    reads = reads.reshape(heads, -1)
    return rms_norm(reads.shape[1] ** -0.5 * reads, weight) * jax.nn.silu(g)


def each_row(body: Callable, inputs: tuple[Float[Array, "T ..."], ...], *params: Array) -> Float[Array, "T ..."]:
    """Return `body(*params, *rows)` for each row of `inputs`, where `body` closes over no arrays.

    It is rematerialized in the backward pass, a block of steps at a time, so that only the inputs are stored.
    """

    def run(params, state, *rows):
        return state, jax.vmap(functools.partial(body, *params))(*rows)

    return rematerialized(run, lambda state, inputs: state, (), inputs, params)


def delta_step(
    s: Float[Array, "heads k v"], k: Float[Array, "heads k"], v: Float[Array, "heads v"], beta: Float[Array, " heads"]
) -> Float[Array, "heads k v"]:
    """Return S + beta k (v - S^T k)^T for each head."""
    error = v - jnp.einsum("hk,hkv->hv", k, s)
    return s + k[:, :, None] * (beta[:, None] * error)[:, None, :]


def each_head(
    op: Callable,
    inputs: tuple[Float[Array, "_ heads ..."] | None, ...],
    state: Float[Array, "heads k v"],
    starts: Bool[Array, " T"],
) -> tuple[Float[Array, "heads k v"], Float[Array, "_ heads v"]]:
    """Return `op(*inputs, state, starts)`, one of `ops` with a matrix state, run for each head by itself."""
    # The op returns the dtype of its values; a step that of the state.
    inputs = tuple(None if x is None else x.astype(state.dtype) for x in inputs)
    if len(state) == 1:
        # Without an axis of size one, which XLA would transpose.
        last, ys = op(*(None if x is None else x[:, 0] for x in inputs), state[0], starts)
        return last[None], ys[:, None]
    axes = tuple(None if x is None else 1 for x in inputs)
    return jax.vmap(op, in_axes=(*axes, 0, None), out_axes=(0, 1))(*inputs, state, starts)


def check_flag(name: str, value: object) -> bool:
    """Return `value` if it is True or False, else raise `ValueError` naming the option."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def decay_rates(
    key: PRNGKeyArray, heads: int, *, smallest: float
) -> tuple[Float[Array, " heads"], Float[Array, " heads"]]:
    """Return a_log and dt_bias of a decay exp(-exp(a_log) softplus(dt_bias)), as in Mamba-2.

    exp(a_log) is uniform in [smallest, 16], softplus(dt_bias) log-uniform in [0.001, 0.1].
    """
    key_a, key_dt = jax.random.split(key)
    rate = jax.random.uniform(key_a, (heads,), minval=max(smallest, 1e-3), maxval=16.0)
    dt = jnp.exp(jax.random.uniform(key_dt, (heads,), minval=math.log(1e-3), maxval=math.log(1e-1)))
    # The inverse of softplus.
    return jnp.log(rate), dt + jnp.log(-jnp.expm1(-dt))
