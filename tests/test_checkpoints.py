"""Checkpoints, evaluation during training, going on longer, and callbacks."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from memax_rl.cli import main
from memax_rl.evaluation import episodes, evaluate, make_player
from memax_rl.runs import Run, RunError, load_agent, make_agent, make_config, override
from memax_rl.runs.config import dump_config
from memax_rl.studies import results
from memax_rl.training import Callback, EarlyStopping, TrainingProgress, train
from memax_rl.training.callbacks import evaluations_since_best
from memax_rl.training.evaluations import Best, evaluation_keys
from memax_rl.training.loop import init_state
from memax_rl.training.resuming import _warn_of_schedules

SMALL: dict[str, Any] = {
    "total_steps": 4 * 51 * 6,
    "network": {"memory": "min_gru", "width": 8},
    "ppo": {"num_envs": 4, "rollout_length": 51, "update_epochs": 1, "num_minibatches": 2},
    "eval_episodes": 4,
}


@pytest.fixture
def run(tmp_path) -> Run:
    """An empty run."""
    return Run.create(tmp_path / "run", make_config({}))


def _state(number: float) -> dict[str, np.ndarray]:
    return {"network": np.full(2, number, np.float32), "key": np.zeros(1, np.int32)}


def test_the_newest_and_those_to_keep_stay(run):
    for update in range(1, 7):
        run.save(update, _state(update), 1.0, keep=update in (2, 5))
    assert run.saved_updates() == [2, 5, 6]
    assert run.restore(_state(0))[0]["network"][0] == 6
    assert run.restore(_state(0), checkpoint=2)[0]["network"][0] == 2
    with pytest.raises(RunError, match=r"newest, best or the update of one that the run .* holds \(2, 5, 6\), got '3'"):
        run.restore(_state(0), checkpoint=3)


def test_a_checkpoint_that_stands_already_becomes_one_to_keep(run):
    run.save(1, _state(1), 1.0)
    run.save(1, _state(1), 1.0, keep=True)
    run.save(2, _state(2), 1.0)
    assert run.saved_updates() == [1, 2]


def test_a_damaged_older_checkpoint_is_left_alone(run):
    run.save(1, _state(1), 1.0)
    run.checkpoint_path(1).write_bytes(b"damaged")
    run.save(2, _state(2), 1.0)
    assert run.saved_updates() == [1, 2]


def test_the_best_is_in_the_newest_file_and_no_part_of_the_state(run):
    run.save(1, _state(1), 1.0)
    with pytest.raises(RunError, match="has no best checkpoint: none of its networks was evaluated while it trained"):
        run.restore({"network": np.zeros(2, np.float32)}, checkpoint="best")
    run.append_evaluations([{"update": 1, "seed": 0, "env_steps": 9, "mean_return": math.nan}])
    with pytest.raises(RunError, match="has no best checkpoint: up to its newest none was evaluated with"):
        run.restore({"network": np.zeros(2, np.float32)}, checkpoint="best")
    run.save(3, _state(3), 1.0, best={"network": np.full(2, 0.5, np.float32)})
    assert run.restore({"network": np.zeros(2, np.float32)}, checkpoint="best")[0]["network"].tolist() == [0.5, 0.5]
    assert run.restore(_state(0))[0]["network"][0] == 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    """A small finished run of two seeds."""
    return train(make_config(SMALL | {"num_seeds": 2}), out=tmp_path_factory.mktemp("runs") / "finished")


@pytest.mark.parametrize("command", ["evaluate", "icl", "inspect"])
@pytest.mark.parametrize(("checkpoint", "message"), [("best", "has no best"), ("5", "got '5'"), ("bst", "got 'bst'")])
def test_commands_say_which_checkpoint_there_is_not(finished, command, checkpoint, message, capsys):
    assert main([command, str(finished.folder), "--checkpoint", checkpoint]) == 2
    error = capsys.readouterr().err
    assert command == "icl" or message in error
    assert error.count("\n") == 1


def test_a_run_without_evaluations_is_evaluated_by_update(finished):
    newest = evaluate(finished.folder, episodes=4)
    assert newest["checkpoint"] == "newest"
    assert evaluate(finished.folder, episodes=4, checkpoint=6)["return"] == newest["return"]


# Evaluation during training

EVALUATED = {"num_seeds": 2, "eval_interval": 400, "keep_every_n_steps": 500, "checkpoint_interval": 0.0}


def _rows(run: Run) -> list[dict[str, float]]:
    return [{name: x for name, x in row.items() if name != "seconds"} for row in run.metrics()]


def _arrays(run: Run) -> dict[str, np.ndarray]:
    """The arrays of the newest state, without what is beside it."""
    with np.load(run.checkpoint_path(run.saved_updates()[-1])) as archive:
        return {name: archive[name] for name in archive.files if name != "about" and not name.startswith("best/")}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Run:
    """The same run, evaluated while it trains."""
    return train(make_config(SMALL | EVALUATED), out=tmp_path_factory.mktemp("runs") / "evaluated")


def test_evaluation_does_not_change_the_training(finished, evaluated):
    np.testing.assert_equal(_rows(evaluated), _rows(finished))
    np.testing.assert_equal(_arrays(evaluated), _arrays(finished))


def test_each_seed_has_a_row_at_the_first_update_that_reaches_a_multiple(evaluated):
    rows = evaluated.evaluations()
    # An update has 204 steps, and 6 of them 1224.
    assert [(row["update"], row["seed"], row["env_steps"]) for row in rows] == [
        (update, seed, 204 * update) for update in (2, 4, 6) for seed in (0, 1)
    ]
    assert {row["episodes"] for row in rows} == {4}
    assert {row["mean_length"] for row in rows} == {51}
    assert len({row["mean_return"] for row in rows}) > 3, "each evaluation has episodes of its own"
    assert evaluated.saved_updates() == [3, 5, 6]


def test_the_best_of_each_seed_is_its_network_at_its_best_evaluation(evaluated):
    rows, config = evaluated.evaluations(), evaluated.config()
    best = {
        seed: max((row for row in rows if row["seed"] == seed), key=lambda row: row["mean_return"]) for seed in (0, 1)
    }
    agent, networks, _ = load_agent(evaluated, "best")
    player = make_player(agent, agent.env, agent.env_params, 4, greedy=False)
    for i, row in best.items():
        returns = player(networks, evaluation_keys(config, int(row["update"])))[0]
        assert returns.mean(axis=1)[i] == pytest.approx(row["mean_return"])
    assert evaluate(evaluated.folder, episodes=4, checkpoint="best")["checkpoint"] == "best"


@pytest.mark.slow
def test_a_seed_is_evaluated_alone_as_beside_others(evaluated, tmp_path):
    alone = train(make_config(SMALL | EVALUATED | {"seed": 1, "num_seeds": 1}), out=tmp_path / "alone")
    together = [row for row in evaluated.evaluations() if row["seed"] == 1]
    assert [row["update"] for row in alone.evaluations()] == [2, 4, 6]
    for a, b in zip(alone.evaluations(), together, strict=True):
        assert a["mean_return"] == pytest.approx(b["mean_return"], abs=0.2)


@pytest.mark.parametrize(
    ("when", "moment"), [("before", "append_evaluations"), ("after", "append_evaluations"), ("after", "save")]
)
def test_a_run_killed_between_two_files_ends_as_one_left_alone(evaluated, tmp_path, monkeypatch, moment, when):
    write, calls = getattr(Run, moment), []

    def dies(self, *arguments, **more):
        calls.append(0)
        if when == "after":
            write(self, *arguments, **more)
        if len(calls) == 2:
            raise KeyboardInterrupt
        if when == "before":
            write(self, *arguments, **more)

    monkeypatch.setattr(Run, moment, dies)
    fields = SMALL | EVALUATED | {"checkpoint_interval": 0.0 if moment == "save" else 1000.0}
    with pytest.raises(KeyboardInterrupt):
        train(make_config(fields), out=tmp_path / "run")
    monkeypatch.undo()
    run = train(resume=tmp_path / "run")
    assert run.evaluations() == evaluated.evaluations()
    assert run.saved_updates() == evaluated.saved_updates()
    np.testing.assert_equal(_rows(run), _rows(evaluated))
    with np.load(run.checkpoint_path(6)) as mine, np.load(evaluated.checkpoint_path(6)) as theirs:
        assert mine.files == theirs.files
        for name in mine.files:
            assert name == "about" or np.array_equal(mine[name], theirs[name]), name


def test_each_evaluation_of_each_seed_has_a_key_of_its_own_that_no_other_seed_changes():
    keys = {
        (seeds, update): jax.random.key_data(evaluation_keys(make_config({"seed": 1, "num_seeds": seeds}), update))
        for seeds in (1, 3)
        for update in (1, 2)
    }
    assert len({tuple(key.tolist()) for update in (1, 2) for key in keys[3, update]}) == 6
    assert all(np.array_equal(keys[1, update][0], keys[3, update][0]) for update in (1, 2))


def test_evaluation_is_compiled_once(tmp_path, monkeypatch):
    traces = []
    play = episodes.play
    monkeypatch.setattr(episodes, "play", lambda *a, **k: traces.append(0) or play(*a, **k))
    train(make_config(SMALL | {"eval_interval": 1}), out=tmp_path / "run")
    # One for all evaluations during training, and one for that at the end.
    assert len(traces) == 2


def test_the_best_is_of_the_earlier_of_equal_evaluations():
    best = Best.none({"w": np.zeros((3, 1), np.float32)}, 3)
    for update, returns in ((1, [1.0, 1.0, np.nan]), (2, [1.0, 2.0, np.nan]), (3, [0.0, np.nan, 5.0])):
        best = best.improved({"w": np.full((3, 1), update, np.float32)}, update, np.asarray(returns, np.float32))
    assert best.update.tolist() == [1, 2, 3]
    assert best.network["w"][:, 0].tolist() == [1, 2, 3]
    assert best.mean_return.tolist() == [1, 2, 5]


def test_evaluations_of_no_episodes_are_refused():
    with pytest.raises(ValueError, match="eval_interval is set, and eval_episodes is 0"):
        make_config({"eval_interval": "1k", "eval_episodes": 0})


# Going on longer


@pytest.mark.slow
def test_a_run_goes_on_longer_with_the_sizes_that_it_began_with(tmp_path, capsys):
    # Without num_envs the number of environments follows from the total.
    fields = SMALL | {"ppo": {"rollout_length": 51, "update_epochs": 1, "num_minibatches": 2}, "eval_episodes": 0}
    run = train(make_config(fields), out=tmp_path / "run")
    steps = run.metrics()[0]["env_steps"]
    assert make_agent(make_config(fields | {"total_steps": 20_000})).config.num_envs * 51 > steps, (
        "the test tests nothing"
    )
    before = run.config_path.read_text()
    for total in (1, 1224):
        assert main(["train", "--resume", str(run.folder), "--total-steps", str(total)]) == (2 if total == 1 else 0)
    assert "total_steps: the run" in capsys.readouterr().err
    assert run.config_path.read_text() == before
    assert main(["train", "--resume", str(run.folder), "--total-steps", "20k"]) == 0
    error = capsys.readouterr().err
    assert error.count("(the learning rate: linear) is from step 1,224 on as in a run of 20,000 steps") == 1
    rows = run.metrics()
    assert run.config().total_steps == 20_000
    assert rows[-1]["env_steps"] >= 20_000
    assert {row["env_steps"] for row in rows} == {steps * update for update in range(1, len(rows) + 1)}
    rates = [row["learning_rate"] for row in rows]
    update = next(i for i, row in enumerate(rows) if row["env_steps"] > 1224)
    assert rates[update] == pytest.approx(0.0015 * (1 - 1224 / 20_000), rel=1e-3), "that of a run of 20,000 steps"
    np.testing.assert_equal(train(resume=run.folder).metrics(), rows, "what is complete stays so")


def test_every_schedule_over_the_run_is_told_of_where_it_goes_on_longer(capsys):
    ppo = {"lr_schedule": "constant", "clip_schedule": "linear", "entropy_schedule": "cosine"}
    _warn_of_schedules(make_config(SMALL | {"total_steps": 2_000, "ppo": SMALL["ppo"] | ppo}), 1_000, 1_200)
    assert "(clip: linear, entropy: cosine) is from step 1,200 on" in capsys.readouterr().err
    _warn_of_schedules(make_config(SMALL | {"ppo": SMALL["ppo"] | {"lr_schedule": "constant"}}), 1_000, 1_200)
    assert not capsys.readouterr().err


def test_only_the_total_may_be_given_beside_a_run_to_resume(finished):
    with pytest.raises(RunError, match="nothing but total_steps and devices beside it"):
        train(resume=finished.folder, seed=3)
    with pytest.raises(ValueError, match=r"total_steps: .*integer"):
        train(resume=finished.folder, total_steps="more")


# Callbacks


class _Tells(Callback):
    """Writes down what it is told."""

    def __init__(self, every_update: bool = False, stop_at: int = -1):
        self.every_update, self.stop_at, self.told = every_update, stop_at, []

    def on_update(self, progress):
        updates = [row["update"] for row in progress.rows if row["seed"] == 0]
        self.told.append(("update", updates, int(progress.state.updates[0])))
        return "it was told to" if progress.update == self.stop_at else None

    def on_evaluation(self, progress):
        assert progress.run.evaluations()[-1] == progress.rows[-1]
        self.told.append(("evaluation", progress.update, len(progress.rows)))

    def on_end(self, progress):
        assert progress.run.summary_path.exists()
        self.told.append(("end", progress.update))


def test_callbacks_are_told_of_updates_evaluations_and_the_end(evaluated, tmp_path):
    callback = _Tells(every_update=True)
    run = train(make_config(SMALL | EVALUATED), out=tmp_path / "run", callbacks=[callback])
    updates = [("update", [u], u) for u in range(1, 7)]
    evaluations = {u: [("evaluation", u, 2)] for u in (2, 4, 6)}
    assert callback.told == [x for u in updates for x in (u, *evaluations.get(u[2], []))] + [("end", 6)]
    np.testing.assert_equal(_arrays(run), _arrays(evaluated))


@pytest.mark.slow
def test_a_callback_ends_the_training_and_the_run_stays_ended_until_it_is_told_more_steps(tmp_path, capsys):
    config = make_config(SMALL)
    run = train(config, out=tmp_path / "run", callbacks=[_Tells(every_update=True, stop_at=3)])
    summary = json.loads(run.summary_path.read_text())
    assert (summary["updates"], summary["stopped"]) == (3, "it was told to")
    assert repr(run).endswith("finished)")
    assert not repr(run).endswith("unfinished)")
    assert [row["status"] for row in results(run.folder).to_dict("records")] == ["finished"]
    assert train(resume=run.folder).metrics()[-1]["update"] == 3
    assert main(["train", "--resume", str(run.folder)]) == 0
    assert "stopped at update 3: it was told to" in capsys.readouterr().err
    train(resume=run.folder, total_steps=4 * 51 * 5)
    assert run.metrics()[-1]["update"] == 5
    assert "stopped" not in json.loads(run.summary_path.read_text())


def test_a_callback_that_raises_leaves_a_run_that_goes_on_as_one_left_alone(evaluated, tmp_path):
    class Breaks(Callback):
        def on_evaluation(self, progress):
            if progress.update == 4:
                raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        train(make_config(SMALL | EVALUATED), out=tmp_path / "run", callbacks=[Breaks()])
    run = train(resume=tmp_path / "run")
    assert run.evaluations() == evaluated.evaluations()
    np.testing.assert_equal(_rows(run), _rows(evaluated))
    np.testing.assert_equal(_arrays(run), _arrays(evaluated))


@pytest.mark.parametrize(
    ("values", "min_delta", "since"),
    [
        ([], 0, 0),
        ([1, 2, 3], 0, 0),
        ([3, 2, 3], 0, 2),
        ([1, 1.5, 2.1], 1, 0),
        ([1, 1.5, 2.0], 1, 2),
        ([np.nan, 1], 0, 0),
    ],
)
def test_evaluations_since_the_best(values, min_delta, since):
    assert evaluations_since_best(values, min_delta) == since


def test_early_stopping_waits_for_every_seed(evaluated):
    stopper = EarlyStopping(patience=1, mode="min", metric="mean_return")
    rows = evaluated.evaluations()
    worse = {seed: [r["mean_return"] for r in rows if r["seed"] == seed] for seed in (0, 1)}
    progress = TrainingProgress(evaluated, evaluated.config(), 6, rows[-2:], None)
    waits = any(evaluations_since_best([-x for x in worse[seed]], 0) < 1 for seed in (0, 1))
    assert (stopper.on_evaluation(progress) is None) == waits
    assert EarlyStopping(patience=1, metric="mean_length").on_evaluation(progress) is not None, "all are 51 steps long"
    assert EarlyStopping(patience=3, metric="mean_length").on_evaluation(progress) is None


@pytest.mark.slow
def test_a_run_that_stopped_early_does_so_when_it_was_killed_and_resumed_too(tmp_path, monkeypatch, capsys):
    fields = ["--eval-interval", "200", "--early-stopping.patience", "2", "--early-stopping.metric", "mean_length"]
    config = override(make_config(SMALL | {"checkpoint_interval": 1000.0}), fields)
    whole = train(config, out=tmp_path / "whole")
    # The first is the best, and two more are no better.
    assert [row["update"] for row in whole.evaluations()] == [1, 2, 3]
    summary = json.loads(whole.summary_path.read_text())
    assert summary["stopped"] == "early stopping: mean_length did not improve in 2 evaluations"
    write = Run.save
    monkeypatch.setattr(Run, "save", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(config, out=tmp_path / "killed")
    monkeypatch.setattr(Run, "save", write)
    killed = train(resume=tmp_path / "killed")
    assert killed.evaluations() == whole.evaluations()
    np.testing.assert_equal(_arrays(killed), _arrays(whole))
    killed.summary_path.unlink()
    assert train(resume=tmp_path / "killed").metrics()[-1]["update"] == 3, "stopped before, and so it stays"


@pytest.mark.parametrize("check", [["--check"], []], ids=["check", "train"])
def test_early_stopping_needs_evaluations(tmp_path, capsys, check):
    assert main(["train", "--early-stopping.patience", "3", "--out", str(tmp_path / "run"), *check]) == 2
    assert "early stopping looks at evaluations during training; set eval_interval" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        EarlyStopping(patience=0)


# Weights of another run


def _initial(config, resumes: bool = False):
    return init_state(config, make_agent(config), resumes=resumes)[0]


def test_a_run_starts_from_the_weights_of_another(finished, capsys):
    config = make_config(SMALL | {"num_seeds": 2, "start_from": str(finished.folder)})
    state = _initial(config)
    assert capsys.readouterr().err == (
        f"taken from {finished.folder}: torso.encoder, torso.blocks.0, torso.norm, policy_head, value_head\n"
    )
    saved, _ = finished.restore({"network": state.network}, whole=False)
    assert all(map(np.array_equal, jax.tree.leaves(saved["network"]), jax.tree.leaves(state.network)))
    assert int(state.updates[0]) == 0
    assert not np.any(jax.tree.leaves(state.optimizer)[1]), "the optimizer begins anew"


@pytest.mark.slow
def test_a_target_network_starts_from_the_same_weights(tmp_path):
    dqn = {"num_envs": 4, "batch_size": 4, "tape_length": 51, "samples_per_insert": 1, "buffer_size": 1200}
    fields = {name: value for name, value in SMALL.items() if name != "ppo"} | {
        "agent": "dqn",
        "dqn": dqn | {"learning_starts": 300},
        "eval_episodes": 0,
    }
    run = train(make_config(fields), out=tmp_path / "run")
    state = _initial(make_config(fields | {"start_from": str(run.folder), "num_seeds": 2}))
    saved, _ = run.restore({"network": jax.tree.map(lambda leaf: leaf[:1], state.network)}, whole=False)
    for name in ("network", "target"):
        for want, got in zip(jax.tree.leaves(saved["network"]), jax.tree.leaves(getattr(state, name)), strict=True):
            assert np.array_equal(got, np.repeat(want, 2, axis=0)), "both seeds start from the only one"


@pytest.mark.slow
def test_of_another_environment_what_fits_is_taken_and_the_rest_is_told(finished, tmp_path, capsys):
    fields = SMALL | {"env": "popgym/AutoencodeEasy", "num_seeds": 2, "total_steps": 1, "eval_episodes": 0}
    fields |= {"ppo": SMALL["ppo"] | {"rollout_length": 104}, "start_from": str(finished.folder)}
    fresh = _initial(make_config(fields | {"start_from": None}))
    capsys.readouterr()
    run = train(make_config(fields), out=tmp_path / "run")
    error = capsys.readouterr().err
    assert f"taken from {finished.folder}: torso.blocks.0, torso.norm, policy_head, value_head\n" in error
    assert "not taken: torso.encoder, because " in error
    state = _initial(run.config())
    saved, _ = finished.restore({"network": {"policy_head": state.network.policy_head}}, whole=False)
    assert np.array_equal(saved["network"]["policy_head"].weight, state.network.policy_head.weight)
    encoders = [jax.tree.leaves(s.network.torso.encoder) for s in (fresh, state)]
    assert all(map(np.array_equal, *encoders)), "what does not fit is as in a new run"
    assert run.config().start_from == str(finished.folder), "kept for the record"
    Path(finished.folder).rename(tmp_path / "away")
    try:
        assert train(resume=run.folder, total_steps=1000).metrics()[-1]["env_steps"] >= 1000, "and never followed"
    finally:
        (tmp_path / "away").rename(finished.folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["--start-from", "nowhere"], "nowhere is not a run folder"),
        (["--start-from", "{run}", "--width", "16"], r"does not fit: torso.blocks.0, because "),
        (["--start-from", "{run}", "--memory", "gru"], "has the memory min_gru, and this one gru; they must"),
        (["--start-from", "{run}", "--network.depth", "2"], "has the memory min_gru, and this one min_gru+min_gru"),
        (["--start-from", "{run}", "--num-seeds", "3"], "has 2 seeds and this one 3; train as many, or start from one"),
        (["--start-from", "{run}", "--start-from-checkpoint", "best"], "has no best checkpoint"),
        (["--start-from", "{run}", "--start-from-checkpoint", "4"], "got '4'"),
        (["--start-from", "{run}", "--start-from-checkpoint", "b"], "start_from_checkpoint: "),
    ],
)
@pytest.mark.parametrize("check", [True, False], ids=["check", "train"])
def test_a_start_that_does_not_fit_is_one_line_and_makes_nothing(finished, tmp_path, fields, message, check, capsys):
    (tmp_path / "config.yaml").write_text(dump_config(make_config(SMALL | {"num_seeds": 2})))
    typed = [field.format(run=finished.folder) for field in fields]
    out = ["--check"] if check else ["--out", str(tmp_path / "run")]
    assert main(["train", "--config", str(tmp_path / "config.yaml"), *typed, *out]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memax-rl: error")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "run").exists()


# Another environment


def test_a_run_is_evaluated_in_another_environment_of_the_same_spaces(finished, capsys):
    result = evaluate(finished.folder, episodes=4, env="popgym/RepeatPreviousMedium")
    assert (result["env"], result["mean_length"]) == ("popgym/RepeatPreviousMedium", 103)
    assert main(["evaluate", str(finished.folder), "--episodes", "4", "--env", "popgym/RepeatFirstEasy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["env"] == "popgym/RepeatFirstEasy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "popgym/AutoencodeEasy"], "has the observation space Tuple((Discrete(2, dtype=int32), Discrete(4"),
        (["--env", "gymnax/CartPole-v1"], "has the observation space Box"),
        (["--env", "popgym/RepeatFirst"], "unknown environment 'popgym/RepeatFirst'; did you mean"),
        (["--env", "popgym/RepeatFirstEasy", "--env-options.size", "3"], "has no option"),
        (["--env", "popgym/RepeatFirstEasy", "--seeds", "3"], "unrecognized argument --seeds"),
    ],
)
def test_an_environment_that_does_not_fit_is_one_line(finished, arguments, message, capsys):
    assert main(["evaluate", str(finished.folder), "--episodes", "4", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_every_run_of_a_study_is_evaluated(finished, tmp_path, capsys):
    for name in ("a/seed0", "b/seed0"):
        shutil.copytree(finished.folder, tmp_path / name)
    there = [str(tmp_path), "--episodes", "3", "--env", "popgym/RepeatFirstEasy"]
    assert main(["evaluate", *there]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1/2 a/seed0: mean return \S+ \[\S+, \S+\], 2 seeds, 3 episodes each", first)
    assert second == first.replace("1/2 a", "2/2 b")
    assert main(["evaluate", *there, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["run"] for result in results] == [str(tmp_path / "a/seed0"), str(tmp_path / "b/seed0")]
    assert {result["env"] for result in results} == {"popgym/RepeatFirstEasy"}
    assert main(["evaluate", *there, "--env-options.size", "3"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'a/seed0'}: " in error
    assert error.count("\n") == 1


# Where environments and devices differ


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{"env": "gym/CartPole-v1"}, {"env": "popgym/RepeatPreviousEasy", "devices": 2}],
    ids=["on the host", "two devices"],
)
def test_evaluation_does_not_change_the_training_elsewhere(fields, tmp_path):
    ppo = {"num_envs": 2, "rollout_length": 64, "rollout": "truncated_bptt", "update_epochs": 1, "num_minibatches": 1}
    fields |= {"total_steps": 500, "network": {"memory": "min_gru", "width": 8}, "ppo": ppo, "eval_episodes": 2}
    without = train(make_config(fields), out=tmp_path / "without")
    run = train(make_config(fields | {"eval_interval": 1}), out=tmp_path / "with")
    assert [row["update"] for row in run.evaluations()] == [1, 2, 3, 4]
    np.testing.assert_equal(_rows(run), _rows(without))
    np.testing.assert_equal(_arrays(run), _arrays(without))


@pytest.mark.slow
def test_the_page_trains_with_callbacks(tmp_path, monkeypatch):
    """The Python block of docs/runs.md runs as it stands, but for fewer steps."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "runs.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for old, new in (("total_steps=100_000", "total_steps=3_000"), ("eval_interval=20_000", "eval_interval=1_000")):
        assert old in block
        block = block.replace(old, new)
    names = {}
    exec(compile(block, "runs.md", "exec"), names)
    assert names["run"].evaluations()
