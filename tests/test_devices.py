"""Rows shared out over several devices give the update of one device. conftest.py makes eight CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import sharding
from memax_rl.rollout.step_count import StepCount
from memax_rl.runs import make_config
from memax_rl.runs.build import make_agent
from memax_rl.runs.config import dump_config
from memax_rl.training import train
from memax_rl.training.loop import init_state
from memax_rl.training.updates import make_many_updates, place

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
    assert len(many.streams.final.devices()) == on, "the environments are on all devices"
    for name in one_metrics:
        np.testing.assert_allclose(many_metrics[name], one_metrics[name], rtol=2e-3, atol=1e-5, err_msg=name)
    assert np.nanmin(one_metrics["grad_norm"]) > 1e-3, "something was learned"
    for path, leaf in jax.tree.leaves_with_path(one.network):
        other = dict(jax.tree.leaves_with_path(many.network))[path]
        np.testing.assert_allclose(other, leaf, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
@pytest.mark.parametrize("fill", ["whole_episodes", "truncated_bptt"])
def test_two_devices_make_the_update_of_one(fill):
    _compare({"ppo": ROWS | {"rollout": fill}})


@pytest.mark.slow
@pytest.mark.parametrize(("on", "fill"), [(2, "truncated_bptt"), (4, "whole_episodes")])
def test_devices_with_a_network_each_make_the_update_of_one(on, fill):
    # Each row is on two devices, and still counts once.
    _compare({"network": SMALL["network"] | {"separate_value": True}, "ppo": ROWS | {"rollout": fill}}, on)


@pytest.mark.slow
def test_two_devices_make_the_update_of_one_with_pqn():
    _compare({"agent": "pqn", "pqn": ROWS | {"learning_rate": 1e-3}, "network": NORMALIZED["network"]})


# Every stream holds some episodes, and each device's tapes are of several streams.
REPLAY = {"num_envs": 8, "batch_size": 8, "tape_length": 224, "learning_starts": 300, "buffer_size": 8 * 600}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on", "settings"),
    [
        (2, {"sample_by": "priority", "epsilon_per_env": True, "n_step": 3, "q_lambda": None}),
        (4, {"sample_by": "episode"}),
        (8, {"sample_by": "transition"}),
    ],
)
def test_devices_share_a_replay_with_dqn(on, settings):
    _compare({"agent": "dqn", "dqn": REPLAY | settings, "network": NORMALIZED["network"]}, on, updates=6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on", "fields"),
    [
        (2, {"num_seeds": 3, "sac": {"separate_critic": False}}),
        # Real actions are drawn while it learns too, the same on any number of devices.
        (8, {"env": "popgym/PositionOnlyPendulumEasy", "sac": {"separate_critic": True}}),
    ],
)
def test_devices_share_a_replay_with_sac(on, fields):
    sac = REPLAY | {"samples_per_insert": 8.0} | fields["sac"]
    _compare({"agent": "sac", "network": NORMALIZED["network"]} | fields | {"sac": sac}, on, updates=6)


def test_an_update_on_devices_is_compiled_once():
    config = make_config(SMALL | {"ppo": ROWS, "total_steps": 10**9, "devices": 2})
    agent = make_agent(config)
    start, static = init_state(config, agent)
    many = make_many_updates(agent, static, config.total_steps)
    arrays, sound = place(agent, start), sharding.replicate(jnp.ones(1, bool), 2)
    for _ in range(2):
        arrays, sound, _ = many(arrays, 1, sound, StepCount.of(10**9))
    assert many._cache_size() == 1


@pytest.mark.slow
def test_devices_share_the_seeds_where_they_divide_them(tmp_path):
    """The run evaluates and resumes as any other."""
    fields = SMALL | {"num_seeds": 4, "total_steps": 6 * 880, "ppo": ROWS | {"lr_schedule": "constant"}}
    config = make_config(fields | {"devices": 2, "eval_interval": 3 * 880, "eval_episodes": 4})
    shared = train(config, out=tmp_path / "shared")
    assert make_agent(config).devices == 1
    assert len(shared.evaluations()) == 8
    half = train(config.model_copy(update={"total_steps": 3 * 880}), out=tmp_path / "half")
    half.config_path.write_text(dump_config(config))
    train(resume=half.folder)
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in r.metrics()] for r in (shared, half)]
    np.testing.assert_equal(logs[1], logs[0])


@pytest.mark.slow
def test_seeds_on_devices_are_those_of_one_device():
    config = make_config(SMALL | {"num_seeds": 4, "total_steps": 10**9, "devices": 2, "ppo": ROWS})
    agent = make_agent(config)
    results = []
    for count in (1, 2, 4):
        start, static = init_state(config, agent)
        many = make_many_updates(agent, static, config.total_steps, seed_devices=count)
        sound = jnp.ones(4, bool)
        if count > 1:
            start, sound = sharding.place_seeds((start, sound), count)
        for _ in range(2):
            start, sound, metrics = many(start, 2, sound, StepCount.of(10**9))
        assert many._cache_size() == 1
        assert len(start.streams.final.devices()) == count
        results.append((start.network, metrics["loss"][:2]))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), other, results[0])


@pytest.mark.slow
def test_two_devices_see_all_observations_and_stop_together():
    settings = {"target_kl": 1e-3, "learning_rate": 1e-2, "auxiliary": "next_observation"}
    _compare(NORMALIZED | {"num_seeds": 3, "ppo": ROWS | settings})


@pytest.mark.slow
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


@pytest.mark.slow
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
        (
            {"agent": "dqn", "dqn": {"num_envs": 3}},
            r"devices=2 must divide num_envs=3.*dqn.num_envs to a mul",
        ),
        ({"agent": "sac", "sac": {"batch_size": 1}}, r"devices=2 must divide batch_size=1.*multiple of 2"),
        ({"env": "gym/CartPole-v1"}, r"devices=2, but gym/CartPole-v1 runs on the host; set devices to 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_agent(make_config({"devices": 2} | fields))
    with pytest.raises(ValueError, match=r"devices=9, but JAX has 8 \(cpu\).*JAX_NUM_CPU_DEVICES=9"):
        sharding.require(9)
