"""Train presets with several memories and seeds, and print a table in Markdown: what they reach, in how many seconds.

    python benchmarks/table.py --presets dqn/repeat_previous_easy dqn/repeat_first_easy \\
        --memories gru lru gated_delta_net
    python benchmarks/table.py --presets ppo/count_recall_easy --memories gru -- --ppo.gamma 0.9

Every seed is trained by itself, and evaluated on 256 fresh episodes as its agent plays by default (DQN greedily, PPO
sampled). "best epoch" is the measure of the POPGym paper: the greatest mean return of the episodes that ended in any
65,536 steps of training. It is above the mean where returns vary by chance. Seconds are of the wall clock and for
training, with compilation. After `--` come fields of the configuration.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# For --devices: JAX counts its devices when it is first used.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))

from memax_rl.evaluation import evaluate
from memax_rl.runs import TrainConfig, load_config, override
from memax_rl.training import train

EPOCH = 65_536


def measure(config: TrainConfig, folder: Path) -> tuple[dict, float, float]:
    """Train one seed; return the result of its evaluation, its best epoch, and the seconds that training took."""
    start = time.perf_counter()
    run = train(config, out=folder)
    took = time.perf_counter() - start
    return evaluate(run.folder), best_epoch(run.metrics()), took


def best_epoch(metrics: list[dict[str, float]]) -> float:
    """Return the greatest mean return of the episodes that ended in an epoch. NaN if none is complete."""
    best, total, count, end = -math.inf, 0.0, 0.0, EPOCH
    for row in metrics:
        if row["episode/count"] > 0:
            total += row["episode/return"] * row["episode/count"]
            count += row["episode/count"]
        if row["env_steps"] >= end:
            best = max(best, total / count) if count else best
            total, count, end = 0.0, 0.0, row["env_steps"] + EPOCH
    return best if best > -math.inf else math.nan


def numbers(values: list[float], digits: int) -> str:
    """Return the values, separated by commas."""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def split_arguments() -> tuple[list[str], list[str]]:
    """Return the script's own arguments, and the fields of the configuration after `--`."""
    arguments = sys.argv[1:]
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def main() -> None:
    """Train and print."""
    arguments, fields = split_arguments()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--presets", nargs="+", required=True, help="see `memax-rl list presets`")
    parser.add_argument("--memories", nargs="+", help="by default the preset's own")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    print(
        "| preset | memory | steps | mean | return of each seed | best epoch of each seed | chance | best known | "
        "seconds of each seed |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for preset in chosen.presets:
        for memory in chosen.memories or [None]:
            config = override(load_config(preset), [*(["--memory", memory] if memory else []), *fields])
            returns, epochs, seconds, result = [], [], [], {}
            for seed in range(chosen.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    one = override(config, ["--seed", str(seed), "--eval-episodes", "0"])
                    result, epoch, took = measure(one, Path(folder) / "run")
                returns.append(result["return"]["mean"]["value"])
                epochs.append(epoch)
                seconds.append(took)
            known = ["" if result[name] is None else f"{result[name]:.3f}" for name in ("chance", "best")]
            print(
                f"| {preset} | {config.network.memory} | {config.total_steps:,} | {statistics.mean(returns):.3f} | "
                f"{numbers(returns, 3)} | {numbers(epochs, 3)} | {known[0]} | {known[1]} | {numbers(seconds, 0)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
