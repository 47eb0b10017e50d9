"""A run folder that was killed, damaged, changed, used twice, or made by a stranger."""

import fcntl
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile

import jax
import numpy as np
import pytest
import yaml

import memax_rl.runs.rows as rows_file
from memax_rl.cli import main
from memax_rl.evaluation import evaluate
from memax_rl.runs import Run, RunError, load_config, make_config, override
from memax_rl.runs.build import load_agent
from memax_rl.runs.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from memax_rl.runs.config import TrainConfig, dump_config
from memax_rl.runs.files import write_atomically
from memax_rl.runs.yaml_text import parse_yaml
from memax_rl.training import train

SMALL = {
    "total_steps": 4 * 51 * 4,
    "network": {"memory": "min_gru", "width": 8},
    "ppo": {"num_envs": 4, "rollout_length": 51, "update_epochs": 1, "num_minibatches": 2},
    "eval_episodes": 4,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    return train(make_config(SMALL), out=tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def copy(finished, tmp_path) -> Run:
    shutil.copytree(finished.folder, tmp_path / "copy")
    return Run(tmp_path / "copy")


def _networks(run: Run) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(load_agent(run)[1]) if isinstance(x, jax.Array)]


def test_repr_says_what_the_run_is_and_how_far_it_came(finished, copy):
    about = "env='popgym/RepeatPreviousEasy', memory='min_gru', seeds=0"
    assert repr(finished) == f"Run({str(finished.folder)!r}, {about}, steps=816 of 816, finished)"
    copy.summary_path.unlink()
    assert repr(copy).endswith(", unfinished)")
    copy.metrics_path.write_text("env_steps\n1\ninf\n")
    assert "not readable: " in repr(copy)
    copy.metrics_path.unlink()
    assert "steps=0 of 816, unfinished" in repr(copy)
    copy.config_path.write_text("env: [")
    assert "not readable: " in repr(copy)
    assert "not readable: " in repr(Run("nowhere"))


# Kills and damage


def test_a_run_killed_before_its_first_checkpoint_begins_again_to_the_bit(finished, copy):
    shutil.rmtree(copy.checkpoints)
    copy.checkpoints.mkdir()
    copy.summary_path.unlink()
    # Half written by the process that was killed.
    (copy.checkpoints / ".checkpoint.3.tmp").write_text("")
    train(resume=copy.folder)
    assert all(np.array_equal(a, b) for a, b in zip(_networks(finished), _networks(copy), strict=True))
    assert [row["update"] for row in copy.metrics()] == [1, 2, 3, 4]
    assert [path.name for path in copy.checkpoints.iterdir()] == ["4.npz"]


def test_one_flipped_bit_in_a_checkpoint_is_noticed_or_changes_nothing(copy):
    (step,) = copy.saved_updates()
    path = copy.checkpoint_path(step)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        dtypes = json.loads(archive.read("about"))["dtypes"]
        arrays = {name: np.load(archive.open(f"{name}.npy")) for name in dtypes}
    expected = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    rng, noticed = np.random.default_rng(0), 0
    # Anywhere, and in the directory at the end, which says where the arrays lie.
    for place in [*rng.integers(len(content), size=100), *rng.integers(len(content) - 2000, len(content), size=100)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            read, _ = read_checkpoint(path, expected)
        except CheckpointError:
            noticed += 1
        else:
            # The format has bits that mean nothing, such as dates.
            assert all(np.array_equal(arrays[name], read[name]) for name in arrays)
    assert noticed > 100


def test_a_strangers_checkpoint_cannot_run_code_or_ask_for_more_than_it_holds(tmp_path):
    path, expected = tmp_path / "1.npz", {"x": ((3,), np.dtype(np.float32))}
    write_checkpoint(path, {"x": np.arange(3, dtype=np.float32)}, {"seconds": 1.0})
    assert read_checkpoint(path, expected)[0]["x"].tolist() == [0, 1, 2]

    def with_member(content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("about", json.dumps({"dtypes": {"x": "float32"}, "about": {}}))
            archive.writestr("x.npy", content)

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**50,)})
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    for content, compression, message in [
        (header.getvalue(), zipfile.ZIP_STORED, "expected \\[3\\]"),
        (pickled.getvalue(), zipfile.ZIP_STORED, "another configuration"),
        (b"\0" * 10_000_000, zipfile.ZIP_DEFLATED, "not as they are written"),
        (b"nothing", zipfile.ZIP_STORED, "damaged"),
    ]:
        with_member(content, compression)
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(path, expected)


