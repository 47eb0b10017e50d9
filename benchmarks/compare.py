"""How long `memax-rl compare` takes for 100 runs of 1,000 rows each, import of Python and its packages included.

Prints wall-clock and processor seconds; the latter vary less on a shared machine.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from memax_rl.runs import Run, make_config


def write_runs(folder: Path, runs: int = 100, rows: int = 1000) -> None:
    """Write made-up runs of ten memories, with the columns that `compare` reads and 20 more."""
    rng = np.random.default_rng(0)
    memories = ["gru", "lru", "lstm", "s5", "mlp", "mamba2", "gla", "mgu", "min_gru", "ffm"]
    for i in range(runs):
        memory, seed = memories[i % 10], i // 10
        config = make_config({"seed": seed, "total_steps": 100 * rows, "network": {"memory": memory}})
        run = Run.create(folder / f"{memory}-{seed}", config)
        made = []
        for t in range(1, rows + 1):
            row = {"update": t, "seed": seed, "seconds": t, "env_steps": 100 * t, "finite": 1}
            row["episode/return"] = float(rng.normal())
            made.append(row | {f"other{k}": float(rng.normal()) for k in range(20)})
        run.append_metrics(made)
        evaluation = {"seeds": [seed], "mean_return_per_seed": [float(rng.normal())], "episodes_per_seed": 256}
        run.write_summary({"seconds": 60.0, "evaluation": evaluation})


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_runs(Path(folder) / "runs")
        for option in ("--no-figures", "--figures"):
            out = f"{folder}/out{option}"
            command = [sys.executable, "-m", "memax_rl", "compare", f"{folder}/runs", "--out", out, option]
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"{option}: {took:.1f} s, of the processor {processor:.1f} s")


if __name__ == "__main__":
    main()
