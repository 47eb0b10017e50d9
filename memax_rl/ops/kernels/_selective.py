"""The selective scan of S6, forward and backward, with h [n, d] in registers: nothing of its size is read or written.

A program of the grid runs one block of channels of one sequence through all steps, with one warp, so that sums over
states and channels stay within it.

Forward the state before each chunk of `_CHUNK` steps is stored. Backward each chunk is computed again from it; the
states within go to a small array of which every chunk overwrites the last one, so that it stays in the cache. The
gradients by b and c are sums over all channels: each program sums its own, and the programs' sums are added outside.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from memax_rl.ops.kernels._batch import like, over_sequences, pallas, power_of_two

_CHANNELS = 32
# As in `ops._selective_scan`, which is the plain form beside it.
_CHUNK = 16
# Steps whose rows are requested at once.
_STEPS = 4
# States of a channel at most: a tile of them is in registers, backward with its gradient and others of its size.
_MOST_STATES = 32


def fits(states: int) -> bool:
    """Return whether there is a kernel for so many states of a channel."""
    return 0 < states <= _MOST_STATES


def padding(length: int) -> int:
    """Return how many steps are missing to whole chunks."""
    return -length % _CHUNK


def selective_forward(
    a: Array, h: Array, dt: Array, u: Array, b: Array, c: Array, starts: Array, *, interpret: bool
) -> tuple[Array, Array, Array]:
    """Return the last state [n, d], all y_t [T, d], and the state before each chunk [chunks, n, d].

    Args:
        a, h: Rates of growth and the state before the first step, [n, d].
        dt, u: [T, d], whole chunks of steps.
        b, c: [T, n].
        starts: True where the state before the step counts as zero.
        interpret: Run by Pallas' interpreter.
    """

    def run(a, h, dt, u, b, c, starts):
        sequences, length, channels = u.shape
        out = like(h), like(u), like(h, sequences, length // _CHUNK, *h.shape[1:])
        kernel = functools.partial(_forward_kernel, b.shape[2], channels, length)
        call = pallas(kernel, "selective_forward", _grid(u), out, warps=1, interpret=interpret)
        return call(a, h, dt, u, b, c, starts.astype(jnp.int8))

    return over_sequences(run, a, h, dt, u, b, c, starts)


def selective_backward(
    a: Array,
    dt: Array,
    u: Array,
    b: Array,
    c: Array,
    starts: Array,
    firsts: Array,
    dlast: Array,
    dys: Array,
    *,
    interpret: bool,
) -> tuple[Array, ...]:
    """Return the gradients by a, h, dt, u, b and c. Arguments: see `selective_forward`, whose third result is `firsts`.

    Args:
        dlast, dys: The gradients by its first two results.
    """

    def run(a, dt, u, b, c, starts, firsts, dlast, dys):
        sums = like(b, _grid(u)[1], *b.shape)
        states = like(dlast, len(u), _CHUNK, *dlast.shape[1:])
        out = like(dlast), like(dlast), like(dt), like(u), sums, sums, states
        kernel = functools.partial(_backward_kernel, b.shape[2], u.shape[2], u.shape[1], interpret)
        call = pallas(kernel, "selective_backward", _grid(u), out, warps=1, interpret=interpret)
        da, dh, ddt, du, db, dc, _ = call(a, dt, u, b, c, starts.astype(jnp.int8), firsts, dlast, dys)
        return da, dh, ddt, du, jnp.sum(db, axis=0), jnp.sum(dc, axis=0)

    return over_sequences(run, a, dt, u, b, c, starts, firsts, dlast, dys)


def _grid(u: Array) -> tuple[int, int]:
    return len(u), -(-u.shape[2] // _CHANNELS)


class _Tile:
    """All states of this program's channels, and how to read and write them and their rows."""

    def __init__(self, states: int, channels: int):
        self.sequence, self.block = pl.program_id(0), pl.program_id(1)
        size, first = power_of_two(states), self.block * _CHANNELS
        self.states, self.channels = pl.ds(0, size), pl.ds(first, _CHANNELS)
        # Where a tile is full there is nothing to mask.
        self.there = jnp.arange(size) < states if states < size else None
        self.inside = first + jnp.arange(_CHANNELS) < channels if channels % _CHANNELS else None

    def _both(self):
        if self.there is None or self.inside is None:
            parts = (None if self.there is None else self.there[:, None]), self.inside
            mask = next((part for part in parts if part is not None), None)
            return mask if mask is None or mask.ndim == 2 else mask[None, :]
        return self.there[:, None] & self.inside[None, :]

    def read(self, ref, t):
        """Return the channels in a step."""
        return _load(ref.at[self.sequence, t, self.channels], self.inside)

    def write(self, ref, value, t):
        """Write the channels in a step."""
        plgpu.store(ref.at[self.sequence, t, self.channels], value, mask=self.inside)

    def read_states(self, ref, *index):
        """Return all states [n, d]."""
        return _load(ref.at[(self.sequence, *index, self.states, self.channels)], self._both())

    def write_states(self, ref, value, *index):
        """Write all states [n, d]."""
        plgpu.store(ref.at[(self.sequence, *index, self.states, self.channels)], value, mask=self._both())

    def numbers(self, ref, t):
        """Return the numbers of a step that all channels share, [n]."""
        return _load(ref.at[self.sequence, t, self.states], self.there)

    def begins(self, ref, t):
        """Return the start flag."""
        return ref[self.sequence, t] != 0

    def write_sum(self, ref, value, t):
        """Write this program's sum over its channels, [n]."""
        plgpu.store(ref.at[self.block, self.sequence, t, self.states], value, mask=self.there)