def test_a_checkpoint_keeps_dtypes_that_numpy_does_not_know(tmp_path):
    x = np.asarray(jax.numpy.arange(6, dtype=jax.numpy.bfloat16).reshape(2, 3))
    write_checkpoint(tmp_path / "1.npz", {"x": x, "n": np.asarray(3)}, {})
    read, _ = read_checkpoint(tmp_path / "1.npz", {"x": ((2, 3), x.dtype), "n": ((), np.dtype(np.int64))})
    assert read["x"].dtype == x.dtype
    np.testing.assert_array_equal(read["x"], x)
    assert read["n"].shape == ()


def test_two_processes_do_not_write_to_one_run(copy):
    holder = """if True:
        import fcntl, sys, time
        file = open(sys.argv[1], "w")
        fcntl.flock(file, fcntl.LOCK_EX)
        print(flush=True)
        time.sleep(60)"""
    process = subprocess.Popen([sys.executable, "-c", holder, copy.folder / ".lock"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(RunError, match="in use by another process"):
            train(resume=copy.folder)
    finally:
        process.kill()
        process.communicate()
    # The lock of a killed process holds nothing.
    with copy.lock(), open(copy.folder / ".lock") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no header"),
        ("1,2,3\n", "no header"),
        ("update,seed\n1,0\nx,0\n2,0\n", "damaged in line 3"),
        ("update,seed\n1,0\n", "other columns"),
    ],
    ids=["empty", "headless", "bad cell", "other columns"],
)
def test_a_damaged_metrics_file_is_refused_in_words(copy, content, says):
    copy.metrics_path.write_text(content)

    def go_on():
        copy.drop_metrics_after(1)
        copy.append_metrics([{"update": 3.0, "seed": 0.0, "loss": 1.0}])

    with pytest.raises(RunError, match=says):
        go_on()


def test_metrics_are_written_by_the_header_of_the_file(copy):
    copy.metrics_path.write_text("loss,update,seed\n1,1,0\n")
    copy.append_metrics([{"update": 2.0, "seed": 0.0, "loss": 0.5}])
    assert copy.metrics()[-1] == {"loss": 0.5, "update": 2.0, "seed": 0.0}


def test_a_configuration_that_was_changed_or_cut_short_does_not_go_on(copy):
    whole = copy.config_path.read_text()
    copy.config_path.write_text("")
    with pytest.raises(RunError, match=r"lacks .*env"):
        train(resume=copy.folder)
    copy.config_path.write_text(whole.replace("seed: 0", "seed: 7", 1))
    with pytest.raises(RunError, match=r"seed in .* changed since"):
        train(resume=copy.folder)
    copy.config_path.write_text(whole.replace("total_steps: 816", "total_steps: 1020"))
    assert train(resume=copy.folder).saved_updates() == [5]


def test_a_write_error_is_one_line_and_leaves_the_last_checkpoint_whole(copy, capsys):
    # A limit on the size of files is met as a full disk is: by an error of `write`.
    before = _networks(copy)
    state = {"network": np.zeros(1_000_000, np.float32)}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
        with pytest.raises(RunError, match=r"checkpoints/9.npz cannot be written"):
            copy.save(9, {"network": np.random.default_rng(0).normal(size=state["network"].shape)}, 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in copy.checkpoints.iterdir()] == ["4.npz"]
    assert all(np.array_equal(a, b) for a, b in zip(before, _networks(copy), strict=True))


