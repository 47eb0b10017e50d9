"""Time and memory of every memory model, beside the `memax` package and beside `jax.lax.associative_scan`.

    python benchmarks/memory.py                                      every model, T = 1024, batch 8
    python benchmarks/memory.py --models lru gru --T 256 1024 --batch 1 8
    python benchmarks/memory.py --out results                        writes memory.csv, memory.md and memory.png
    python benchmarks/memory.py --out docs/results/memory --page docs/results/memory_models.md    refreshes a page too

Forward is one `scan` of the batch, backward the gradient of the mean square of the outputs by parameters and
inputs. Both sides get the same inputs and start flags. Each side is compiled once; then the sides take turns
in one process, two calls each of which the second counts, and a ratio is the median over the turns of their time over
ours, so that other load on the machine meets both; "in processor time" is the same of the time that all cores together
spent. Temporary memory is what XLA's own analysis of the compiled forward and backward pass says.

The column "beside" tells what stands beside a model:

- `memax`: the layer of that package (`pip install memax`, version 0.1.1 was used) at the same width and the
  same size of state. Its models differ in form from ours; the column says where that matters to the time.
- `autodiff`: our model as plain JAX differentiates it: its recurrence run by `jax.lax.associative_scan`, its products
  with weights by `@`.
- `recurrence`: the same for the recurrence by itself, without the model's matrix products.
- `product`: the same for one product with weights by itself.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import importlib
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp

from memax_rl import memory, ops
from memax_rl.evaluation.figures import BLUE, VERMILLION, make_figure, shorten

WIDTH = 128
HEAD = 64
START_PROBABILITY = 1 / 200
MARK = "<!-- measured: what follows is written by benchmarks/memory.py -->"

# f(params, xs, starts) -> outputs, and its params.
Side = tuple[Callable, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: a model of ours with its options, and what stands beside it."""

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    beside: str = ""
    other: Callable[[], Side] | None = None
    ours: Callable[[], Side] | None = None
    note: str = ""

    @property
    def label(self) -> str:
        """The name with its options."""
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])


def our_side(name: str, options: dict[str, Any]) -> Side:
    """Our model's `scan` over a batch."""
    model = memory.make(name, in_size=WIDTH, out_size=WIDTH, key=jax.random.key(0), **options)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def forward(params, xs, starts):
        model = eqx.combine(params, static)
        return jax.vmap(lambda x, s: model.scan(model.initial_state(), x, s)[1])(xs, starts)

    return forward, params


def memax_side(module: str, cls: str, **sizes: Any) -> Side:
    """A layer of the memax package over a batch, from its initial state."""
    layer = getattr(importlib.import_module(f"memax.equinox.{module}"), cls)(key=jax.random.key(0), **sizes)
    params, static = eqx.partition(layer, eqx.is_inexact_array)

    def forward(params, xs, starts):
        layer = eqx.combine(params, static)
        return jax.vmap(lambda x, s: layer(layer.initialize_carry(None), (x, s))[1])(xs, starts)

    return forward, params


def tree_recurrence(a, b, h0, starts):
    """The recurrence of `ops.linear_recurrence` as a library function away: a tree, differentiated by JAX."""

    def combine(left, right):
        (a_l, b_l), (a_r, b_r) = left, right
        return a_l * a_r, a_r * b_l + b_r

    a = jnp.where(starts.reshape(-1, *[1] * (b.ndim - 1)), 0, a)
    carried, hs = jax.lax.associative_scan(combine, (a, b))
    return hs + carried * h0[None]


def complex_diagonal_tree(re, im, b, h0, starts):
    """The same in place of `ops.complex_diagonal_recurrence`."""
    hs = tree_recurrence(
        jnp.broadcast_to(jax.lax.complex(re, im), b[:, 0].shape),
        jax.lax.complex(b[:, 0], b[:, 1]),
        jax.lax.complex(*h0),
        starts,
    )
    return jnp.stack([hs.real, hs.imag], axis=1)


def selective_tree(dt, u, b, c, a, h0, starts):
    """The same in place of `ops.selective_scan`: all steps at once."""
    decays, writes = jnp.exp(dt[:, None, :] * a[None]), b[:, :, None] * (dt * u)[:, None, :]
    hs = tree_recurrence(decays, writes, h0, starts)
    return hs[-1], jnp.einsum("tnd,tn->td", hs, c)


