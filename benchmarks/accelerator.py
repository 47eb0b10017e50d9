"""What the kernels gain on a GPU: checked there, and timed beside the plain form, an associative scan and the floor.

    python benchmarks/accelerator.py                 five minutes on an NVIDIA GPU
    python benchmarks/accelerator.py --small         tiny sizes, kernels in Pallas' interpreter: does the script work?
    python benchmarks/accelerator.py --tune          other shares of work in the kernels as well

Needs JAX, equinox and jaxtyping, and for the rows of PPO what memax_rl needs. Where nothing can be installed: bring a
folder from `pip install --target packages equinox jaxtyping --no-deps wadler-lindig`, and run in a checkout with
PYTHONPATH=.:packages.

1. Checks. Every kernel against its plain form on this machine: values and gradients, odd sizes, resets, a state that is
   not zero. The largest error is printed as a share of the largest entry; above 2e-4 it is WRONG, and the script ends
   with status 1.
2. Layers. T 1024, batch 64, width 128, in ms: by kernel, by the plain form, with the recurrence run by
   `jax.lax.associative_scan` as JAX differentiates it ("tree"), and `memax` where that package is installed
   (`benchmarks/memory.py` says how they differ). "floor" is what the arrays need at the bandwidth of a copy, measured
   first, plus the products with weights at the rate of a large product, and for cells with gates their steps in a row:
   the products of a step at the float32 rate of one multiprocessor. "aim" is what the kernel is meant to reach, from an
   H100's times without kernels.
3. PPO. CartPole, 128 steps, 4 epochs, 4 minibatches, width 128: environment steps a second with 2,048 environments.
"""

import argparse
import contextlib
import functools
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from memax_rl import memory, ops
from memax_rl.ops import kernels

WRONG = 2e-4
# A multiprocessor's multiply-adds of float32 in a second: 128 a cycle at 1.755 GHz, the boost clock of an H100.
MULTIPLY_ADDS = 128 * 1.755e9


class Size(NamedTuple):
    """Steps, sequences and width of the layers."""

    steps: int
    batch: int
    width: int


class Machine(NamedTuple):
    """What was measured of the machine: bytes a second of a copy, and operations a second of a large product."""

    bandwidth: float
    products: float


class Layer(NamedTuple):
    """A row of the table.

    Attributes:
        name: A memory, or "recurrence".
        options: Those of the memory.
        arrays: Arrays [batch, T, width] that forward and backward read or write at the least, and forward alone.
        entries: Weights by which each input is multiplied, over width^2.
        in_a_row: Those of them that each step waits for.
        aim: Milliseconds to reach, forward and backward.
    """

    name: str
    options: dict[str, Any]
    arrays: tuple[float, float]
    entries: float
    in_a_row: float
    aim: float


ONE_HEAD = {"heads": 1, "head_size": 64}
# The arrays, forward: lru reads x, writes and reads its writes (2) and states (2), reads x again for D x, and writes y.
# Backward each product reads its factors and writes a gradient twice, and a recurrence reads gradient and states, and
# writes one. Gates: the input's products write each gate, the loop reads them, writes gates and states.
LAYERS = (
    Layer("recurrence", {}, (6 * 2 + 10, 6), 0, 0, 0.2),
    Layer("lru", {}, (29, 11), 4, 0, 0.55),
    Layer("s5", {}, (18, 7), 2, 0, 0.55),
    Layer("min_gru", {}, (22, 8), 2, 0, 0.45),
    Layer("s6", {}, (70, 26), 7, 0, 2.2),
    Layer("gru", {}, (29, 13), 3, 3, 8.4),
    Layer("lstm", {}, (36, 16), 4, 4, 8.4),
    Layer("mgu", {}, (23, 9), 2, 2, 0),
    Layer("elman", {}, (13, 5), 1, 1, 0),
    Layer("slstm", {}, (42, 20), 4, 4, 0),
    Layer("linear_transformer", ONE_HEAD, (18, 6), 2, 0, 0.83),
    Layer("gla", ONE_HEAD, (27, 9), 2.7, 0, 0),
    Layer("mamba2", ONE_HEAD, (34.5, 11.5), 2.5, 0, 0),
    Layer("mlstm", ONE_HEAD, (24, 8), 2.5, 0, 0),
    Layer("gated_delta_net", ONE_HEAD, (30, 12), 2.5, 0, 1.63),
)
CHECKED = (
    *("lru", "s5", "min_gru", "s6", "gru", "lstm", "mgu", "elman", "slstm"),
    *("linear_transformer", "gla", "mamba2", "mlstm", "delta_net", "gated_delta_net", "delta_product"),
)


