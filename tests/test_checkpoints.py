"""Which checkpoints a run keeps, and which of them is chosen."""

import numpy as np
import pytest

from memax_rl.cli import main
from memax_rl.evaluation import evaluate
from memax_rl.runs import Run, RunError, make_config
from memax_rl.training import train

SMALL = {
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
