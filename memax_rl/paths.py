"""Paths as a user writes them."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Return a path whose leading `~` or `~name` is that user's home folder, as a shell has it that is not quoted.

    Raises:
        ValueError: If there is no such user.
    """
    # As text: pathlib makes `~x` of `./~x`, and would take it for a user's home.
    text = os.fspath(path)
    whole = os.path.expanduser(text)
    if text.startswith("~") and whole == text:
        raise ValueError(f"{text[:200]!r} is in the home folder of a user that there is not; write ./{text[:200]}")
    return Path(whole)