def seconds(run: Callable, *arguments: Any, least: float = 0.2) -> float:
    """Return the time of a call, the median of several, each of which is a row of calls where one is short."""
    jax.block_until_ready(run(*arguments))
    begin = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    count = max(1, min(50, int(least / 5 / max(time.perf_counter() - begin, 1e-6))))
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(count):
            out = run(*arguments)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - begin) / count)
    return statistics.median(times)


def measure_machine(small: bool) -> Machine:
    """Return bandwidth and rate of products, and print them."""
    count, side = (2**16, 64) if small else (2**28, 8192)
    x = jnp.ones(count, jnp.float32)
    bandwidth = 8 * count / seconds(jax.jit(lambda x: x + 1), x)
    y = jax.random.normal(jax.random.key(0), (side, side))
    rates = {}
    for precision in ("default", "highest"):
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))
        rates[precision] = 2 * side**3 / seconds(product, y, y)
    device = jax.devices()[0]
    print(f"{device.device_kind}, {jax.default_backend()}, JAX {jax.__version__}")
    shown = ", ".join(f"{rate / 1e12:.1f} TFLOP/s ({name})" for name, rate in rates.items())
    print(f"copy {bandwidth / 1e12:.2f} TB/s; product of float32 matrices {shown}")
    return Machine(bandwidth, rates["default"])


def gradient(model: Any, forward_only: bool = False) -> tuple[Callable, Any]:
    """Return the gradient of a layer by parameters and inputs, or its outputs alone, and the parameters."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def forward(params, xs, starts):
        model = eqx.combine(params, static)
        return jax.vmap(lambda x, s: model.scan(model.initial_state(), x, s)[1])(xs, starts)

    def loss(params, xs, starts):
        return jnp.mean(forward(params, xs, starts) ** 2)

    return (forward if forward_only else jax.grad(loss, (0, 1))), params


def inputs(size: Size) -> tuple[jax.Array, jax.Array]:
    """Return inputs and start flags of a batch."""
    key_x, key_s = jax.random.split(jax.random.key(1))
    xs = jax.random.normal(key_x, (size.batch, size.steps, size.width))
    return xs, jax.random.bernoulli(key_s, 1 / 200, (size.batch, size.steps))


def compiled(run: Callable, mode: kernels.Mode, *arguments: Any) -> tuple[Callable, float]:
    """Return the program, and the seconds to compile it."""
    begin = time.perf_counter()
    with kernels.use(mode):
        program = jax.jit(run).lower(*arguments).compile()
    return program, time.perf_counter() - begin


def checks(mode: kernels.Mode, small: bool) -> bool:
    """Print the errors of every kernel against its plain form; return whether all are small."""
    lengths, batches = ((1, 21), (3,)) if small else ((1, 63, 500, 1025), (1, 64))
    print("\nchecks: largest error as a share of the largest entry, of values and of gradients")
    fine = True
    for name in CHECKED:
        worst = [0.0, 0.0]
        for steps, batch, width in (
            (t, n, w) for t in lengths for n in batches for w in ((10,) if small else (37, 128))
        ):
            if name == "s5" and width % 2:
                width += 1
            found = errors(name, Size(steps, batch, width), mode)
            worst = [max(pair) for pair in zip(worst, found, strict=True)]
        good = max(worst) < WRONG
        fine &= good
        print(f"  {name:18s} {worst[0]:.0e} {worst[1]:.0e}  {'ok' if good else 'WRONG'}", flush=True)
    return fine


def errors(name: str, size: Size, mode: kernels.Mode) -> tuple[float, float]:
    """Return the largest errors of values and gradients by kernel, from a state that is not zero."""
    model = memory.make(name, in_size=size.width, out_size=size.width, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    xs, _ = inputs(size)
    starts = jax.random.bernoulli(jax.random.key(2), 0.1, xs.shape[:2])
    state = jax.vmap(lambda x: model.step(model.initial_state(), x, jnp.array(False))[0])(xs[:, 0])

    def loss(params, state, xs):
        model = eqx.combine(params, static)
        last, ys = jax.vmap(model.scan)(state, xs, starts)
        total = sum(jnp.sum(jnp.sin(leaf.real) + jnp.cos(leaf.imag)) for leaf in jax.tree.leaves((last, ys)))
        return total, (last, ys)

    def both(params, state, xs):
        (_, values), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, state, xs)
        return values, gradients

    with jax.default_matmul_precision("highest"):
        results = [compiled(functools.partial(both), m, params, state, xs)[0](params, state, xs) for m in (mode, "0")]
    shares = [share(got, wanted) for got, wanted in zip(*results, strict=True)]
    return shares[0], shares[1]


def share(got: Any, wanted: Any) -> float:
    """Return the largest error as a share of the largest entry of its array; nan counts as infinite.

    An array whose entries are below a thousandth of the largest of all is compared with that: it may be nothing but
    rounding, as the gradient by a scale in front of a norm.
    """
    got, wanted = (list(map(np.asarray, jax.tree.leaves(tree))) for tree in (got, wanted))
    least = 1e-3 * max(1, *(float(np.max(np.abs(w))) for w in wanted))
    worst = 0.0
    for g, w in zip(got, wanted, strict=True):
        error = np.max(np.abs(g - w)) / max(np.max(np.abs(w)), least)
        worst = max(worst, float(error) if np.isfinite(error) else np.inf)
    return worst


def plain_recurrence(size: Size) -> tuple[Callable, Any]:
    """Return the gradient of a real recurrence of twice the width by itself."""

    def loss(a, xs, starts):
        b = jnp.concatenate([xs, xs], axis=-1)
        zero = jnp.zeros(b.shape[-1])
        hs = jax.vmap(lambda a, b, s: ops.linear_recurrence(a, b, zero, s))(a, b, starts)
        return jnp.mean(hs**2)

    a = jax.random.uniform(jax.random.key(0), (size.batch, size.steps, 2 * size.width))
    return jax.grad(loss, (0, 1)), a


def floor(layer: Layer, size: Size, machine: Machine) -> float:
    """Return the milliseconds that this machine needs at the least, forward and backward."""
    tokens = size.steps * size.batch
    moved = 4 * layer.arrays[0] * tokens * size.width / machine.bandwidth
    multiplied = 3 * 2 * layer.entries * tokens * size.width**2 / machine.products
    in_a_row = 2 * size.steps * layer.in_a_row * size.width**2 / MULTIPLY_ADDS
    return 1e3 * (moved + multiplied + in_a_row)


@contextlib.contextmanager
def associative_scans(name: str) -> Iterator[None]:
    """Run the recurrences of a memory by `jax.lax.associative_scan`, as JAX differentiates it."""
    import memory as beside

    swaps = {
        "linear_recurrence": beside.tree_recurrence,
        "complex_diagonal_recurrence": beside.complex_diagonal_tree,
        "selective_scan": beside.selective_tree,
    }
    with contextlib.ExitStack() as stack:
        for module in map(importlib.import_module, (f"memax_rl.memory.{name}", "memax_rl.memory.bases")):
            present = {op: swap for op, swap in swaps.items() if hasattr(module, op)}
            if present:
                stack.enter_context(mock.patch.multiple(module, **present))
        yield


def memax_layers() -> dict[str, tuple[Callable, Any]]:
    """Return the forward passes of the memax package's layers, and their parameters, where it is installed."""
    if importlib.util.find_spec("memax") is None:
        return {}
    import memory as beside

    wanted = {layer.name for layer in LAYERS}
    found = [case for case in beside.cases() if case.beside == "memax" and case.name in wanted and case.other]
    return {case.name: case.other() for case in found if case.other}


