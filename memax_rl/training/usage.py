"""What a training took of the memory: of the process, of the device, and of one compiled update."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def program_bytes(program: Any, *arguments: Any) -> int | None:
    """Return what a jitted function takes of one device: arguments, results and temporary arrays; None where unknown.

    For a function that was called with such arguments nothing is compiled again.
    """
    about = program.lower(*arguments).compile().memory_analysis()
    if about is None:
        return None
    results = about.output_size_in_bytes - about.alias_size_in_bytes
    return int(about.argument_size_in_bytes + results + about.temp_size_in_bytes)


def watch() -> Callable[[], dict[str, int | None]]:
    """Return a function that tells the peaks since now, of the process and of its first device, in bytes.

    A peak that this process cannot tell from an earlier one of its own is None: a worker of a study makes several runs,
    and JAX does not forget a device's peak.
    """
    resident, device = _reset_resident(), _device_peak()

    def peaks() -> dict[str, int | None]:
        now = _device_peak()
        return {
            "peak_process_bytes": _resident_peak() if resident else None,
            "peak_device_bytes": now if now is not None and now > (device or 0) else None,
        }

    return peaks


def _device_peak() -> int | None:
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def _reset_resident() -> bool:
    """Have Linux forget the peak of the resident memory of this process. Return whether it did."""
    try:
        descriptor = os.open(_CLEAR, os.O_WRONLY)
        with os.fdopen(descriptor, "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _resident_peak() -> int | None:
    """Return the peak of the resident memory of this process since it was forgotten."""
    lines = _STATUS.read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
