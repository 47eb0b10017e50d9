"""Seconds from the start of a process to a loaded policy's first action, and microseconds of a step.

    python benchmarks/policy_latency.py
    python benchmarks/policy_latency.py --memories gru --width 64 --rounds 50

The policy acts for one environment. Beside it the bare network: an `eqx.filter_jit` of its step, from one observation
on the device to the outputs of the policy head, without checks, sampling, mapping of the action, or a copy to numpy.
Both run in turns of 100 steps in this process; the figure is the median over all turns of a turn's mean.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import memax_rl
from memax_rl.networks.encoder import AgentInput
from memax_rl.runs import Run
from memax_rl.runs.build import load_to_act

STEPS = 100
ENVIRONMENT = "popgym/NoisyPositionOnlyCartPoleEasy"
FIRST = """
import sys, time
import memax_rl
policy = memax_rl.load(sys.argv[1])
policy.step([0.0] * policy.spaces.observation.shape[0])
"""


def train(memory: str, width: int, folder: Path) -> Run:
    """Return a run of one update: what is learned does not matter here."""
    return memax_rl.train(
        env=ENVIRONMENT,
        network={"memory": memory, "width": width},
        ppo={"num_envs": 8, "num_minibatches": 1, "update_epochs": 1},
        total_steps=1,
        eval_episodes=0,
        out=folder,
    )


def first_action(folder: Path) -> tuple[float, float]:
    """Return the seconds from the start of a process to its end after the first action, and those of all its cores."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", FIRST, str(folder)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def of_network(run: Run) -> Callable[[np.ndarray], Any]:
    """Return the step of the bare network, which keeps its carry."""
    trained = load_to_act(run)
    network = jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, trained.networks)
    step = eqx.filter_jit(lambda network, carry, inputs: network.act(carry, inputs))
    carry = network.initial_state()
    inputs = AgentInput(
        jnp.zeros(trained.spaces.network.observation.shape), jnp.int32(0), jnp.zeros(()), jnp.array(False)
    )

    def one(observation: np.ndarray) -> Any:
        nonlocal carry
        carry, distribution = step(network, carry, inputs)
        return jax.block_until_ready(distribution.raw)

    return one


def measure(run: Run, rounds: int) -> tuple[float, float]:
    """Return the microseconds of a step of the policy, and of the bare network."""
    policy, bare = memax_rl.load(run.folder), of_network(run)
    observation = np.zeros(policy.spaces.observation.shape, np.float32)
    turns: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for step, found in zip((lambda x: policy.step(x, 0.0), bare), turns, strict=True):
            step(observation)
            begun = time.perf_counter()
            for _ in range(STEPS):
                step(observation)
            found.append((time.perf_counter() - begun) / STEPS)
    return float(np.median(turns[0])) * 1e6, float(np.median(turns[1])) * 1e6


def main() -> None:
    """Print a row a memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--memories", nargs="+", default=["gru", "gated_delta_net"])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=200, help=f"Turns of {STEPS} steps each.")
    arguments = parser.parse_args()
    print("| memory | start to first action, s | of CPU, s | policy.step, us | bare network, us | ratio |")
    print("|---|---|---|---|---|---|")
    for memory in arguments.memories:
        with tempfile.TemporaryDirectory() as folder:
            run = train(memory, arguments.width, Path(folder) / memory)
            first, cpu = min(first_action(run.folder) for _ in range(3))
            policy, bare = measure(run, arguments.rounds)
        print(f"| {memory} | {first:.1f} | {cpu:.1f} | {policy:.0f} | {bare:.0f} | {policy / bare:.2f} |", flush=True)


if __name__ == "__main__":
    main()
