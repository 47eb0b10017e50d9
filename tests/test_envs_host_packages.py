"""Gymnasium's wrappers by name, and EnvPool: a pool with its interface here, the package where it is installed."""

import importlib.machinery
import sys
import types
from typing import ClassVar

import _host_environments  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gymnasium_spaces

from memax_rl import envs
from memax_rl.cli import main
from memax_rl.envs import base
from memax_rl.envs.adapters.gymnasium_options import WRAPPERS

COUNTER = "gym/memax_test/Counter-v0"


def roll(env, params, key, steps=7, streams=3, active=True):
    """What steps return, arrays [streams, steps, ...], with the first observations."""

    def one(key):
        reset_key, key = jax.random.split(key)
        first, state = env.reset(reset_key, params)

        def step(state, key):
            after = base.step_if(jnp.asarray(active), env, key, state, jnp.int32(1), params)
            return after.state, (
                after.observation,
                after.final_observation,
                after.reward,
                after.terminated,
                after.truncated,
            )

        return first, jax.lax.scan(step, state, jax.random.split(key, steps))[1]

    return jax.jit(jax.vmap(one))(jax.random.split(key, streams))


# Gymnasium's wrappers


def test_every_wrapper_that_may_be_named_is_gymnasiums():
    import gymnasium.wrappers

    assert all(issubclass(getattr(gymnasium.wrappers, name), gymnasium.Wrapper) for name in WRAPPERS)


def test_wrappers_apply_in_order_and_are_stored_completely():
    wrappers = ["FrameStackObservation", {"name": "ClipReward", "max_reward": 0.25}]
    with pytest.raises(ValueError, match=r"FrameStackObservation: .*stack_size"):
        envs.make(COUNTER, wrappers=wrappers)
    wrappers[0] = {"name": "FrameStackObservation", "stack_size": 2}
    assert envs.complete_options(COUNTER, {"wrappers": "FlattenObservation"})["wrappers"] == [
        {"name": "FlattenObservation"}
    ]
    env, params = envs.make(COUNTER, wrappers=wrappers)
    try:
        assert env.observation_space(params).shape == (2, 2)
        _, (obs, final, reward, terminated, _) = roll(env, params, jax.random.key(0), steps=4)
        assert env.host.failure is None
        np.testing.assert_array_equal(reward, 0.25)
        np.testing.assert_array_equal(final[:, :, 1, 1], np.tile([1, 2, 3, 4], (3, 1)))
        np.testing.assert_array_equal(obs[:, 2, :, 1], np.tile([2, 3], (3, 1)))
        assert np.all(terminated[:, 3])
    finally:
        base.close(env)


