"""What the kernels take of a GPU, without one: compiled for an H100 or H200 (9.0) or another, on any machine.

    pip install triton
    python benchmarks/kernel_registers.py [--memories gru lru] [--width 128] [--options heads=1 head_size=64]
        [--precision highest] [--capability 80]

Prints for each kernel of the gradient of a memory's scan (T 1024, batch 64) its warps, the registers of a thread, the
bytes of registers that the compiler had to move to memory ("spilled"), bytes of shared memory, and seconds to compile.
The compiler is that of the triton package and its ptxas, not the one inside of XLA, which is a near relative. Spilled
bytes in the loop over time, or more than some seconds to compile, are a fault.
"""

import argparse
import importlib
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRITON_ALWAYS_COMPILE", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import equinox as eqx
import jax
import jax.numpy as jnp

from memax_rl import memory
from memax_rl.ops import kernels

MEMORIES = (
    "lru",
    "s5",
    "min_gru",
    "s6",
    "gru",
    "lstm",
    "mgu",
    "elman",
    "slstm",
    "linear_transformer",
    "mamba2",
    "gla",
    "gated_delta_net",
)


def lowered(name: str, width: int, options: dict[str, int], steps: int, batch: int) -> list[tuple[str, int, str]]:
    """Return name, warps and Triton code of each kernel in the gradient of a memory's scan."""
    lowering = importlib.import_module("jax._src.pallas.triton.lowering")
    to_module, found = lowering.lower_jaxpr_to_triton_module, []

    def keep(jaxpr: Any, *args: Any, **kwargs: Any) -> Any:
        result = to_module(jaxpr, *args, **kwargs)
        found.append((jaxpr.debug_info.func_name, result.module.operation.get_asm()))
        return result

    model = memory.make(name, in_size=width, out_size=width, key=jax.random.key(0), **options)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, xs, starts):
        model = eqx.combine(params, static)
        return jnp.mean(jax.vmap(lambda x, s: model.scan(model.initial_state(), x, s)[1])(xs, starts) ** 2)

    shapes = (
        params,
        jax.ShapeDtypeStruct((batch, steps, width), jnp.float32),
        jax.ShapeDtypeStruct((batch, steps), bool),
    )
    lowering.lower_jaxpr_to_triton_module = keep
    try:
        with kernels.use("1"):
            text = jax.jit(jax.grad(loss, (0, 1))).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    finally:
        lowering.lower_jaxpr_to_triton_module = to_module
    warps = [int(n) for n in re.findall(r"num_warps = (\d+)", text)]
    return [(name, count, code) for (name, code), count in zip(found, warps, strict=True)]


def compiled(code: str, warps: int, capability: int, folder: Path) -> tuple[str, float]:
    """Return what ptxas says about the kernel, in a line, and the seconds to compile it."""
    triton = importlib.import_module("triton")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    source, begin = folder / "kernel.ttir", time.perf_counter()
    source.write_text(code)
    kernel = triton.compile(str(source), target=target, options={"num_warps": warps, "num_stages": 1})
    seconds = time.perf_counter() - begin
    assembly = folder / "kernel.ptx"
    assembly.write_text(kernel.asm["ptx"])
    tools = Path(importlib.import_module("triton.backends.nvidia").__file__ or "").parent / "bin"
    # The newest of them reads what the package writes.
    for ptxas in sorted(tools.glob("ptxas*"), reverse=True):
        # What is for 9.0 alone, the products of its tensor cores, goes by a name of its own.
        architecture = f"sm_{capability}{'a' if capability == 90 else ''}"
        command = [ptxas, "-v", f"-arch={architecture}", "-o", folder / "kernel.cubin", assembly]
        told = subprocess.run(command, capture_output=True, text=True).stderr
        registers, spilled = re.search(r"Used (\d+) registers", told), re.search(r"(\d+) bytes spill stores", told)
        if registers and spilled:
            return f"{registers[1]:>9s} {spilled[1]:>7s} {kernel.metadata.shared:6d}", seconds
    raise SystemExit(f"no ptxas of {tools} can read what triton {triton.__version__} writes: {told.strip()}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--memories", nargs="+", default=MEMORIES)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--options", nargs="+", default=[], help="of the memories, KEY=NUMBER")
    parser.add_argument("--precision", default="default", choices=("default", "highest"), help="of products")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU, 10 times: 90 is an H100, 80 an A100")
    arguments = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", arguments.precision)
    options = {key: int(number) for key, _, number in (option.partition("=") for option in arguments.options)}
    print(f"{'memory':18s} {'kernel':32s} warps registers spilled shared compile s")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.memories:
            for kernel, warps, code in lowered(name, arguments.width, options, 1024, 64):
                told, seconds = compiled(code, warps, arguments.capability, Path(folder))
                print(f"{name:18s} {kernel:32s} {warps:5d} {told} {seconds:9.1f}", flush=True)


if __name__ == "__main__":
    main()