def autodiff_side(name: str, options: dict[str, Any]) -> Side:
    """Our model with the tree in place of our recurrences, and `@` in place of `ops.linear`."""
    forward, params = our_side(name, options)
    swaps = {
        "linear_recurrence": tree_recurrence,
        "complex_diagonal_recurrence": complex_diagonal_tree,
        "selective_scan": selective_tree,
        "linear": jnp.matmul,
    }

    def swapped(params, xs, starts):
        with contextlib.ExitStack() as stack:
            # The model's own module, and that of the base that it may have its `scan` from.
            for module in map(importlib.import_module, (f"memax_rl.memory.{name}", "memax_rl.memory.bases")):
                present = {op: swap for op, swap in swaps.items() if hasattr(module, op)}
                stack.enter_context(mock.patch.multiple(module, **present))
            return forward(params, xs, starts)

    return swapped, params


def recurrence_side(run: Callable, shape: tuple[int, ...], dtype: Any) -> Side:
    """A recurrence by itself: the decays are parameters [*shape], the writes a broadcast of the inputs."""
    decays = jax.random.uniform(jax.random.key(0), shape, minval=0.9, maxval=0.999).astype(dtype)

    def forward(decays, xs, starts):
        def one(x, s):
            b = jnp.broadcast_to(x.reshape(*x.shape[:1], -1, *[1] * (len(shape) - 1)), (x.shape[0], *shape))
            a = jnp.broadcast_to(decays, b.shape)
            return run(a, b.astype(dtype), jnp.zeros(shape, dtype), s)

        hs = jax.vmap(one)(xs, starts)
        return jnp.concatenate([hs.real, hs.imag]) if jnp.iscomplexobj(hs) else hs

    return forward, decays


def product_side(run: Callable) -> Side:
    """One product with weights by itself."""

    def forward(w, xs, starts):
        del starts
        return jax.vmap(lambda x: run(x, w))(xs)

    return forward, jax.random.normal(jax.random.key(0), (WIDTH, WIDTH)) * WIDTH**-0.5


def cases() -> Iterator[Case]:
    """All rows, in the order of the table."""
    semi, action = "semigroups", "set_actions"

    def beside_memax(name, options, module, cls, note="", **sizes):
        return Case(name, options, "memax", functools.partial(memax_side, module, cls, **sizes), note=note)

    square = {"hidden_size": WIDTH, "recurrent_size": WIDTH}
    own = {"recurrent_size": WIDTH}
    yield beside_memax("lru", {}, f"{semi}.lru", "LRU", **square)
    yield beside_memax(
        "ffm", {}, f"{semi}.ffm", "FFM", "no W_s there", hidden_size=WIDTH, trace_size=32, context_size=4
    )
    for name in ("lru", "s5", "s6", "min_gru", "rot_rnn"):
        twin = functools.partial(autodiff_side, name, {})
        yield Case(name, {}, "autodiff", twin, note="")
    ours, plain = functools.partial(product_side, ops.linear), functools.partial(product_side, jnp.matmul)
    yield Case("product", {}, "product", plain, ours, note="")
    for name, dtype in (("real", jnp.float32), ("complex", jnp.complex64)):
        yield Case(
            f"{name} recurrence",
            {},
            "recurrence",
            functools.partial(recurrence_side, tree_recurrence, (WIDTH,), dtype),
            functools.partial(recurrence_side, ops.linear_recurrence, (WIDTH,), dtype),
            note="no matrix products on either side",
        )
    yield beside_memax("nmax", {}, f"{semi}.nmax", "NMax", "a sum of two maxima there", **own)
    yield beside_memax("lrnn", {}, f"{semi}.lrnn", "LinearRecurrent", "a bare cumulative sum there", **own)

    one = {"heads": 1, "head_size": HEAD}
    state = {"hidden_size": WIDTH, "recurrent_size": HEAD}
    yield beside_memax("linear_transformer", one, f"{semi}.fart", "FART", **state)
    yield beside_memax("fwp", one, f"{semi}.fwp", "FWP", **state)
    note = "no convolution, no norm there"
    yield beside_memax("delta_net", one, f"{semi}.delta", "DeltaNet", note, **state)
    yield beside_memax("gated_delta_net", one, f"{semi}.gdn", "GDN", note, **state)
    yield beside_memax("delta_product", one | {"substeps": 2}, f"{semi}.deltap", "DeltaProduct", note, rank=2, **state)

    for window in (20, 128):
        for name, position in (("attention", None), ("rope_attention", "rope"), ("alibi_attention", "alibi")):
            sizes = {"recurrent_size": WIDTH, "window_size": window, "positional_embedding": position}
            same = {"window": window, "heads": 1, "head_size": WIDTH}
            yield beside_memax(name, same, f"{semi}.attn", "Attention", "no W_o there", **sizes)
    for window in (20, 128):
        sizes = {"recurrent_size": WIDTH, "window_size": window}
        same = {"window": window, "frame_size": WIDTH}
        yield beside_memax(
            "frame_stack", same, f"{semi}.stack", "Stack", "the input itself is the frame there", **sizes
        )
        small = "frames of 128 features there, of 16 here"
        yield beside_memax("frame_stack", {"window": window}, f"{semi}.stack", "Stack", small, **sizes)

    yield beside_memax("gru", {}, f"{action}.gru", "GRU", **own)
    yield beside_memax("lstm", {}, f"{action}.lstm", "LSTM", **own)
    yield beside_memax("mgu", {}, f"{action}.mgu", "MGU", **own)
    yield beside_memax("elman", {}, f"{action}.elman", "Elman", "one more matrix after it there", **square)

    shown = {"lru", "s5", "s6", "min_gru", "rot_rnn"}
    beside = "ffm nmax lrnn linear_transformer fwp delta_net gated_delta_net delta_product attention rope_attention"
    shown |= {*beside.split(), "alibi_attention", "frame_stack", "gru", "lstm", "mgu", "elman"}
    for name in memory.names():
        if name not in shown:
            yield Case(name)


