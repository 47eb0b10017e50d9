"""Every kernel in Pallas' interpreter against a plain loop in float64, over a grid of sizes: values and all gradients.

    python tests/stress/kernels.py [--quick] [--cases attention delta]

Lengths 1, 63, 500 and 1,025, batches of 1, 5 and 64, widths that are no multiple of a tile, without resets, with random
ones and with one in every step, from a state that is not zero. Prints the largest error of each case as a share of the
largest entry of what is compared; exits with 1 if one is above 1e-5 for values or 1e-4 for gradients. Some twenty
minutes, of which most is the interpreter's; `--quick` leaves out the lengths above 63.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memax_rl import ops
from memax_rl.memory.gru import GRU
from memax_rl.memory.lstm import LSTM
from memax_rl.ops import kernels

LENGTHS, BATCHES, STARTS = (1, 63, 500, 1025), (1, 5, 64), {"none": 0.0, "random": 0.05, "all": 1.0}


def linear(a: Any, b: Any, h0: Any, starts: Any) -> Any:
    """Return all h of the plain loop."""

    def step(h, now):
        a, b, start = now
        h = jnp.where(start, 0, a * h) + b
        return h, h

    return jax.lax.scan(step, h0, (jnp.broadcast_to(a, b.shape), b, starts))[1]


def turning(re: Any, im: Any, b: Any, h0: Any, starts: Any) -> Any:
    """Return all h of the plain loop with a complex decay, as pairs."""
    hs = linear(re + 1j * im, b[:, 0] + 1j * b[:, 1], h0[0] + 1j * h0[1], starts)
    return jnp.stack([hs.real, hs.imag], axis=1)


def selective(dt: Any, u: Any, b: Any, c: Any, a: Any, state: Any, starts: Any) -> Any:
    """Return the last state and all y of the plain loop."""

    def step(h, now):
        dt, u, b, c, start = now
        h = jnp.where(start, 0, jnp.exp(dt[None] * a) * h) + b[:, None] * (dt * u)[None]
        return h, c @ h

    return jax.lax.scan(step, state, (dt, u, b, c, starts))


def attention(q: Any, k: Any, v: Any, log_decay: Any, state: Any, starts: Any) -> Any:
    """Return the last state and all y of the plain loop of linear attention."""

    def step(s, now):
        q, k, v, log_decay, start = now
        s = jnp.where(start, 0, s)
        s = s if log_decay is None else jnp.exp(log_decay).reshape(-1, 1) * s
        s = s + k[:, None] * v[None, :]
        return s, q @ s

    return jax.lax.scan(step, state, (q, k, v, log_decay, starts))


def delta(q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, starts: Any) -> Any:
    """Return the last state and all y of the plain loop of the delta rule."""

    def step(s, now):
        q, k, v, beta, log_decay, start = now
        s = jnp.exp(log_decay) * jnp.where(start, 0, s)
        s = s + (beta * k)[:, None] * (v - k @ s)[None, :]
        return s, q @ s

    return jax.lax.scan(step, state, (q, k, v, beta, log_decay, starts))


def gates(cell: Callable, product: Callable) -> Callable:
    """Return the plain loop of a cell."""

    def run(weights, inputs, state, starts):
        def step(state, now):
            x, start = now
            state = jax.tree.map(lambda s: jnp.where(start, 0, s), state)
            both = zip(x, product(weights, state[0]), strict=True)
            state = cell(tuple(sum(part for part in parts if part is not None) for parts in both), state)
            return state, state[0]

        return jax.lax.scan(step, state, (inputs, starts))

    return run


Case = tuple[str, Callable, Callable, tuple, tuple]


def cases(rng: np.random.Generator, length: int, batch: int) -> Iterator[Case]:
    """Yield name, op, loop, arrays and the axes of their batch, but for the start flags."""
    for width in (1, 37, 64):
        rows, first = (batch, length, width), (batch, width)
        b, h0 = rng.normal(size=rows), rng.normal(size=first)
        yield f"real {width}", ops.linear_recurrence, linear, (rng.uniform(-1, 1, rows), b, h0), (0, 0, 0)
        constant = rng.uniform(-1, 1, width)
        yield f"real, constant {width}", ops.linear_recurrence, linear, (constant, b, h0), (None, 0, 0)
        modulus, phase = rng.uniform(0.5, 0.999, width), rng.uniform(0, np.pi, width)
        decay = modulus * np.cos(phase), modulus * np.sin(phase)
        pairs = rng.normal(size=(batch, length, 2, width)), rng.normal(size=(batch, 2, width))
        yield f"complex {width}", ops.complex_diagonal_recurrence, turning, (*decay, *pairs), (None, None, 0, 0)
    for states, channels in ((1, 1), (3, 37), (16, 32)):
        dt, u = (
            np.log1p(np.exp(rng.normal(size=(batch, length, channels)) - 2)),
            rng.normal(size=(batch, length, channels)),
        )
        b, c = rng.normal(size=(2, batch, length, states))
        a, state = -rng.exponential(size=(states, channels)), rng.normal(size=(batch, states, channels))
        axes = (0, 0, 0, 0, None, 0)
        yield f"selective {states} x {channels}", ops.selective_scan, selective, (dt, u, b, c, a, state), axes
    for decay, keys, values in (("none", 33, 65), ("step", 1, 1), ("step", 37, 49), ("channel", 20, 33)):
        q, k = rng.normal(size=(2, batch, length, keys)) * keys**-0.5
        v, state = rng.normal(size=(batch, length, values)), rng.normal(size=(batch, keys, values))
        shape = {"none": None, "step": (batch, length), "channel": (batch, length, keys)}[decay]
        log_decay = None if shape is None else -rng.exponential(size=shape) * rng.choice([0.02, 1], shape)
        axes = (0, 0, 0, None if shape is None else 0, 0)
        name = f"attention, {decay} {keys}"
        yield name, ops.linear_attention, attention, (q, k, v, log_decay, state), axes
    for keys, values in ((1, 1), (33, 49)):
        q, k = rng.normal(size=(2, batch, length, keys)) * keys**-0.5
        k /= np.linalg.norm(k, axis=-1, keepdims=True)
        v, state = rng.normal(size=(batch, length, values)), rng.normal(size=(batch, keys, values))
        beta, log_decay = 2 * rng.random((batch, length)), -rng.exponential(size=(batch, length)) * 0.1
        yield f"delta {keys}", ops.delta_rule, delta, (q, k, v, beta, log_decay, state), (0, 0, 0, 0, 0, 0)
    for model, count, parts in ((GRU, 3, 1), (LSTM, 4, 2)):
        for width in (1, 33):
            matrices = [rng.normal(size=(width, width)) * width**-0.5 for _ in range(count)]
            weights = (np.concatenate(matrices, axis=1), rng.normal(size=width)) if model is GRU else tuple(matrices)
            inputs = (*rng.normal(size=(count, batch, length, width)), *([None] if model is GRU else []))
            state = tuple(rng.normal(size=(parts, batch, width)))
            run, loop = _bound(ops.nonlinear_recurrence, model), gates(model.cell, model.product)
            yield f"{model.__name__} {width}", run, loop, (weights, inputs, state), (None, 0, 0)


def _bound(op: Callable, model: Any) -> Callable:
    return lambda *arrays: op(model.cell, model.product, *arrays)


def results(function: Callable, arrays: Any, axes: tuple, starts: Any) -> tuple[list, list]:
    """Return all values and all gradients of a sum of them with weights."""

    def total(arrays):
        values = jax.vmap(function, in_axes=(*axes, 0))(*arrays, starts)
        leaves = jax.tree.leaves(values)
        weights = [np.cos(0.7 * np.arange(leaf.size)).reshape(leaf.shape) for leaf in leaves]
        return sum(jnp.sum(leaf * w) for leaf, w in zip(leaves, weights, strict=True)), values

    (_, values), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(arrays)
    return jax.tree.leaves(values), jax.tree.leaves(gradients)


def worst(got: list, wanted: list) -> float:
    """Return the largest error as a share of the largest entry."""
    shares = [
        np.max(np.abs(np.asarray(g) - np.asarray(w))) / max(np.max(np.abs(np.asarray(w))), 1e-3)
        for g, w in zip(got, wanted, strict=True)
    ]
    return float(max(shares))


def main() -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="lengths 1 and 63 only")
    parser.add_argument("--lengths", type=int, nargs="+", help="these lengths only")
    parser.add_argument("--starts", nargs="+", default=tuple(STARTS), choices=STARTS, help="these resets only")
    parser.add_argument("--cases", nargs="+", default=("",), help="only those whose name begins so, as real or delta")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="these batches only")
    arguments = parser.parse_args()
    lengths, failed = arguments.lengths or LENGTHS[: 2 if arguments.quick else None], False
    for kind, length, batch in ((k, t, n) for k in arguments.starts for t in lengths for n in arguments.batches):
        rng = np.random.default_rng([length, batch])
        starts = rng.random((batch, length)) < STARTS[kind]
        for name, run, loop, arrays, axes in cases(rng, length, batch):
            if not name.startswith(tuple(arguments.cases)):
                continue
            begin = time.perf_counter()
            with jax.enable_x64(True):
                values, gradients = results(loop, jax.tree.map(jnp.asarray, arrays), axes, jnp.asarray(starts))
                values, gradients = ([np.asarray(x) for x in part] for part in (values, gradients))
            with kernels.use("interpret"):
                single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)
                got = results(run, single, axes, jnp.asarray(starts))
            errors = worst(got[0], values), worst(got[1], gradients)
            wrong = not (errors[0] < 1e-5 and errors[1] < 1e-4)
            failed |= wrong
            size, took = f"T {length:5d}  batch {batch:3d}  starts {kind:7s} {name:22s}", time.perf_counter() - begin
            told = f"values {errors[0]:.0e} gradients {errors[1]:.0e} {took:6.1f} s{'  WRONG' if wrong else ''}"
            print(size, told, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
