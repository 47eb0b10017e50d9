"""Cells of a study as tasks of Ray (`pip install 'memax_rl[ray]'`)."""

import contextlib
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from memax_rl.runs.run import RunError
from memax_rl.studies.machine import part_of_gpu
from memax_rl.studies.remote import GRACE, Engine, Job, run_job

# How often a cell is begun again where its process or machine is lost.
_RETRIES = 5
# Seconds for an address to answer. Ray itself waits for minutes.
_ANSWERS_WITHIN = 10.0


@dataclass(frozen=True)
class Ray:
    """Where and how Ray runs the cells of a study.

    Attributes:
        address: HOST:PORT of a cluster's head, or ray://HOST:PORT. None: that of RAY_ADDRESS, or of a cluster that this
            machine belongs to; where there is none, this machine alone, which is also "local".
        cpus: Cores that are reserved for a cell.
        gpus: GPUs that are reserved for a cell; parts of one too. None: 1 where the cluster has any.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None

    def __post_init__(self):
        if not self.cpus > 0 or not (self.gpus is None or self.gpus >= 0):
            raise RunError(f"a cell needs more than 0 cores and 0 GPUs or more, got {self.cpus:g} and {self.gpus}")
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise RunError(f"a cell has a part of one GPU or whole ones, got {self.gpus:g}")

    @contextmanager
    def connect(self, workers: int | None) -> Iterator[Engine]:
        """Connect to the cluster, and yield what runs jobs there, `workers` of them at once at most.

        Raises:
            RunError: If Ray is not installed, the cluster does not answer, or no machine could run a cell.
        """
        try:
            import ray.exceptions  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise RunError("--ray needs Ray, which is not installed; pip install 'memax_rl[ray]'") from None
        own = not ray.is_initialized()
        if own:
            _connect(ray, self.address)
        try:
            gpus = self.gpus
            if gpus is None:
                gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
            _check_size(ray, self.cpus, gpus)
            yield _Tasks(ray, self.cpus, gpus, workers)
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray gave up ({_line(error)}); the same command goes on") from None
        finally:
            if own:
                ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    if address is not None and address != "local":
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if not host or not port.isdigit():
            raise RunError(f"the address of a Ray cluster is HOST:PORT or ray://HOST:PORT, got {address!r}")
        try:
            socket.create_connection((host, int(port)), _ANSWERS_WITHIN).close()
        except (OSError, OverflowError) as error:
            raise RunError(f"no Ray cluster answers at {address}: {error}; start one by `ray start --head`") from None
    options: dict[str, Any] = {} if (address or "").startswith("ray://") else {"logging_level": "ERROR"}
    try:
        with warnings.catch_warnings():
            # Ray forks to start its processes, which do nothing of JAX before they are other programs.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(address=address, log_to_driver=False, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(f"Ray cannot be started or reached: {_line(error)}") from None


def _check_size(ray: Any, cpus: float, gpus: float) -> None:
    """Raise `RunError` if no machine of the cluster, as it is now, could run a cell."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(m.get("CPU", 0) >= cpus and m.get("GPU", 0) >= gpus for m in machines):
        has = " or ".join(sorted({f"{m.get('CPU', 0):g} and {m.get('GPU', 0):g}" for m in machines}))
        raise RunError(
            f"a cell needs {cpus:g} cores and {gpus:g} GPUs, and the machines of the Ray cluster have {has}; change "
            "--cell-cpus or --cell-gpus, or add a machine first"
        )


class _Tasks:
    """The jobs of a study as tasks of Ray. It is an `Engine`."""

    def __init__(self, ray: Any, cpus: float, gpus: float, limit: int | None):
        count = sum(node["Alive"] for node in ray.nodes())
        self.name = f"Ray ({count} machine{'s' if count > 1 else ''})"
        self._ray, self._limit = ray, limit
        self._variables = part_of_gpu(gpus)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": _RETRIES, "retry_exceptions": False}
        self._task = ray.remote(**options)(run_job)
        self._left: list[Job] = []
        self._open: dict[Any, str] = {}

    def submit(self, jobs: Sequence[Job], variables: Mapping[str, str]) -> None:
        """Have all jobs run; Ray decides which of them runs where and when."""
        self._left += jobs
        self._task = self._task.options(runtime_env={"env_vars": {**variables, **self._variables}})
        self._begin()

    def _begin(self) -> None:
        """Begin as many jobs as are allowed at once."""
        while self._left and (self._limit is None or len(self._open) < self._limit):
            job = self._left.pop(0)
            self._open[self._task.remote(job)] = job["name"]

    def ended(self, timeout: float) -> Iterator[tuple[str, str]]:
        """Wait; yield which jobs ended, and how."""
        done, _ = self._ray.wait(list(self._open), num_returns=len(self._open), timeout=timeout)
        for task in done:
            name = self._open.pop(task)
            self._begin()
            try:
                self._ray.get(task)
            except self._ray.exceptions.RayError as error:
                yield name, _line(error)
            else:
                yield name, ""

    def cancel(self) -> None:
        """Interrupt all tasks, as Ctrl-C does, and wait for them."""
        self._left.clear()
        deadline = time.monotonic() + GRACE
        with contextlib.suppress(self._ray.exceptions.RayError):
            for task in self._open:
                self._ray.cancel(task)
            if self._open:
                left = max(0.0, deadline - time.monotonic())
                self._ray.wait(list(self._open), num_returns=len(self._open), timeout=left)
        self._open.clear()


def _line(error: Exception) -> str:
    """Return what an error of Ray's says, without the state of its machinery behind it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
