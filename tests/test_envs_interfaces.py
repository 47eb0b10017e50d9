"""Classes with the interfaces of brax, of Jumanji and of older gymnax: `jax/module:Class`, ends, resets, trust."""

import sys

import _interfaces
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import envs
from memax_rl.cli import main
from memax_rl.envs import base, registry, spaces
from memax_rl.envs.adapters.legacy_gymnax import LegacyGymnaxAdapter
from memax_rl.envs.adapters.package import PackageEnvironment
from memax_rl.evaluation import evaluate

BRAX, JUMANJI, LEGACY = (f"jax/_interfaces:{name}" for name in ("Brax", "Jumanji", "Legacy"))


def roll(env, params, key, steps=10, streams=3):
    """What `steps` steps of `streams` streams return, arrays [streams, steps, ...]."""

    def one(key):
        reset_key, key = jax.random.split(key)
        first, state = env.reset(reset_key, params)

        def step(state, key):
            action_key, key = jax.random.split(key)
            action = env.action_space(params).sample(action_key)
            obs, state, reward, terminated, truncated, info = env.step(key, state, action, params)
            return state, (obs, reward, terminated, truncated, info["final_observation"])

        return first, jax.lax.scan(step, state, jax.random.split(key, steps))[1]

    return jax.jit(jax.vmap(one))(jax.random.split(key, streams))


# Ends


@pytest.mark.parametrize(
    ("env_id", "options", "length", "kind"),
    [
        (BRAX, {"falls": 3}, 3, "terminated"),
        (BRAX, {"episode_length": 2}, 2, "truncated"),
        (BRAX, {"falls": 3, "episode_length": 3}, 3, "terminated"),
        (JUMANJI, {"length": 3, "discount": 0.0}, 3, "terminated"),
        (JUMANJI, {"length": 3, "discount": 1.0}, 3, "truncated"),
        (LEGACY, {"goal": 3}, 3, "terminated"),
        (LEGACY, {}, 4, "truncated"),
        (LEGACY, {"goal": 4}, 4, "terminated"),
        (LEGACY, {"says": True}, 4, "truncated"),
        (LEGACY, {"says": True, "goal": 3}, 3, "terminated"),
    ],
)
def test_the_two_kinds_of_end_are_told_apart(env_id, options, length, kind):
    env, params = envs.make(env_id, **options)
    first, (obs, reward, terminated, truncated, final) = roll(env, params, jax.random.key(0), steps=2 * length + 1)
    ends = np.arange(1, 2 * length + 2) % length == 0
    np.testing.assert_array_equal(terminated if kind == "terminated" else truncated, np.tile(ends, (3, 1)))
    assert not np.any(truncated if kind == "terminated" else terminated)
    np.testing.assert_array_equal(reward, 1)
    assert reward.dtype == jnp.float32

    def parts(seen):
        seen = (seen["number"], seen["step_count"]) if isinstance(seen, dict) else (seen[..., 0], seen[..., 1])
        return tuple(np.asarray(x) for x in seen)

    (begun, zero), (number, time), (final_number, final_time) = map(parts, (first, obs, final))
    np.testing.assert_array_equal(zero, 0)
    # The last observation of an episode is its own, and what is shown to act on is the next one's first.
    np.testing.assert_array_equal(final_time, np.tile((np.arange(2 * length + 1) % length) + 1, (3, 1)))
    np.testing.assert_array_equal(time, np.where(ends, 0, final_time))
    np.testing.assert_array_equal(final_number[:, :length], np.tile(begun[:, None], (1, length)))
    # Every episode of every stream is drawn anew.
    drawn = np.concatenate([begun, number[:, ends].ravel()])
    assert len(np.unique(drawn)) == len(drawn) == 9


def test_a_time_limit_is_stated():
    lengths = {BRAX: 1000, JUMANJI: 5, LEGACY: 4}
    for env_id, limit in lengths.items():
        env, params = envs.make(env_id)
        assert isinstance(env, PackageEnvironment)
        assert envs.max_episode_steps(env, params) == limit


