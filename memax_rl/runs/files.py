"""Files that are never seen half written."""

import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memax_rl.signals import removed_when_stopped


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name and rename it.

    The temporary file is made exclusively, under a random name, so that no link that waits there is followed.

    Raises:
        OSError: That names the file, also where the disk is full.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:50]}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            # Else a loss of power could leave the new name with nothing behind it.
            os.fsync(file.fileno())
        # Readable as any new file is; `mkstemp` makes it the owner's alone.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            # A write that finds no room does not say where.
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise
    sync_folder(path.parent)


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
    there = folder
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
    except OSError as error:
        raise ValueError(f"out: {str(folder)[:200]}: {error.strerror}") from None
    if not there.is_dir():
        raise ValueError(f"out: {there} is a file, expected a folder; choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"out: nothing can be written into {there}; choose another place")


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """Make a folder beside `out`, under a temporary name, in which to make what is then moved to `out`.

    At the end it is removed, also when a signal ends the process.

    Raises:
        OSError: If it cannot be made.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name[:50]}.", suffix=".tmp", dir=out.parent))
    try:
        with removed_when_stopped(made):
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_atomically(path, buffer.getvalue())
