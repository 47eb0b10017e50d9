"""What this machine has for the workers of a study, and each worker's share of it."""

import importlib.util
import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

# Of a GPU's memory; the rest is for what is not an array.
_MEMORY = 0.9


def part_of_gpu(part: float) -> dict[str, str]:
    """Return the environment variables of a process that has so much of a GPU; JAX takes three quarters by itself."""
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{_MEMORY * part:.3f}"} if 0 < part < 1 else {}


def cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def gpus(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the GPUs that JAX would use, without starting it: that would take their memory."""
    environment = os.environ if environment is None else environment
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [device for device in environment["CUDA_VISIBLE_DEVICES"].split(",") if device]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(i) for i, _ in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU "))]


def variables(worker: int, workers: int, devices: Sequence[str]) -> dict[str, str]:
    """Return the environment variables of a worker: its GPU, and its share of that GPU's memory if it has not all."""
    if not devices:
        return {}
    sharing = math.ceil(workers / len(devices))
    return {"CUDA_VISIBLE_DEVICES": devices[worker % len(devices)], **part_of_gpu(1 / sharing)}


def share_of(worker: int, workers: int, available: Sequence[int]) -> list[int]:
    """Return the cores of a worker; where there are more workers than cores, several have the same one."""
    return list(available[worker::workers]) or [available[worker % len(available)]]


@contextmanager
def on_cores(chosen: Sequence[int]) -> Iterator[None]:
    """Have processes that are started inside run on these cores only, where the system can.

    XLA, Eigen and OpenBLAS make as many threads as a process has cores, so that workers do not get in each other's way.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
