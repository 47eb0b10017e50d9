"""Train presets on trials with several memories and seeds, and print how they adapt to held-out tasks, in Markdown.

    python benchmarks/in_context.py --presets ppo/meta_bernoulli_bandit --memories gru lru min_gru
    python benchmarks/in_context.py --presets ppo/meta_dark_room -- --ppo.entropy-coef 0.1

Every seed is trained by itself and measured as by `memax-rl icl`, on held-out tasks: the return of a whole trial and of
its first and last episode, and of the last episode with the memory wiped at every episode. In the row under a preset's
agents: what known strategies get in a whole trial, and in brackets in the last episode. Seconds are of the wall clock
and for training, with compilation. After `--` come fields of the configuration.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

# For --devices: JAX counts its devices when it is first used.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))

from table import numbers, split_arguments

from memax_rl.evaluation.in_context import evaluate_in_context
from memax_rl.runs import TrainConfig, load_config, override
from memax_rl.training import train


def measure(config: TrainConfig, folder: Path, tasks: int, greedy: bool) -> tuple[dict, float]:
    """Train one seed; return how it adapts and the seconds that training took."""
    start = time.perf_counter()
    run = train(config, out=folder)
    took = time.perf_counter() - start
    return evaluate_in_context(run.folder, tasks=tasks, longer=(), greedy=greedy or None), took


def main() -> None:
    """Train and print."""
    arguments, fields = split_arguments()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--presets", nargs="+", required=True, help="see `memax-rl list presets`")
    parser.add_argument("--memories", nargs="+", help="by default the preset's own")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=512, help="held-out tasks")
    parser.add_argument("--greedy", action="store_true", help="take the best action at every step (PPO samples)")
    chosen = parser.parse_args(arguments)
    print("| preset | memory | steps | trial | mean of trials | first episode | last episode | last, wiped | seconds |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for preset in chosen.presets:
        strategies: dict = {}
        for memory in chosen.memories or [None]:
            config = override(load_config(preset), [*(["--memory", memory] if memory else []), *fields])
            trials, first, last, wiped, seconds = [], [], [], [], []
            for seed in range(chosen.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    one = override(config, ["--seed", str(seed), "--eval-episodes", "0"])
                    result, took = measure(one, Path(folder) / "run", chosen.tasks, chosen.greedy)
                agent, strategies = result["test"]["agent"], result["strategies"]
                trials.append(agent["area"]["value"])
                first.append(agent["return_by_episode"][0]["value"])
                last.append(agent["return_by_episode"][-1]["value"])
                wiped.append(result["test"]["wiped"]["return_by_episode"][-1]["value"])
                seconds.append(took)
            print(
                f"| {preset} | {config.network.memory} | {config.total_steps:,} | {numbers(trials, 2)} | "
                f"{statistics.mean(trials):.2f} | {numbers(first, 2)} | {numbers(last, 2)} | {numbers(wiped, 2)} | "
                f"{numbers(seconds, 0)} |",
                flush=True,
            )
        known = [
            f"{name} {s['area']['value']:.2f} ({s['return_by_episode'][-1]['value']:.2f})"
            for name, s in strategies.items()
        ]
        print(f"| | | | {', '.join(known)} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
