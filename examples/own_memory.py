"""A memory of your own in four functions: an exponential trace for each feature, at several speeds.

    python examples/own_memory.py --total-steps 200k

`Memoroid` makes `step`, `scan` and the reset at start flags from an associative update; `check_memory` raises where it
is not one. Registered, it has a name that every configuration knows.
"""

import argparse
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import memax_rl
from memax_rl import memory


class Affine(eqx.Module):
    """x -> (decay, x W)."""

    weight: jax.Array
    logits: jax.Array

    def __call__(self, x: jax.Array) -> Any:
        """Lift an input."""
        return jax.nn.sigmoid(self.logits), x @ self.weight


class Readout(eqx.Module):
    """(h, x) -> h V."""

    weight: jax.Array

    def __call__(self, h: Any, x: jax.Array) -> jax.Array:
        """Read the state."""
        return h[1] @ self.weight


def make_traces(*, in_size: int, out_size: int, key: jax.Array) -> memory.Memoroid:
    """Return h = decay * h + W x, y = V h, with decays from fast to slow, which are learned too."""
    in_key, out_key = jax.random.split(key)
    return memory.Memoroid(
        in_size=in_size,
        out_size=out_size,
        # An element is (what the past is multiplied by, what is added).
        lift=Affine(jax.random.normal(in_key, (in_size, out_size)) / in_size**0.5, jnp.linspace(-2.0, 6.0, out_size)),
        combine=lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]),
        identity=(jnp.ones(out_size), jnp.zeros(out_size)),
        read=Readout(jax.random.normal(out_key, (out_size, out_size)) / out_size**0.5),
    )


def main(total_steps: str, out: Path) -> dict[str, float]:
    """Train the memory and an LRU, and return the mean return of each."""
    memory.register("traces", memory.MemorySpec(make_traces))
    memory.testing.check_memory(memory.make("traces", in_size=3, out_size=8, key=jax.random.key(0)), jax.random.key(1))
    found = {}
    for name in ("traces", "lru"):
        run = memax_rl.train(
            env="popgym/RepeatFirstEasy",
            network={"memory": name, "width": 32},
            total_steps=total_steps,
            eval_episodes=64,
            out=out / name,
        )
        found[name] = memax_rl.evaluate(run.folder, episodes=64)["return"]["mean"]["value"]
        print(f"{name}: mean return {found[name]:.3f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-steps", default="200k")
    parser.add_argument("--out", type=Path, default=Path("runs/own_memory"))
    options = parser.parse_args()
    main(options.total_steps, options.out)
