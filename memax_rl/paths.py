"""Paths as a user writes them."""

from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Return a path whose leading `~` or `~name` is that user's home folder, as a shell has it that is not quoted.

    Raises:
        ValueError: If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        text = str(path)[:200]
        raise ValueError(f"{text!r} is in the home folder of a user that there is not; write ./{text}") from None