def test_numbers_in_place_of_a_discrete_observation_are_refused():
    class Shows(_interfaces.Legacy):
        def observation_space(self, params):
            return spaces.Discrete(3)

        def reset_env(self, key, params):
            observation, state = super().reset_env(key, params)
            return observation[0], state

    env = LegacyGymnaxAdapter("old", Shows())
    with pytest.raises(ValueError, match=r"old: an observation has the dtype float32, but its space Discrete"):
        env.reset(jax.random.key(0), env.default_params)


# Resets


@pytest.mark.parametrize("env_id", [BRAX, JUMANJI, LEGACY])
def test_a_reset_is_computed_only_where_an_episode_of_the_batch_ends(env_id):
    options = {BRAX: {"falls": 5}, JUMANJI: {"length": 5}, LEGACY: {"goal": 5}}[env_id]
    env, params = envs.make(env_id, **options)
    if env_id == LEGACY:
        params = params.replace(max_steps_in_episode=50)
    jax.effects_barrier()
    _interfaces.RESETS.clear()
    jax.block_until_ready(roll(env, params, jax.random.key(0), steps=12, streams=4))
    jax.effects_barrier()
    # One for all streams at the beginning, and at steps 5 and 10.
    assert len(_interfaces.RESETS) == 3


def test_streams_of_seeds_are_reset_each_by_itself():
    env, params = envs.make(BRAX, falls=2)

    def begin(key):
        return env.reset(key, params)

    _, state = jax.vmap(jax.vmap(begin))(jax.random.split(jax.random.key(0), (2, 3)))
    # One stream of one seed is a step ahead.
    ahead = jnp.zeros((2, 3), bool).at[1, 2].set(True)
    number, time = state.inner.pipeline_state
    state = eqx.tree_at(lambda s: s.inner.pipeline_state, state, (number, time + ahead))
    keys = jax.random.split(jax.random.key(1), (2, 3))
    step = jax.vmap(jax.vmap(lambda k, s: env.step(k, s, jnp.zeros(1), params)))
    obs, after, _, terminated, *_ = step(keys, state)
    np.testing.assert_array_equal(terminated, ahead)
    np.testing.assert_array_equal(obs[..., 1], np.where(ahead, 0, 1))
    np.testing.assert_array_equal(obs[..., 0] == number, ~ahead)
    np.testing.assert_array_equal(after.time, np.where(ahead, 0, 1))


# Action masks


@pytest.mark.parametrize(("options", "rows"), [({}, 1), ({"choices": 2}, 2)])
def test_a_mask_of_the_observation_says_which_actions_are_legal(options, rows):
    env, params = envs.make("jax/_interfaces:Masked", **options)
    _, state = env.reset(jax.random.key(0), params)
    shown = []
    for i in range(5):
        action = jnp.ones(env.action_space(params).shape, jnp.int32)
        after = base.step_if(jnp.asarray(True), env, jax.random.key(i), state, action, params)
        shown.append((base.action_mask(env, state, params), after.action_mask, after.final_action_mask))
        state = after.state
    for (before, now, final), time in zip(shown, [0, 1, 2, 3, 0], strict=True):
        np.testing.assert_array_equal(before, np.tile(np.arange(3) != time % 3, rows))
        np.testing.assert_array_equal(final, np.tile(np.arange(3) != (time + 1) % 3, rows))
        np.testing.assert_array_equal(now, np.tile(np.arange(3) != ((time + 1) % 4) % 3, rows))


def test_a_mask_of_combinations_is_only_shown():
    env, params = envs.make("jax/_interfaces:Masked", choices=2, joint=True)
    assert not base.has_action_mask(env, params)
    assert env.observation_space(params).spaces["action_mask"].shape == (3, 3)


# Spaces


def test_spaces_are_those_of_the_interface():
    brax, params = envs.make(BRAX, dict_observation=True)
    assert spaces.describe(brax.observation_space(params)) == "Dict(flag: Box(), state: Box(2))"
    assert spaces.describe(brax.action_space(params)) == "Box(1)"
    assert float(brax.action_space(params).low) == -1
    jumanji, params = envs.make(JUMANJI)
    assert (
        spaces.describe(jumanji.observation_space(params))
        == "Dict(number: Box(), place: Dict(col: Box(), row: Box()), step_count: Box())"
    )
    assert spaces.describe(jumanji.action_space(params)) == "MultiDiscrete(3, 4)"
    row = jumanji.observation_space(params).spaces["place"].spaces["row"]
    assert (int(row.low), int(row.high)) == (0, 4)
    # A count without a bound is a measure.
    assert jumanji.observation_space(params).spaces["step_count"].dtype == jnp.float32


