"""One update of MNIST Math on a sequence of up to 784,000 pixels: time, and the most memory the process ever held.

    python benchmarks/probe_long.py                                 1/8, 1/4, 1/2 and all of 1,000 pictures
    python benchmarks/probe_long.py --models lru mlstm --images 100 --width 128

The gradient goes back through the whole sequence: the memory's own `scan` runs over a chunk at a time, whose
activations are computed again on the way back (`learner.chunk`). The pictures are random ones of 28 x 28 in a temporary
folder; what is on them changes no time. The second update is timed. Each measurement has a process of its own, since
the most memory that a process held is known for its whole life only. Time is linear where the last column stays as it
is.
"""

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from memax_rl import memory
from memax_rl.probes import Learner, make_probe_config
from memax_rl.rollout.streams import seed_key


def write_pictures(folder: Path) -> None:
    """Write 100 random pictures for each split, in the files of MNIST."""
    rng = np.random.default_rng(0)
    arrays = {"images-idx3": rng.integers(0, 256, (100, 28, 28), np.uint8), "labels-idx1": np.arange(100) % 10}
    for split in ("train", "t10k"):
        for name, array in arrays.items():
            head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
            (folder / f"{split}-{name}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())


def measure(name: str, images: int, width: int, chunk: int) -> dict[str, float]:
    """Return seconds of an update, its temporary memory by XLA's analysis and the peak of the process, GiB."""
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        fields = {"task": "digit_math", "task_options": {"pictures": folder, "images": images}}
        fields |= {"network": {"memory": name, "width": width}, "learner": {"batch_size": 1, "chunk": chunk}}
        learner = Learner(make_probe_config(fields))
    arrays, static = eqx.partition(learner.init(seed_key(0)), eqx.is_array)

    def update(arrays):
        state, metrics = learner.update(eqx.combine(arrays, static))
        return eqx.filter(state, eqx.is_array), metrics["loss"]

    program = jax.jit(update, donate_argnums=0).lower(arrays).compile()
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        arrays, loss = jax.block_until_ready(program(arrays))
        seconds.append(time.perf_counter() - begin)
        if not jnp.isfinite(loss):
            raise SystemExit(f"{name}: the loss is {loss} at {images} pictures")
    analysis = program.memory_analysis()
    return {
        "seconds": seconds[-1],
        "temporary": float("nan") if analysis is None else analysis.temp_size_in_bytes / 2**30,
        # KiB on Linux.
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["lru", "gated_delta_net", "gru"], metavar="NAME")
    parser.add_argument("--images", type=int, default=1_000, help="pictures of the longest sequence, 784 pixels each")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=7_840, help="pixels that activations are held of at a time")
    parser.add_argument("--one", action="store_true", help="one model, --images alone, as JSON, in this process")
    arguments = parser.parse_args()
    for name in arguments.models:
        memory.spec(name)
    if arguments.one:
        print(json.dumps(measure(arguments.models[0], arguments.images, arguments.width, arguments.chunk)))
        return
    print(f"{'model':20s} {'pixels':>9s} {'s':>7s} {'temporary GiB':>14s} {'peak GiB':>9s} {'us a pixel':>10s}")
    for name in arguments.models:
        for parts in (8, 4, 2, 1):
            images = arguments.images // parts
            command = [sys.executable, __file__, "--one", "--models", name, "--images", str(images)]
            command += ["--width", str(arguments.width), "--chunk", str(arguments.chunk)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            pixels = 784 * images
            if done.returncode:
                print(f"{name:20s} {pixels:9,d} failed with exit status {done.returncode}", flush=True)
                continue
            row = json.loads(done.stdout)
            numbers = row["seconds"], row["temporary"], row["peak"], 1e6 * row["seconds"] / pixels
            print(f"{name:20s} {pixels:9,d} {{:7.1f}} {{:14.2f}} {{:9.2f}} {{:10.1f}}".format(*numbers), flush=True)


if __name__ == "__main__":
    main()