@dataclasses.dataclass
class Compiled:
    """One side of one row: the programs and their inputs, and what compiling told."""

    forward: Callable
    backward: Callable
    compile_seconds: float
    temporary_mb: float
    inputs: tuple


def compile_side(side: Side, steps: int, batch: int) -> Compiled:
    """Compile forward, and forward with backward."""
    forward, params = side
    key_x, key_s = jax.random.split(jax.random.key(1))
    xs = jax.random.normal(key_x, (batch, steps, WIDTH))
    starts = jax.random.bernoulli(key_s, START_PROBABILITY, (batch, steps)).at[:, 0].set(True)

    def loss(params, xs, starts):
        return jnp.mean(forward(params, xs, starts) ** 2)

    begin = time.perf_counter()
    backward = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, xs, starts).compile()
    seconds = time.perf_counter() - begin
    analysis = backward.memory_analysis()
    megabytes = float("nan") if analysis is None else analysis.temp_size_in_bytes / 1e6
    return Compiled(
        jax.jit(forward).lower(params, xs, starts).compile(), backward, seconds, megabytes, (params, xs, starts)
    )


def seconds_of(program: Callable, inputs: tuple) -> tuple[float, float]:
    """Return the time of one call by the clock, and the processor time that it took on all cores."""
    begin, used = time.perf_counter(), time.process_time()
    jax.block_until_ready(program(*inputs))
    return time.perf_counter() - begin, time.process_time() - used


Turns = list[list[tuple[float, float]]]


def take_turns(sides: list[Compiled], seconds: float, least: int) -> tuple[Turns, Turns]:
    """Return the times of forward and of backward, [turns][sides]: the sides take turns for about `seconds`."""
    for side in sides:
        seconds_of(side.backward, side.inputs)
        seconds_of(side.forward, side.inputs)
    forward, backward, begin = [], [], time.perf_counter()
    while len(backward) < least or (time.perf_counter() - begin < seconds and len(backward) < 100):
        # Each side goes first in every other turn.
        order = list(enumerate(sides))[:: 1 if len(backward) % 2 else -1]
        backward.append([(0.0, 0.0)] * len(sides))
        forward.append([(0.0, 0.0)] * len(sides))
        # As in training, where the same call follows itself: the memory that the other side gave back is not paid for.
        for i, side in order:
            seconds_of(side.backward, side.inputs)
            backward[-1][i] = seconds_of(side.backward, side.inputs)
        for i, side in order:
            seconds_of(side.forward, side.inputs)
            forward[-1][i] = seconds_of(side.forward, side.inputs)
    return forward, backward


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, middle, high


