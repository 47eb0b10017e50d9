"""Sizes of the outputs of every memory model at the start, and of the gradient, on a thousand steps of unit noise.

    python benchmarks/output_scale.py                          every model, width 64, one episode of 1,000 steps
    python benchmarks/output_scale.py --models lru mlstm --width 128

A memory sits in a residual block behind a norm: what it adds should neither drown in the stream nor drown it, at an
episode's first step or its thousandth. The root mean square is over the features of 8 episodes at that step. The last
column is the norm of the gradient of the mean square of all outputs by all parameters.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from memax_rl import memory

STEPS = (1, 10, 100, 1000)
EPISODES = 8


def measure(name: str, width: int) -> tuple[np.ndarray, float]:
    """Return the root mean square of the outputs at `STEPS`, and the norm of the gradient."""
    model = memory.make(name, in_size=width, out_size=width, key=jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (EPISODES, STEPS[-1], width))
    starts = jnp.arange(STEPS[-1]) == 0

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def run(model, xs):
        ys = jax.vmap(lambda xs: model.scan(model.initial_state(), xs, starts)[1])(xs)
        squares = jnp.mean(ys**2, axis=(0, 2))
        return jnp.mean(squares), squares

    (_, squares), gradient = run(model, xs)
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    return np.sqrt(np.asarray(squares)[np.array(STEPS) - 1]), float(norm)


def main() -> None:
    """Print a row a model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=memory.names(), choices=memory.names(), metavar="NAME")
    parser.add_argument("--width", type=int, default=64)
    arguments = parser.parse_args()
    print("| memory | " + " | ".join(f"step {step}" for step in STEPS) + " | gradient |")
    print("|---" * (len(STEPS) + 2) + "|")
    for name in arguments.models:
        sizes, gradient = measure(name, arguments.width)
        print(f"| {name} | " + " | ".join(f"{size:.3f}" for size in sizes) + f" | {gradient:.3g} |", flush=True)


if __name__ == "__main__":
    main()