def _load(at, mask):
    return plgpu.load(at) if mask is None else plgpu.load(at, mask=mask, other=0)


def _step(rates, h, dt, u, b):
    """Return the state after a step, and the decays."""
    decays = jnp.exp(dt[None, :] * rates)
    return decays * h + b[:, None] * (dt * u)[None, :], decays


def _forward_kernel(
    states: int, channels: int, length: int, a_ref, h_ref, dt_ref, u_ref, b_ref, c_ref, starts_ref, *results
) -> None:
    last_ref, ys_ref, firsts_ref = results
    own = _Tile(states, channels)
    rates = own.read_states(a_ref)

    def steps(k, h, *, chunk):
        first = chunk * _CHUNK + k * _STEPS
        rows = [
            (
                *(own.read(ref, first + i) for ref in (dt_ref, u_ref)),
                *(own.numbers(ref, first + i) for ref in (b_ref, c_ref)),
                own.begins(starts_ref, first + i),
            )
            for i in range(_STEPS)
        ]
        ys = []
        for dt, u, b, c, start in rows:
            h, _ = _step(rates, jnp.where(start, 0, h), dt, u, b)
            ys.append(jnp.sum(c[:, None] * h, axis=0))
        for i, y in enumerate(ys):
            own.write(ys_ref, y, first + i)
        return h

    def chunk(k, h):
        own.write_states(firsts_ref, h, k)
        return jax.lax.fori_loop(0, _CHUNK // _STEPS, functools.partial(steps, chunk=k), h)

    h = jax.lax.fori_loop(0, length // _CHUNK, chunk, own.read_states(h_ref))
    own.write_states(last_ref, h)


def _backward_kernel(states: int, channels: int, length: int, interpret: bool, *refs) -> None:
    a_ref, dt_ref, u_ref, b_ref, c_ref, starts_ref, firsts_ref, dlast_ref, dys_ref, *results = refs
    da_ref, dh_ref, ddt_ref, du_ref, db_ref, dc_ref, states_ref = results
    own = _Tile(states, channels)
    rates = own.read_states(a_ref)

    def again(k, h, *, first):
        inputs = []
        for i in range(_STEPS):
            t = first + k * _STEPS + i
            row = *(own.read(ref, t) for ref in (dt_ref, u_ref)), own.numbers(b_ref, t), own.begins(starts_ref, t)
            inputs.append(row)
        for i, (*now, start) in enumerate(inputs):
            h = jnp.where(start, 0, h)
            own.write_states(states_ref, h, k * _STEPS + i)
            h, _ = _step(rates, h, *now)
        return h

    def rows(i, first):
        t = first + i
        channel = tuple(own.read(ref, t) for ref in (dt_ref, u_ref, dys_ref))
        shared = *(own.numbers(ref, t) for ref in (b_ref, c_ref)), own.begins(starts_ref, t)
        return *channel, *shared, own.read_states(states_ref, i)

    def back(k, carry, *, first):
        """From the gradient of h_t to that of h_{t-1}."""
        (dt, u, dy, b, c, start, before), dh, da = carry
        i = _CHUNK - 1 - k
        t = first + i
        ahead = rows(jnp.maximum(i - 1, 0), first)
        h, decays = _step(rates, before, dt, u, b)
        dh = dh + c[:, None] * dy[None, :]
        own.write_sum(dc_ref, jnp.sum(h * dy[None, :], axis=1), t)
        own.write_sum(db_ref, jnp.sum(dh * (dt * u)[None, :], axis=1), t)
        dwrite = jnp.sum(b[:, None] * dh, axis=0)
        dh = dh * decays
        dlog_decay = dh * before
        own.write(ddt_ref, jnp.sum(dlog_decay * rates, axis=0) + dwrite * u, t)
        own.write(du_ref, dwrite * dt, t)
        return ahead, jnp.where(start, 0, dh), da + dlog_decay * dt[None, :]

    def chunk(k, carry):
        index = length // _CHUNK - 1 - k
        first = index * _CHUNK
        initial = own.read_states(firsts_ref, index)
        jax.lax.fori_loop(0, _CHUNK // _STEPS, functools.partial(again, first=first), initial)
        if not interpret:
            # Another thread of the warp may read what one wrote.
            plgpu.debug_barrier()
        carry = rows(jnp.int32(_CHUNK - 1), first), *carry
        return jax.lax.fori_loop(0, _CHUNK, functools.partial(back, first=first), carry)[1:]

    carry = own.read_states(dlast_ref), jnp.zeros_like(rates)
    dh, da = jax.lax.fori_loop(0, length // _CHUNK, chunk, carry)
    own.write_states(dh_ref, dh)
    own.write_states(da_ref, da)