def measure(case: Case, steps: int, batch: int, seconds: float, least: int, limit_mb: float) -> dict[str, Any]:
    """Return one row."""
    row: dict[str, Any] = {"model": case.label, "beside": case.beside, "T": steps, "batch": batch, "note": case.note}
    sides = [compile_side(case.ours() if case.ours else our_side(case.name, case.options), steps, batch)]
    if case.other is not None:
        other = compile_side(case.other(), steps, batch)
        row |= {"other compile s": other.compile_seconds, "other MB": other.temporary_mb}
        row["memory ratio"] = other.temporary_mb / sides[0].temporary_mb
        if other.temporary_mb < limit_mb:
            sides.append(other)
        else:
            row["note"] = f"not run: {other.temporary_mb / 1000:.0f} GB there; {case.note}".rstrip("; ")
    forward, backward = take_turns(sides, seconds, least)
    for prefix, i in (("", 0), ("other ", 1))[: len(sides)]:
        row[f"{prefix}forward ms"] = 1e3 * statistics.median(turn[i][0] for turn in forward)
        low, middle, high = quartiles([1e3 * turn[i][0] for turn in backward])
        row |= {f"{prefix}fwd+bwd ms": middle, f"{prefix}fwd+bwd quartiles": f"{low:.2f}-{high:.2f}"}
    row |= {"compile s": sides[0].compile_seconds, "MB": sides[0].temporary_mb, "turns": len(backward)}
    if len(sides) == 2:
        row["forward ratio"] = statistics.median(theirs[0] / ours[0] for ours, theirs in forward)
        low, middle, high = quartiles([theirs[0] / ours[0] for ours, theirs in backward])
        row |= {"ratio": middle, "ratio quartiles": f"{low:.1f}-{high:.1f}"}
        # A call that is over within a tick of the clock has no processor time to speak of.
        row["processor ratio"] = statistics.median(theirs[1] / max(ours[1], 1e-6) for ours, theirs in backward)
    return row


COLUMNS = (
    ("model", "model", "{}"),
    ("T", "T", "{}"),
    ("batch", "batch", "{}"),
    ("forward ms", "fwd ms", "{:.1f}"),
    ("fwd+bwd ms", "fwd+bwd ms", "{:.1f}"),
    ("compile s", "compile s", "{:.2f}"),
    ("MB", "MB", "{:.1f}"),
    ("beside", "beside", "{}"),
    ("other forward ms", "its fwd ms", "{:.1f}"),
    ("other fwd+bwd ms", "its fwd+bwd ms", "{:.1f}"),
    ("other compile s", "its compile s", "{:.2f}"),
    ("other MB", "its MB", "{:.1f}"),
    ("forward ratio", "times faster, fwd", "{:.1f}"),
    ("ratio", "times faster, fwd+bwd", "{:.1f}"),
    ("ratio quartiles", "quartiles", "{}"),
    ("processor ratio", "in processor time", "{:.1f}"),
    ("memory ratio", "times less memory", "{:.1f}"),
    ("note", "differs", "{}"),
)


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row's texts, empty where nothing was measured."""
    return [form.format(row[key]) if key in row else "" for key, _, form in COLUMNS]


def print_row(texts: list[str]) -> None:
    """Print one line of the table on the terminal."""
    widths = (46, 5, 5, 7, 10, 9, 7, 10, 10, 14, 13, 9, 17, 21, 12, 17, 17)
    columns = [f"{text:{width}}" for text, width in zip(texts[:-1], widths, strict=True)]
    print("  ".join([*columns, texts[-1]]).rstrip())
    sys.stdout.flush()


