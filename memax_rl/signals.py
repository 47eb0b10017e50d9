"""Ctrl-C and SIGTERM: a request to stop after the current updates, or, where there is nothing to save, at once."""

import atexit
import functools
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal ended the run.

    Attributes:
        number: The signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class _Watch:
    """What the watching thread does about a signal; there is one of them in a process, as there is one main thread.

    Attributes:
        is_on: Whether a command line runs, so that the thread decides, and not Python's handlers.
        ends: Whether the next signal ends the process at once.
        message: What is said then.
        unfinished: Files and folders that are removed then.
        stops: Whether the process is being ended.
        busy: Held by what is done to its end first.
    """

    is_on = False
    ends = False
    message = ""
    unfinished: ClassVar[set[Path]] = set()
    stops = False
    busy = threading.Lock()


@contextmanager
def exit_at_once(message: str = "stopped") -> Iterator[None]:
    """Within this context SIGINT and SIGTERM print `message` and end the process, even while it compiles.

    For the command line, from its main thread; elsewhere it does nothing. From `ready` on, the first signal lets the
    run save what it has, and a second one ends it. While XLA compiles, Python runs no signal handler, but the
    interpreter still writes the signal's number to a socket, which a thread reads. Nothing is raised, because an
    exception that comes in the middle of a callback is ignored there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _Watch.is_on, _Watch.ends, _Watch.message
    handlers = {number: signal.signal(number, _nothing) for number in _SIGNALS}
    descriptor = signal.set_wakeup_fd(_watched().fileno(), warn_on_full_buffer=False)
    _Watch.is_on, _Watch.ends, _Watch.message = True, True, message
    try:
        yield
    finally:
        _Watch.is_on, _Watch.ends, _Watch.message = before
        signal.set_wakeup_fd(descriptor)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _nothing(number, frame):
    """Do nothing: the watching thread acts."""


@functools.cache
def _watched() -> socket.socket:
    """Return where signals are to be written; a thread that reads there ends the process. One a process."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    atexit.register(sender.close)

    def watch():
        while received := receiver.recv(1):
            if received[0] not in _SIGNALS or not _Watch.is_on:
                continue
            if _Watch.ends:
                _stop(received[0])
            _Watch.ends, _Watch.message = True, "stopped at once; the last checkpoint is as it was"

    threading.Thread(target=watch, daemon=True).start()
    return sender


def _stop(number: int) -> None:
    """End the process, once what is to be done to its end is."""
    with _Watch.busy:
        print(f"\n{_Watch.message}", file=sys.stderr, flush=True)
        _Watch.stops = True
        for path in tuple(_Watch.unfinished):
            _remove(path)
        os._exit(128 + number)


def _remove(path: Path) -> None:
    # Again where the main thread wrote another file meanwhile.
    for _ in range(100):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
        if not path.exists():
            return


@contextmanager
def removed_when_stopped(path: Path) -> Iterator[None]:
    """Within this context a signal that ends the process at once removes a file or folder first, where there is one."""
    _Watch.unfinished.add(path)
    try:
        yield
    finally:
        # Without it the main thread may have failed; nothing is to be said of that.
        while _Watch.stops:
            time.sleep(1)
        _Watch.unfinished.discard(path)


@contextmanager
def done_to_the_end() -> Iterator[None]:
    """Within this context, which must be short, no signal ends the process at once: it does so at the context's end."""
    with _Watch.busy:
        yield


def ready() -> None:
    """Say that an update was made: from here on a signal lets the run save what it has."""
    _Watch.ends = False


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Turn the first SIGINT or SIGTERM into a request to stop after this call; a second one acts at once.

    Yields a function that returns the number of the signal, or 0.
    """
    received: list[int] = []

    def request(number, frame):
        del frame
        received.append(number)
        if not _Watch.is_on:
            signal.signal(number, signal.default_int_handler)

    try:
        old = {number: signal.signal(number, request) for number in _SIGNALS}
    except ValueError:
        # Not in the main thread, where no signal arrives.
        yield lambda: 0
        return
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        _Watch.ends, _Watch.message = True, "stopped; what was trained is saved"
