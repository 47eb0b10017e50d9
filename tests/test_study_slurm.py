"""A study through submitit: real processes of its local executor, and a job array through commands named as Slurm's."""

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

import memax_rl
from memax_rl.cli import main
from memax_rl.runs import Run
from memax_rl.studies import Folder, make_study
from memax_rl.studies.on_slurm import Jobs
from memax_rl.studies.remote import Setup, run_on
from memax_rl.studies.runner import open_study

submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install 'memax_rl[slurm]'")

SETTINGS = {
    "total_steps": 1_000,
    "eval_episodes": 0,
    "network": {"width": 8, "memory": "min_gru"},
    "ppo": {"num_envs": 4, "rollout_length": 51, "num_minibatches": 2},
}
STUDY = make_study({"base": SETTINGS, "grid": {"ppo.learning_rate": [1e-3, 1e30]}})


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    run = Run.open(folder)
    with np.load(run.checkpoint_path(run.saved_updates()[-1])) as archive:
        return {name: archive[name] for name in archive.files if name != "about"}


def test_cells_run_as_jobs_and_end_as_alone(tmp_path):
    folder, cells = open_study(STUDY, tmp_path / "study", (), False)
    executor = submitit.LocalExecutor(folder.path / ".jobs" / "%j")
    executor.update_parameters(timeout_min=10)
    engine = Jobs(executor)
    state = run_on(engine, Setup(folder.path.resolve(), (), False), cells, progress=False)
    good, bad = cells
    assert state.done == {good.name}
    assert list(state.failed) == [bad.name]
    assert "learning_rate" in state.failed[bad.name] == folder.failure(bad)
    alone = memax_rl.train(good.config, out=tmp_path / "alone")
    one, other = _arrays(folder.path / good.name), _arrays(alone.folder)
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_a_job_that_is_preempted_is_queued_again_and_goes_on(tmp_path):
    """submitit's own signal for it, at the first checkpoint; the second process goes on with the run."""
    longer = make_study(STUDY.model_dump() | {"grid": {"ppo.learning_rate": [1e-3]}})
    longer = make_study(longer.model_dump() | {"base": SETTINGS | {"total_steps": 40_000, "checkpoint_interval": 0}})
    folder, cells = open_study(longer, tmp_path / "study", (), False)
    executor = submitit.LocalExecutor(folder.path / ".jobs" / "%j")
    executor.update_parameters(timeout_min=10)

    class Interrupting(Jobs):
        done = False

        def ended(self, timeout):
            if not self.done and Run(folder.path / cells[0].name).saved_updates():
                self.done = True
                (job,) = self._open.values()
                (task,) = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
                os.kill(int(task), submitit.core.job_environment.JobEnvironment._usr_sig())
            yield from super().ended(timeout)

    engine = Interrupting(executor)
    state = run_on(engine, Setup(folder.path.resolve(), (), False), cells, progress=False)
    assert engine.done
    assert state.done == {cells[0].name}
    logs = "".join(path.read_text() for path in (folder.path / ".jobs").rglob("*.out"))
    assert logs.count("Starting with") == 2, "there were two processes"
    rows = Run.open(folder.path / cells[0].name).metrics()
    assert [row["update"] for row in rows] == list(range(1, len(rows) + 1))


# Runs the tasks of an array one after the other, as processes of this machine. It is no Slurm: it shows that what is
# submitted is an array of one cell a task, with the options that were typed.
_SBATCH = """\
#!{python}
import os, re, subprocess, sys
text = open(sys.argv[1]).read()
open({record!r}, "w").write(text)
count = int(re.search("--array=0-([0-9]+)", text)[1]) + 1
env = dict(os.environ, SLURM_ARRAY_JOB_ID="7", SLURM_NTASKS="1", SLURM_JOB_NUM_NODES="1", SLURM_NODEID="0")
env |= dict(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_NODELIST="here")
script = "".join(f"SLURM_ARRAY_TASK_ID={{i}} SLURM_JOB_ID=7_{{i}} bash {record}\\n" for i in range(count))
# Whoever submits waits until no one has the other end of its pipe.
nowhere = subprocess.DEVNULL
subprocess.Popen(["bash", "-c", script], env=env, start_new_session=True, stdout=nowhere, stderr=nowhere)
print("Submitted batch job 7")
"""
_SRUN = '#!/bin/bash\nwhile [[ "$1" == -* ]]; do case "$1" in --output|--error) shift;; esac; shift; done\nexec "$@"\n'
_SACCT = "#!/bin/bash\necho 'JobID|State|NodeList'\nfor i in 0 1; do echo \"7_$i|RUNNING|here\"; done\n"


def test_the_command_submits_an_array(tmp_path, monkeypatch, capsys):
    record, commands = tmp_path / "script", tmp_path / "bin"
    commands.mkdir()
    texts = {"sbatch": _SBATCH.format(python=sys.executable, record=str(record)), "srun": _SRUN, "sacct": _SACCT}
    for name, text in (texts | {"scancel": "#!/bin/bash\n"}).items():
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "study"
    typed = ["--memory", "min_gru", "--seeds", "2", "--total-steps", "1000", "--eval-episodes", "0", "--width", "8"]
    typed += ["--ppo.num-envs", "4", "--ppo.rollout-length", "51", "--ppo.num-minibatches", "2"]
    slurm = ["--slurm", "--slurm-options.partition", "long", "--slurm-options.time=30", "--workers", "1"]
    assert main(["study", *typed, "--out", str(out), *slurm]) == 0, capsys.readouterr().err
    script = record.read_text()
    for line in ("--partition=long", "--time=30", "--array=0-1%1", "--job-name=study"):
        assert f"#SBATCH {line}" in script
    assert len([cell for cell in Folder(out).study().cells() if Folder(out).is_finished(cell)]) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--slurm"], "needs a time limit"),
        (["--slurm", "--slurm-options.time", "9"], "this machine has no Slurm"),
        (["--slurm-options.tiem", "9"], "unknown option tiem of Slurm"),
        (["--slurm-options.time", "9", "8"], "takes one value"),
        (["--slurm", "--check"], "leave out --ray and --slurm"),
        (["--slurm", "--cell-gpus", "1"], "are for --ray"),
    ],
    ids=str,
)
def test_what_cannot_work_is_one_line_and_makes_nothing(options, says, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["study", "--memory", "gru", "--out", str(tmp_path / "x"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "x").exists()
