"""Several processes train one run: the updates of one process, one folder, one end. Real processes, on CPUs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from memax_rl import distributed
from memax_rl.runs import Run

HERE = Path(__file__).parent
SMALL = {
    "env": "popgym/PositionOnlyCartPoleEasy",
    "network": {"memory": "min_gru", "width": 8, "normalize_observation": True},
    "total_steps": 10**9,
    "devices": 2,
}
AGENTS = {
    "ppo": {"num_envs": 4, "rollout_length": 220, "update_epochs": 2, "num_minibatches": 1},
    "dqn": {"num_envs": 4, "batch_size": 4, "tape_length": 224, "learning_starts": 200, "buffer_size": 4 * 600},
}


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    for process in _started:
        process.kill()
        process.communicate()
    _started.clear()


def start(arguments: list[str], devices: int = 1) -> subprocess.Popen[str]:
    """Start a Python process with so many CPU devices."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(HERE.parent)}
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    _started.append(process)
    return process


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_together(count: int, arguments: list[str]) -> list[subprocess.Popen[str]]:
    """Start `memax-rl train` in so many processes that train together."""
    address = f"127.0.0.1:{free_port()}"
    command = ["-m", "memax_rl", "train", *arguments]
    return [start([*command, "--distributed", f"{address},{i},{count}"]) for i in range(count)]


def fields_typed(total_steps: int) -> list[str]:
    return [
        *("--env", SMALL["env"], "--memory", "min_gru", "--width", "8", "--total-steps", str(total_steps)),
        *("--ppo.num-envs", "4", "--ppo.rollout-length", "220", "--ppo.num-minibatches", "1", "--eval-episodes", "4"),
        "--ppo.lr-schedule=constant",
    ]


def wait_for_rows(folder: Path, within: float = 180) -> None:
    begun = time.monotonic()
    while not (folder / "metrics.csv").exists():
        assert time.monotonic() - begun < within, "no update was made"
        time.sleep(0.1)


def some_updates(count: int, agents: dict[str, dict], folder: Path, within: float = 300) -> None:
    """Make ten updates of each agent in so many processes, and in one of as many devices, at the same time."""
    address = f"127.0.0.1:{free_port()}"
    fields = json.dumps({name: SMALL | {"agent": name, name: own, "devices": count} for name, own in agents.items()})
    command = [str(HERE / "_some_updates.py")]
    processes = [
        start([*command, where, "10", str(folder), fields], 1 if where else count)
        for where in [*(f"{address},{i},{count}" for i in range(count)), ""]
    ]
    for process in processes:
        text, _ = process.communicate(timeout=within)
        assert process.returncode == 0, text


def check_updates(count: int, agent: str, folder: Path) -> None:
    """Raise `AssertionError` unless all processes have the same parameters, and those of one process to rounding."""
    alone = dict(np.load(folder / f"{agent}-0-of-1.npz"))
    together = [dict(np.load(folder / f"{agent}-{i}-of-{count}.npz")) for i in range(count)]
    for name, expected in alone.items():
        np.testing.assert_allclose(together[0][name], expected, rtol=1e-3, atol=1e-5, err_msg=name)
        for other in together[1:]:
            np.testing.assert_array_equal(other[name], together[0][name], err_msg=name)


@pytest.mark.slow
def test_two_processes_make_the_updates_of_two_devices(tmp_path):
    some_updates(2, AGENTS, tmp_path)
    for agent in AGENTS:
        check_updates(2, agent, tmp_path)


