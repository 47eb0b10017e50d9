"""Compiled programs are kept from one start to the next: JAX's persistent compilation cache, in a folder of ours."""

import contextlib
import hashlib
import math
import os
import platform
import stat
import zlib
from pathlib import Path

import jax

# Programs that were compiled faster than this, in seconds, are not kept.
_WORTH_IT = 0.2
# What begins data that zstandard compressed, which JAX takes where it is installed.
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def folder() -> Path:
    """Return where programs are kept: one folder for each kind of machine, because they are made for its processor."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return base / "memax_rl" / f"jax-{jax.__version__}-{_processor()}"


def _processor() -> str:
    """Return a short name of what the processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    able = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(able.encode()).hexdigest()[:8]}"


def turn_on() -> None:
    """Have JAX keep compiled programs, unless the user has said where (JAX_COMPILATION_CACHE_DIR) or not to.

    JAX_ENABLE_COMPILATION_CACHE=false turns it off. Where the folder cannot be made, or others may write there, nothing
    is kept or read. For programs, not for libraries: it is set for the whole process.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is not None or not settings["jax_enable_compilation_cache"]:
        return
    try:
        # What is kept is loaded and run, so nobody else may write there.
        folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_ours_alone(folder()):
            return
    except (OSError, RuntimeError):
        return
    with contextlib.suppress(OSError):
        remove_broken(folder())
    jax.config.update("jax_compilation_cache_dir", str(folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_IT)


def _is_ours_alone(path: Path) -> bool:
    about = path.stat()
    # Windows has neither users of this kind nor such bits.
    return os.name == "nt" or (about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def remove_broken(kept: Path) -> None:
    """Remove programs of which a full disk or a kill left a part. JAX would warn of them at every start for ever.

    Args:
        kept: The folder of programs. Those are looked at that came since the last look.
    """
    looked = kept / ".looked"
    since = looked.stat().st_mtime if looked.exists() else math.inf
    looked.touch()
    for path in kept.glob("*-cache"):
        # Another process may remove it at the same time.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= since and not _is_whole(path.read_bytes()):
                path.unlink()


def _is_whole(program: bytes) -> bool:
    """Return whether what JAX compressed can be read to its end, or is compressed by a package that we do not have."""
    if program.startswith(_ZSTANDARD):
        return True
    try:
        zlib.decompress(program)
    except zlib.error:
        return False
    return True
