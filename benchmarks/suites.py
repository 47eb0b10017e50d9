"""Train on environments of other packages, one `memax-rl train` command each, and print a table.

    python benchmarks/suites.py                          # those whose packages are installed
    python benchmarks/suites.py --only craftax/ gym/     # those that begin so
    python benchmarks/suites.py --merge a.json b.json    # a table of what several installations wrote

Some packages cannot live in one installation (docs/suites.md): run it in each, with --json, and merge. Each command
trains a few updates with the same small network: it shows that the environment works, not what can be learned in it.
The return is the mean of the episodes that ended in the last update in which any did.
"""

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple


class Case(NamedTuple):
    """An environment.

    Attributes:
        env: Its id.
        module, distribution: What must be installed, and under which name it states its version.
        arguments: What the command needs beside `--env`, as the page on suites shows it.
        steps: Steps to train.
    """

    env: str
    module: str
    distribution: str
    arguments: str = ""
    steps: int = 4_000


# Long episodes are learned from in pieces; short ones whole.
_PIECES = "--ppo.rollout truncated_bptt --ppo.rollout-length 64"
_ATARI = (
    "--env-options.arguments.frameskip 1 "
    "--env-options.wrappers '[AtariPreprocessing, {name: ClipReward, min_reward: -1, max_reward: 1}]'"
)
# Large images: few steps, because convolutions over them are slow on a CPU.
_PIXELS = "--ppo.rollout truncated_bptt --ppo.rollout-length 32 --ppo.num-envs 4 --ppo.num-minibatches 2"
_SHORT = "--env-wrappers '[{name: time_limit, steps: 100}]'"

CASES = (
    Case("craftax/Craftax-Classic-Symbolic-v1", "craftax", "craftax", f"--env-options.max-steps 200 {_PIECES}"),
    Case(
        "craftax/Craftax-Classic-Pixels-v1", "craftax", "craftax", f"--env-options.max-steps 100 {_PIXELS}", steps=512
    ),
    Case("popgym_arcade/NavigatorEasy", "popgym_arcade", "popgym_arcade", _PIXELS, steps=512),
    Case("popgym_arcade/CartPoleEasy", "popgym_arcade", "popgym_arcade", _PIXELS, steps=512),
    Case("brax/inverted_pendulum", "brax", "brax", f"--env-options.backend spring {_PIECES}"),
    Case(
        "brax/hopper",
        "brax",
        "brax",
        "--env-options.backend spring --env-options.max-steps 100 "
        "--env-wrappers '[{name: mask_observation, keep: [0, 1, 2, 3, 4]}, {name: observation_noise, std: 0.1}]' "
        f"{_PIECES}",
    ),
    Case("mujoco_playground/CartpoleBalance", "mujoco_playground", "playground", f"{_SHORT} {_PIECES}"),
    Case("jumanji/Maze-v0", "jumanji", "jumanji"),
    Case("jumanji/Snake-v1", "jumanji", "jumanji", "--env-options.arguments.time-limit 200"),
    Case("jumanji/RubiksCube-partly-scrambled-v0", "jumanji", "jumanji"),
    Case("navix/Navix-DoorKey-5x5-v0", "navix", "navix"),
    Case("navix/Navix-Dynamic-Obstacles-5x5-v0", "navix", "navix"),
    Case("pobax/tmaze_5", "pobax", "pobax", _SHORT),
    Case("pobax/rocksample", "pobax", "pobax", _SHORT),
    Case("pobax/battleship_5", "pobax", "pobax", _SHORT),
    Case("pobax/pocman", "pobax", "pobax", _SHORT),
    Case("xminigrid/MiniGrid-MemoryS8", "xminigrid", "xminigrid", "--env-options.max-steps 100"),
    Case(
        "gym/minigrid:MiniGrid-MemoryS7-v0",
        "minigrid",
        "minigrid",
        "--env-options.drop-keys '[mission]' --env-options.arguments.max-steps 100 --ppo.rollout-length 101",
    ),
    Case("gym/ale_py:ALE/Pong-v5", "ale_py", "ale_py", f"{_ATARI} {_SHORT} {_PIXELS}", steps=512),
    Case("gym/HalfCheetah-v5", "mujoco", "mujoco", f"--env-options.arguments.max-episode-steps 100 {_PIECES}"),
    Case("gym/InvertedPendulum-v5", "mujoco", "mujoco", _PIECES),
    Case("envpool/Pong-v5", "envpool", "envpool", f"{_SHORT} {_PIXELS}", steps=512),
    Case("envpool/Ant-v5", "envpool", "envpool", f"{_SHORT} {_PIECES}"),
    Case("gym/popgym-StatelessCartPoleEasy-v0", "popgym", "popgym"),
    Case("gymnax/Breakout-MinAtar", "gymnax", "gymnax", f"{_SHORT} {_PIECES}"),
)
# One small network for all. No evaluation, which would be compiled too.
COMMON = "--network.width 32 --ppo.num-envs 8 --ppo.update-epochs 1 --eval-episodes 0"


def command(case: Case, out: Path) -> list[str]:
    """The command that trains on it."""
    text = f"train --env {case.env} {COMMON} {case.arguments} --total-steps {case.steps} --out {out}"
    return [sys.executable, "-m", "memax_rl", *shlex.split(text)]


def train(case: Case, limit: float) -> dict[str, Any]:
    """Train on it, and return a row of the table."""
    row: dict[str, Any] = {"env": case.env, "package": f"{case.distribution} {_version(case.distribution)}"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        begun = time.time()
        try:
            done = subprocess.run(command(case, out), capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return row | {"failed": f"not ready after {limit:g} s"}
        row["seconds"] = round(time.time() - begun, 1)
        if done.returncode != 0:
            return row | {"failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
        with (out / "metrics.csv").open(newline="") as file:
            updates = list(csv.DictReader(file))
        ended = [update["episode/return"] for update in updates if float(update["episode/count"]) > 0]
        return row | {"updates": len(updates), "return": round(float(ended[-1]), 3) if ended else float("nan")}


def _version(distribution: str) -> str:
    return importlib.metadata.version(distribution)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| environment | package | updates | mean return | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        result = row.get("failed") or f"{row['return']:g}"
        lines.append(
            f"| {row['env']} | {row['package']} | {row.get('updates', '-')} | {result} | {row.get('seconds', '-')} |"
        )
    sound = [row for row in rows if "failed" not in row]
    packages = {row["package"].split()[0] for row in sound}
    lines.append(f"\n{len(sound)} environments from {len(packages)} packages.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="ids that begin with one of these")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one command")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--merge", type=Path, nargs="+", help="print one table of such files, and train nothing")
    parser.add_argument("--commands", action="store_true", help="print the commands, and train nothing")
    options = parser.parse_args()
    if options.merge:
        print(table([row for path in options.merge for row in json.loads(path.read_text())]))
        return
    chosen = [case for case in CASES if case.env.startswith(tuple(options.only))]
    if options.commands:
        for case in chosen:
            print(shlex.join(["memax-rl", *command(case, Path("runs/suites"))[3:]]))
        return
    rows = []
    for case in chosen:
        if importlib.util.find_spec(case.module) is None:
            print(f"{case.env}: {case.module} is not installed", file=sys.stderr, flush=True)
            continue
        rows.append(train(case, options.limit))
        print(rows[-1], file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