@pytest.mark.slow
def test_one_folder_one_end_and_another_number_of_processes(tmp_path):
    """A signal to the second process ends both; the folder is whole, and goes on in one process on one device."""
    folder = tmp_path / "run"
    processes = start_together(2, [*fields_typed(10**8), "--out", str(folder)])
    wait_for_rows(folder)
    processes[1].send_signal(signal.SIGTERM)
    texts = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], texts
    assert all("continue with --resume" in text for text in texts)
    # Only the first tells how it goes.
    assert [text.count("compiling") for text in texts] == [1, 0]
    run = Run.open(folder)
    made = int(run.metrics()[-1]["env_steps"])
    assert run.config().devices == 2
    assert run.saved_updates() == [run.metrics()[-1]["update"]]

    again = start(
        ["-m", "memax_rl", "train", "--resume", str(folder), "--devices", "1", "--total-steps", str(made + 1000)]
    )
    text, _ = again.communicate(timeout=180)
    assert again.returncode == 0, text
    assert "goes on with 1 devices, and was on 2" in text
    assert run.config().devices == 1
    assert made + 1000 <= run.metrics()[-1]["env_steps"] < made + 3000
    assert (folder / "summary.json").exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_other_with_a_message(tmp_path):
    """tests/stress/processes.py kills the first one too."""
    killed, folder = 1, tmp_path / "run"
    processes = start_together(2, [*fields_typed(10**8), "--out", str(folder)])
    wait_for_rows(folder)
    processes[killed].kill()
    begun = time.monotonic()
    text, _ = processes[1 - killed].communicate(timeout=180)
    assert time.monotonic() - begun < 60
    assert processes[1 - killed].returncode != 0
    assert re.search(r"another one is gone|Terminating process because", text), text


@pytest.mark.slow
def test_what_cannot_train_together_is_said(tmp_path):
    processes = start_together(2, [*fields_typed(1000), "--devices", "3", "--out", str(tmp_path / "run")])
    for process in processes:
        text, _ = process.communicate(timeout=180)
        assert process.returncode == 2
        assert "devices=3, but 2 processes with 2 devices train together" in text
    assert not (tmp_path / "run").exists()


def test_an_address_is_checked():
    for where, message in [
        ("here", r"expected nothing, or HOST:PORT,PROCESS,PROCESSES .* got 'here'"),
        ("10.0.0.1:99,1", r"expected nothing"),
        ("10.0.0.1:0,0,2", r"the port must be 1 to 65535, got 0"),
        ("10.0.0.1:99999,0,2", r"the port must be 1 to 65535, got 99999"),
        ("10.0.0.1:99,0,0", r"PROCESSES must be 1 to 1,000,000, got 0"),
        ("10.0.0.1:99,0,99999999999", r"PROCESSES must be 1 to 1,000,000, got 99999999999"),
        ("10.0.0.1:99,2,2", r"2 processes are numbered from 0, so there is none of number 2"),
    ]:
        with pytest.raises(ValueError, match=message), distributed.taking_part(where):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("listens", ["0.0.0.0", "127.0.0.1", "::"])
def test_a_port_that_is_taken_is_said(listens, tmp_path):
    """JAX crashes there, or where the other is JAX too, shares the port with it."""
    with socket.socket(socket.AF_INET6 if ":" in listens else socket.AF_INET) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((listens, 0))
        other.listen()
        where = f"127.0.0.1:{other.getsockname()[1]},0,2"
        process = start(["-m", "memax_rl", "train", "--distributed", where, "--out", str(tmp_path / "run")])
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 2, text
    assert "cannot listen at port" in text
    assert text.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_whose_others_do_not_come_says_so(index):
    program = f"""
from memax_rl import distributed
distributed._LONG, distributed._JOINING = 1, 3
with distributed.taking_part("127.0.0.1:{free_port()},{index},2"):
    pass
"""
    process = start(["-c", program])
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2, text
    assert f"process {index} of 2 waits for the others at 127.0.0.1:" in text
    assert "memax-rl: error: distributed: not all processes came to 127.0.0.1:" in text
    assert text.count("\n") == 2, text


def test_one_process_has_nothing_to_do():
    with distributed.taking_part(None):
        assert distributed.is_first()
        assert distributed.count() == 1
        np.testing.assert_array_equal(distributed.gather([3, 4]), [[3, 4]])
        distributed.check_same("text", "configuration")