def write(rows: list[dict[str, Any]], folder: Path, page: Path | None, machine: str) -> None:
    """Write the table as CSV and markdown, and the picture; the table into a page also."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = ["model", *dict.fromkeys(key for row in rows for key in row if key != "model")]
    with (folder / "memory.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)
    lines = [machine, "", "| " + " | ".join(title for _, title, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    (folder / "memory.md").write_text("\n".join(lines) + "\n")
    if page:
        text = page.read_text().split(MARK)[0] + MARK + "\n\n" + "\n".join(lines) + "\n"
        page.write_text(text)
    draw(rows, folder / "memory.png", machine)
    if len({(row["T"], row["batch"]) for row in rows}) > 1:
        draw_sizes(rows, folder / "memory_sizes.png", machine)


def draw_sizes(rows: list[dict[str, Any]], path: Path, machine: str) -> None:
    """Draw for each batch our time against T, a line a model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    batches = sorted({row["batch"] for row in rows})
    figure, axes = plt.subplots(
        1, len(batches), figsize=(5 * len(batches) + 3, 6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, batch in zip(axes[0], batches, strict=True):
        lines: dict[str, dict[int, float]] = {}
        for row in rows:
            if row["batch"] == batch:
                lines.setdefault(row["model"], {})[row["T"]] = row["fwd+bwd ms"]
        for i, (model, times) in enumerate(lines.items()):
            axis.plot(list(times), list(times.values()), ["o-", "s--", "^:", "d-."][i // 10 % 4], label=model, ms=3)
        axis.set(title=f"batch {batch}", xlabel="T", xscale="log", yscale="log")
        axis.grid(which="both", alpha=0.2)
    axes[0, 0].set_ylabel("forward and backward, ms")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=6)
    figure.suptitle(machine, fontsize=8)
    figure.savefig(path, dpi=110)


def draw(rows: list[dict[str, Any]], path: Path, machine: str) -> None:
    """Draw for the largest T and batch: time and temporary memory of the models and of their counterparts."""
    from matplotlib.lines import Line2D

    size = max((row["T"], row["batch"]) for row in rows)
    rows = [row for row in rows if (row["T"], row["batch"]) == size]
    labels = [f"{row['model']} ({row['beside']})" if row["beside"] else row["model"] for row in rows]
    looks = {"memax_rl": (BLUE, "o"), "counterpart, in brackets": (VERMILLION, "^")}
    styles = {name: {"color": c, "marker": m, "markersize": 4, "linestyle": ""} for name, (c, m) in looks.items()}
    legend = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    ours, other = styles.values()
    caption = f"T = {size[0]}, batch {size[1]}, width {WIDTH}. {machine}. Medians over the turns; logarithmic scales."
    figure, axes = make_figure(2, "One layer, forward and backward", legend, caption, height=0.5 + 0.155 * len(rows))
    panels = (("fwd+bwd ms", "time, ms"), ("MB", "temporary memory, MB"))
    for axis, (key, title) in zip(axes, panels, strict=True):
        for i, row in enumerate(rows):
            theirs = row.get(f"other {key}")
            if theirs is not None:
                axis.plot([row[key], theirs], [i, i], color="0.8", zorder=1)
                axis.plot(theirs, i, **other)
            axis.plot(row[key], i, **ours)
        axis.set(xscale="log", xlabel=title, ylim=(len(rows) - 0.4, -0.6))
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_yticks(range(len(rows)), [])
    axes[0].set_yticks(range(len(rows)), [shorten(label.replace(" heads=1", ""), 48) for label in labels])
    figure.savefig(path, dpi=130)


def machine_name() -> str:
    """Return what machine this is, in words."""
    from importlib.metadata import version

    model = "".join(line.split(":", 1)[1] for line in _cpu_lines()[:1]).strip() or "unknown processor"
    kind = model if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
    return f"{kind}, {len(os.sched_getaffinity(0))} cores, JAX {version('jax')}, {jax.default_backend()}"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return [line for line in path.read_text().splitlines() if line.startswith("model name")] if path.exists() else []


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], epilog="What the columns mean stands at the top of this file."
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="names of models (default: all)")
    parser.add_argument("--T", nargs="+", type=int, default=[1024], help="steps (default: 1024)")
    parser.add_argument("--batch", nargs="+", type=int, default=[8], help="sequences at once (default: 8)")
    parser.add_argument("--quick", action="store_true", help="three turns for each row, whatever their spread")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row's turns (default: 4)")
    parser.add_argument("--memory-limit", type=float, default=12.0, help="run nothing that needs more GB (default: 12)")
    parser.add_argument("--out", type=Path, help="folder for memory.csv, memory.md and memory.png")
    parser.add_argument("--page", type=Path, help=f"with --out: a page that has the line {MARK}, before the table")
    arguments = parser.parse_args()
    if arguments.page and not (arguments.out and arguments.page.is_file() and MARK in arguments.page.read_text()):
        parser.error(f"--page takes a file that has the line {MARK}, and --out a folder, got {arguments.page}")
    unknown = set(arguments.models or ()) - {case.name.split()[0] for case in cases()}
    if unknown:
        parser.error(
            f"unknown models: {', '.join(sorted(unknown))}; see `memax-rl list memories`; and product, real, complex"
        )
    if min(*arguments.T, *arguments.batch, 1) < 1:
        parser.error("--T and --batch take whole numbers of at least 1")
    have_memax = importlib.util.find_spec("memax") is not None
    if not have_memax:
        print("memax is not installed (`pip install memax==0.1.1`): its columns stay empty", file=sys.stderr)
    machine = machine_name()
    print(machine)
    print_row([title for _, title, _ in COLUMNS])
    rows = []
    for steps in arguments.T:
        for batch in arguments.batch:
            for case in cases():
                if arguments.models and case.name.split()[0] not in arguments.models:
                    continue
                if case.beside == "memax" and not have_memax:
                    case = dataclasses.replace(case, other=None, note="")
                seconds, least = (0.0, 3) if arguments.quick else (arguments.seconds, 5)
                rows.append(measure(case, steps, batch, seconds, least, 1e3 * arguments.memory_limit))
                print_row(cells(rows[-1]))
                jax.clear_caches()
    if arguments.out:
        write(rows, arguments.out, arguments.page, machine)


if __name__ == "__main__":
    main()
