"""Give the command line malformed input, and end with status 1 if one case is not answered in a line.

    python tests/stress/fuzz.py --cases 1000

Each case is `memax-rl` with arguments, a configuration file or a run folder made wrong by chance. Right is a status of
0, 1 or 2 within ten seconds, without a traceback, with at most a few lines on stderr, and without a new folder. All
cases run in one process through the real command line, because starting Python is most of what they take; a training
is only checked (`--check`), so that nothing compiles.
"""

import argparse
import contextlib
import faulthandler
import io
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import yaml

from memax_rl.cli import main as memax
from memax_rl.memory import names as memories

SECONDS = 10.0
VALUES = (
    "",
    " ",
    "0",
    "-1",
    "1",
    "2",
    "1.5",
    "-0.0",
    "1e3",
    "1e12",
    "1e400",
    "9" * 400,
    "-" + "9" * 40,
    "nan",
    "inf",
    "-inf",
    "true",
    "False",
    "null",
    "~",
    "[]",
    "{}",
    "[1, 2]",
    "[[[[]]]]",
    "{a: 1}",
    "{1: 2}",
    "'",
    '"',
    "\x00",
    "é",
    "日本",
    "a" * 5_000,
    "!!python/object/apply:os.system [ls]",
    "!!bool x",
    "!!timestamp x",
    "&a [*a]",
    "- a\n- b",
    "%YAML",
    "1M",
    "1k",
    "0x10",
    "../../etc",
    "/",
    "/dev/null",
    "gru",
    "GRU",
    "lru",
    "popgym/RepeatFirstEasy",
    "gym/CartPole-v1",
    "gym/x:y",
    "gym/",
    "gym/:",
)
FIELDS = [
    "env",
    "env-options",
    "env-options.size",
    "env-options.length",
    "env-options.arguments",
    "env-wrappers",
    "env-wrappers.0.steps",
    "env-wrappers.x",
    "agent",
    "seed",
    "num-seeds",
    "devices",
    "total-steps",
    "on-divergence",
    "network",
    "network.memory",
    "network.width",
    "network.depth",
    "network.blocks",
    "network.feed-forward",
    "memory",
    "memory-options",
    "memory-options.state-size",
    "memory-options.window",
    "memory-options.heads",
    "ppo",
    "dqn",
    "ppo.num-envs",
    "ppo.rollout-length",
    "ppo.rollout",
    "ppo.update-epochs",
    "ppo.num-minibatches",
    "ppo.gamma",
    "ppo.learning-rate",
    "ppo.lr-schedule",
    "ppo.clip-eps",
    "dqn.batch-size",
    "dqn.tape-length",
    "dqn.buffer-size",
    "dqn.samples-per-insert",
    "dqn.learning-starts",
    "dqn.n-step",
    "dqn.q-lambda",
    "checkpoint-interval",
    "eval-episodes",
    "tensorboard",
    "wandb",
    "settings",
    "settings.gamma",
    "no-such",
    "no-network.start",
    "a.b.c.d",
]
ENVS = (
    "popgym/RepeatFirstEasy",
    "meta/DarkRoom",
    "meta/EndlessTMaze",
    "meta/BernoulliBandit",
    "meta/TabularMDP",
    "gym/CartPole-v1",
)
WRAPPERS = ("time_limit", "frame_skip", "sticky_actions", "mask_observation", "select_keys", "position_only", "no")
COMMANDS = ("evaluate", "icl", "inspect")

Case = tuple[list[str], str]


def command_line(rng: random.Random, folder: Path) -> Case:
    """Return a training with a few fields of arbitrary values."""
    del folder
    arguments = ["train", "--check"]
    if rng.random() < 0.5:
        arguments += ["--env", rng.choice(ENVS)]
    if rng.random() < 0.3:
        arguments += ["--agent", rng.choice(("ppo", "dqn", "DQN", "sac"))]
    for _ in range(rng.randint(1, 3)):
        name, value = rng.choice(FIELDS), rng.choice(VALUES)
        arguments += rng.choice(([f"--{name}", value], [f"--{name}={value}"], [f"--{name}"], [name, value]))
    return arguments, ""


def memory_options(rng: random.Random, folder: Path) -> Case:
    """Return a training with a memory and an arbitrary option."""
    from memax_rl import memory

    del folder
    name = rng.choice(memories())
    options = list(memory.spec(name).options) or ["size"]
    option = rng.choice(options).replace("_", "-")
    return ["train", "--check", "--memory", name, f"--memory-options.{option}", rng.choice(VALUES)], ""


