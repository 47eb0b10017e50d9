"""A file is the old one or the new one, never half of it."""

import errno
import json
import math
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from memax_rl import signals
from memax_rl.evaluation.playback import write_playback
from memax_rl.runs import Run, make_config
from memax_rl.runs.checkpoint import write_checkpoint
from memax_rl.runs.files import folder_beside, json_text, save_figure, write_atomically, written_beside


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


@pytest.fixture
def ended(monkeypatch):
    """The exit statuses with which a signal would have ended the process."""
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    yield statuses
    signals._Watch.stops = False


def test_a_signal_leaves_nothing_of_files_and_folders_that_are_being_made(tmp_path, ended):
    kept = tmp_path / "kept"
    kept.write_text("old")

    def write_half():
        with written_beside(kept) as file:
            file.write(b"half")
            assert len(list(tmp_path.iterdir())) == 3
            signals._stop(15)
            assert (ended, [path.name for path in tmp_path.iterdir()]) == ([143], ["kept"])
            signals._Watch.stops = False

    with folder_beside(tmp_path / "new/er/out") as made:
        (made / "figures").mkdir()
        with pytest.raises(OSError, match=r"No such file or directory: .*kept"):
            write_half()
    assert kept.read_text() == "old"
    assert not signals._Watch.unfinished


def test_what_is_done_to_the_end_is_before_a_signal_ends_the_process(ended):
    stop = threading.Thread(target=signals._stop, args=(2,))
    with signals.done_to_the_end():
        stop.start()
        time.sleep(0.05)
        assert not ended
    stop.join()
    assert ended == [130]


def test_every_file_is_as_readable_as_any_new_one(tmp_path):
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "text", "new")
        write_checkpoint(tmp_path / "1.npz", {"x": np.zeros(3)}, {})
        with folder_beside(tmp_path / "out") as made:
            assert made.stat().st_mode & 0o777 == 0o750
    finally:
        os.umask(mask)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {"text": 0o640, "1.npz": 0o640}


def test_no_file_of_json_holds_what_json_does_not_know(tmp_path):
    """Python alone reads NaN and Infinity; jq, R, JavaScript and the others call such a file damaged."""
    found = {"mean": math.nan, "seeds": [math.inf, (1.5, -math.inf)], "name": "NaN", "count": 3}
    want = {"mean": None, "seeds": [None, [1.5, None]], "name": "NaN", "count": 3}
    run = Run.create(tmp_path / "run", make_config({}))
    run.write_summary(found)
    (steps,) = write_playback({}, [found], [], tmp_path)
    for text in (json_text(found), run.summary_path.read_text(), steps.read_text()):
        assert json.loads(text, parse_constant=pytest.fail) == want
