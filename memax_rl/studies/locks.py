"""Locks that processes on one machine or on several hold on something in a shared folder.

A lock is two things. `flock` decides between processes of one machine, and ends with its process, however that ends; on
many file systems it decides between machines too, but not on all, and none tells which it is. So there is a lease
beside it: a file that is made exclusively and touched every few seconds. A lease of another machine is respected as
long as it changes; who wants it watches it by his own clock, since those of two machines may differ.
"""

import fcntl
import os
import platform
import secrets
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memax_rl.runs.run import RunError

# Seconds between two touches of a lease, and after which one of another machine that did not change is stale.
BEAT, PATIENCE = 5.0, 60.0
_LONGEST = 1_000
_BOOT = Path("/proc/sys/kernel/random/boot_id")
# What was seen of leases of other machines: their text and time stamp, and since when on this process's clock.
_Seen = tuple[tuple[str, int], float]
_seen: dict[Path, _Seen] = {}


def machine_name() -> str:
    """Return a name of this machine that no other has: that of its boot, where the system gives one.

    Names of hosts are not unique among containers, which moreover may share a kernel, and with it `flock`.
    """
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return f"{platform.node()}-{uuid.getnode():x}"


@contextmanager
def hold(path: Path, *, machine: str | None = None, beat: float = BEAT, patience: float = PATIENCE) -> Iterator[bool]:
    """Try to hold a lock, and yield whether this process does.

    Args:
        path: The file of the lock, in a folder that exists; its lease is the same with `.lease` behind it.
        machine: The name of this machine; by default `machine_name()`.
        beat: Seconds between touches of the lease.
        patience: Seconds after which the lease of another machine that was not touched is stale.

    Raises:
        RunError: If the file system has no locks.
    """
    machine = machine or machine_name()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise RunError(
                f"{path.parent} is on a file system without locks ({error.strerror}); choose another"
            ) from None
        lease, token = path.with_name(path.name + ".lease"), secrets.token_hex(8)
        if not _take(lease, machine, token, patience):
            yield False
            return
        ended = threading.Event()
        beats = threading.Thread(target=_touch, args=(lease, token, beat, ended), daemon=True)
        beats.start()
        try:
            yield True
        finally:
            ended.set()
            beats.join()
            if _owner(lease) == token:
                lease.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether a lock seems to be held; one of a process that was killed does for a while."""
    return path.with_name(path.name + ".lease").exists()


def _take(lease: Path, machine: str, token: str, patience: float) -> bool:
    """Make the lease, if there is none, or one that is stale. `flock` is held already."""
    for _ in range(2):
        try:
            descriptor = os.open(lease, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        except FileExistsError:
            if not _remove_stale(lease, machine, token, patience):
                return False
            continue
        with os.fdopen(descriptor, "w") as file, suppress(OSError):
            # On a full disk the lease is empty: nobody's, and stale as soon as it no longer changes.
            file.write(f"{machine}\n{token}\nprocess {os.getpid()} on {platform.node()}\n")
        _seen.pop(lease, None)
        return True
    return False


def _remove_stale(lease: Path, machine: str, token: str, patience: float) -> bool:
    """Remove a lease that nobody touches any more. Return whether there is none now."""
    now = _look(lease)
    if now is None:
        return True
    if now[0].split("\n")[0] != machine:
        before, since = _seen.setdefault(lease, (now, time.monotonic()))
        if before != now:
            _seen[lease] = now, time.monotonic()
            return False
        if time.monotonic() - since < patience:
            return False
    # This machine's own lease is stale at once: whoever had it would hold `flock` too.
    aside = lease.with_name(f"{lease.name}.{token}")
    try:
        # Two machines may remove it at once: one of them gets it.
        os.rename(lease, aside)
    except FileNotFoundError:
        return True
    taken = _look(aside)
    if taken is not None and taken[0] != now[0]:
        # Another was faster, and this is its new one: give it back.
        with suppress(FileExistsError):
            os.link(aside, lease)
        aside.unlink()
        return False
    aside.unlink()
    return True


def _look(lease: Path) -> tuple[str, int] | None:
    """Return text and time stamp of a lease, or None if there is none. Opening it makes a network file system look."""
    try:
        descriptor = os.open(lease, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, errors="replace") as file:
        return file.read(_LONGEST), os.fstat(file.fileno()).st_mtime_ns


def _owner(lease: Path) -> str:
    """Return the token in a lease, or an empty text."""
    looked = _look(lease)
    lines = looked[0].split("\n") if looked else []
    return lines[1] if len(lines) > 1 else ""


def _touch(lease: Path, token: str, beat: float, ended: threading.Event) -> None:
    """Touch the lease until `ended`, as long as it is this process's."""
    while not ended.wait(beat):
        # A file system that is away for a moment must not end this thread.
        with suppress(OSError):
            if _owner(lease) == token:
                os.utime(lease)
