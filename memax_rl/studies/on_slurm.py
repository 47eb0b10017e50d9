"""Cells of a study as a job array of Slurm, through submitit (`pip install 'memax_rl[slurm]'`)."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memax_rl.runs.run import RunError
from memax_rl.studies.remote import GRACE, Engine, Job, run_job

# How often a job that reached its time limit is queued again; each time it goes on where it was.
_MOST_TIMEOUTS = 1_000
# Where submitit writes its scripts, jobs and logs, inside the study's folder.
JOBS = ".jobs"


@dataclass(frozen=True)
class Slurm:
    """What Slurm is asked for.

    Attributes:
        options: Options of sbatch by submitit's names, such as partition, time (minutes), cpus_per_task,
            gpus_per_node, mem, account, additional_parameters. `time` is required.
    """

    options: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def connect(self, folder: Path, workers: int | None) -> Iterator[Engine]:
        """Yield what submits jobs, of which `workers` run at once at most. Nothing is made before the first.

        Raises:
            RunError: If submitit is not installed, this is no machine of Slurm, or an option is unknown.
        """
        try:
            import submitit  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise RunError("--slurm needs submitit, which is not installed; pip install 'memax_rl[slurm]'") from None
        options = {name.replace("-", "_"): value for name, value in self.options.items()}
        known = sorted(submitit.SlurmExecutor._valid_parameters())
        if unknown := sorted(options.keys() - set(known)):
            raise RunError(f"unknown option {unknown[0]} of Slurm; known: {', '.join(known)}")
        if workers is not None and "array_parallelism" in options:
            raise RunError("--workers and --slurm-options.array-parallelism say the same; give one of them")
        if "time" not in options:
            raise RunError(
                "--slurm needs a time limit of a job in minutes, such as --slurm-options.time 240; a cell that takes "
                "longer is queued again, and goes on where it was"
            )
        try:
            executor = submitit.SlurmExecutor(folder / JOBS / "%j", max_num_timeout=_MOST_TIMEOUTS)
            more = {"array_parallelism": workers} if workers is not None else {}
            executor.update_parameters(**{"job_name": folder.name or "study"} | options | more)
        except RuntimeError:
            raise RunError("this machine has no Slurm (no srun); run --slurm where jobs are submitted") from None
        except (TypeError, ValueError, AssertionError) as error:
            raise RunError(f"submitit refuses the options of Slurm: {' '.join(str(error).split())}") from None
        yield Jobs(executor)


class RunJob:
    """`run_job`, which submitit queues again where it was preempted or reached its time limit."""

    def __call__(self, job: Job) -> None:
        """Run the cell of a job."""
        run_job(job)

    def checkpoint(self, job: Job) -> Any:
        """Return what goes on instead: the same job, which resumes the run from its last checkpoint."""
        import submitit  # pyright: ignore[reportMissingImports]

        return submitit.helpers.DelayedSubmission(self, job)


class Jobs:
    """The jobs of a study by an executor of submitit. It is an `Engine`."""

    def __init__(self, executor: Any):
        self.name = "Slurm" if executor.name() == "slurm" else f"submitit's {executor.name()} executor"
        self._executor = executor
        self._open: dict[str, Any] = {}

    def submit(self, jobs: Sequence[Job], variables: Mapping[str, str]) -> None:
        """Submit all jobs as an array. Raises `RunError` if Slurm refuses it."""
        if not jobs:
            return
        # Jobs have the environment of whoever submits them.
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            submitted = self._executor.map_array(RunJob(), jobs)
        except (OSError, RuntimeError, ValueError) as error:
            raise RunError(f"Slurm refused the jobs: {' '.join(str(error).split())[:500]}") from None
        finally:
            for name in variables:
                os.environ.pop(name)
                if name in before:
                    os.environ[name] = before[name]
        self._open = {job["name"]: one for job, one in zip(jobs, submitted, strict=True)}

    def ended(self, timeout: float) -> Iterator[tuple[str, str]]:
        """Wait; yield which jobs ended, and where their messages are. Results are not unpickled: the files tell."""
        time.sleep(timeout)
        for name, job in list(self._open.items()):
            if job.done():
                del self._open[name]
                yield name, f"{job.state.lower()}, see {job.paths.stderr}"

    def cancel(self) -> None:
        """Cancel all jobs, and wait for them: those that run save what they have."""
        for job in self._open.values():
            job.cancel(check=False)
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and not all(job.done(force_check=True) for job in self._open.values()):
            time.sleep(1)
        self._open.clear()