def environment_options(rng: random.Random, folder: Path) -> Case:
    """Return a training with an environment and an arbitrary option."""
    from memax_rl import envs

    del folder
    env = rng.choice(ENVS)
    option = rng.choice([*envs.options(env), "none"]).replace("_", "-")
    arguments = ["train", "--check", "--env", env, f"--env-options.{option}", rng.choice(VALUES)]
    if rng.random() < 0.3:
        arguments += [
            "--env-wrappers",
            rng.choice((rng.choice(WRAPPERS), f"[{{name: {rng.choice(WRAPPERS)}, steps: 3}}]")),
        ]
    return arguments, ""


def configuration(rng: random.Random, folder: Path) -> Case:
    """Return a training of a configuration file with something wrong in it."""
    fields: dict = {"env": rng.choice(ENVS), "network": {"memory": rng.choice(memories()), "width": 8}}
    text = yaml.safe_dump(fields)
    for _ in range(rng.randint(1, 3)):
        place, value = rng.randrange(len(text) + 1), rng.choice(VALUES)
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:place] + value + text[place:]
        elif kind == 1:
            text = text[:place]
        elif kind == 2:
            text += f"{rng.choice(FIELDS).replace('-', '_')}: {value}\n"
        else:
            text += "[" * 500
    path = folder / "config.yaml"
    path.write_text(text, errors="surrogateescape")
    return ["train", "--check", "--config", rng.choice((str(path), str(path), rng.choice(VALUES)))], text


def run_folder(rng: random.Random, folder: Path) -> Case:
    """Return a command on a run folder that is damaged, or none."""
    run = folder / "run"
    run.mkdir()
    for name in ("config.yaml", "metrics.csv", "summary.json", "checkpoints/3.npz"):
        if rng.random() < 0.7:
            (run / name).parent.mkdir(exist_ok=True)
            content = rng.choice(
                (
                    "",
                    "x",
                    "update,seed\n1",
                    "\x00" * 100,
                    "{",
                    yaml.safe_dump({"env": rng.choice(ENVS)}),
                    rng.choice(VALUES),
                )
            )
            (run / name).write_text(content, errors="surrogateescape")
    if rng.random() < 0.2:
        (run / "metrics.csv").unlink(missing_ok=True)
        (run / "metrics.csv").symlink_to("/etc/passwd")
    command = rng.choice([["train", "--resume", str(run)], *([name, str(run)] for name in COMMANDS)])
    if command[0] != "train" and rng.random() < 0.4:
        command += [rng.choice(("--episodes", "--rows", "--tasks", "--seed", "--steps")), rng.choice(VALUES)]
    return command, ""


KINDS: tuple[Callable[[random.Random, Path], Case], ...] = (
    command_line,
    command_line,
    memory_options,
    environment_options,
    configuration,
    run_folder,
)


def answer(arguments: list[str]) -> tuple[int | None, str, float]:
    """Run the command line in this process. Return its status, what it printed to stderr, and the seconds."""
    out, err, begun = io.StringIO(), io.StringIO(), time.monotonic()
    # What stands still ends the script, with the stacks of all threads.
    faulthandler.dump_traceback_later(12 * SECONDS, exit=True, file=sys.__stderr__ or 2)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: int | None = memax(arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            status = None
            traceback.print_exc()
    return status, err.getvalue(), time.monotonic() - begun


def judge(status: int | None, error: str, seconds: float, left: list[str]) -> str:
    """Return what is wrong with an answer, or an empty text."""
    if status is None or "Traceback" in error:
        return f"traceback: {error.strip().splitlines()[-1][:200]}"
    if status not in (0, 1, 2):
        return f"status {status}"
    if seconds > SECONDS:
        return f"{seconds:.0f} s"
    if status == 2 and len(error) > 4_000:
        return f"{len(error)} characters on stderr"
    return f"made {left}" if left else ""


def fuzz(cases: int, seed: int = 0) -> list[str]:
    """Run so many cases. Return a line for each that is not answered as it should be."""
    rng, wrong, before = random.Random(seed), [], os.getcwd()
    # Nothing of a previous case's environment is needed again, and a process's memory has an end.
    for number in range(cases):
        with tempfile.TemporaryDirectory() as temporary:
            here = Path(temporary) / "here"
            here.mkdir()
            os.chdir(here)
            try:
                arguments, text = rng.choice(KINDS)(rng, Path(temporary))
                result = answer(arguments)
                problem = judge(*result, left=sorted(os.listdir(here)))
            finally:
                os.chdir(before)
                shutil.rmtree(here, ignore_errors=True)
        if problem:
            shown = [a if len(a) < 80 else a[:80] + "..." for a in arguments]
            wrong.append(f"case {number}: {shown} {text[:200]!r}: {problem}")
    return wrong


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Give the command line malformed input.")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wrong = fuzz(arguments.cases, arguments.seed)
    print("\n".join(wrong))
    print(f"{arguments.cases} cases, {len(wrong)} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
