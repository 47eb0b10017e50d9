"""How the tests compile: with little effort, because almost every program runs once."""

import os
import subprocess
import sys
import tempfile

# Many tests train with the same few programs. What this process and those that it starts have compiled is kept until it
# ends, in two folders: those that it starts may be killed while they write.
PROGRAMS = tempfile.TemporaryDirectory()
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
