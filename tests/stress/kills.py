"""Kill trainings at random moments, resume them, and end with status 1 if one ends otherwise than undisturbed.

    python tests/stress/kills.py --kills 100

Runs of PPO, DQN, two seeds and two devices are killed (SIGKILL, SIGTERM, SIGINT) at moments drawn from their whole
life: imports, compilation, before the first checkpoint, while one is written, in evaluations. A killed run is resumed,
and often killed again. In the end its parameters and its best ones must equal those of an undisturbed run to the bit,
metrics.csv and evaluations.csv must hold the same rows, none lost, doubled or torn, and the same checkpoints be kept.
"""

import argparse
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memax_rl.runs import Run

COMMON = ["--env", "popgym/RepeatPreviousEasy", "--memory", "min_gru", "--width", "8", "--checkpoint-interval", "0.05"]
COMMON += ["--eval-episodes", "4", "--eval-interval", "1700", "--keep-every-n-steps", "2500"]
PPO = ["--ppo.num-envs", "4", "--ppo.rollout-length", "51", "--ppo.num-minibatches", "2"]
DQN = ["--agent", "dqn", "--dqn.num-envs", "4", "--dqn.tape-length", "51", "--dqn.batch-size", "4"]
DQN += ["--dqn.samples-per-insert", "1", "--dqn.buffer-size", "1200", "--dqn.learning-starts", "300"]
KINDS: dict[str, list[str]] = {
    "ppo": [*PPO, "--total-steps", "60k"],
    "dqn": [*DQN, "--total-steps", "12k"],
    "two seeds": [*PPO, "--num-seeds", "2", "--total-steps", "30k"],
    "two devices": [*PPO, "--devices", "2", "--total-steps", "30k"],
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def start(arguments: Sequence[str]) -> subprocess.Popen:
    """Start a training in a process of its own."""
    command = [sys.executable, "-m", "memax_rl", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(arguments: Sequence[str]) -> str:
    """Train to the end. Return what went wrong, or an empty text."""
    process = start(arguments)
    error = process.communicate(timeout=600)[1]
    return "" if process.returncode == 0 else f"status {process.returncode}: {error.strip()[-300:]}"


def outcome(folder: Path) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Return the arrays of the last checkpoint; the rows, without the time they took, and the checkpoints."""
    run = Run.open(folder)
    update = run.saved_updates()[-1]
    with np.load(run.checkpoint_path(update)) as archive:
        # The text about the checkpoint is no array.
        arrays = {name: archive[name] for name in archive.files if name != "about"}
    rows = [{name: x for name, x in row.items() if name != "seconds"} for row in run.metrics()]
    return arrays, [*rows, *run.evaluations(), run.saved_updates()]


def same(a: object, b: object) -> bool:
    """Return whether two outcomes are equal to the bit."""
    (arrays, rows), (others, other_rows) = a, b  # pyright: ignore[reportGeneralTypeIssues]
    return (
        arrays.keys() == others.keys()
        and all(np.array_equal(arrays[n], others[n], equal_nan=arrays[n].dtype.kind == "f") for n in arrays)
        and repr(rows) == repr(other_rows)
    )


def disturb(kind: str, folder: Path, seconds: float, rng: random.Random) -> tuple[int, str]:
    """Train with interruptions. Return their number, and what went wrong or an empty text."""
    kills, arguments = 0, [*COMMON, *KINDS[kind], "--out", str(folder)]
    for _ in range(rng.randint(1, 3)):
        process = start(arguments)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, seconds))
        process.send_signal(rng.choice(SIGNALS))
        error = process.communicate(timeout=120)[1]
        kills += 1
        if process.returncode == 0 or "Traceback" in error:
            return kills, "" if process.returncode == 0 else f"a traceback: {error.strip()[-300:]}"
        if folder.exists() and not (folder / "config.yaml").exists():
            # Killed while the folder was made: nothing was begun.
            shutil.rmtree(folder)
        if folder.exists():
            arguments = ["--resume", str(folder)]
    return kills, finish(arguments)


def main() -> int:
    """Kill until the count is reached, and print."""
    parser = argparse.ArgumentParser(description="Kill trainings at random moments, resume them, and compare.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, kills, wrong, runs = random.Random(arguments.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        whole: dict[str, tuple[object, float]] = {}
        while kills < arguments.kills:
            kind = arguments.kinds[runs % len(arguments.kinds)]
            if kind not in whole:
                begun = time.monotonic()
                reference = Path(temporary) / kind.replace(" ", "-")
                if error := finish([*COMMON, *KINDS[kind], "--out", str(reference)]):
                    print(f"{kind}, undisturbed: {error}")
                    return 1
                whole[kind] = outcome(reference), time.monotonic() - begun
            folder = Path(temporary) / f"run{runs}"
            more, error = disturb(kind, folder, whole[kind][1], rng)
            kills, runs = kills + more, runs + 1
            if not error and not same(whole[kind][0], outcome(folder)):
                error = "it ended otherwise than undisturbed"
            if error:
                wrong += 1
                print(f"{kind}, run {runs}: {error}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            print(f"{kills} kills, {runs} runs, {wrong} wrong", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
