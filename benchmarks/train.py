"""Training throughput: environment steps a second, and the share of the machine's own matrix-product rate.

    python benchmarks/train.py

CartPole-v1 of gymnax, 16 environments, 128 steps, 4 epochs, 4 minibatches, width 128, one memory layer: a setting that
other toolkits publish. In "truncated_bptt" mode, as they do, and beside it on tapes of whole episodes. The GEMM share
counts the multiply-adds of the network's matrix products alone, forward once while acting and for the values, and three
times (forward, and backward by inputs and by weights) in each epoch, against a large float32 product on this machine.

Beside it on the same environments and network, `--agents` says which:

- PQN with the same epochs and minibatches, which needs no values besides those that it learns from.
- DQN at an update-to-data ratio of 1, that is one slot learned from for each slot collected: forward once while acting,
  three times for learning, and once for the target network.
- SAC at the same ratio, with actor and critics of their own: the actor as DQN's network but for the target, the
  critics' three times for learning and once for their target, and their heads once more in the actor's loss.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# JAX counts its devices when it is first used.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))

import equinox as eqx
import jax
import jax.numpy as jnp

from memax_rl import sharding
from memax_rl.runs import make_config
from memax_rl.runs.build import make_agent
from memax_rl.training.loop import init_state
from memax_rl.training.updates import make_many_updates, place

MODES = ("truncated_bptt", "whole_episodes")
AGENTS = ("ppo", "pqn", "dqn", "sac")


def gemm_rate(size: int = 2048, repeats: int = 10) -> float:
    """Return the floating-point operations a second of a square float32 product."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def matrix_entries(network: Any) -> int:
    """Return the multiply-adds a step: the entries of all weight matrices."""
    return sum(leaf.size for leaf in jax.tree.leaves(network) if eqx.is_inexact_array(leaf) and leaf.ndim == 2)


def measure_fresh(
    agent: str, memory: str, separate: bool, fill: str, count: int, seconds: float
) -> tuple[float, float]:
    """Return environment steps a second of PPO or PQN on `count` devices, and floating-point operations a step."""
    epochs = 4
    own: dict[str, Any] = {"num_envs": 16, "num_minibatches": 4, "update_epochs": epochs, "rollout": fill}
    own["lr_schedule"] = "constant"
    if fill == "truncated_bptt":
        own["rollout_length"] = 128
    network: dict[str, Any] = {"memory": memory, "width": 128}
    if agent == "ppo":
        network["separate_value"] = separate
    # Acting, PPO's values before the first epoch, and three in each epoch.
    passes = (2 if agent == "ppo" else 1) + 3 * epochs
    fields = {"agent": agent, "network": network, agent: own, "devices": count}
    return measure(fields, lambda state: passes * matrix_entries(state.network), seconds)


def measure_replayed(agent: str, memory: str, seconds: float, ratio: float = 1.0) -> tuple[float, float]:
    """Return environment steps a second of DQN or SAC, and floating-point operations a step."""
    own = {
        "num_envs": 16,
        "batch_size": 16,
        "tape_length": 512,
        "samples_per_insert": ratio,
        "lr_schedule": "constant",
        "learning_starts": 1,
    }

    def products(state: Any) -> float:
        if agent == "dqn":
            return (1 + 4 * ratio) * matrix_entries(state.network)
        torso, critic = matrix_entries(state.critic.torso), matrix_entries(state.critic)
        return (1 + 3 * ratio) * matrix_entries(state.network) + 4 * ratio * torso + 5 * ratio * (critic - torso)

    fields = {"agent": agent, "network": {"memory": memory, "width": 128}, agent: own}
    return measure(fields, products, seconds)


def measure(fields: dict, products: Callable[[Any], float], seconds: float) -> tuple[float, float]:
    """Return environment steps a second (median of several calls), and floating-point operations a step.

    `products` returns the multiply-adds of matrix products for a step, from an agent's state of one seed.
    """
    config = make_config({"env": "gymnax/CartPole-v1", "total_steps": 10**9, **fields})
    agent = make_agent(config)
    arrays, static = init_state(config, agent)
    work = 2 * products(eqx.combine(jax.tree.map(lambda x: x[0], arrays), static))
    many = make_many_updates(agent, static, config.total_steps)
    arrays, sound = place(agent, arrays), jnp.ones(config.num_seeds, bool)
    rates, begun, updates = [], time.perf_counter(), 1
    while len(rates) < 4 or time.perf_counter() - begun < seconds:
        before, start = int(arrays.env_steps.to_numpy()[0]), time.perf_counter()
        arrays, _, _ = many(arrays, updates, sound)
        jax.block_until_ready(arrays)
        took = time.perf_counter() - start
        rates.append((int(arrays.env_steps.to_numpy()[0]) - before) / took)
        updates = 10
    # The first call compiles.
    return statistics.median(rates[1:]), work


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--memories", nargs="+", default=["gru", "lru", "min_gru"])
    parser.add_argument("--agents", nargs="+", default=AGENTS, choices=AGENTS)
    parser.add_argument("--rollouts", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--devices", nargs="+", type=int, default=[1], help="of which each has its share of the rows")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each row after compilation")
    arguments = parser.parse_args()
    sharding.require(max(arguments.devices))
    rate = gemm_rate()
    print(f"{jax.devices()[0].device_kind}, {jax.default_backend()}: {rate / 1e9:.0f} GFLOP/s in a 2048 x 2048 product")
    print(f"{'memory':20s} {'agent':14s} {'rollout':14s} {'devices':>7s} {'steps/s':>10s} {'of GEMM rate':>13s}")

    def row(memory: str, kind: str, fill: str, count: int, steps: float, work: float) -> None:
        print(f"{memory:20s} {kind:14s} {fill:14s} {count:7d} {steps:10,.0f} {steps * work / rate:13.0%}", flush=True)

    kinds = [("ppo", False, "ppo, shared"), ("ppo", True, "ppo, separate"), ("pqn", False, "pqn")]
    for memory in arguments.memories:
        for agent, separate, kind in kinds:
            for fill, count in itertools.product(arguments.rollouts, arguments.devices):
                if agent in arguments.agents:
                    measured = measure_fresh(agent, memory, separate, fill, count, arguments.seconds)
                    row(memory, kind, fill, count, *measured)
        for agent in ("dqn", "sac"):
            if agent in arguments.agents:
                measured = measure_replayed(agent, memory, arguments.seconds)
                row(memory, f"{agent}, ratio 1", "whole_episodes", 1, *measured)


if __name__ == "__main__":
    main()
