"""See the tests fail: put known mistakes of recurrent reinforcement learning into a copy of the code, one at a time.

    python tests/mutants.py [--rows 1 2 5]

For each mistake a copy of the project gets it, the tests that are for it run there, and at least one of them must fail.
First they all run on an unchanged copy, where none may. Prints a table; exits with 1 if a mistake goes unnoticed.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import _mistakes_learning
import _mistakes_memory
import _mistakes_runs

ROOT = Path(__file__).parents[1]
PARTS = ("memax_rl", "agents", "envs", "configs", "tests", "docs", "pyproject.toml", "README.md")

MISTAKES = (*_mistakes_learning.MISTAKES, *_mistakes_memory.MISTAKES, *_mistakes_runs.MISTAKES)


def _copy(to: Path) -> Path:
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, to / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, to / part)
    return to


# What a wrong text raises that does not fit the code any more: the test that fails then has noticed nothing.
STALE = ("NameError", "AttributeError", "TypeError", "ImportError", "UnboundLocalError")


def _run(folder: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Return whether all tests passed, and the first that failed. Tests that could not run are an error."""
    # From its own folder the copy comes before what is installed.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest could not run {tests}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not failed:
        return True, ""
    test, _, reason = failed[0].partition(" - ")
    if reason.startswith(STALE):
        raise RuntimeError(f"{test} fails by {reason}: the mistake is not in the form of today's code")
    return False, test.split("::")[-1]


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Put known mistakes into a copy of the code, and see the tests fail.")
    parser.add_argument("--rows", nargs="*", type=int, help="only mistakes of these kinds")
    arguments = parser.parse_args()
    chosen = [mistake for mistake in MISTAKES if not arguments.rows or mistake.row in arguments.rows]
    with tempfile.TemporaryDirectory() as folder:
        tests = tuple(dict.fromkeys(test for mistake in chosen for test in mistake.tests))
        passed, failed = _run(_copy(Path(folder)), tests)
        if not passed:
            print(f"{failed} fails without any mistake")
            return 1
    missed = 0
    print("| row | mistake | first test that fails |\n|---|---|---|")
    for mistake in chosen:
        with tempfile.TemporaryDirectory() as folder:
            copy = _copy(Path(folder))
            text = (copy / mistake.file).read_text()
            if text.count(mistake.right) != 1:
                raise RuntimeError(f"{mistake.right!r} must stand once in {mistake.file}; change tests/mutants.py")
            (copy / mistake.file).write_text(text.replace(mistake.right, mistake.wrong))
            passed, failed = _run(copy, mistake.tests)
        missed += passed
        print(f"| {mistake.row} | {mistake.what} | {'**none**' if passed else failed} |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
