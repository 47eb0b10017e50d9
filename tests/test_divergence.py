"""What is saved, and said, when a run or one of its seeds is no longer finite."""

import json
import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memax_rl
from memax_rl import envs
from memax_rl.envs import spaces
from memax_rl.envs.base import Environment
from memax_rl.rollout.streams import first_unusable
from memax_rl.rollout.tape import Tape
from memax_rl.runs import Run, make_config
from memax_rl.runs.build import load_agent, make_agent
from memax_rl.training import TrainingError, loop
from memax_rl.training.updates import make_many_updates

PPO: dict[str, Any] = {
    "network": {"memory": "min_gru", "width": 8},
    "ppo": {"num_envs": 4, "rollout_length": 6, "num_minibatches": 1, "update_epochs": 1},
    "eval_episodes": 4,
    "checkpoint_interval": 0.0,
}
DQN: dict[str, Any] = {
    "agent": "dqn",
    "network": {"memory": "min_gru", "width": 8},
    "dqn": {"num_envs": 4, "batch_size": 2, "tape_length": 6, "learning_starts": 24, "buffer_size": 200},
    "eval_episodes": 4,
    "checkpoint_interval": 0.0,
}


class Burst(Environment):
    """Episodes of five steps, the last of which pays `reward` and shows `shown` in one of about thirty episodes."""

    def __init__(self, reward: float = 1.0, shown: float = 1.0):
        self.reward, self.shown = reward, shown

    @property
    def default_params(self):
        return None

    def action_space(self, params):
        return spaces.Discrete(3)

    def observation_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (1,))

    def max_episode_steps(self, params):
        return 5

    def fixed_length(self, params):
        return 5

    def truncates(self, params):
        return False

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    def reset_env(self, key, params):
        return jnp.zeros(1), jnp.zeros((), jnp.int32)

    def step_env(self, key, state, action, params):
        bursts = (state == 3) & jax.random.bernoulli(key, 0.03)
        obs = jnp.where(bursts, self.shown, state.astype(jnp.float32))[None]
        return obs, state + 1, jnp.where(bursts, self.reward, 1.0), state == 4, {}


def _register(name: str, **options: float) -> str:
    name = f"own/Burst{name}"
    if name not in envs.names():
        envs.register(name, lambda: Burst(**options))
    return name


def _is_finite(tree: Any) -> bool:
    return all(np.all(np.isfinite(x)) for x in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "options"),
    [(PPO, {"reward": 1e19}), (PPO, {"shown": 1e30}), (DQN, {"reward": math.nan}), (DQN, {"reward": 1e30})],
    ids=["ppo 1e19", "ppo shown", "dqn nan", "dqn 1e30"],
)
def test_a_number_that_cannot_be_learned_from_stops_the_run_and_names_the_environment(settings, options, tmp_path):
    name = _register(str(options).replace("'", ""), **options)
    with pytest.raises(
        TrainingError, match=r"own/Burst.* not finite or larger than 1e\+18, first at step \d of update \d+ of seed"
    ):
        memax_rl.train(env=name, total_steps=20_000, out=tmp_path / "run", **settings)
    run = Run(tmp_path / "run")
    if run.saved_updates():
        assert _is_finite(load_agent(run)[1]), "the newest checkpoint is a good one"


@pytest.mark.parametrize("axis", [0, 1])
def test_the_first_step_that_cannot_be_learned_from(axis):
    reward = jnp.zeros((3, 5)).at[2, 4].set(jnp.nan).at[1, 3].set(1e19)
    observation = jnp.zeros((3, 5, 2)).at[0, 3, 1].set(jnp.inf)
    flags = jnp.zeros((3, 5), bool)

    def tape(reward, observation):
        slots = Tape(observation, flags, reward, *(flags,) * 4)
        return slots if axis == 1 else jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), slots)

    assert first_unusable(tape(reward, observation), axis) == 4
    assert first_unusable(tape(reward.at[1, 0].set(-jnp.inf), observation), axis) == 1
    assert first_unusable(tape(flags.astype(float), jnp.zeros_like(observation)), axis) == 0


def _broken(agent: Any, breaks: Any) -> Any:
    """Return an update by which the network becomes nan where `breaks(state)`; its loss is finite."""
    healthy = agent.update

    def update(state):
        new, metrics = healthy(state)
        arrays, static = eqx.partition(new.network, eqx.is_inexact_array)
        arrays = jax.tree.map(lambda x: jnp.where(breaks(state), jnp.nan, x), arrays)
        return eqx.tree_at(lambda s: s.network, new, eqx.combine(arrays, static)), metrics

    return update


def _train_with_broken_updates(monkeypatch, config: Any, folder: Path, breaks: Any) -> Run:
    agent = make_agent(config)
    with monkeypatch.context() as patch:
        patch.setattr(agent, "update", _broken(agent, breaks))
        patch.setattr(loop, "make_agent", lambda config: agent)
        return memax_rl.train(config, out=folder)


