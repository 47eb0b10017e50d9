"""A study on a real Ray cluster of this machine: a node that is killed, Ctrl-C, and what cannot work."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import memax_rl
from memax_rl.cli import main
from memax_rl.runs import Run
from memax_rl.studies import Folder, Ray, make_study
from memax_rl.studies.grid import dump_study

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'memax_rl[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")
# Ray leaves files open and forks in order to start its processes at once, which is not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
]

SETTINGS = {
    "total_steps": 40_000,
    "eval_episodes": 0,
    "checkpoint_interval": 0,
    "network": {"width": 8, "memory": "min_gru"},
    "ppo": {"num_envs": 4, "rollout_length": 51, "num_minibatches": 2},
}
STUDY = make_study({"base": SETTINGS, "grid": {"ppo.learning_rate": [1e-3, 1e-4, 1e30]}})


@pytest.fixture
def cluster():
    """A head without cores, and two nodes with one core each."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made, nodes
    ray.shutdown()
    made.shutdown()


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    run = Run.open(folder)
    with np.load(run.checkpoint_path(run.saved_updates()[-1])) as archive:
        return {name: archive[name] for name in archive.files if name != "about"}


def _working(folder: Folder) -> bool:
    """Whether two cells have checkpoints and none has ended."""
    runs = [Run(folder.path / cell.name) for cell in STUDY.cells()]
    return sum(bool(run.saved_updates()) for run in runs) >= 2 and not any(run.summary_path.exists() for run in runs)


def _wait_for(condition, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def test_all_cells_finish_as_alone_although_a_node_is_killed(cluster, tmp_path):
    made, nodes = cluster
    folder, killed = Folder(tmp_path / "study"), []

    def kill() -> None:
        _wait_for(lambda: _working(folder))
        made.remove_node(nodes[1], allow_graceful=False)
        killed.append(_working(folder))

    thread = threading.Thread(target=kill)
    thread.start()
    ended = memax_rl.study(STUDY, out=folder.path, on=Ray(made.address))
    thread.join()
    assert killed == [True], "it was killed while both worked"
    good, other, bad = (cell.name for cell in STUDY.cells())
    assert ended.finished == tuple(sorted((good, other)))
    assert list(ended.failed) == [bad]
    assert "learning_rate" in ended.failed[bad]
    for cell in STUDY.cells()[:2]:
        alone = memax_rl.train(cell.config, out=tmp_path / "alone" / cell.name)
        one, expected = _arrays(folder.path / cell.name), _arrays(alone.folder)
        assert one.keys() == expected.keys()
        assert all(one[name].tobytes() == expected[name].tobytes() for name in one)
        updates = [row["update"] for row in Run.open(folder.path / cell.name).metrics()]
        assert updates == list(range(1, len(updates) + 1)), "no row is lost or doubled"


def test_ctrl_c_saves_all_cells_and_the_same_command_goes_on(cluster, tmp_path):
    made, _ = cluster
    folder, file = Folder(tmp_path / "study"), tmp_path / "study.yaml"
    file.write_text(dump_study(STUDY))
    command = [sys.executable, "-m", "memax_rl", "study", str(file), "--out", str(folder.path), "--ray", made.address]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    _wait_for(lambda: _working(folder) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert not any(folder.is_running(cell) for cell in STUDY.cells()), "all let go"
    begun = [run for cell in STUDY.cells() if (run := folder.begun(cell)) is not None]
    assert [run.saved_updates()[-1] for run in begun] == [run.metrics()[-1]["update"] for run in begun], "they saved"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ray", "nowhere"], "HOST:PORT or ray://HOST:PORT, got 'nowhere'"),
        (["--ray", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["--ray", "--cell-cpus", "0"], "more than 0 cores"),
        (["--ray", "--cell-gpus", "1.5"], "part of one GPU or whole ones"),
        (["--ray", "local", "--cell-gpus", "64"], "the machines of the Ray cluster have"),
        (["--ray", "--slurm"], "choose one"),
        (["--cell-cpus", "2"], "are for --ray"),
        (["--ray", "--cell", "0"], "--cell and --check"),
    ],
    ids=str,
)
def test_what_cannot_work_is_one_line_and_makes_nothing(options, says, capsys, tmp_path):
    assert main(["study", "--memory", "gru", "--out", str(tmp_path / "x"), *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memax-rl")]
    assert says in line
    assert not (tmp_path / "x").exists()
