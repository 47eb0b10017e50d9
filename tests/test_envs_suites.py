"""Suites of optional packages by name: what is said without them, and, where one is installed, its environments."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import envs
from memax_rl.cli import main
from memax_rl.envs import ids, registry
from memax_rl.envs.adapters.suite_options import MODELS
from memax_rl.envs.adapters.suites import MAKERS
from memax_rl.envs.checking import check_environment
from memax_rl.envs.packages import PACKAGES

# One or two of each suite, with options that make episodes short: id, options, whether a limit cuts some episode in it.
SAMPLES = (
    ("craftax/Craftax-Classic-Symbolic-v1", {"max_steps": 6}, True),
    ("popgym_arcade/CartPoleEasy", {}, False),
    ("popgym_arcade/NavigatorEasy", {"partial_obs": False}, False),
    ("brax/inverted_pendulum", {"backend": "spring", "max_steps": 3}, True),
    ("mujoco_playground/CartpoleBalance", {"max_steps": 6}, True),
    ("jumanji/Maze-v0", {"arguments": {"time_limit": 6}}, False),
    ("jumanji/Snake-v1", {}, False),
    ("navix/Navix-KeyCorridorS3R1-v0", {"max_steps": 6}, True),
    ("pobax/tmaze_5", {}, False),
)


@pytest.mark.parametrize("suite", ids.OPTIONAL_IDS)
def test_absence_is_one_line(suite, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, PACKAGES[suite].module, None)
    registry._make.cache_clear()
    env_id = f"{suite}/{ids.OPTIONAL_IDS[suite][0]}"
    assert envs.missing_package(env_id) == PACKAGES[suite].install
    assert main(["train", "--env", env_id]) == 2
    error = capsys.readouterr().err
    assert f"env: {env_id} needs the package {suite}; {PACKAGES[suite].install}" in error
    assert error.count("\n") == 1


def test_what_is_not_installed_is_a_line_a_suite(monkeypatch, capsys):
    for package in PACKAGES.values():
        monkeypatch.setitem(sys.modules, package.module, None)
    assert main(["list", "envs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"brax/: {len(ids.BRAX_IDS)} environments, needs pip install 'memax_rl[brax]'" in lines
    assert not [line for line in lines if line.startswith("brax/ant")]
    assert "envpool/: needs pip install 'memax_rl[envpool]'" in lines
    assert [line for line in lines if line.startswith("jax/module:Class")]


def test_tables_of_suites_agree():
    assert set(ids.OPTIONAL_IDS) == set(MODELS) == set(MAKERS)
    assert set(PACKAGES) == set(ids.OPTIONAL_IDS) | {"xminigrid", "envpool"}
    assert {*PACKAGES} < {*ids.SUITES}
    with pytest.raises(ValueError, match="in a suite of your own"):
        envs.register("brax/Own", lambda: None)


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        ("brax/ant", {"size": 3}, "brax/ant has no option 'size'; its options are backend, max_steps, arguments"),
        ("brax/ant", {"backend": "sprong"}, "env_options.backend: input should be 'generalized'"),
        ("navix/Navix-Empty-5x5-v0", {"max_steps": 0}, "env_options.max_steps: input should be greater"),
        ("popgym_arcade/CartPoleEasy", {"obs_size": 64}, "env_options.obs_size: input should be 128 or 256"),
        ("pobax/tmaze_5", {"length": 3}, "pobax/tmaze_5 has no option 'length'; it takes none"),
    ],
)
def test_wrong_options_are_refused_without_the_package(env_id, options, message):
    with pytest.raises(ValueError, match=message):
        envs.complete_options(env_id, options)


def test_an_overwritten_gymnax_is_told():
    code = "import gymnax.environments.environment as e; del e.Environment.is_truncated;import memax_rl.envs.base"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip uninstall -y stable-gymnax" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("env_id", "options", "is_cut"), SAMPLES, ids=[sample[0] for sample in SAMPLES])
@pytest.mark.filterwarnings("ignore")
def test_an_environment_of_the_suite(env_id, options, is_cut):
    if envs.missing_package(env_id):
        pytest.skip(f"{env_id.partition('/')[0]} is not installed")
    env, params = envs.make(env_id, **options)
    check_environment(env_id, env, params)

    def one(key):
        reset_key, key = jax.random.split(key)
        first, state = env.reset(reset_key, params)

        def step(state, key):
            action_key, key = jax.random.split(key)
            action = env.action_space(params).sample(action_key)
            obs, state, reward, terminated, truncated, info = env.step(key, state, action, params)
            return state, (obs, reward, terminated, truncated, info["final_observation"], state.time)

        return first, jax.lax.scan(step, state, jax.random.split(key, 8))[1]

    first, (obs, reward, terminated, truncated, final, time) = jax.jit(jax.vmap(one))(
        jax.random.split(jax.random.key(0, impl="philox4x32"), 8)
    )
    assert not np.any(terminated & truncated)
    assert np.any(truncated) == is_cut
    np.testing.assert_array_equal(time == 0, terminated | truncated)
    assert np.all(np.isfinite(reward))
    assert jax.tree.structure(first) == jax.tree.structure(obs) == jax.tree.structure(final)
    middle = ~(terminated | truncated)
    for x, y in zip(jax.tree.leaves(obs), jax.tree.leaves(final), strict=True):
        np.testing.assert_array_equal(jnp.asarray(x)[middle], jnp.asarray(y)[middle])


def test_the_names_are_the_packages():
    """Of those that are installed."""
    found = []
    if not envs.missing_package("brax/"):
        import brax.envs  # pyright: ignore[reportMissingImports]

        found.append((ids.BRAX_IDS, set(brax.envs._envs) - {"fast"}))
    if not envs.missing_package("jumanji/"):
        import jumanji  # pyright: ignore[reportMissingImports]

        shared = {"Connector-v3", "LevelBasedForaging-v0", "SearchAndRescue-v0"}
        found.append((ids.JUMANJI_IDS, jumanji.registered_environments() - shared))
    if not envs.missing_package("navix/"):
        import navix  # pyright: ignore[reportMissingImports]

        registered = {name for name in navix.registry() if "DMLab" not in name}
        found.append((ids.NAVIX_IDS, registered))
    if not found:
        pytest.skip("none of brax, jumanji and navix is installed")
    for listed, registered in found:
        assert set(listed) == registered
