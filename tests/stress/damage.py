"""Damage a run folder in many ways, and end with status 1 if one is read otherwise than it was, or not answered.

    python tests/stress/damage.py --cases 300

Bits are flipped, files cut, emptied, removed, swapped, doubled and replaced by folders, pipes and links. Then the run
is evaluated and resumed. Right is an error in words (`RunError`, `ValueError`), or the result of the sound folder.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import memax_rl
from memax_rl.runs import Run, make_config
from memax_rl.runs.build import load_agent

FIELDS: dict[str, Any] = {
    "env": "popgym/RepeatFirstEasy",
    "total_steps": 4 * 51 * 4,
    "network": {"memory": "min_gru", "width": 8},
    "ppo": {"num_envs": 4, "rollout_length": 51, "update_epochs": 1, "num_minibatches": 2},
    "eval_episodes": 0,
}
KINDS = ("flip", "flip", "flip", "cut", "empty", "gone", "swap", "twice", "folder", "pipe", "link")
FILES = ("config.yaml", "metrics.csv", "summary.json", "checkpoints/4.npz")


def damage(folder: Path, rng: random.Random) -> str:
    """Damage a file of a run. Return what was done."""
    name = rng.choice((*FILES, "checkpoints/4.npz"))
    path = folder / name
    content, kind = (
        path.read_bytes(),
        rng.choice(("flip", "flip", "flip", "cut", "empty", "gone", "swap", "twice", "folder", "pipe", "link")),
    )
    if kind == "flip":
        place = rng.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
        return f"{name}: a bit of byte {place}"
    if kind in ("cut", "empty", "twice"):
        path.write_bytes({"cut": content[: rng.randrange(len(content))], "empty": b"", "twice": content * 2}[kind])
    elif kind == "swap":
        path.write_bytes((folder / rng.choice(FILES)).read_bytes())
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to("/etc/passwd")
    return f"{name}: {kind}"


def networks(folder: Path) -> list[np.ndarray]:
    """Return the parameters of a run."""
    return [np.asarray(x) for x in jax.tree.leaves(load_agent(Run.open(folder))[1]) if isinstance(x, jax.Array)]


def use(folder: Path, sound: list[np.ndarray], rows: list[dict[str, float]]) -> tuple[str, bool]:
    """Read and resume a damaged run. Return what is wrong, or an empty text, and whether the damage was noticed."""
    noticed = False
    for step in ("read", "resume"):
        try:
            if step == "resume":
                memax_rl.train(resume=folder)
            got = networks(folder)
            if any(not np.array_equal(a, b) for a, b in zip(got, sound, strict=True)):
                return f"{step}: other parameters", noticed
            now = [row["update"] for row in Run.open(folder).metrics()]
            if step == "resume" and now not in ([], [row["update"] for row in rows]):
                return f"{step}: rows {now}", noticed
        except ValueError:
            noticed = True
        except OSError as error:
            return f"{step}: {error!r}", noticed
        except Exception as error:
            return f"{step}: {error!r}", noticed
    return "", noticed


def main() -> int:
    """Damage, and print."""
    parser = argparse.ArgumentParser(description="Damage a run folder in many ways.")
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, wrong, noticed = random.Random(arguments.seed), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        run = memax_rl.train(make_config(FIELDS), out=Path(temporary) / "sound")
        sound, rows = networks(run.folder), run.metrics()
        for number in range(arguments.cases):
            folder = Path(temporary) / "damaged"
            shutil.copytree(run.folder, folder)
            what = damage(folder, rng)
            problem, seen = use(folder, sound, rows)
            noticed += seen
            if problem:
                wrong += 1
                print(f"case {number}, {what}: {problem}", flush=True)
            shutil.rmtree(folder)
    print(f"{arguments.cases} cases, {noticed} noticed, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
