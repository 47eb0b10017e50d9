"""The registry, the spaces, and the contract of every environment."""

import subprocess
import sys

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _compiler import to_the_bit

from memax_rl import envs
from memax_rl.cli import main
from memax_rl.envs import ids, spaces
from memax_rl.envs.adapters import gymnax as gymnax_adapter
from memax_rl.envs.base import EnvironmentFailure

# MNISTBandit downloads its images when it is made, which tests must not depend on; see test_failed_download.
# Those of optional packages are many, and slow to compile: test_envs_suites has one or two of each.
OFFLINE_IDS = [
    env_id
    for env_id in envs.names()
    if env_id not in envs.DOWNLOADS
    and envs.missing_package(env_id) is None
    and env_id.partition("/")[0] not in ids.OPTIONAL_IDS
]


def describe(tree):
    """Structure, shapes, dtypes and weak types of a pytree of arrays."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


def random_rollout(env, params, key, copies, steps):
    """What `steps` random steps of `copies` environments return, as [steps, copies, ...] arrays."""
    action_space = env.action_space(params)

    def one_step(carry, step_key):
        _, state = carry
        action_key, env_key = jax.random.split(step_key)
        action = action_space.sample(action_key)
        obs, state, reward, terminated, truncated, info = env.step(env_key, state, action, params)
        return (obs, state), (obs, reward, terminated, truncated, info["final_observation"])

    def one_copy(copy_key):
        reset_key, scan_key = jax.random.split(copy_key)
        return jax.lax.scan(one_step, env.reset(reset_key, params), jax.random.split(scan_key, steps))[1]

    return jax.jit(jax.vmap(one_copy, out_axes=1), compiler_options=to_the_bit())(jax.random.split(key, copies))


def test_names_are_gymnax_and_popgym():
    assert tuple(gymnax.registered_envs) == ids.GYMNAX_IDS
    assert "popgym/RepeatPreviousEasy" in envs.names()
    assert len(set(envs.names())) == len(envs.names())


def test_names_imports_neither_jax_nor_gymnax():
    code = (
        "import sys, memax_rl.envs; memax_rl.envs.names();"
        "assert 'memax_rl.envs' in sys.modules;"
        "sys.exit(' '.join({'jax', 'gymnax', 'numpy'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_spaces_are_reached_from_a_bare_import():
    code = "import memax_rl.envs; print(memax_rl.envs.spaces.Discrete(3).n)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "3"


def test_refuses_the_top_level_name():
    code = "import sys; sys.path.insert(0, '.'); import envs"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "import this package as memax_rl.envs, not as envs" in done.stderr


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'space'"):
        envs.space  # noqa: B018


@pytest.mark.parametrize(
    ("wrong", "close"),
    [
        ("popgym/RepeatPreviousEsay", "popgym/RepeatPreviousEasy"),
        ("CartPole-v1", "gymnax/CartPole-v1"),
        ("popgym/RepeatFirst", "popgym/RepeatFirstEasy"),
    ],
)
def test_unknown_id_names_close_matches(wrong, close):
    with pytest.raises(ValueError, match=f"env_id: there is no environment '{wrong}'; close .*{close}"):
        envs.make(wrong)


def test_unknown_id_without_close_matches():
    with pytest.raises(ValueError, match=r"env_id: there is no environment '\?'; see memax_rl.envs.names"):
        envs.make("?")


def test_failed_download(monkeypatch, tmp_path, capsys):
    def no_network(env_id):
        raise OSError("no network")

    monkeypatch.setattr(gymnax_adapter.gymnax, "make", no_network)
    with pytest.raises(EnvironmentFailure, match=r"MNISTBandit-bsuite downloads its data .* no network"):
        gymnax_adapter.make("MNISTBandit-bsuite")
    assert main(["train", "--env", "gymnax/MNISTBandit-bsuite", "--out", str(tmp_path / "run")]) == 2
    assert "no network" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_same_id_gives_the_same_instance():
    assert envs.make("popgym/RepeatFirstEasy")[0] is envs.make("popgym/RepeatFirstEasy")[0]


def test_spaces_in_a_few_words():
    described = [spaces.describe(spaces.MultiDiscrete(nvec)) for nvec in ([3, 3], [3] * 5, [2, 3, 5], [2, 3] * 4)]
    assert described == [
        "MultiDiscrete(3, 3)",
        "MultiDiscrete(3 x 5)",
        "MultiDiscrete(2, 3, 5)",
        "MultiDiscrete((2, 3) x 4)",
    ]


def test_multi_discrete(key):
    space = spaces.MultiDiscrete([2, 3, 5])
    assert space.shape == (3,)
    assert repr(space) == "MultiDiscrete((2, 3, 5))"
    draws = jax.vmap(space.sample)(jax.random.split(key, 500))
    assert draws.dtype == space.dtype == jnp.int32
    assert [sorted(set(column)) for column in draws.T.tolist()] == [[0, 1], [0, 1, 2], [0, 1, 2, 3, 4]]
    assert bool(space.contains(jnp.array([1, 2, 4])))
    assert not bool(space.contains(jnp.array([1, 3, 4])))
    assert not bool(space.contains(jnp.array([1, -1, 4])))


@pytest.mark.parametrize("nvec", [[], [2, 0]])
def test_multi_discrete_refuses(nvec):
    with pytest.raises(ValueError, match="nvec: expected"):
        spaces.MultiDiscrete(nvec)


@pytest.mark.parametrize("env_id", OFFLINE_IDS)
def test_types_are_the_same_from_reset_and_step(env_id, key):
    env, params = envs.make(env_id)
    obs, state = jax.eval_shape(env.reset, key, params)
    action = jax.eval_shape(env.action_space(params).sample, key)
    obs_after, state_after, reward, terminated, truncated, info = jax.eval_shape(env.step, key, state, action, params)
    assert describe(obs_after) == describe(obs) == describe(info["final_observation"])
    assert describe(state_after) == describe(state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((obs, state)))
    assert describe(reward)[1] == [((), jnp.float32, False)]
    assert describe(terminated)[1] == describe(truncated)[1] == [((), jnp.bool, False)]


# Other difficulties of the POPGym suite play whole episodes in test_envs_popgym.
@pytest.mark.parametrize(
    "env_id", [env_id for env_id in OFFLINE_IDS if env_id.startswith("gymnax/") or env_id.endswith("Easy")]
)
def test_lengths_and_final_observations(env_id, key):
    """Episodes have the promised lengths, and only the end of an episode has another final observation."""
    env, params = envs.make(env_id)
    horizon, fixed_length = envs.max_episode_steps(env, params), envs.fixed_length(env, params)
    steps = 30 if fixed_length is None else 2 * fixed_length + 1
    obs, reward, terminated, truncated, final_obs = random_rollout(env, params, key, 2, steps)
    done = np.asarray(terminated | truncated)
    assert np.isfinite(np.asarray(reward)).all()
    for leaf, final_leaf in zip(jax.tree.leaves(obs), jax.tree.leaves(final_obs), strict=True):
        np.testing.assert_array_equal(np.asarray(leaf)[~done], np.asarray(final_leaf)[~done])
    assert horizon is not None
    if fixed_length is not None:
        assert horizon == fixed_length
        np.testing.assert_array_equal(
            np.flatnonzero(done[:, 0]) + 1, np.arange(1, steps // fixed_length + 1) * fixed_length
        )
        # A row of the tape is measured by it.
        assert envs.truncates(env, params) == bool(np.any(truncated & ~terminated))


def test_observations_have_the_dtype_of_their_space(key):
    for env_id in OFFLINE_IDS:
        env, params = envs.make(env_id)
        obs, _ = jax.eval_shape(env.reset, key, params)
        space = env.observation_space(params)
        example = jax.eval_shape(space.sample, key)
        assert describe(obs)[1] == describe(example)[1], env_id


def test_adapter_changes_nothing_but_types(key):
    """The same keys and actions give gymnax's own numbers, resets included."""
    env, params = envs.make("gymnax/UmbrellaChain-bsuite")
    inner, _ = gymnax.make("UmbrellaChain-bsuite")
    obs, state = env.reset(key, params)
    inner_obs, inner_state = inner.reset(key, params)
    np.testing.assert_array_equal(obs, inner_obs)
    for step in range(25):
        step_key = jax.random.fold_in(key, step)
        obs, state, *ours, info = env.step(step_key, state, jnp.int32(step % 2), params)
        inner_obs, inner_state, *theirs, inner_info = inner.step(step_key, inner_state, step % 2, params)
        np.testing.assert_array_equal(obs, inner_obs)
        np.testing.assert_array_equal(info["final_observation"], inner_info["final_observation"])
        np.testing.assert_array_equal(ours, theirs)


def test_time_limits_and_lengths_follow_the_parameters():
    env, params = envs.make("gymnax/UmbrellaChain-bsuite")
    assert envs.fixed_length(env, params.replace(chain_length=7)) == 7
    assert envs.fixed_length(env, params.replace(max_steps_in_episode=4)) == 4
    env, params = envs.make("gymnax/CartPole-v1")
    assert envs.max_episode_steps(env, params.replace(max_steps_in_episode=20)) == 20
    assert envs.fixed_length(env, params) is None
    env, params = envs.make("popgym/RepeatPreviousEasy")
    assert envs.fixed_length(env, params.replace(max_steps_in_episode=20)) == 20
    assert envs.fixed_length(env, params.replace(max_steps_in_episode=99)) == 51
