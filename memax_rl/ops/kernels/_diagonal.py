"""The diagonal recurrence h_t = a_t o h_{t-1} + b_t, forward and backward, in one pass over memory each.

A program of the grid runs one block of features of one sequence through all steps; h stays in registers. Features
are independent, so the loop over time needs no exchange. It takes some steps at once: first it requests all of their
rows, then it computes, then it writes. So many rows are on their way at a time, which is what hides the latency of the
memory.

A complex number is a pair of lanes: the arrays' last axis has the real parts of all features, then the imaginary ones.
Gradients are those by real and imaginary part.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from memax_rl.ops.kernels._batch import Lanes, blocks, like, over_sequences, pallas_flat

# Rows that are read and written for the steps taken at once, and such steps, at most: more hide more latency, but the
# time to compile grows faster than with their square.
_ROWS, _STEPS = 48, 16
# What is too long for this kernel, and too few features to be worth it.
_LONG, _FEW = 4096, 1024


class Layout(NamedTuple):
    """What the last axes hold.

    Attributes:
        features: The number of features, real or complex.
        parts: 1 where h is real, 2 where it is complex.
        decay_parts: The same of the decay.
        constant: Whether there is one decay for all steps.
    """

    features: int
    parts: int
    decay_parts: int
    constant: bool


def diagonal_forward(
    layout: Layout, tree: Callable[..., Array], a: Array, b: Array, h0: Array, starts: Array, *, interpret: bool
) -> Array:
    """Return all h_t, [T, parts * features].

    Args:
        layout: What the last axes hold.
        tree: The same of one sequence as a tree in time, for a few long sequences, which leave this kernel idle.
        a: The decay, [T, decay_parts * features], or [decay_parts * features] where it is constant.
        b: What is written, [T, parts * features].
        h0: The state before the first step, [parts * features].
        starts: True where h_{t-1} counts as 0.
        interpret: Run by Pallas' interpreter.
    """

    def run(a, b, h0, starts):
        if _by_tree(layout, *b.shape[:2]):
            return jax.vmap(tree)(a, b, h0, starts)
        kernel = functools.partial(_forward_kernel, layout, b.shape[1])
        call = pallas_flat(kernel, "diagonal_forward", _grid(layout, len(b)), [like(b)], interpret=interpret)
        return call(a, b, h0, starts.astype(jnp.int8))[0]

    return over_sequences(run, a, b, h0, starts)


def diagonal_backward(
    layout: Layout,
    tree: Callable[..., tuple[Array, Array, Array]],
    a: Array,
    h0: Array,
    starts: Array,
    hs: Array,
    dhs: Array,
    *,
    interpret: bool,
) -> tuple[Array, Array, Array]:
    """Return the gradients by a, b and h0 from those by all h_t. Arguments as in `diagonal_forward`."""

    def run(a, h0, starts, hs, dhs):
        if _by_tree(layout, *hs.shape[:2]):
            return jax.vmap(tree)(a, h0, starts, hs, dhs)
        kernel = functools.partial(_backward_kernel, layout, hs.shape[1])
        out = like(a), like(hs), like(h0)
        call = pallas_flat(kernel, "diagonal_backward", _grid(layout, len(hs)), out, interpret=interpret)
        return call(a, h0, starts.astype(jnp.int8), hs, dhs)

    return over_sequences(run, a, h0, starts, hs, dhs)


def _by_tree(layout: Layout, sequences: int, length: int) -> bool:
    """Return whether a tree is better: steps in a row take longer than its passes over the memory, by estimate.

    Or where a kernel could not count the entries.
    """
    features = sequences * layout.features
    return (length > _LONG and features < _FEW) or features * length * layout.parts >= 2**31


def _grid(layout: Layout, sequences: int) -> tuple[int, int]:
    return sequences, blocks(layout.features)


class _Features:
    """The features of this program, and how to read and write rows of their parts."""

    def __init__(self, layout: Layout, length: int):
        self.layout, self.length, self.lanes = layout, length, Lanes(layout.features)

    def _starts(self, parts, t):
        row = self.lanes.sequence if t is None else self.lanes.sequence * self.length + t
        return [(row * parts + p) * self.layout.features for p in range(parts)]

    def read(self, ref, parts, t=None):
        """Return the parts of a row, of step t where the array has steps."""
        return tuple(self.lanes.read(ref, start) for start in self._starts(parts, t))

    def write(self, ref, values, t=None):
        """Write the parts of a row."""
        for start, value in zip(self._starts(len(values), t), values, strict=True):
            self.lanes.write(ref, value, start)

    def begins(self, ref, t):
        """Return the start flag."""
        return ref[self.lanes.sequence * self.length + t] != 0


def _times(a, h):
    if len(a) == 1:
        return tuple(a[0] * x for x in h)
    return a[0] * h[0] - a[1] * h[1], a[0] * h[1] + a[1] * h[0]


def _conjugate_times(a, g):
    return _times(a if len(a) == 1 else (a[0], -a[1]), g)


def _decay_gradient(parts, g, h):
    """Return the gradient by the parts of a decay from that by h_t and h_{t-1}."""
    real = functools.reduce(jnp.add, (x * y for x, y in zip(g, h, strict=True)))
    return (real,) if parts == 1 else (real, g[1] * h[0] - g[0] * h[1])


def _reset(start, values):
    return tuple(jnp.where(start, 0, x) for x in values)


def _together(rows: int) -> int:
    """Return how many steps to take at once where each reads and writes so many rows: a power of two."""
    return min(_STEPS, 1 << (_ROWS // rows).bit_length() - 1)


def _forward_kernel(layout: Layout, length: int, a_ref, b_ref, h0_ref, starts_ref, hs_ref) -> None:
    lanes = _Features(layout, length)
    constant = lanes.read(a_ref, layout.decay_parts) if layout.constant else None

    def steps(first, count, h):
        rows = [
            (
                lanes.read(a_ref, layout.decay_parts, first + k) if constant is None else constant,
                lanes.read(b_ref, layout.parts, first + k),
                lanes.begins(starts_ref, first + k),
            )
            for k in range(count)
        ]
        hs = []
        for a, b, start in rows:
            h = tuple(map(jnp.add, _reset(start, _times(a, h)), b))
            hs.append(h)
        for k, values in enumerate(hs):
            lanes.write(hs_ref, values, first + k)
        return h

    together = _together(2 * layout.parts + layout.decay_parts * (not layout.constant))
    chunks = length // together
    h = lanes.read(h0_ref, layout.parts)
    h = _repeat(chunks, lambda c, h: steps(c * together, together, h), h)
    _repeat(length % together, lambda k, h: steps(chunks * together + k, 1, h), h)


def _backward_kernel(
    layout: Layout, length: int, a_ref, h0_ref, starts_ref, hs_ref, dhs_ref, da_ref, db_ref, dh0_ref
) -> None:
    """Run g_t = dh_t + a_{t+1} g_{t+1} back in time; carried is its second term, which is 0 where t+1 is a start."""
    lanes = _Features(layout, length)
    constant = lanes.read(a_ref, layout.decay_parts) if layout.constant else None
    h0 = lanes.read(h0_ref, layout.parts)

    def steps(first, count, carry):
        rows = []
        for k in range(count):
            before = lanes.read(hs_ref, layout.parts, jnp.maximum(first + k - 1, 0))
            if k == 0:
                before = tuple(jnp.where(first == 0, x, y) for x, y in zip(h0, before, strict=True))
            a = lanes.read(a_ref, layout.decay_parts, first + k) if constant is None else constant
            dh, start = lanes.read(dhs_ref, layout.parts, first + k), lanes.begins(starts_ref, first + k)
            rows.append((a, before, dh, start))
        later, total = carry
        written = []
        for a, before, dh, start in reversed(rows):
            g = tuple(map(jnp.add, dh, later))
            later = _reset(start, _conjugate_times(a, g))
            da = _reset(start, _decay_gradient(layout.decay_parts, g, before))
            if layout.constant:
                total = tuple(map(jnp.add, total, da))
            written.append((g, da))
        for k, (g, da) in enumerate(reversed(written)):
            lanes.write(db_ref, g, first + k)
            if not layout.constant:
                lanes.write(da_ref, da, first + k)
        return later, total

    together = _together(3 * layout.parts + 2 * layout.decay_parts * (not layout.constant))
    chunks, zero = length // together, jnp.zeros_like(h0[0])
    carry = (zero,) * layout.parts, (zero,) * layout.decay_parts
    carry = _repeat(length % together, lambda k, carry: steps(length - 1 - k, 1, carry), carry)
    carry = _repeat(chunks, lambda c, carry: steps((chunks - 1 - c) * together, together, carry), carry)
    lanes.write(dh0_ref, carry[0])
    if layout.constant:
        lanes.write(da_ref, carry[1])


def _repeat(count, body, carry):
    return jax.lax.fori_loop(0, count, body, carry) if count else carry
