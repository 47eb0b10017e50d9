"""Training steps a second against the number of environments and of devices.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --devices 1 2 4 8 --environments 1024 4096 16384 --memories lru gru
    srun python benchmarks/scaling.py --distributed --environments 8192 --devices 16

PPO on CartPole-v1 of gymnax, rows of 128 steps in "truncated_bptt" mode, 4 epochs, 4 minibatches, width 128, one layer;
DQN on the same environments at an update-to-data ratio of 1. Beside each row how many times the steps of the first
number of devices it makes with as many environments.
"""

import argparse
import itertools
import os
import statistics
import sys
import time

import jax

from memax_rl.distributed import is_first, taking_part


def rate(fields: dict, seconds: float) -> float:
    """Return environment steps a second, the median of several calls after the one that compiles."""
    import jax.numpy as jnp

    from memax_rl import sharding
    from memax_rl.precision import products_in
    from memax_rl.runs import make_config
    from memax_rl.runs.build import make_agent
    from memax_rl.training.loop import init_state
    from memax_rl.training.updates import make_many_updates, place

    config = make_config({"env": "gymnax/CartPole-v1", "total_steps": 10**9, **fields})
    agent = make_agent(config)
    with products_in(config.precision):
        arrays, static = init_state(config, agent)
        many = make_many_updates(agent, static, config.total_steps)
        arrays, sound = place(agent, arrays), sharding.replicate(jnp.ones(1, bool), config.devices)
        rates, updates, took = [], 1, 0.0
        while len(rates) < 4:
            before, start = int(arrays.env_steps.to_numpy()[0]), time.perf_counter()
            arrays, sound, _ = many(arrays, updates, sound)
            # Reading the count waits for the updates.
            steps = int(arrays.env_steps.to_numpy()[0]) - before
            took = time.perf_counter() - start
            rates.append(steps / took)
            # The first call compiles; the second tells how many updates take long enough to be timed.
            updates = _updates(seconds / 3, took, updates) if len(rates) == 2 else updates
    return statistics.median(rates[2:])


def _updates(seconds: float, took: float, updates: int) -> int:
    from memax_rl import distributed

    wanted = max(1, min(256, round(seconds / (took / updates))))
    return int(distributed.gather([wanted])[0, 0])


def settings(agent: str, memory: str, environments: int, devices: int, precision: str) -> dict:
    """Return the fields of a configuration."""
    own = {
        "ppo": {"num_envs": environments, "rollout_length": 128, "rollout": "truncated_bptt", "num_minibatches": 4},
        # The tapes of a gradient step hold as many slots as an update collects.
        "dqn": {
            "num_envs": environments,
            "batch_size": max(devices, environments // 4),
            "tape_length": 512,
            "samples_per_insert": 1.0,
            "learning_starts": 1,
            "buffer_size": 1024 * environments,
        },
    }[agent]
    network = {"memory": memory, "width": 128}
    return {"agent": agent, "network": network, agent: own, "devices": devices, "precision": precision}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--agents", nargs="+", default=["ppo"], choices=["ppo", "dqn"])
    parser.add_argument("--memories", nargs="+", default=["lru", "gru"])
    parser.add_argument("--environments", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--devices", nargs="+", type=int, default=[1])
    parser.add_argument("--precision", default="tensorfloat32", choices=["highest", "tensorfloat32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each row after compilation")
    parser.add_argument("--distributed", nargs="?", const="auto", help="as that of memax-rl train")
    arguments = parser.parse_args()
    if not arguments.distributed and "JAX_NUM_CPU_DEVICES" not in os.environ:
        # JAX has read its environment variables when it was imported.
        jax.config.update("jax_num_cpu_devices", max(arguments.devices))
    with taking_part(arguments.distributed):
        _print_table(arguments)


def _print_table(arguments: argparse.Namespace) -> None:
    from memax_rl import distributed, sharding

    sharding.require(max(arguments.devices))
    out = sys.stdout if is_first() else open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
    device = jax.local_devices()[0]
    print(f"{device.device_kind}, {device.platform}, {distributed.count()} processes, jax {jax.__version__}", file=out)
    print(f"{'agent':6s}{'memory':20s}{'environments':>13s}{'devices':>9s}{'steps/s':>13s}{'times':>7s}", file=out)
    for agent, memory, count in itertools.product(arguments.agents, arguments.memories, arguments.environments):
        first = None
        for devices in arguments.devices:
            fields = settings(agent, memory, count, devices, arguments.precision)
            steps = rate(fields, arguments.seconds)
            first = first or steps
            line = f"{agent:6s}{memory:20s}{count:13,d}{devices:9d}{steps:13,.0f}{steps / first:7.2f}"
            print(line, file=out, flush=True)


if __name__ == "__main__":
    main()
