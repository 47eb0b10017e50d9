"""Several processes that train one run together, on one machine or on many, through `jax.distributed`.

Each runs the same program with the same configuration, and holds its devices' share of the rows (memax_rl/sharding.py).
Process 0 alone writes the run folder, evaluates, logs, and decides what depends on the clock. What the others need of
that it sends them by a collective of JAX's own. In a process that is alone every function here has nothing to do.
"""

import atexit
import errno
import os
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Int

# Seconds without a sign of life after which a process counts as lost, and ends the others.
_HEARTBEAT = 30
# Seconds that a process waits at its end for the others, which may be evaluating or saving.
_PATIENCE = 24 * 3600
# Seconds that a process waits at its start for all to be there, and after which it says that it does.
_JOINING, _LONG = 300, 10
# More processes are a slip of the keyboard.
_MOST_PROCESSES = 1_000_000
# How long the first process waits for the others to find a mistake that it has found.
_GRACE = 5


def count() -> int:
    """Return how many processes train together."""
    return jax.process_count()


def devices() -> int:
    """Return how many devices all processes have together."""
    return jax.device_count()


def is_first() -> bool:
    """Return whether this is process 0, or alone."""
    return jax.process_index() == 0


@contextmanager
def taking_part(where: str | None) -> Iterator[None]:
    """Take part in a run of several processes, before JAX is used for the first time; None: this process is alone.

    Where an error ends this process, it does not wait for the others, so that they learn of it at once; only the first
    one gives them seconds to find a mistake of the user's too.

    Args:
        where: "auto", to find the others as Slurm, Open MPI or Kubernetes tell; or HOST:PORT,PROCESS,PROCESSES: the
            address of process 0, which of them this is, and how many there are.

    Raises:
        ValueError: If `where` is something else, another program listens there, or nothing tells where the others are.
    """
    if where is None:
        yield
        return
    _initialize(where)
    try:
        yield
    except KeyboardInterrupt:
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        if isinstance(error, ValueError) and is_first():
            # A mistake that every process finds. The others are aborted, with a message of JAX's, where the first one
            # is gone before they have told it.
            time.sleep(_GRACE)
        # Registered last, and so called first: JAX's own handler would wait for the others.
        atexit.register(_exit_at_once, 2)
        raise
    jax.distributed.shutdown()


def _exit_at_once(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def _joining(who: str, where: str) -> Iterator[None]:
    """End this process with one line if the others do not come. JAX would end it with a trace of its own instead."""

    def say_so() -> None:
        print(f"distributed: {who} waits for the others at {where}, at most {_JOINING} s", file=sys.stderr, flush=True)

    def give_up() -> None:
        print(
            f"memax-rl: error: distributed: not all processes came to {where} within {_JOINING} s, as {who} sees it; "
            "check the address, that this machine reaches it, and that as many are started as each is told",
            file=sys.stderr,
        )
        _exit_at_once(2)

    timers = [threading.Timer(_LONG, say_so), threading.Timer(_JOINING, give_up)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _initialize(where: str) -> None:
    options: dict[str, Any] = {
        "heartbeat_timeout_seconds": _HEARTBEAT,
        "shutdown_timeout_seconds": _PATIENCE,
        # Later than this process gives up by itself.
        "initialization_timeout": _JOINING + 60,
    }
    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    if where == "auto":
        try:
            with _joining("one of them", "the address that their starter gave"):
                jax.distributed.initialize(**options)
        except ValueError as error:
            raise ValueError(
                "distributed: neither Slurm, Open MPI nor Kubernetes tells where the other processes are "
                f"({str(error).rstrip('.')}); start it by srun or mpirun, or give HOST:PORT,PROCESS,PROCESSES"
            ) from None
        return
    address, index, processes = _parse(where)
    if index == 0:
        _check_free(int(address.rpartition(":")[2]))
    with _joining(f"process {index} of {processes}", address):
        jax.distributed.initialize(address, processes, index, cluster_detection_method="deactivate", **options)


def _check_free(port: int) -> None:
    """Raise `ValueError` if process 0 cannot listen at the port; JAX would crash, or share it with another run."""
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as tried:
                # What a run left that has ended does not count.
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tried.bind((everywhere, port))
        except OSError as error:
            # Others tell that there is no such family here.
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise ValueError(
                    f"distributed: process 0 cannot listen at port {port}: {os.strerror(error.errno)}; choose another "
                    "for all processes"
                ) from None


def _parse(where: str) -> tuple[str, int, int]:
    address, *numbers = where.split(",")
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and len(numbers) == 2 and all(n.isdecimal() for n in numbers)):
        raise ValueError(
            "distributed: expected nothing, or HOST:PORT,PROCESS,PROCESSES such as 10.0.0.1:9911,0,2 for the first of "
            f"two processes, got {where[:100]!r}"
        )
    index, processes = map(int, numbers)
    if not 1 <= int(port) <= 65535:
        raise ValueError(f"distributed: the port must be 1 to 65535, got {port[:20]}")
    if not 1 <= processes <= _MOST_PROCESSES:
        raise ValueError(f"distributed: PROCESSES must be 1 to {_MOST_PROCESSES:,}, got {numbers[1][:20]}")
    if index >= processes:
        raise ValueError(f"distributed: {processes} processes are numbered from 0, so there is none of number {index}")
    return address, index, processes


def gather(values: Sequence[int]) -> Int[np.ndarray, "processes n"]:
    """Return the numbers of all processes, all of which call this at the same point of the program."""
    mine = np.asarray(values, np.int32)
    return mine[None] if count() == 1 else np.asarray(multihost_utils.process_allgather(mine))


def from_first(array: Array | np.ndarray) -> np.ndarray:
    """Return the array of process 0. All processes call this, with arrays of one shape."""
    return np.asarray(array) if count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(array)))


def check_same(text: str, what: str) -> None:
    """Raise `ValueError` in every process if they do not all have the same text."""
    if len(set(gather([zlib.crc32(text.encode()) & 0x7FFFFFFF])[:, 0].tolist())) > 1:
        raise ValueError(f"distributed: the processes do not have the same {what}; start all of them alike")


def say(line: str) -> None:
    """Print a line to standard error, of several processes in the first alone."""
    if is_first():
        print(line, file=sys.stderr)
