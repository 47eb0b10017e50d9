"""A file is the old one or the new one, never half of it."""

import errno
import os
from pathlib import Path

import pytest

from memax_rl.runs.files import save_figure, write_atomically


class _BreaksOff:
    def savefig(self, file, **_):
        if isinstance(file, Path):
            file = file.open("wb")
        file.write(b"half")
        raise KeyboardInterrupt


def test_a_figure_that_is_broken_off_leaves_the_old_one(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        save_figure(_BreaksOff(), path)
    assert path.read_bytes() == b"old"


def test_the_new_file_takes_the_old_ones_place_at_once(tmp_path, monkeypatch):
    path, seen = tmp_path / "data.json", []
    path.write_text("old")
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(path.read_text()), replace(a, b)))
    write_atomically(path, "new")
    assert seen == ["old"]
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*data\.json"):
        write_atomically(tmp_path / "data.json", "new")
    assert not list(tmp_path.iterdir())
