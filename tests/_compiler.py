"""How the tests compile: with little effort, because almost every program runs once, and once for several runs."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Many tests train with the same few programs. What this process and those that it starts have compiled is kept until it
# ends, in two folders: those that it starts may be killed while they write.
PROGRAMS = tempfile.TemporaryDirectory()
OWN, STARTED = Path(PROGRAMS.name, "own"), Path(PROGRAMS.name, "started")
_DAYS = 14
_QUICK = "--xla_cpu_use_fusion_emitters=false"
# A program is compiled in one part: tests run side by side, so parts that are compiled at once gain nothing.
_ONE_PART = "--xla_cpu_parallel_codegen_split_count=1"


def to_the_bit() -> dict[str, bool]:
    """Return options for `jax.jit` that undo the quick flag: without fusion equal expressions round differently."""
    return {"xla_cpu_use_fusion_emitters": True} if _QUICK in os.environ.get("XLA_FLAGS", "") else {}


def quick_flags() -> str:
    """Return XLA_FLAGS with flags that cut compile times to a third, if the installed compiler knows them.

    An unknown flag would end the process, so a process of its own tries them.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _QUICK in flags:
        return flags
    environment = os.environ | {"XLA_FLAGS": f"{flags} {_QUICK} {_ONE_PART}"}
    tried = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True)
    return environment["XLA_FLAGS"] if tried.returncode == 0 else flags


def machine() -> str:
    """Return a name of this kind of processor: a program for another one may have instructions that it lacks."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*:.*", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    told = f"{platform.machine()} {platform.processor()} {flags[0] if flags else ''}"
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def fetch_programs(kept: Path) -> None:
    """Let JAX find what earlier runs of the tests have compiled. Programs older than two weeks are deleted.

    JAX finds a program by its text, the compiler's version and the flags, so what it finds is what it would compile.
    """
    OWN.mkdir(exist_ok=True)
    for program in kept.glob("*-cache"):
        if program.stat().st_mtime < time.time() - _DAYS * 86_400:
            program.unlink(missing_ok=True)
        else:
            (OWN / program.name).symlink_to(program)


def keep_programs(kept: Path) -> None:
    """Keep for later runs what this one has compiled. Each is written whole: JAX would warn of half a program."""
    for program in OWN.glob("*-cache"):
        if not program.is_symlink() and not (kept / program.name).exists():
            part = kept / f"{program.name}.{os.getpid()}"
            shutil.copy(program, part)
            part.replace(kept / program.name)
