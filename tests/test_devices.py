"""Rows shared out over several devices give the update of one device. conftest.py makes four CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import sharding
from memax_rl.runs import make_config
from memax_rl.runs.build import make_agent
from memax_rl.runs.config import dump_config
from memax_rl.training import train
from memax_rl.training.loop import init_state, make_many_updates, place

SMALL = {
    "env": "popgym/PositionOnlyCartPoleEasy",
    "network": {"memory": "min_gru", "width": 8},
    "eval_episodes": 0,
}
# Fewer slots in a row than an episode may last, so that rows are of all sorts: what is open at the end is carried over.
ROWS = {"num_envs": 4, "rollout_length": 220, "update_epochs": 2, "num_minibatches": 1}
NORMALIZED = {"network": {"memory": "min_gru", "width": 8, "normalize_observation": True}}


def _after(updates: int, fields: dict, on: int):
    """Return the state and the metrics after some updates on so many devices, from the same start."""
    config = make_config(SMALL | fields | {"total_steps": 10**9, "devices": on})
    agent = make_agent(config)
    # The keys are of the kind that two devices can use.
    start, static = init_state(config.model_copy(update={"devices": 2}), agent)
    many = make_many_updates(agent, static, config.total_steps)
    arrays, _, metrics = many(place(agent, start), updates, jnp.ones(config.num_seeds, bool))
    metrics["env_steps"] = metrics["env_steps"].to_numpy()
    return arrays, {name: np.asarray(m)[:updates] for name, m in metrics.items()}


def _compare(fields: dict, on: int = 2, updates: int = 3) -> None:
    (one, one_metrics), (many, many_metrics) = (_after(updates, fields, count) for count in (1, on))
    assert len(many.pending.length.devices()) == on, "the rows are on all devices"
    for name in one_metrics:
        np.testing.assert_allclose(many_metrics[name], one_metrics[name], rtol=2e-3, atol=1e-5, err_msg=name)
    assert one_metrics["grad_norm"].min() > 1e-3, "something was learned"
    for path, leaf in jax.tree.leaves_with_path(one.network):
        other = dict(jax.tree.leaves_with_path(many.network))[path]
        np.testing.assert_allclose(other, leaf, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("fill", ["whole_episodes", "truncated_bptt"])
def test_two_devices_make_the_update_of_one(fill):
    _compare({"ppo": ROWS | {"rollout": fill}})


@pytest.mark.parametrize(("on", "fill"), [(2, "truncated_bptt"), (4, "whole_episodes")])
def test_devices_with_a_network_each_make_the_update_of_one(on, fill):
    # Each row is on two devices, and still counts once.
    _compare({"network": SMALL["network"] | {"separate_value": True}, "ppo": ROWS | {"rollout": fill}}, on)


def test_two_devices_make_the_update_of_one_with_pqn():
    _compare({"agent": "pqn", "pqn": ROWS | {"learning_rate": 1e-3}, "network": NORMALIZED["network"]})


def test_two_devices_see_all_observations_and_stop_together():
    settings = {"target_kl": 1e-3, "learning_rate": 1e-2, "auxiliary": "next_observation"}
    _compare(NORMALIZED | {"num_seeds": 2, "ppo": ROWS | settings})


def test_every_row_is_in_one_minibatch_of_an_epoch():
    # With hardly a step between them, the minibatches' mean is that of the whole tape. In a stream all slots count.
    rows = ROWS | {
        "rollout": "truncated_bptt",
        "num_minibatches": 2,
        "learning_rate": 1e-12,
        "normalize_advantages": False,
    }
    (_, one), (_, two) = (_after(1, {"ppo": rows}, on) for on in (1, 2))
    for name in ("value_loss", "entropy", "loss"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, err_msg=name)


def test_a_run_on_two_devices_resumes_to_the_bit(tmp_path):
    config = make_config(SMALL | {"total_steps": 8 * 880, "devices": 2, "ppo": ROWS | {"lr_schedule": "constant"}})
    whole = train(config, out=tmp_path / "whole")
    run = train(config.model_copy(update={"total_steps": 3 * 880}), out=tmp_path / "run")
    assert len(run.metrics()) < len(whole.metrics())
    # With a constant step size it is the shorter run that went on.
    run.config_path.write_text(dump_config(config))
    train(resume=run.folder)
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in r.metrics()] for r in (whole, run)]
    np.testing.assert_equal(logs[1], logs[0])


def test_what_cannot_be_shared_out_is_said():
    for fields, message in [
        ({"ppo": {"num_envs": 3, "num_minibatches": 1}}, r"devices=2 must divide num_envs=3"),
        ({"ppo": {"num_envs": 4, "num_minibatches": 4}}, r"minibatches=4 must divide the 2 rows of each of 2 devices"),
        ({"agent": "dqn"}, r"devices=2, but DQN trains on one device; set devices to 1"),
        ({"env": "gym/CartPole-v1"}, r"devices=2, but gym/CartPole-v1 runs on the host; set devices to 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_agent(make_config({"devices": 2} | fields))
    with pytest.raises(ValueError, match=r"devices=5, but JAX has 4 \(cpu\).*JAX_NUM_CPU_DEVICES=5"):
        sharding.require(5)