def milliseconds(run: Callable, mode: kernels.Mode, *arguments: Any) -> tuple[float, float]:
    """Return the time of a call, and the seconds to compile; nan where it fails, with the reason printed."""
    try:
        program, took = compiled(run, mode, *arguments)
        return 1e3 * seconds(program, *arguments), took
    except Exception as error:  # Whatever fails here must not take the other rows with it.
        print(f"  failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return float("nan"), float("nan")


def layers(size: Size, machine: Machine, mode: kernels.Mode, only: list[str] | None) -> None:
    """Print the table of layers."""
    print(f"\nlayers: T {size.steps}, batch {size.batch}, width {size.width}; ms, forward and backward unless said")
    titles = (
        "kernel",
        "forward",
        "plain",
        "forward",
        "tree",
        "memax",
        "floor",
        "aim",
        "faster",
        "compile s",
        "plain s",
    )
    print(f"{'':19s}" + "".join(f"{title:>10s}" for title in titles))
    others, (xs, starts) = memax_layers(), inputs(size)
    for layer in LAYERS:
        if only and layer.name not in only:
            continue
        times = [float("nan")] * 4
        if layer.name == "recurrence":
            run, params = plain_recurrence(size)
            forward = None
        else:
            model = memory.make(
                layer.name, in_size=size.width, out_size=size.width, key=jax.random.key(0), **layer.options
            )
            (run, params), (forward, _) = gradient(model), gradient(model, forward_only=True)
        kernel, compile_kernel = milliseconds(run, mode, params, xs, starts)
        plain, compile_plain = milliseconds(functools.partial(run), "0", params, xs, starts)
        if forward is not None:
            times[0], _ = milliseconds(forward, mode, params, xs, starts)
            times[1], _ = milliseconds(functools.partial(forward), "0", params, xs, starts)
        if layer.name in ("lru", "s5", "min_gru", "s6"):
            with associative_scans(layer.name):
                times[2], _ = milliseconds(functools.partial(run), "0", params, xs, starts)
        if layer.name in others:
            theirs, weights = others[layer.name]
            loss = jax.grad(lambda p, x, s, f=theirs: jnp.mean(f(p, x, s) ** 2), (0, 1))
            times[3], _ = milliseconds(loss, "0", weights, xs, starts)
        low = floor(layer, size, machine)
        row = [kernel, times[0], plain, times[1], *times[2:], low, layer.aim, plain / kernel, compile_kernel]
        shown = "".join(f"{'' if x != x or x == 0 else f'{x:.2f}':>10s}" for x in (*row, compile_plain))
        print(f"{layer.name:19s}{shown}", flush=True)


def tune(size: Size, mode: kernels.Mode) -> None:
    """Print the times of other shares of work in the kernels."""
    from memax_rl.ops.kernels import _delta_rule, _diagonal, _gates, _linear_attention

    print("\nother shares of work: ms, forward and backward")
    xs, starts = inputs(size)
    choices = [("min_gru", _diagonal, {"_ROWS": rows, "_STEPS": rows // 3}) for rows in (12, 24, 48, 96)] + [
        ("gru", _gates, {"_RESIDENT": a * 128**2, "_RESIDENT_BACKWARD": b * 128**2, "_EACH_WARP": each * 32})
        for a, b, each in ((2, 1, 64), (3, 1, 64), (1, 1, 64), (2, 2, 64), (2, 1, 32), (2, 1, 128))
    ]
    for name, module, chunks in (
        ("linear_transformer", _linear_attention, (16, 32, 64)),
        ("gated_delta_net", _delta_rule, (16, 32)),
    ):
        choices += [(name, module, {"_CHUNK": steps, "_VALUES": 32}) for steps in chunks]
        choices += [(name, module, {"_CHUNK": 32, "_VALUES": columns}) for columns in (16, 64)]
    for name, module, values in choices:
        options = ONE_HEAD if module in (_linear_attention, _delta_rule) else {}
        model = memory.make(name, in_size=size.width, out_size=size.width, key=jax.random.key(0), **options)
        run, params = gradient(model)
        with mock.patch.multiple(module, **values):
            took, _ = milliseconds(run, mode, params, xs, starts)
        print(f"  {name:18s} {values}: {took:.2f}", flush=True)


def ppo(small: bool, mode: kernels.Mode) -> None:
    """Print the steps a second of PPO, where the packages that it needs are installed."""
    try:
        import train
    except ImportError as error:
        print(f"\nPPO left out: {error}")
        return
    environments, length = (8, 8) if small else (2048, 128)
    print(f"\nPPO, CartPole, {environments} environments x {length} steps: environment steps a second")
    for name in ("gru", "lru"):
        for choice in dict.fromkeys((mode, "0")):
            settings = {"num_envs": environments, "rollout_length": length, "num_minibatches": 4, "update_epochs": 4}
            settings |= {"rollout": "truncated_bptt", "lr_schedule": "constant"}
            network = {"memory": name, "width": 16 if small else 128}
            with kernels.use(choice):
                rate, _ = train.measure({"network": network, "ppo": settings}, 1, 1 if small else 10)
            print(f"  {name:5s} {'plain' if choice == '0' else 'kernel':7s} {rate:14,.0f}", flush=True)


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes; without a GPU, kernels in the interpreter")
    parser.add_argument("--tune", action="store_true", help="time other shares of work in the kernels")
    parser.add_argument("--layers", nargs="+", choices=[layer.name for layer in LAYERS], help="these rows only")
    parser.add_argument("--no-ppo", action="store_true", help="leave out the rows of PPO")
    arguments = parser.parse_args()
    on_gpu = jax.default_backend() == "gpu"
    if not on_gpu and not arguments.small:
        parser.error(f"JAX runs on {jax.default_backend()} here; this is for a GPU, and --small for trying it out")
    mode: kernels.Mode = "auto" if on_gpu else "interpret"
    size = Size(24, 2, 16) if arguments.small else Size(1024, 64, 128)
    machine = measure_machine(arguments.small)
    fine = checks(mode, arguments.small)
    layers(size, machine, mode, arguments.layers)
    if arguments.tune:
        tune(size, mode)
    if not arguments.no_ppo:
        ppo(arguments.small, mode)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