class Foreign:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("attributes", "says", "bounds"),
    [
        ({"n": 9, "shape": (7, 7), "dtype": jnp.uint8}, "Box(7, 7)", (0, 8)),
        ({"n": jnp.int32(4), "shape": (), "dtype": jnp.int32}, "Discrete(4)", None),
        ({"num_values": jnp.array([[2], [3]]), "shape": (2, 1), "dtype": jnp.int32}, "Box(2, 1)", (0, 2)),
        ({"shape": (3,), "dtype": jnp.float32}, "Box(3)", (-np.inf, np.inf)),
        ({"shape": (), "dtype": jnp.bool_}, "Box()", (0, 1)),
    ],
)
def test_a_space_is_recognized_within_a_compiled_function(attributes, says, bounds):
    found = []
    jax.jit(lambda: found.append(spaces.recognize(Foreign(**attributes))))()
    assert spaces.describe(found[0]) == says
    if bounds:
        assert (float(jnp.min(found[0].low)), float(jnp.max(found[0].high))) == bounds


@pytest.mark.parametrize("attributes", [{}, {"shape": (2,)}, {"shape": (2,), "dtype": "text"}])
def test_what_is_no_space_is_refused(attributes):
    with pytest.raises(ValueError, match="cannot read the space"):
        spaces.recognize(Foreign(**attributes))


# jax/module:Class


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("jax/_interfaces", {}, r"expected jax/module:Class, for example jax/my_module:Room, got 'jax/_interfaces'"),
        ("jax/no_such_module:Room", {}, "the module no_such_module cannot be imported: No module named"),
        ("jax/_interfaces:Brix", {}, "the module _interfaces has no class Brix; its classes are .*Brax"),
        ("jax/_interfaces:_count_reset", {}, "has no class _count_reset"),
        (BRAX, {"size": 7}, r"unexpected keyword argument 'size'; it takes \(falls: int = 3, episode_length"),
        (BRAX, {"falls": "three"}, "jax/_interfaces:Brax: .*raised TypeError"),
        (JUMANJI, {"rewards": 2}, r"expected one reward a step, got an array of shape \(2,\)"),
        ("jax/_interfaces:HidesItsEnds", {}, "HidesItsEnds lacks reset_env, step_env"),
    ],
)
def test_mistakes_are_one_line(env_id, options, message, capsys):
    with pytest.raises(ValueError, match=message) as caught:
        envs.make(env_id, **options)
    assert "\n" not in str(caught.value)
    arguments = [f"--env-options.{name}={value}" for name, value in options.items()]
    assert main(["train", "--env", env_id, *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_class_of_the_interface_can_be_registered():
    envs.register("own/Faller", lambda: _interfaces.Brax(falls=2))
    try:
        env, params = envs.make("own/Faller")
        assert np.all(roll(env, params, jax.random.key(0), steps=2)[1][2][:, 1])
    finally:
        del registry._OWN["own/Faller"]


MODULE = """
from _interfaces import Brax

class Room(Brax):
    pass
"""


@pytest.mark.slow
def test_a_run_trains_and_its_module_is_imported_only_where_the_user_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rooms.py").write_text(MODULE)
    fields = ["--total-steps", "500", "--ppo.num-envs", "4", "--ppo.num-minibatches", "2", "--eval-episodes", "4"]
    options = ["--env-options.falls", "5", "--env-options.episode-length", "10"]
    typed = ["--env", "jax/rooms:Room", *options, "--network.width", "8", *fields]
    assert main(["train", *typed, "--out", "run"]) == 0
    assert "falls: 5" in (tmp_path / "run/config.yaml").read_text()
    sys.modules.pop("rooms")
    registry._make.cache_clear()
    capsys.readouterr()
    assert main(["evaluate", "run", "--episodes", "4"]) == 2
    assert "add --import rooms or --trust" in capsys.readouterr().err
    assert "rooms" not in sys.modules
    assert main(["evaluate", "run", "--episodes", "4", "--import", "rooms"]) == 0
    result = evaluate("run", episodes=4, imports=("rooms",))
    assert result["mean_return_per_seed"] == [5.0]
