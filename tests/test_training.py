"""Runs: the folder, resume to the bit, seeds, mistakes, and what a run that goes wrong leaves behind."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
import yaml

import memax_rl.training.loop as loop
from memax_rl.agents import ppo
from memax_rl.agents.ppo import PPOConfig
from memax_rl.cli import main
from memax_rl.evaluation import evaluate, print_table
from memax_rl.runs import Run, RunError, load_config, make_config, override, presets
from memax_rl.runs.build import make_agent
from memax_rl.runs.config import TrainConfig, dump_config
from memax_rl.training import TrainingError, train
from memax_rl.training.loop import init_state
from memax_rl.training.resuming import restore

SMALL = {
    "total_steps": 4 * 51 * 6,
    "network": {"memory": "min_gru", "width": 8},
    "ppo": {"num_envs": 4, "rollout_length": 51, "update_epochs": 1, "num_minibatches": 2},
    "eval_episodes": 4,
}
SMALL_DQN = {
    "agent": "dqn",
    "total_steps": 4 * 51 * 6,
    "network": {"memory": "min_gru", "width": 8},
    "dqn": {
        "num_envs": 4,
        "batch_size": 4,
        "tape_length": 51,
        "samples_per_insert": 1,
        "buffer_size": 1200,
        "learning_starts": 300,
    },
    "eval_episodes": 4,
}


def _state(run: Run):
    config = run.config()
    agent = make_agent(config)
    return restore(run, agent, init_state(config, agent)[0])[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    """A small finished run of two seeds."""
    return train(make_config(SMALL | {"num_seeds": 2}), out=tmp_path_factory.mktemp("runs") / "finished")


def test_a_run_leaves_what_it_should(finished):
    config = yaml.safe_load(finished.config_path.read_text())
    assert make_config(config) == finished.config()
    assert config["ppo"]["clip_eps"] == 0.2, "the file is complete, defaults included"
    rows = list(csv.DictReader(finished.metrics_path.read_text().splitlines()))
    assert [(row["update"], row["seed"]) for row in rows] == [(str(u), s) for u in range(1, 7) for s in "01"]
    assert len({row["loss"] for row in rows}) == len(rows), "seeds are not averaged in the log"
    summary = json.loads(finished.summary_path.read_text())
    assert summary["env_steps"] == [1224, 1224]
    assert len(summary["evaluation"]["mean_return_per_seed"]) == 2
    state = _state(finished)
    weights = sum(x.size for x in jax.tree.leaves(eqx.filter(state.network, eqx.is_inexact_array)))
    assert summary["parameters"] == weights / 2, "of one seed"
    assert summary["update_bytes"] > 2 * 4 * weights, "parameters and the moments of Adam"
    assert summary["peak_process_bytes"] > summary["update_bytes"]
    assert not list(finished.folder.rglob("*.tmp"))


@pytest.fixture(scope="module")
def finished_dqn(tmp_path_factory) -> Run:
    """A small finished run of two seeds."""
    return train(make_config(SMALL_DQN | {"num_seeds": 2}), out=tmp_path_factory.mktemp("runs") / "finished")


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "fields"), [("finished", SMALL), ("finished_dqn", SMALL_DQN)])
def test_a_seed_does_not_depend_on_the_others(agent, fields, request, tmp_path):
    alone = train(make_config(fields | {"seed": 1}), out=tmp_path / "alone")
    together = [row for row in request.getfixturevalue(agent).metrics() if row["seed"] == 1]
    for a, b in zip(alone.metrics(), together, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, nan_ok=True)
    assert math.isfinite(a["loss"])


_DRIVER = """
import sys
from memax_rl.runs import make_config
from memax_rl.training import train
import memax_rl.training.updates as updates
import yaml
updates._MOST_UPDATES_A_CALL = 2
train(make_config(yaml.safe_load(sys.argv[1])), out=sys.argv[2])
"""


def _drive(fields, folder: Path) -> subprocess.Popen:
    arguments = [sys.executable, "-c", _DRIVER, yaml.safe_dump(fields), str(folder)]
    return subprocess.Popen(arguments, env=os.environ | {"JAX_PLATFORMS": "cpu"})


def _wait_for_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while len(Run(folder).saved_updates()) == 0:
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)


MANY = {"total_steps": 4 * 51 * 24, "checkpoint_interval": 0.0, "eval_episodes": 0}
LONG, LONG_DQN = SMALL | MANY, SMALL_DQN | MANY


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Run:
    """A run of 24 updates that nothing disturbed."""
    return train(make_config(LONG), out=tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def uninterrupted_dqn(tmp_path_factory) -> Run:
    """The same with DQN, whose replay goes round."""
    return train(make_config(LONG_DQN), out=tmp_path_factory.mktemp("runs") / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "agent", "fields"),
    [
        (signal.SIGKILL, "uninterrupted", LONG),
        (signal.SIGTERM, "uninterrupted", LONG),
        (signal.SIGKILL, "uninterrupted_dqn", LONG_DQN),
    ],
)
def test_interrupted_and_resumed_is_the_same_to_the_bit(number, agent, fields, request, tmp_path):
    uninterrupted = request.getfixturevalue(agent)
    process = _drive(fields, tmp_path / "broken")
    _wait_for_checkpoint(tmp_path / "broken", process)
    process.send_signal(number)
    assert process.wait() != 0
    run = Run(tmp_path / "broken")
    assert 0 < run.saved_updates()[-1] < 24, "interrupted in the middle"
    train(resume=tmp_path / "broken")
    for x, y in zip(jax.tree.leaves(_state(uninterrupted)), jax.tree.leaves(_state(run)), strict=True):
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in r.metrics()] for r in (uninterrupted, run)]
    np.testing.assert_equal(logs[0], logs[1])


@pytest.mark.slow
def test_a_replay_left_out_of_the_checkpoint_is_said_so(tmp_path, capsys, monkeypatch):
    fields = SMALL_DQN | {"dqn": SMALL_DQN["dqn"] | {"save_replay": False}, "eval_episodes": 0}
    run = train(make_config(fields), out=tmp_path / "run")
    assert "replay" not in capsys.readouterr().err
    more = make_config(fields | {"total_steps": 4 * 51 * 12})
    (tmp_path / "run" / "config.yaml").write_text(dump_config(more))
    assert int(_state(run).replay.count[0]) == 0
    with zipfile.ZipFile(run.checkpoint_path(run.saved_updates()[-1])) as archive:
        assert not any("replay" in name for name in archive.namelist())
    train(resume=tmp_path / "run")
    assert "the replay of this run is not in its checkpoint" in capsys.readouterr().err
    rows = run.metrics()
    assert [row["update"] for row in rows] == list(range(1, 13))
    # A new warm-up: 300 transitions are two updates.
    assert [row["update"] for row in rows if math.isnan(row["loss"])] == [1, 7]
    assert sum(row["gradient_steps"] for row in rows) == 10


def test_dqn_is_evaluated_greedily(finished_dqn):
    summary = json.loads(finished_dqn.summary_path.read_text())
    assert summary["evaluation"]["policy"] == "greedy"
    assert evaluate(finished_dqn.folder, episodes=4)["policy"] == "greedy"
    assert evaluate(finished_dqn.folder, episodes=4, greedy=False)["policy"] == "sampled"


def test_evaluate_a_run(finished, capsys):
    result = evaluate(finished.folder, episodes=8)
    json.dumps(result)
    assert (result["chance"], result["best"]) == (-0.5, 1.0)
    print_table(result)
    out = capsys.readouterr().out
    assert "chance (random actions)" in out
    assert "-0.500" in out
    assert result["seeds"] == [0, 1]
    assert result["unfinished_episodes"] == 0
    assert result["mean_length"] == 51
    assert result["policy"] == "sampled"
    mean = result["return"]["mean"]
    assert mean["low"] <= mean["value"] <= mean["high"]
    assert evaluate(finished.folder, episodes=8) == result
    assert evaluate(finished.folder, episodes=8, seed=5)["return"] != result["return"]
    with pytest.raises(ValueError, match="episodes must be at least 1"):
        evaluate(finished.folder, episodes=0)


# Mistakes


def test_an_existing_folder_is_left_alone(finished):
    before = finished.metrics_path.read_text()
    with pytest.raises(RunError, match="exists; choose another"):
        train(make_config(SMALL), out=finished.folder)
    assert finished.metrics_path.read_text() == before


def test_a_mistake_leaves_no_folder(tmp_path):
    for fields in ({"env": "popgym/Repeat"}, {"ppo": SMALL["ppo"] | {"num_minibatches": 7}}):
        with pytest.raises(ValueError, match=r"unknown environment|must divide"):
            train(make_config(SMALL | fields), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_checkpoints_are_explained(finished, tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        train(resume=tmp_path / "nothing")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished.folder, copy], check=True)
    config = make_config(yaml.safe_load(finished.config_path.read_text()) | {"network": {"memory": "gru", "width": 8}})
    (copy / "config.yaml").write_text(dump_config(config))
    with pytest.raises(RunError, match="from another configuration"):
        train(resume=copy)
    (copy / "config.yaml").write_text(finished.config_path.read_text())
    (step,) = Run(copy).saved_updates()
    file = Run(copy).checkpoint_path(step)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(RunError, match="cannot be read"):
        train(resume=copy)
    file.unlink()
    with pytest.raises(RunError, match="no checkpoint"):
        train(resume=copy)


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    config = make_config(SMALL | {"checkpoint_interval": 0.0})
    agent = make_agent(config)
    assert isinstance(agent, ppo.PPO)
    healthy = agent._loss

    def breaks_in_the_third_update(*arguments):
        loss, metrics = healthy(*arguments)
        # The value loss falls as the agent learns nothing of use; from the third update on it is made nan.
        broken = jax.numpy.where(breaks_in_the_third_update.update >= 2, jax.numpy.nan, 1.0)
        return loss * broken, metrics | {"loss": loss * broken}

    update = agent.update

    def counting(state):
        breaks_in_the_third_update.update = state.updates
        return update(state)

    monkeypatch.setattr(agent, "_loss", breaks_in_the_third_update)
    monkeypatch.setattr(agent, "update", counting)
    monkeypatch.setattr(loop, "make_agent", lambda config: agent)
    with pytest.raises(TrainingError, match=r"the loss is nan at update 3 of seed 0; .* update [12] .*learning_rate"):
        train(config, out=tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.saved_updates()[-1] in (1, 2)
    assert [row["update"] for row in run.metrics()] == [1, 2]
    leaves = [x for x in jax.tree.leaves(_state(run)) if jax.numpy.issubdtype(x.dtype, jax.numpy.inexact)]
    assert all(bool(jax.numpy.all(jax.numpy.isfinite(x))) for x in leaves)


def test_an_episode_longer_than_the_tape_stops_the_run(tmp_path, monkeypatch):
    # The environment states no longest episode, and has longer ones than a row.
    monkeypatch.setattr(ppo, "rollout_size", lambda *_, **__: (4, 40))
    with pytest.raises(
        TrainingError, match=r"longer than a row of the tape at update 1; set ppo.rollout_length, now 40, to more"
    ):
        train(make_config(SMALL), out=tmp_path / "run")


def test_unknown_keys_and_bad_values_name_the_nearest():
    for fields, message in [
        ({"ppo": {"learning_rte": 1}}, r"unknown configuration key 'ppo.learning_rte'; did you mean 'learning_rate'"),
        ({"sed": 1}, r"unknown configuration key 'sed'; did you mean 'seed'"),
        ({"ppo": {"clip_eps": -1}}, r"ppo.clip_eps: input should be greater than 0, got -1"),
        ({"total_steps": "many"}, r"total_steps: .*integer.*got 'many'"),
        ({"network": {"memory": "lsmt"}}, r"unknown memory 'lsmt'; did you mean 'lstm'"),
        ({"network": {"memory": "lru", "memory_options": {"heads": 2}}}, r"memory 'lru' has no option 'heads'"),
        ({"env": "popgym/RepeatFirst"}, r"unknown environment 'popgym/RepeatFirst'; did you mean"),
        ({"agent": "pop"}, r"unknown agent 'pop'; known: ppo, dqn"),
        ({"dqn": {}}, r"settings of dqn are given, but agent is 'ppo'"),
        ({"settings": {}}, r"unknown configuration key 'settings'"),
        ({"agent": "dqn", "dqn": {"n_step": 2, "q_lambda": 0.9}}, r"dqn: set either n_step or q_lambda"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_config(fields)


def test_command_line_values():
    base = TrainConfig()
    config = override(
        base,
        [
            *("--memory", "gru", "--ppo.learning-rate", "1e-3", "--no-network.start"),
            *("--ppo.normalize-advantages=False", "--network.previous-reward", "true"),
            *("--ppo.rollout-length", "102", "--total-steps", "500_000"),
        ],
    )
    assert config.network.memory == "gru"
    assert isinstance(config.settings, PPOConfig)
    assert config.settings.learning_rate == 1e-3
    assert not config.network.start
    assert not config.settings.normalize_advantages, "bool('False') is true: the text must be read"
    assert config.network.previous_reward
    assert config.settings.rollout_length == 102
    assert config.total_steps == 500_000
    assert override(base, ["--memory-options.r-min", "0.5"]).network.memory_options == {"r_min": 0.5}
    assert override(base, []) == base


def test_presets_build_an_agent():
    assert presets()
    for name in presets():
        config = load_config(name)
        make_agent(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--memoryy", "lru"], "unknown field --memoryy; did you mean '--memory'"),
        (["train", "--seed"], "--seed needs a value"),
        (["train", "--agent", "a2c"], "unknown agent 'a2c'; known: ppo, dqn"),
        (["train", "--env", "gym/Nope-v0"], "error: env: gymnasium has no environment 'Nope-v0'"),
        (["train", "--agent", "dqn", "--env", "popgym/PositionOnlyPendulumEasy"], "dqn cannot act in the action space"),
        (["train", "--config", "nowhere"], "no configuration file or preset 'nowhere'"),
        (["train", "--resume", "nowhere", "--seed", "1"], "--resume continues a run as it is configured"),
        (["train", "--resume", "nowhere"], "nowhere is not a run folder"),
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
    ],
)
def test_the_command_line_fails_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_lists(capsys):
    for what in ("memories", "envs", "presets"):
        assert main(["list", what]) == 0
        assert main(["list", what, "-v"]) == 0
    out = capsys.readouterr().out
    assert "lru" in out
    assert "popgym/RepeatPreviousEasy" in out
    assert "ppo/repeat_previous_hard" in out
    assert "gym/ID: any environment of Gymnasium" in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    # The verbose lines come last: observation, action, horizon, chance, best.
    assert lines["popgym/RepeatPreviousEasy"][1:] == ["Discrete(4)", "Discrete(4)", "51", "-0.500", "1.000"]
    assert lines["gymnax/CartPole-v1"][1:] == ["Box(4)", "Discrete(2)", "500", "-", "-"]


def test_help_imports_nothing_heavy():
    """`memax-rl --help` answers in a fraction of a second because JAX is not imported."""
    code = "import sys\nfrom memax_rl.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
