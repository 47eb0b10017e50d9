"""Ctrl-C and SIGTERM: a request to stop after the current updates, or, before there is anything to save, at once."""

import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Whether a signal ends the process of a command line at once, and what is said then.
_at_once = threading.Event()
_messages = ["stopped"]


class Stopped(KeyboardInterrupt):
    """A signal ended the run.

    Attributes:
        number: The signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def exit_at_once(message: str = "stopped") -> None:
    """Make SIGINT and SIGTERM print `message` and end the process wherever it is, even while it compiles.

    For the command line, from its main thread: until `ready` is called there is nothing to save or to undo. While XLA
    compiles, Python runs no signal handler, but the interpreter still writes the signal's number to a socket, which a
    thread reads. Nothing is raised, because an exception that comes in the middle of a callback is ignored there.
    """
    if threading.current_thread() is not threading.main_thread():
        # No signal arrives here, and none can be set up.
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)
    _at_once.set()
    _messages[:] = [message]
    signal.set_wakeup_fd(_watched().fileno(), warn_on_full_buffer=False)


@functools.cache
def _watched() -> socket.socket:
    """Return where signals are to be written; a thread that reads there ends the process. One a process."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def watch():
        while received := receiver.recv(1):
            if received[0] in (signal.SIGINT, signal.SIGTERM) and _at_once.is_set():
                print(f"\n{_messages[-1]}", file=sys.stderr, flush=True)
                os._exit(128 + received[0])

    threading.Thread(target=watch, daemon=True).start()
    return sender


def ready() -> None:
    """Say that an update was made: from now on a signal lets the run save what it has."""
    _at_once.clear()


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Turn the first SIGINT or SIGTERM into a request to stop after this call; a second one acts at once.

    Yields a function that returns the number of the signal, or 0.
    """
    received: list[int] = []

    def request(number, frame):
        del frame
        received.append(number)
        signal.signal(number, signal.default_int_handler)

    try:
        old = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        # Not in the main thread, where no signal arrives.
        yield lambda: 0
        return
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        _messages.append("stopped; what was trained is saved")
        _at_once.set()
