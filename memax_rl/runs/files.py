"""Files that are never seen half written."""

import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from memax_rl.signals import removed_when_stopped


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name and rename it.

    Raises:
        OSError: That names the file, also where the disk is full.
    """
    with written_beside(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def written_beside(path: Path) -> Iterator[IO[bytes]]:
    """Open a file under a temporary name, which becomes `path` at the end; else nothing of it is left.

    The temporary file is made exclusively, under a random name, so that no link that waits there is followed. It is
    removed also when a signal ends the process.

    Raises:
        OSError: That names the file, also where the disk is full.
    """
    temporary = _temporary(path, path.parent)
    with removed_when_stopped(temporary):
        try:
            # Readable as any new file is.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                # Else a loss of power could leave the new name with nothing behind it.
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno is not None:
                # A write that finds no room does not say where.
                raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
            raise
    sync_folder(path.parent)


def _temporary(path: Path, folder: Path) -> Path:
    """Return a hidden name in a folder that nothing has."""
    return folder / f".{path.name[:50]}.{secrets.token_hex(8)}.tmp"


def json_text(value: Any, indent: int | None = 2) -> str:
    """Return plain values as JSON. That knows no number that is not finite: null stands in its place."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_folder(folder: Path) -> None:
    """Look whether files can be written into a folder, or it can be made, before what they are to hold is computed.

    Raises:
        ValueError: If not.
    """
    try:
        there = _there(folder)
    except OSError as error:
        raise ValueError(f"out: {str(folder)[:200]}: {error.strerror}") from None
    if not there.is_dir():
        raise ValueError(f"out: {there} is a file, expected a folder; choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"out: nothing can be written into {there}; choose another place")


def _there(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """Make a folder beside `out`, under a temporary name, in which to make what is then moved to `out`.

    Where the folder that is to hold `out` does not exist, it is in the nearest one that does. At the end it is removed,
    also when a signal ends the process.

    Raises:
        OSError: If it cannot be made.
    """
    made = _temporary(out, _there(out.parent))
    with removed_when_stopped(made):
        try:
            made.mkdir()
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder last beyond a loss of power, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems cannot. The files are whole all the same.
        pass
    finally:
        os.close(descriptor)


def append(path: Path, content: str) -> None:
    """Append to a file of ours. A link in its place is not followed but raises `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_atomically(path, buffer.getvalue())
