"""Locks of a study's cells, between processes and between machines that see a folder but not each other's `flock`."""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from memax_rl.studies import locks

PATIENCE, BEAT = 0.8, 0.05


@contextmanager
def _another(path: Path, machine: str, beat: float = BEAT):
    """Have a process of another machine hold the lock. `flock` is not seen from here, as on some file systems."""
    code = (
        "import fcntl, pathlib, time\nfcntl.flock = lambda *_: None\nfrom memax_rl.studies import locks\n"
        f"with locks.hold(pathlib.Path({str(path)!r}), machine={machine!r}, beat={beat}) as held:\n"
        "    print(held, flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        assert process.stdout.readline() == "True\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _try(path: Path, machine: str = "here") -> bool:
    with locks.hold(path, machine=machine, beat=BEAT, patience=PATIENCE) as held:
        return held


def test_a_lock_is_held_once_and_leaves_no_lease(tmp_path):
    path = tmp_path / "lock"
    with locks.hold(path) as held:
        assert held
        assert locks.is_held(path)
        assert not _try(path)
    assert not locks.is_held(path)
    assert _try(path)
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


def test_a_live_lease_of_another_machine_is_never_taken_and_a_dead_one_is_in_time(tmp_path):
    path = tmp_path / "lock"
    with _another(path, "there") as other:
        end = time.monotonic() + 3 * PATIENCE
        while time.monotonic() < end:
            assert not _try(path)
            time.sleep(0.1)
        other.kill()
        other.wait()
        dead = time.monotonic()
        while not _try(path):
            assert time.monotonic() - dead < 10 * PATIENCE, "it stays for ever"
            time.sleep(0.05)
        assert time.monotonic() - dead > PATIENCE / 2, "it was watched first"


def test_what_a_killed_process_of_this_machine_held_is_free_at_once(tmp_path):
    path = tmp_path / "lock"
    with _another(path, "here") as other:
        other.kill()
        other.wait()
        assert locks.is_held(path)
        assert _try(path)


def test_of_two_machines_one_gets_a_stale_lease(tmp_path):
    """The second looked before the first took it: what it then finds is new, and stays."""
    path = tmp_path / "lock"
    lease = tmp_path / "lock.lease"
    lease.write_text("there\nold\n")
    old = locks._look(lease)
    assert old
    locks._seen[lease] = old, time.monotonic() - PATIENCE
    lease.write_text("elsewhere\nnew\n")
    assert not _try(path)
    # It went on with what it saw before: the rename brings the new one to light.
    with pytest.MonkeyPatch.context() as patch:
        seen = iter([old])
        look = locks._look
        patch.setattr(locks, "_look", lambda p: next(seen, None) or look(p))
        locks._seen[lease] = old, time.monotonic() - PATIENCE
        assert not locks._remove_stale(lease, "here", "token", PATIENCE)
    assert lease.read_text() == "elsewhere\nnew\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", "lock.lease"]


def test_a_holder_whose_lease_was_taken_leaves_the_new_one_alone(tmp_path):
    path = tmp_path / "lock"
    with locks.hold(path, beat=BEAT):
        lease = tmp_path / "lock.lease"
        lease.write_text("there\nother\n")
        stamp = lease.stat().st_mtime_ns
        time.sleep(4 * BEAT)
        assert lease.stat().st_mtime_ns == stamp
    assert lease.read_text() == "there\nother\n"


def test_this_machine_has_a_name_that_stays():
    assert locks.machine_name() == locks.machine_name() != ""
