"""Training throughput: environment steps a second, and the share of the machine's own matrix-product rate.

    python benchmarks/train.py

CartPole-v1 of gymnax, 16 environments, 128 steps, 4 epochs, 4 minibatches, width 128, one memory layer: a setting that
other toolkits publish. In "truncated_bptt" mode, as they do, and beside it on tapes of whole episodes. The GEMM share
counts the multiply-adds of the network's matrix products alone, forward once while acting and for the values, and three
times (forward, and backward by inputs and by weights) in each epoch, against a large float32 product on this machine.

Beside it DQN on the same environments and network, at an update-to-data ratio of 1, that is one slot learned from for
each slot collected: forward once while acting, three times for learning, and once for the target network.
"""

import argparse
import itertools
import os
import statistics
import time

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


def matrix_entries(network: eqx.Module) -> int:
    """Return the multiply-adds a step: the entries of all weight matrices."""
    return sum(leaf.size for leaf in jax.tree.leaves(network) if eqx.is_inexact_array(leaf) and leaf.ndim == 2)


def measure_ppo(memory: str, separate: bool, fill: str, count: int, seconds: float) -> tuple[float, float]:
    """Return environment steps a second on `count` devices, and floating-point operations a step."""
    ppo = {"num_envs": 16, "num_minibatches": 4, "update_epochs": 4, "rollout": fill, "lr_schedule": "constant"}
    if fill == "truncated_bptt":
        ppo["rollout_length"] = 128
    network = {"memory": memory, "width": 128, "separate_value": separate}
    return measure({"network": network, "ppo": ppo, "devices": count}, 2 + 3 * 4, seconds)


def measure_dqn(memory: str, seconds: float, ratio: float = 1.0) -> tuple[float, float]:
    """Return environment steps a second, and floating-point operations a step."""
    dqn = {
        "num_envs": 16,
        "batch_size": 16,
        "tape_length": 512,
        "samples_per_insert": ratio,
        "lr_schedule": "constant",
        "learning_starts": 1,
    }
    return measure({"agent": "dqn", "network": {"memory": memory, "width": 128}, "dqn": dqn}, 1 + 4 * ratio, seconds)


def measure(fields: dict, passes: float, seconds: float) -> tuple[float, float]:
    """Return environment steps a second (median of several calls), and floating-point operations a step.

    `passes` counts how often the network's products are computed for a step.
    """
    config = make_config({"env": "gymnax/CartPole-v1", "total_steps": 10**9, **fields})
    agent = make_agent(config)
    arrays, static = init_state(config, agent)
    network = eqx.combine(jax.tree.map(lambda x: x[0], arrays), static).network
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
    return statistics.median(rates[1:]), 2 * matrix_entries(network) * passes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--memories", nargs="+", default=["gru", "lru", "min_gru"])
    parser.add_argument("--rollouts", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--devices", nargs="+", type=int, default=[1], help="of which each has its share of the rows")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each row after compilation")
    arguments = parser.parse_args()
    sharding.require(max(arguments.devices))
    rate = gemm_rate()
    print(f"{jax.devices()[0].device_kind}, {jax.default_backend()}: {rate / 1e9:.0f} GFLOP/s in a 2048 x 2048 product")
    print(
        f"{'memory':20s} {'value network':14s} {'rollout':14s} {'devices':>7s} {'steps/s':>10s} {'of GEMM rate':>13s}"
    )

    def row(memory: str, kind: str, fill: str, count: int, steps: float, work: float) -> None:
        print(f"{memory:20s} {kind:14s} {fill:14s} {count:7d} {steps:10,.0f} {steps * work / rate:13.0%}", flush=True)

    for memory in arguments.memories:
        for separate in (False, True):
            kind = "separate" if separate else "shared"
            for fill, count in itertools.product(arguments.rollouts, arguments.devices):
                row(memory, kind, fill, count, *measure_ppo(memory, separate, fill, count, arguments.seconds))
        row(memory, "dqn, ratio 1", "whole_episodes", 1, *measure_dqn(memory, arguments.seconds))


if __name__ == "__main__":
    main()