@pytest.mark.parametrize("settings", [PPO, DQN], ids=["ppo", "dqn"])
def test_parameters_of_nan_with_a_finite_loss_are_never_saved(settings, tmp_path, monkeypatch):
    config = make_config(settings | {"env": _register("Sound"), "total_steps": 24 * 50})
    with pytest.raises(TrainingError, match=r"a parameter is not finite at update 5 of seed 0"):
        _train_with_broken_updates(monkeypatch, config, tmp_path / "run", lambda state: state.updates >= 4)
    run = Run(tmp_path / "run")
    assert run.saved_updates()[-1] < 5
    assert not run.summary_path.exists()
    assert _is_finite(load_agent(run)[1])
    assert max(row["update"] for row in run.metrics()) == 4


def test_nan_in_the_first_update_says_that_there_is_no_checkpoint(tmp_path, monkeypatch):
    config = make_config(PPO | {"env": _register("Sound"), "total_steps": 240})
    with pytest.raises(TrainingError, match="good checkpoints: there is none yet"):
        _train_with_broken_updates(monkeypatch, config, tmp_path / "run", lambda state: state.updates >= 0)


def _even(state: Any) -> jax.Array:
    return (state.updates == 0) & (jax.random.key_data(state.key)[-1] % 2 == 0)


@pytest.mark.slow
def test_the_other_seeds_go_on_when_one_diverges(tmp_path, monkeypatch):
    fields = PPO | {"env": _register("Sound"), "total_steps": 240, "num_seeds": 4}
    config = make_config(fields)
    arrays, _ = loop.init_state(config, make_agent(config))
    broken = [s for s in range(4) if int(jax.random.key_data(arrays.key)[s, -1]) % 2 == 0]
    assert 0 < len(broken) < 4, "other seeds are needed for this test"
    run = _train_with_broken_updates(monkeypatch, config, tmp_path / "run", _even)
    summary = json.loads(run.summary_path.read_text())
    assert summary["diverged_seeds"] == broken == summary["evaluation"]["diverged_seeds"]
    assert summary["evaluation"]["seeds"] == [s for s in range(4) if s not in broken]
    assert math.isfinite(summary["evaluation"]["return"]["mean"]["value"])
    for seed in range(4):
        rows = [row for row in run.metrics() if row["seed"] == seed]
        assert [row["finite"] for row in rows] == ([0.0] if seed in broken else [1.0] * len(rows))
        assert len(rows) == 1 if seed in broken else len(rows) > 1
    assert load_agent(run)[2] == [s for s in range(4) if s not in broken]
    evaluated = memax_rl.evaluate(run.folder, episodes=2)
    assert evaluated["diverged_seeds"] == broken
    stops = make_config(fields | {"on_divergence": "stop"})
    with pytest.raises(TrainingError, match="not finite at update 1"):
        _train_with_broken_updates(monkeypatch, stops, tmp_path / "stops", _even)


def test_what_a_diverged_seed_had_learned_stays_as_it_was_before(monkeypatch):
    """Not one nan reaches a checkpoint, and no update is made for seeds that are all lost."""
    config = make_config(PPO | {"env": _register("Sound"), "total_steps": 24 * 50, "num_seeds": 2})
    agent = make_agent(config)
    update = _broken(agent, lambda state: state.updates >= 3)
    monkeypatch.setattr(agent, "update", update)
    arrays, static = loop.init_state(config, agent)
    many = make_many_updates(agent, static, config.total_steps)
    before = jax.tree.map(jnp.copy, many(jax.tree.map(jnp.copy, arrays), 3, jnp.ones(2, bool))[0])
    after, sound, metrics = many(arrays, 50, jnp.ones(2, bool))
    assert not np.any(sound)
    assert np.asarray(after.updates).tolist() == [4, 4], "it stops with the last sound seed"
    assert np.asarray(metrics["finite"])[:4].tolist() == [[1, 1]] * 3 + [[0, 0]]
    for name in agent.learned_fields:
        for kept, was in zip(*(jax.tree.leaves(getattr(s, name)) for s in (after, before)), strict=True):
            np.testing.assert_array_equal(kept, was)


@pytest.mark.slow
def test_networks_of_nan_are_not_loaded(tmp_path):
    config = make_config(PPO | {"env": _register("Sound"), "total_steps": 24})
    run = memax_rl.train(config, out=tmp_path / "run")
    arrays, _ = loop.init_state(config, make_agent(config))
    run.save(99, jax.tree.map(lambda x: x * jnp.nan if eqx.is_inexact_array(x) else x, arrays), 1.0)
    with pytest.raises(ValueError, match=r"every seed of the run .* diverged"):
        memax_rl.evaluate(tmp_path / "run", episodes=2)


def test_a_reward_that_dwarfs_all_others_is_told(tmp_path, capsys):
    memax_rl.train(env=_register("Dwarf", reward=1e9), total_steps=4_800, out=tmp_path / "run", **PPO)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "reward_scale" in line][:1]
    assert line.startswith("own/BurstDwarf: reward_scale fell from ")
    assert "set ppo.reward_scale" in line
