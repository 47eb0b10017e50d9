"""A forward and backward pass over one long sequence: time, and the most memory the process ever held.

    python benchmarks/long.py                                     1/8, 1/4, 1/2 and all of 1,000,000 steps
    python benchmarks/long.py --models lru mlstm --steps 200000 --width 128

One model of each kind by default: diagonal (lru), matrix state (gated_delta_net), nonlinear (gru). Gradients are by
parameters and inputs; the second pass is timed. Each measurement has a process of its own, since the most memory that a
process held is known for its whole life only. Time is linear where the last column stays as it is.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp

from memax_rl import memory


def measure(name: str, steps: int, width: int) -> dict[str, float]:
    """Return seconds of a pass, its temporary memory by XLA's analysis and the peak of the process, GiB."""
    key_m, key_x, key_s = jax.random.split(jax.random.key(0), 3)
    model = memory.make(name, in_size=width, out_size=width, key=key_m)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    xs = jax.random.normal(key_x, (steps, width))
    starts = jax.random.bernoulli(key_s, 1e-4, (steps,))

    def loss(params, xs):
        model = eqx.combine(params, static)
        return jnp.mean(model.scan(model.initial_state(), xs, starts)[1] ** 2)

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, xs).compile()
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        gradients = jax.block_until_ready(program(params, xs))
        seconds.append(time.perf_counter() - begin)
        if not all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients)):
            raise SystemExit(f"{name}: a gradient is not finite at {steps} steps")
        del gradients
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
    parser.add_argument("--steps", type=int, default=1_000_000, help="steps of the longest sequence")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--one", action="store_true", help="one model, --steps alone, as JSON, in this process")
    arguments = parser.parse_args()
    for name in arguments.models:
        memory.spec(name)
    if arguments.one:
        print(json.dumps(measure(arguments.models[0], arguments.steps, arguments.width)))
        return
    print(f"{'model':20s} {'steps':>9s} {'s':>7s} {'temporary GiB':>14s} {'peak GiB':>9s} {'us a step':>10s}")
    for name in arguments.models:
        for parts in (8, 4, 2, 1):
            steps = arguments.steps // parts
            command = [sys.executable, __file__, "--one", "--models", name, "--steps", str(steps)]
            command += ["--width", str(arguments.width)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"{name:20s} {steps:9,d} failed with exit status {done.returncode}", flush=True)
                continue
            row = json.loads(done.stdout)
            numbers = row["seconds"], row["temporary"], row["peak"], 1e6 * row["seconds"] / steps
            print(f"{name:20s} {steps:9,d} {{:7.1f}} {{:14.2f}} {{:9.2f}} {{:10.1f}}".format(*numbers), flush=True)


if __name__ == "__main__":
    main()
