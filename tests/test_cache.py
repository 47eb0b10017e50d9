"""Compiled programs are kept between starts, where the user wants that. Each start is a process of its own."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

from memax_rl import cache

ROOT = Path(__file__).parent.parent
# The start of a command, and a program that is kept however fast it was compiled.
PROGRAM = """
import jax, jax.numpy as jnp
from memax_rl.cli.common import prepare_jax
prepare_jax(trains=True)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
def f(x):
    return jnp.sort(jnp.sin(x) @ x)
print(float(jax.jit(f)(jnp.eye(8)).sum()))
"""


def start(base: Path, **more: str) -> "subprocess.Popen[str]":
    # As it is where nobody has said anything: tests say where programs are kept (conftest.py).
    ours = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment = kept | {"XDG_CACHE_HOME": str(base), "PYTHONPATH": str(ROOT)} | more
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: "subprocess.Popen[str]") -> str:
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return out


def test_programs_are_kept_and_two_processes_may_write_at_once(tmp_path):
    results = [end(process) for process in [start(tmp_path), start(tmp_path)]]
    (folder,) = (tmp_path / "memax_rl").iterdir()
    kept = sorted(path for path in folder.iterdir() if path.name.startswith("jit_f"))
    assert kept
    assert folder.stat().st_mode & 0o077 == 0, "nobody else writes what will be run"
    before = [path.stat().st_mtime_ns for path in kept]
    results.append(end(start(tmp_path)))
    assert [path.stat().st_mtime_ns for path in kept] == before, "it was found there"
    assert len(set(results)) == 1


def test_what_a_full_disk_left_half_written_is_removed(tmp_path):
    """JAX warns of it at every start, and never writes it again."""
    whole = zlib.compress(bytes(1000))
    for name, content in {"old": b"", "whole": whole, "cut": whole[:-3], "empty": b""}.items():
        (tmp_path / f"{name}-cache").write_bytes(content)
    cache.remove_broken(tmp_path)
    assert len(list(tmp_path.glob("*-cache"))) == 4, "the first look only notes when it was"
    os.utime(tmp_path / "old-cache", (1, 1))
    os.utime(tmp_path / ".looked", (2, 2))
    cache.remove_broken(tmp_path)
    assert {path.name for path in tmp_path.glob("*-cache")} == {"old-cache", "whole-cache"}


def test_the_user_decides(tmp_path):
    end(start(tmp_path / "off", JAX_ENABLE_COMPILATION_CACHE="false"))
    assert not (tmp_path / "off").exists()
    end(start(tmp_path / "default", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")))
    assert not (tmp_path / "default").exists()
    assert any(path.name.startswith("jit_f") for path in (tmp_path / "own").iterdir())


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    end(start(tmp_path / "file"))


def test_a_folder_where_others_write_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.folder().mkdir(parents=True)
    cache.folder().chmod(0o777)
    end(start(tmp_path))
    assert not any(cache.folder().iterdir())
    cache.folder().chmod(0o755)
    end(start(tmp_path))
    assert any(cache.folder().iterdir())


def test_the_folder_is_of_the_machine_and_the_version(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.folder().is_relative_to(Path.home() / ".cache/memax_rl")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.folder().parent == Path("/somewhere/memax_rl")
