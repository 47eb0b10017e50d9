"""How well a study uses the machine: its time beside that of its cells alone, one after the other.

    python benchmarks/studies.py

Prints the seconds of the study, of all cells trained alone, and total / (sum alone / workers). `--total-steps 2k
--seeds 1` tries the script itself.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENVS = ["popgym/RepeatPreviousEasy", "popgym/RepeatFirstEasy"]
MEMORIES = ["gru", "lru", "min_gru", "mamba2", "gated_delta_net", "attention"]


def seconds(*arguments: str) -> float:
    """Return how long a command of memax-rl takes, start included."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "memax_rl", *arguments], check=True, capture_output=True)
    return time.monotonic() - begun


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=ENVS)
    parser.add_argument("--memories", nargs="+", default=MEMORIES)
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--total-steps", default="100k")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "study"
        grid = ["--env", *options.envs, "--memory", *options.memories, "--seeds", options.seeds]
        fields = ["--total-steps", options.total_steps, "--workers", str(options.workers)]
        total = seconds("study", *grid, *fields, "--out", str(out))
        alone = {}
        for config in sorted(out.rglob("config.yaml")):
            name = config.parent.relative_to(out)
            alone[name] = seconds("train", "--config", str(config), "--out", str(Path(temporary) / "alone" / name))
            print(f"{name}: {alone[name]:.1f} s alone", flush=True)
    summed = sum(alone.values())
    ratio = total / (summed / options.workers)
    print(f"study {total:.1f} s, {len(alone)} cells alone {summed:.1f} s, {options.workers} workers: ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
