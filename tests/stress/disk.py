"""Fill the disk while a training writes; end with status 1 if anything but a line and a whole checkpoint is left.

    python tests/stress/disk.py --cases 10

Needs Linux, where a user may make a file system of a few megabytes in a mount namespace of his own (`unshare`): the
script starts itself again in one. In each case a run trains there, and at a random moment a file takes all the room.
The run must end with status 2 and one line that names the file. With room again it is resumed, and must end as an
undisturbed one: the same parameters to the bit, and the same rows.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kills import COMMON, PPO, outcome, same

from memax_rl.runs import Run

# More than a run's files take, so that the disk is full only when the script fills it.
_MEGABYTES = 8
FIELDS = [*COMMON, *PPO, "--total-steps", "60k", "--checkpoint-interval", "0.05"]


def train(arguments: Sequence[str]) -> subprocess.Popen:
    """Start a training in a process of its own."""
    command = [sys.executable, "-m", "memax_rl", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def fill(folder: Path) -> None:
    """Write zeros until there is no room."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        for size in (65536, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue


def case(folder: Path, moment: float) -> tuple[bool, str]:
    """Fill the disk `moment` seconds after the first checkpoint.

    Returns:
        Whether that stopped the run, and what went wrong or an empty text.
    """
    run_folder = folder / "run"
    process = train([*FIELDS, "--out", str(run_folder)])
    while process.poll() is None and not list(run_folder.glob("checkpoints/*.npz")):
        time.sleep(0.005)
    time.sleep(moment)
    fill(folder)
    error = process.communicate(timeout=300)[1]
    (folder / "ballast").unlink()
    if process.returncode == 0:
        return False, "" if Run.open(run_folder).saved_updates() else "it ended well without a checkpoint"
    last = error.strip().splitlines()[-1]
    if process.returncode != 2 or "Traceback" in error or str(run_folder) not in last:
        return True, f"status {process.returncode}: {error[-300:]}"
    left = [str(path) for path in run_folder.rglob("*.tmp")]
    if left:
        return True, f"half-written files are left: {left}"
    process = train(["--resume", str(run_folder)])
    error = process.communicate(timeout=300)[1]
    return True, "" if process.returncode == 0 else f"not resumed, status {process.returncode}: {error[-300:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases. Return 0 if all went as they must."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if not asked.inside:
        command = ["unshare", "--mount", "--map-root-user", sys.executable, __file__, "--inside"]
        command += ["--cases", str(asked.cases), "--seed", str(asked.seed)]
        return subprocess.run(command, check=False).returncode
    rng, wrong, full = random.Random(asked.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        reference = Path(name) / "undisturbed"
        assert train([*FIELDS, "--out", str(reference)]).wait(600) == 0
        expected = outcome(reference)
        for i in range(asked.cases):
            folder = Path(name) / str(i)
            folder.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_MEGABYTES}m", "tmpfs", str(folder)], check=True)
            try:
                stopped, problem = case(folder, rng.uniform(0, 2))
                if not problem and not same(expected, outcome(folder / "run")):
                    problem = "it ended otherwise than undisturbed"
            finally:
                subprocess.run(["umount", "--lazy", str(folder)], check=True)
            full += stopped
            if problem:
                wrong += 1
                print(f"case {i}: {problem}", flush=True)
    print(f"{full} of {asked.cases} runs stopped by a full disk, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
    sys.exit(main())