@pytest.mark.parametrize("out", ["file/run", "n" * 300], ids=["below a file", "too long"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys, out):
    (tmp_path / "file").write_text("")
    fields = ["--total-steps", "10", "--width", "8", "--ppo.num-envs", "8", "--ppo.rollout-length", "51"]
    assert main(["train", "--env", "popgym/RepeatPreviousEasy", *fields, "--out", str(tmp_path / out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("memax-rl: error: ")
    assert not (tmp_path / "n").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_start_at_once(tmp_path, number, status):
    fields = ["--memory", "gated_delta_net", "--network.depth", "6", "--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, "-m", "memax_rl", "train", *fields], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "compiling" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(number)
    begun = time.monotonic()
    assert process.wait(60) == status
    assert time.monotonic() - begun < 30, "not as long as the compilation"
    assert "Traceback" not in process.communicate()[1]
    # What is left can be resumed.
    assert Run.open(tmp_path / "run").config().network.depth == 6


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
def test_a_signal_ends_other_commands_at_once(copy, command):
    process = subprocess.Popen(
        [sys.executable, "-m", "memax_rl", command, str(copy.folder)], stderr=subprocess.PIPE, text=True
    )
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert process.communicate()[1].strip() == "stopped"


def test_rows_are_appended_without_reading_those_before(copy, monkeypatch):
    rows = copy.metrics()
    monkeypatch.setattr(rows_file, "_read_lines", lambda path: pytest.fail("the whole file was read"))
    copy.append_metrics([rows[-1] | {"update": 5.0}])
    monkeypatch.undo()
    assert [row["update"] for row in copy.metrics()] == [1, 2, 3, 4, 5]


# Strangers


@pytest.mark.parametrize("name", ["metrics.csv", "evaluations.csv", "config.yaml", "summary.json", "checkpoints/9.npz"])
def test_what_is_no_file_is_not_waited_for(copy, name):
    (copy.folder / name).unlink(missing_ok=True)
    os.mkfifo(copy.folder / name)
    with pytest.raises(RunError, match=r"is no file|no config.yaml"):
        Run.open(copy.folder)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_folders_of_logs_may_not_be_links(copy, tmp_path, name):
    (copy.folder / name).symlink_to(tmp_path)
    with pytest.raises(RunError, match="is a link"):
        train(resume=copy.folder)


def test_links_in_a_run_folder_are_refused(copy, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    copy.metrics_path.unlink()
    copy.metrics_path.symlink_to(elsewhere)
    for use in (lambda: train(resume=copy.folder), lambda: evaluate(copy.folder)):
        with pytest.raises(RunError, match=r"metrics.csv is a link"):
            use()
    assert elsewhere.read_text() == "mine"


def test_a_link_under_a_temporary_name_is_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / ".metrics.csv.tmp").symlink_to(elsewhere)
    write_atomically(tmp_path / "metrics.csv", "new")
    assert (tmp_path / "metrics.csv").read_text() == "new"
    assert elsewhere.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".metrics.csv.tmp", "elsewhere", "metrics.csv"]


def test_a_run_folder_imports_nothing_that_the_user_did_not_name(copy, tmp_path, monkeypatch):
    (tmp_path / "strangers_package.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    fields = yaml.safe_load(copy.config_path.read_text()) | {"env": "gym/strangers_package:Env-v0"}
    fields["env_options"] = make_config({"env": "gym/CartPole-v1"}).env_options
    copy.config_path.write_text(yaml.safe_dump(fields))
    assert copy.config().env == "gym/strangers_package:Env-v0", "reading is allowed"
    assert load_config(copy.config_path) == copy.config()
    assert not (tmp_path / "ran").exists()
    for use in (
        lambda: evaluate(copy.folder),
        lambda: train(resume=copy.folder),
        lambda: main(["evaluate", str(copy.folder)]) == 2 and pytest.fail("--trust", pytrace=False),
        lambda: (
            main(["evaluate", str(copy.folder), "--env-options.processes", "0"]) == 2
            and pytest.fail("--trust", pytrace=False)
        ),
    ):
        with pytest.raises((RunError, ValueError, pytest.fail.Exception), match="--trust"):
            use()
    assert main(["train", "--config", str(copy.config_path), "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="no environment"):
        evaluate(copy.folder, imports=("strangers_package",))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x [1, 2]\nb: [*x, *x]", "aliases"),
        ("[" * 500 + "]" * 500, "deeper than 20"),
        ("env: !!timestamp x", "not valid YAML"),
        ("seed: !!bool x", r"not valid YAML: .* not of the type that its tag"),
        ("env: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("x: " + "y" * 2_000_000, "larger than"),
        ("network: {memory: gru, memory: lru}", "'memory' is there twice in one place; write it once"),
        ("yes: 1\ntrue: 2", "'true' is there twice"),
        ("seed: !!int ''", "not of the type that its tag"),
        ("seed: !!int 010", "!!int 010: no number of that type in this notation; leave the tag out"),
        ("total_steps: !!int -1:30", "!!int -1:30: no number of that type in this notation"),
        ("checkpoint_interval: !!float 1:30", "!!float 1:30: no number of that type in this notation"),
        ("<<: {seed: 1, seed: 2}", "merge keys"),
        ("env: !!set {a, b}", "could not determine a constructor"),
    ],
    ids=[
        *("alias", "deep", "timestamp", "bool", "python", "large", "twice", "same key", "empty", "octal", "minutes"),
        *("real minutes", "merge", "set"),
    ],
)
def test_yaml_that_is_no_configuration_is_refused_shortly(tmp_path, text, says):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        load_config(tmp_path / "config.yaml")
    assert len(str(caught.value)) < 600


def test_a_pipe_is_read_as_a_file_and_an_endless_one_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("seed: 3",))
    writer.start()
    assert load_config(tmp_path / "pipe").seed == 3
    writer.join()
    with pytest.raises(ValueError, match="larger than"):
        load_config("/dev/zero")


def test_dates_times_and_octal_numbers_are_text():
    """YAML 1.1 reads a job's time of 1:30:00 as 5400, and 010 as 8."""
    assert parse_yaml("[2026-01-01, 1:30:00, 1:30.5, 010]") == ["2026-01-01", "1:30:00", "1:30.5", "010"]
    assert parse_yaml("[0, -1_000, 0x1f, 0b11, 1.5, -1.5e+3, .5, -.inf]") == [0, -1000, 31, 3, 1.5, -1500, 0.5, -np.inf]
    assert parse_yaml("[0x_, 0b_]") == ["0x_", "0b_"], "without a digit"
    assert parse_yaml("[!!int 1_000, !!int 0x1f, !!float 1e3, !!float -.inf, !!str 010]") == [
        1000,
        31,
        1e3,
        -np.inf,
        "010",
    ]
    with pytest.raises(ValueError, match="'~' is there twice in one place"):
        parse_yaml("{null: 1, ~: 2}")


# The command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seed", str(2**64)],
        ["--num-seeds", "100000000000"],
        ["--network.depth", "1000000"],
        ["--width", "1000000000"],
        ["--total-steps", "3e15"],
        ["--ppo.num-envs", "99999999999"],
        ["--ppo.rollout-length", "99999999999"],
        ["--eval-episodes", "99999999999"],
        ["--env", "gym/..:y"],
        ["--env-wrappers", "[" * 500],
    ],
    ids=" ".join,
)
def test_a_number_or_name_beyond_reason_is_one_line(arguments, capsys, tmp_path):
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert len(lines[0]) < 600
    assert not (tmp_path / "run").exists()


def test_what_people_type_is_understood():
    config = override(TrainConfig(), ["--memory", "GRU", "--total-steps", "1M", "--agent", "PPO"])
    assert (config.network.memory, config.total_steps, config.agent) == ("gru", 1_000_000, "ppo")
    assert override(TrainConfig(), ["--total-steps", "2.5k"]).total_steps == 2500
    assert override(TrainConfig(), ["--total-steps", "1e6"]).total_steps == 1_000_000
    config = override(TrainConfig(), ["--env", "gymnax/CartPole-v1", "--env-wrappers", "position_only"])
    assert [wrapper.name for wrapper in config.env_wrappers] == ["position_only"]
    assert make_config(yaml.safe_load(dump_config(config))) == config


def test_the_module_is_the_command_line():
    shown = subprocess.run([sys.executable, "-m", "memax_rl", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("memax_rl ")


def test_rows_that_were_lost_are_noticed_before_a_run_goes_on(copy):
    lines = copy.metrics_path.read_text().splitlines(keepends=True)
    copy.metrics_path.write_text("".join(lines[:3]))
    with pytest.raises(RunError, match=r"ends with update 2, and the checkpoint is of update 4"):
        train(resume=copy.folder)
    for damaged in (lines[:2] + lines[3:], lines[:2] + lines[1:], [*lines[:4], lines[4].replace(",0,", ",1,", 1)]):
        copy.metrics_path.write_text("".join(damaged))
        with pytest.raises(RunError, match="rows were lost or doubled"):
            train(resume=copy.folder)
    copy.metrics_path.unlink()
    assert train(resume=copy.folder).metrics() == []


def test_a_last_row_without_its_end_is_made_again(copy):
    """A cell that was cut may still be a number, and another one."""
    before = copy.metrics()
    copy.metrics_path.write_text(copy.metrics_path.read_text()[:-2])
    with pytest.raises(RunError, match="rows were lost"):
        train(resume=copy.folder)
    assert len(before) == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [("update,seed,finite\n1,,0\n", "of which seed"), ("update,finite\n1,0\n", "of which seed")],
    ids=["empty", "no column"],
)
def test_a_row_that_does_not_say_its_seed_is_refused(copy, content, says):
    copy.metrics_path.write_text(content)
    with pytest.raises(RunError, match=says):
        copy.diverged_seeds()


def test_a_signal_is_watched_for_once_a_process_and_handlers_come_back():
    before, handler = threading.active_count(), signal.getsignal(signal.SIGTERM)
    for _ in range(3):
        assert main(["list", "agents"]) == 0
    assert threading.active_count() <= before + 1
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow
def test_a_second_signal_ends_a_training_at_once(tmp_path):
    """The first one waits for the update in progress, which may be long."""
    # A small program, quickly compiled, whose updates take seconds.
    fields = [
        "--memory",
        "gru",
        "--width",
        "64",
        "--ppo.update-epochs",
        "25",
        "--total-steps",
        "100M",
        "--checkpoint-interval",
        "0",
    ]
    command = [sys.executable, "-m", "memax_rl", "train", *fields, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    # Into the next update.
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    assert process.wait(60) == 143
    error = process.communicate()[1]
    assert error.strip().endswith("stopped at once; the last checkpoint is as it was")
    assert "Traceback" not in error
    assert time.monotonic() - begun < 2


def test_the_module_does_not_search_the_current_folder(tmp_path):
    """It may be a stranger's run folder."""
    (tmp_path / "popgym.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    (tmp_path / "yaml.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    command = [sys.executable, "-m", "memax_rl", "list", "presets"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", ["true", None], ids=["true", "none"])
def test_a_switch_is_no_number(capsys, value):
    assert main(["train", "--check", "--seed", *([value] if value else ["--width=8"])]) == 2
    assert "--seed needs a value" in capsys.readouterr().err
