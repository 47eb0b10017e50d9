"""Start many trainings, and end with status 1 if one of them stands still.

    python tests/stress/starts.py --initializations 200 --trainings 50

Every memory is initialized `--initializations` times with three seeds, in one process a memory; then `--trainings`
short trainings of mixed memories, agents and numbers of seeds begin in fresh processes. A process that uses no
processor time for `--patience` seconds stands still: it is made to print the stacks of its threads, and is ended.
"""

import argparse
import faulthandler
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETTINGS = {
    "ppo": {"num_envs": 8, "rollout_length": 51, "update_epochs": 1, "num_minibatches": 2},
    "dqn": {"num_envs": 8, "tape_length": 51, "batch_size": 4, "learning_starts": 400, "buffer_size": 2000},
}
AGENTS = tuple(SETTINGS)


def initialize(name: str, count: int) -> None:
    """Initialize a memory again and again, three seeds at once, as a training does."""
    import equinox as eqx
    import jax

    from memax_rl import memory

    def init(keys):
        return jax.vmap(lambda k: eqx.filter(memory.make(name, in_size=128, out_size=128, key=k), eqx.is_array))(keys)

    compiled = jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})
    for i in range(count):
        jax.block_until_ready(compiled(jax.random.split(jax.random.key(i), 3)))


def train(name: str, agent: str, seeds: int, seed: int, folder: str) -> None:
    """Make two small updates."""
    import memax_rl

    settings: Any = {agent: SETTINGS[agent]}
    memax_rl.train(
        env="popgym/RepeatPreviousEasy",
        agent=agent,
        seed=seed,
        num_seeds=seeds,
        total_steps=800,
        network={"memory": name, "width": 32},
        eval_episodes=0,
        out=folder,
        **settings,
    )


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch(arguments: list[str], patience: float) -> str:
    """Run this script in a process of its own. Return "ended", "failed" or "stood still"."""
    process = subprocess.Popen([sys.executable, __file__, *arguments])
    used, since = -1.0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        try:
            now = processor_seconds(process.pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if now > used:
            used, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            process.send_signal(signal.SIGUSR1)
            time.sleep(2)
            process.kill()
            process.wait()
            return "stood still"
    return "ended" if process.returncode == 0 else "failed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--initializations", type=int, default=200, help="of each memory (default: 200)")
    parser.add_argument("--trainings", type=int, default=50, help="in processes of their own (default: 50)")
    parser.add_argument("--memories", nargs="+", help="default: all")
    parser.add_argument("--patience", type=float, default=60, help="seconds without processor time (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        kind, name, *rest = arguments.child
        if kind == "initialize":
            initialize(name, int(rest[0]))
        else:
            train(name, rest[0], int(rest[1]), int(rest[2]), rest[3])
        return 0

    from memax_rl import memory

    names = arguments.memories or list(memory.names())
    jobs = [["initialize", name, str(arguments.initializations)] for name in names if arguments.initializations]
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.trainings):
            chosen = [draw.choice(names), draw.choice(AGENTS), str(draw.randint(1, 3)), str(draw.randrange(10**6))]
            jobs.append(["train", *chosen, f"{folder}/{i}"])
        results = {}
        for job in jobs:
            result = watch(["--child", *job], arguments.patience)
            results.setdefault(result, []).append(job)
            if result != "ended":
                print(f"{result}: {' '.join(job[:5])}", flush=True)
    starts = sum(arguments.initializations if job[0] == "initialize" else 1 for job in results.get("ended", []))
    failed, still = (len(results.get(result, [])) for result in ("failed", "stood still"))
    print(f"{starts} starts ended, {failed} failed, {still} stood still")
    return 0 if set(results) <= {"ended"} else 1


if __name__ == "__main__":
    sys.exit(main())
