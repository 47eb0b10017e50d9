"""Kill studies and their workers at random moments, and end with status 1 if a cell ends otherwise than alone.

    python tests/stress/studies.py --kills 20

Turn by turn the process of the study and one of its workers are killed (SIGKILL, now and then SIGINT or SIGTERM to the
study), at moments drawn from their whole life; the same command goes on. In the end the parameters of every cell must
equal those of the same configuration trained alone to the bit, and metrics.csv must hold the same rows.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from memax_rl.runs import Run

SETTINGS = ["--width", "8", "--checkpoint-interval", "0.05", "--eval-episodes", "4"]
SETTINGS += ["--ppo.num-envs", "4", "--ppo.rollout-length", "51", "--ppo.num-minibatches", "2"]
_NOISE = ("seconds",)


def command(folder: Path, memories: list[str], seeds: int, steps: str) -> list[str]:
    """Return the command of the study."""
    grid = ["--env", "popgym/RepeatPreviousEasy", "--memory", *memories, "--seeds", str(seeds), "--total-steps", steps]
    return [sys.executable, "-m", "memax_rl", "study", *grid, *SETTINGS, "--workers", "2", "--out", str(folder)]


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    """Start a command whose messages go to a file."""
    with log.open("a") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=file)


def children(process: int) -> list[int]:
    """Return the processes that a process started."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def disturb(folder: Path, arguments: list[str], log: Path, kills: int, longest: float, draw: random.Random) -> str:
    """Kill the study or a worker `kills` times, then let it end. Return what went wrong, or an empty text."""
    process = start(arguments, log)
    done = 0
    while done < kills:
        time.sleep(draw.uniform(0.5, longest))
        if process.poll() is not None:
            if process.returncode != 0:
                return f"status {process.returncode}"
            return f"it ended after {done} kills; make it longer"
        workers = children(process.pid)
        if done % 2 and workers:
            _kill(draw.choice(workers), signal.SIGKILL)
        else:
            number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
            process.send_signal(number)
            status = process.wait(timeout=120)
            if status not in (-number, 128 + number):
                return f"status {status} after {number.name}"
            process = start(arguments, log)
        done += 1
    status = process.wait(timeout=900)
    return "" if status == 0 else f"status {status} in the end"


def _kill(number: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, how)


def outcome(folder: Path) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """Return the arrays of the last checkpoint, and the rows without the time they took."""
    run = Run.open(folder)
    with np.load(run.checkpoint_path(run.saved_updates()[-1])) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "about"}
    return arrays, [{k: v for k, v in row.items() if k not in _NOISE} for row in run.metrics()]


def difference(one: Path, other: Path) -> str:
    """Return in what two runs differ, or an empty text."""
    (arrays, rows), (expected, expected_rows) = outcome(one), outcome(other)
    if arrays.keys() != expected.keys():
        return "other arrays"
    unequal = [name for name in arrays if arrays[name].tobytes() != expected[name].tobytes()]
    if unequal:
        return f"{len(unequal)} arrays differ, first {unequal[0]}"
    same = len(rows) == len(expected_rows) and all(
        a.keys() == b.keys() and np.array_equal(list(a.values()), list(b.values()), equal_nan=True)
        for a, b in zip(rows, expected_rows, strict=True)
    )
    return "" if same else f"{len(rows)} rows instead of {len(expected_rows)}, or other ones"


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--memories", nargs="+", default=["min_gru", "gru", "lru"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--total-steps", default="200k")
    parser.add_argument("--longest", type=float, default=25.0, help="seconds between two kills at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        folder, log = Path(temporary) / "study", Path(temporary) / "log"
        arguments = command(folder, options.memories, options.seeds, options.total_steps)
        problem = disturb(folder, arguments, log, options.kills, options.longest, draw)
        if problem:
            print(log.read_text()[-3000:])
            wrong.append(problem)
        else:
            for config in sorted(folder.rglob("config.yaml")):
                name = str(config.parent.relative_to(folder))
                alone = Path(temporary) / "alone" / name
                train = [sys.executable, "-m", "memax_rl", "train", "--config", str(config), "--out", str(alone)]
                subprocess.run(train, check=True, capture_output=True)
                if found := difference(config.parent, alone):
                    wrong.append(f"{name}: {found}")
    for line in wrong:
        print(f"wrong: {line}")
    print(f"{options.kills} kills, {len(options.memories) * options.seeds} cells, {len(wrong)} wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
