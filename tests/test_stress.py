"""Short forms of the scripts in tests/stress, which whoever changes the command line or the run folder runs in full."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STRESS = Path(__file__).parent / "stress"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["fuzz.py", "--cases", "60", "--seed", "1"],
        ["kills.py", "--kills", "2", "--kinds", "ppo"],
        ["damage.py", "--cases", "25"],
        ["studies.py", "--kills", "2", "--memories", "min_gru", "--total-steps", "20k", "--longest", "8"],
    ],
    ids=["fuzz", "kills", "damage", "studies"],
)
def test_a_short_form(arguments):
    done = subprocess.run([sys.executable, STRESS / arguments[0], *arguments[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert " 0 wrong" in done.stdout


@pytest.mark.slow
def test_a_full_disk():
    possible = ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if not shutil.which("unshare") or subprocess.run(possible, capture_output=True).returncode:
        pytest.skip("needs a mount namespace of one's own")
    done = subprocess.run([sys.executable, STRESS / "disk.py", "--cases", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
