"""Train in several processes, kill one, go on with fewer, and end with status 1 if anything is not as it should be.

    python tests/stress/processes.py --processes 4 --kills 3

For every agent: the processes make the updates of one process with as many devices, to rounding, and hold the same
parameters to the bit. Then one of them, drawn at random, is killed (SIGKILL), and all others must end within a minute;
the run goes on with half as many processes, until a signal to one of them (SIGTERM) ends all with a checkpoint.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_distributed import AGENTS, check_updates, fields_typed, some_updates, start_together, wait_for_rows

from memax_rl.runs import Run

SETTINGS = {
    "ppo": AGENTS["ppo"] | {"num_envs": 8},
    "pqn": AGENTS["ppo"] | {"num_envs": 8},
    "dqn": AGENTS["dqn"] | {"num_envs": 8, "batch_size": 8, "buffer_size": 8 * 600},
    "sac": AGENTS["dqn"] | {"num_envs": 8, "batch_size": 8, "buffer_size": 8 * 600, "samples_per_insert": 8.0},
}


def kill_wrong(count: int, folder: Path, draw: random.Random) -> Iterator[str]:
    """Yield what is wrong after one of so many processes was killed."""
    out = folder / f"run{draw.random()}"
    processes = start_together(count, [*fields_typed(10**9), "--checkpoint-interval", "1", "--out", str(out)])
    wait_for_rows(out, 120)
    time.sleep(2 + 3 * draw.random())
    killed = draw.randrange(count)
    processes[killed].kill()
    begun = time.monotonic()
    texts = [process.communicate(timeout=120)[0] for process in processes]
    took = time.monotonic() - begun
    print(f"process {killed} of {count} was killed; the others ended {took:.1f} s later", flush=True)
    if took > 60 or any(process.returncode == 0 for process in processes):
        yield f"they ended after {took:.0f} s with {[p.returncode for p in processes]}: {texts}"
    before = Run.open(out).saved_updates()[-1]
    fewer = max(1, count // 2)
    processes = start_together(fewer, ["--resume", str(out), "--devices", str(fewer)])
    time.sleep(20)
    processes[draw.randrange(fewer)].send_signal(signal.SIGTERM)
    texts = [process.communicate(timeout=120)[0] for process in processes]
    run = Run.open(out)
    if [p.returncode for p in processes] != [143] * fewer or run.saved_updates()[-1] <= before:
        yield f"it did not go on with {fewer}: {texts}"
    if run.metrics()[-1]["update"] != run.saved_updates()[-1]:
        yield "the rows do not end with the checkpoint"


def main() -> int:
    """Do it, and print how many were wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--agents", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw, wrong = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as name:
        some_updates(arguments.processes, {agent: SETTINGS[agent] for agent in arguments.agents}, Path(name), 900)
        for agent in arguments.agents:
            try:
                check_updates(arguments.processes, agent, Path(name))
            except AssertionError as error:
                wrong.append(f"{agent}: {error}")
            print(f"{agent}: {arguments.processes} processes", flush=True)
        for _ in range(arguments.kills):
            wrong += kill_wrong(arguments.processes, Path(name), draw)
    print("\n".join(wrong))
    print(f"{len(arguments.agents) + arguments.kills} cases, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