@pytest.mark.parametrize(
    ("wrappers", "message"),
    [
        (["RecordVideo"], "each must have a name, one of AddWhiteNoise, AtariPreprocessing"),
        ([{"stack_size": 2}], "each must have a name"),
        ([{"name": "ClipReward", "most": 1}], "ClipReward: .*unexpected keyword argument 'most'"),
    ],
)
def test_wrong_wrappers_are_one_line(wrappers, message, capsys):
    with pytest.raises(ValueError, match=message):
        envs.make(COUNTER, wrappers=wrappers)
    assert main(["train", "--env", COUNTER, f"--env-options.wrappers={wrappers!r}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# EnvPool


class Config:
    max_episode_steps = 5


class Pool:
    """Copies with EnvPool's interface: `env_id` says which are meant; results come in another order than asked for."""

    made: ClassVar[list["Pool"]] = []

    def __init__(self, num_envs: int, length: int, trouble: str):
        self.length, self.trouble = length, trouble
        self.observation_space = gymnasium_spaces.Box(0.0, 1e9, (2,), np.float32)
        self.action_space = gymnasium_spaces.Discrete(2)
        self.spec = types.SimpleNamespace(config=Config)
        self.time, self.number = np.zeros(num_envs, int), np.zeros(num_envs)
        self.over = np.ones(num_envs, bool)
        Pool.made.append(self)

    def _show(self, rows):
        return np.stack([self.number[rows], self.time[rows]], axis=1).astype(np.float32)

    def reset(self, env_id, seed):
        rows = env_id[::-1]
        self.number[rows], self.time[rows], self.over[rows] = np.asarray(seed)[::-1], 0, False
        return self._show(rows), {"env_id": rows}

    def step(self, action, env_id):
        assert action.dtype == np.int64
        assert not self.over[env_id].any(), "a copy was stepped whose episode has ended"
        rows = env_id[::-1]
        self.time[rows] += 1
        terminated, truncated = self.time[rows] >= self.length, self.time[rows] >= Config.max_episode_steps
        self.over[rows] = terminated | truncated
        obs = self._show(rows)
        if self.trouble:
            obs[0, 1] = np.nan
        return obs, rows.astype(np.float32), terminated, truncated, {"env_id": rows}

    def close(self):
        self.over[:] = True


@pytest.fixture
def pool(monkeypatch):
    module = types.ModuleType("envpool")
    module.__spec__ = importlib.machinery.ModuleSpec("envpool", None)
    module.__dict__.update(
        list_all_envs=lambda: ["Count-v0"],
        make=lambda task, env_type, num_envs, length=3, trouble="": Pool(num_envs, length, trouble),
    )
    monkeypatch.setitem(sys.modules, "envpool", module)
    Pool.made.clear()


@pytest.mark.parametrize(("length", "kind"), [(3, 3), (9, 4)])
def test_a_pool_is_stepped_by_one_call_and_shows_ends(pool, length, kind):
    env, params = envs.make("envpool/Count-v0", arguments={"length": length})
    assert envs.max_episode_steps(env, params) == 5
    first, out = roll(env, params, jax.random.key(0), steps=7)
    obs, final, reward, *_ = out
    assert env.host.failure is None
    # One to read the spaces (twice), and one for the three streams.
    assert len(Pool.made) == 3
    length = min(length, 5)
    ends = (np.arange(7) + 1) % length == 0
    np.testing.assert_array_equal(out[kind], np.tile(ends, (3, 1)))
    assert not np.any(out[7 - kind])
    np.testing.assert_array_equal(reward, np.tile([[0], [1], [2]], (1, 7)))
    np.testing.assert_array_equal(final[:, :, 1], np.tile(np.arange(7) % length + 1, (3, 1)))
    np.testing.assert_array_equal(final[:, :length, 0], np.tile(first[:, :1], (1, length)))
    np.testing.assert_array_equal(obs[:, ends, 1], 0)
    drawn = np.concatenate([first[:, 0], np.asarray(obs[:, ends, 0]).ravel()])
    assert len(np.unique(drawn)) == len(drawn)


def test_a_pool_leaves_out_who_waits(pool):
    env, params = envs.make("envpool/Count-v0")
    _, state = jax.vmap(lambda k: env.reset(k, params))(jax.random.split(jax.random.key(0), 3))
    active = jnp.array([True, False, True])
    keys = jax.random.split(jax.random.key(1), 3)
    step = jax.vmap(lambda a, k, s: base.step_if(a, env, k, s, jnp.int32(0), params))
    after = step(active, keys, state)
    assert Pool.made[-1].time.tolist() == [1, 0, 1]
    again = step(~active, keys, after.state)
    assert again.final_observation[1, 1] == 1
    assert Pool.made[-1].time.tolist() == [1, 1, 1]
    assert env.host.failure is None


def test_mistakes_with_a_pool_are_one_line(pool, capsys):
    with pytest.raises(ValueError, match=r"EnvPool has no task 'Cuont-v0'; did you mean envpool/Count-v0"):
        envs.check("envpool/Cuont-v0")
    with pytest.raises(ValueError, match=r"envpool/Count-v0 cannot be made: TypeError: .*'size'"):
        envs.make("envpool/Count-v0", arguments={"size": 3})
    with pytest.raises(ValueError, match="has no option 'processes'; its options are arguments"):
        envs.make("envpool/Count-v0", processes=3)
    env, params = envs.make("envpool/Count-v0", arguments={"trouble": "nan"})
    jax.block_until_ready(roll(env, params, jax.random.key(0), steps=2))
    assert "the environment envpool/Count-v0 failed: the observation is not finite: nan" in env.host.failure


def test_absence_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "envpool", None)
    assert main(["train", "--env", "envpool/Pong-v5"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'memax_rl[envpool]'" in error
    assert error.count("\n") == 1


def test_the_package_itself():
    pytest.importorskip("envpool")
    env, params = envs.make("envpool/CartPole-v1")
    results = [roll(env, params, jax.random.key(0), steps=40) for _ in range(2)]
    assert env.host.failure is None
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, results), strict=True))
    _, (obs, final, _, terminated, _) = results[0]
    assert np.any(terminated)
    assert np.all(np.abs(final[terminated][:, 2]) > 0.2), "the last observation is that of the fall"
    assert np.all(np.abs(obs[terminated]) <= 0.05), "and the next one the first of another episode"
    base.close(env)
