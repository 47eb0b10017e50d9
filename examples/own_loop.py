"""Your own training loop: `init` and `update` of an agent are pure functions; `jax.vmap` trains several seeds at once.

    python examples/own_loop.py --updates 40

Nothing is written to disk. What `memax_rl.train` adds to this is logs, checkpoints, signals and resuming.
"""

import argparse

import equinox as eqx
import jax
import numpy as np

from memax_rl.runs import make_config
from memax_rl.runs.build import make_agent


def main(updates: int, seeds: int) -> list[float]:
    """Train, and return the mean return of each seed's last update."""
    config = make_config(
        {
            "env": "popgym/RepeatPreviousEasy",
            "network": {"memory": "lru", "width": 64},
            "total_steps": updates * 8_000,
            "ppo": {"gamma": 0.0, "gae_lambda": 0.0, "num_envs": 32, "rollout_length": 52 * 5},
        }
    )
    agent = make_agent(config)
    # Arrays are batched over seeds; all else of a state (functions, spaces) is the same for all.
    state = eqx.filter_vmap(agent.init)(jax.random.split(jax.random.key(0), seeds))
    arrays, static = eqx.partition(state, eqx.is_array)

    @jax.jit
    def update(arrays):
        def one(arrays):
            new, metrics = agent.update(eqx.combine(arrays, static))
            return eqx.filter(new, eqx.is_array), metrics

        return jax.vmap(one)(arrays)

    returns = np.full(seeds, np.nan)
    for i in range(updates):
        arrays, metrics = update(arrays)
        returns = np.asarray(metrics["episode/return"])
        if i % 10 == 9 or i == updates - 1:
            print(f"update {i + 1}: mean returns {', '.join(f'{x:.3f}' for x in returns)}")
    return returns.tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    main(options.updates, options.seeds)
