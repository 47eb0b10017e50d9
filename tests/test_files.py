"""A file is the old one or the new one, never half of it."""

import errno
import json
import math
import os
from pathlib import Path

import pytest

from memax_rl.evaluation.playback import write_playback
from memax_rl.runs import Run, make_config
from memax_rl.runs.files import json_text, save_figure, write_atomically


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


def test_no_file_of_json_holds_what_json_does_not_know(tmp_path):
    """Python alone reads NaN and Infinity; jq, R, JavaScript and the others call such a file damaged."""
    found = {"mean": math.nan, "seeds": [math.inf, (1.5, -math.inf)], "name": "NaN", "count": 3}
    want = {"mean": None, "seeds": [None, [1.5, None]], "name": "NaN", "count": 3}
    run = Run.create(tmp_path / "run", make_config({}))
    run.write_summary(found)
    (steps,) = write_playback({}, [found], [], tmp_path)
    for text in (json_text(found), run.summary_path.read_text(), steps.read_text()):
        assert json.loads(text, parse_constant=pytest.fail) == want
