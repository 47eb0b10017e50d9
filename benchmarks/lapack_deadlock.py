"""Show that several LAPACK calls in one compiled program can dead-lock JAX on a CPU with two threads.

    python benchmarks/lapack_deadlock.py --operation qr --seconds 60

compiles one program with eight independent decompositions of 128 x 128, mapped over three keys, and calls it again and
again. It needs nothing but JAX. If a call does not return within 20 seconds the stacks of all threads are printed and
the exit status is 1. Observed with jax 0.10.2 and two cores for every operation but `matmul`; with
XLA_FLAGS=--xla_cpu_multi_thread_eigen=false none was seen.
"""

import argparse
import faulthandler
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

OPERATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "qr": lambda x: jnp.linalg.qr(x)[0],
    "solve": lambda x: jnp.linalg.solve(x, jnp.eye(len(x))),
    "cholesky": lambda x: jnp.linalg.cholesky(x @ x.T + 200 * jnp.eye(len(x))),
    "matmul": lambda x: x @ x,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", choices=OPERATIONS, default="qr")
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()

    def program(key: jax.Array) -> list[jax.Array]:
        inputs = jax.random.normal(key, (8, 128, 128))
        return [OPERATIONS[arguments.operation](x) for x in inputs]

    keys = jax.random.split(jax.random.key(0), 3)
    compiled = jax.jit(jax.vmap(program)).lower(keys).compile()
    calls, begun = 0, time.monotonic()
    while time.monotonic() - begun < arguments.seconds:
        faulthandler.dump_traceback_later(20, exit=True)
        jax.block_until_ready(compiled(keys))
        faulthandler.cancel_dump_traceback_later()
        calls += 1
    print(f"jax {jax.__version__}, {arguments.operation}: {calls} calls returned")


if __name__ == "__main__":
    main()
