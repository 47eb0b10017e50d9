"""Environments of the package xminigrid: agreement with it, benchmarks and splits, trials, and its absence."""

import bz2
import json
import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _compiler import to_the_bit

from memax_rl import envs
from memax_rl.cli import main
from memax_rl.envs import ids, registry
from memax_rl.envs.base import EnvironmentFailure, lenient
from memax_rl.runs import make_config, override
from memax_rl.training import train

MEMORY, XLAND = "xminigrid/MiniGrid-MemoryS8", "xminigrid/XLand-MiniGrid-R1-9x9"
FORWARD, RIGHT, LEFT = 0, 1, 2


@pytest.fixture(scope="session")
def package():
    with lenient():
        return pytest.importorskip("xminigrid")


@pytest.fixture
def without_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "xminigrid", None)
    registry._make.cache_clear()
    yield
    registry._make.cache_clear()


@pytest.fixture(scope="session")
def benchmark(package, tmp_path_factory):
    """A file of 10 rulesets: to hold a ball, of another color in each; the last is there twice."""
    from xminigrid.core.constants import TILES_REGISTRY, Tiles  # pyright: ignore[reportMissingImports]
    from xminigrid.core.goals import AgentHoldGoal  # pyright: ignore[reportMissingImports]
    from xminigrid.core.rules import EmptyRule  # pyright: ignore[reportMissingImports]

    balls = TILES_REGISTRY[Tiles.BALL, jnp.array([1, 2, 3, 4, 5, 6, 8, 9, 10, 10])]
    with lenient():
        arrays = {
            "goals": np.stack([AgentHoldGoal(tile=ball).encode() for ball in balls]),
            "rules": np.tile(np.asarray(EmptyRule().encode()), (10, 2, 1)),
            # One ball and room for another, which is empty.
            "init_tiles": np.stack([balls, np.zeros_like(balls)], axis=1),
            "num_rules": np.zeros(10, np.uint8),
        }
    path = tmp_path_factory.mktemp("xland") / "balls"
    path.write_bytes(bz2.compress(pickle.dumps(arrays)))
    return str(path)


def colors(env, n=400):
    """Which colors the balls have that `n` episodes of an environment begin with."""
    _, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(jax.random.key(1), n), env.default_params)
    return np.asarray(state.goal_encoding)[:, 2], np.asarray(state.grid)


# Without the package.


def test_absence_is_explained(without_package, capsys):
    for make in (lambda: envs.make(MEMORY), lambda: envs.make("meta/Trials", env=MEMORY)):
        with pytest.raises(ValueError, match=r"env: .*MemoryS8 needs the package xminigrid; pip install 'memax_rl\[xm"):
            make()
    assert main(["train", "--env", MEMORY]) == 2
    error = capsys.readouterr().err
    assert "pip install 'memax_rl[xminigrid]'" in error
    assert error.count("\n") == 1


def test_absence_is_listed(without_package, capsys, monkeypatch):
    monkeypatch.setattr(envs, "names", lambda: (MEMORY, XLAND))
    for flags in ([], ["-v"]):
        assert main(["list", "envs", *flags]) == 0
        shown = capsys.readouterr().out
        assert "xminigrid/: 2 environments, needs pip install 'memax_rl[xminigrid]'\n" in shown
        assert MEMORY not in shown


def test_options_are_those_of_the_environment():
    assert list(envs.options(MEMORY)) == ["max_steps"]
    assert list(envs.options(XLAND)) == ["max_steps", "benchmark", "split", "split_seed", "test_fraction"]
    config = override(make_config({"env": XLAND}), ["--env-options.max-steps", "30"])
    assert config.env_options["max_steps"] == 30
    assert config.env_options["test_fraction"] == 0.2, "the split is stored in the run"


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        (MEMORY, {"benchmark": "trivial-21k"}, "MemoryS8 has no option 'benchmark'; its options are max_steps"),
        (MEMORY, {"max_steps": 0}, "env_options.max_steps: input should be greater than or equal to 1, got 0"),
        (XLAND, {"max_steps": "9"}, "env_options.max_steps: input should be a valid integer, got '9'"),
        (XLAND, {"split": "tets"}, "env_options.split: input should be 'train' or 'test', got 'tets'"),
        (XLAND, {"test_fraction": 1.0}, "env_options.test_fraction: input should be less than 1, got 1.0"),
    ],
)
def test_wrong_options_are_refused_without_the_package(env_id, options, message):
    with pytest.raises(ValueError, match=message):
        envs.complete_options(env_id, options)


def test_the_suite_is_reserved():
    with pytest.raises(ValueError, match="expected suite/Name in a suite of your own"):
        envs.register("xminigrid/Own", lambda: None)


# With it. The contract of every id is in test_envs.


def test_the_names_are_the_packages(package):
    assert package.registered_environments() == ids.XMINIGRID_IDS


@pytest.mark.parametrize("name", ["MiniGrid-MemoryS8", "MiniGrid-DoorKey-5x5", "XLand-MiniGrid-R4-9x9"])
def test_the_same_keys_and_actions_give_the_packages_own_numbers(package, name, key):
    steps, limit = 60, 20
    env, params = envs.make(f"xminigrid/{name}", max_steps=limit)
    inner, inner_params = package.make(name, max_steps=limit)
    keys = jax.random.split(jax.random.fold_in(key, 1), steps)
    actions = jax.random.randint(jax.random.fold_in(key, 2), (steps,), 0, 6)

    def ours(carry, now):
        step_key, action = now
        obs, state, *rest, info = env.step(step_key, carry[1], action, params)
        return (obs, state), (carry[0], *rest, info["final_observation"])

    def theirs(timestep, now):
        step_key, action = now
        after = inner.step(inner_params, timestep, action)
        shown = [x.reshape(-1).astype(jnp.int32) for x in (timestep.observation, after.observation)]
        terminated = after.discount == 0
        following = jax.tree.map(lambda a, b: jnp.where(after.last(), a, b), inner.reset(inner_params, step_key), after)
        return following, (shown[0], after.reward, terminated, after.last() & ~terminated, shown[1])

    def run(body, first):
        scan = jax.jit(lambda first: jax.lax.scan(body, first, (keys, actions))[1], compiler_options=to_the_bit())
        return scan(first)

    ours_played = run(ours, env.reset(key, params))
    with lenient():
        theirs_played = run(theirs, jax.tree.map(jnp.asarray, inner.reset(inner_params, key)))
    for a, b in zip(ours_played, theirs_played, strict=True):
        np.testing.assert_array_equal(a, b)
    assert ours_played[3].any(), "the time limit was reached"
    shown = ours_played[0]
    assert bool(jax.vmap(env.observation_space(params).contains)(shown).all())
    assert len(np.unique(shown, axis=0)) > 5


def walk(env, params, key, actions):
    obs, state = env.reset(key, params)
    outcomes = []
    for action in actions:
        obs, state, reward, terminated, truncated, info = env.step(key, state, jnp.int32(action), params)
        outcomes.append((float(reward), bool(terminated), bool(truncated)))
    return outcomes, info["final_observation"], obs


def test_memory_pays_for_the_object_that_was_shown(package, key):
    env, params = envs.make(MEMORY)
    _, state = env.reset(key, params)
    width_left = int(state.carry.success_pos[1] - state.agent.position[1])
    is_up = int(state.carry.success_pos[0]) == 2
    for right in (True, False):
        turn = LEFT if is_up == right else RIGHT
        actions = [FORWARD] * width_left + [turn, FORWARD]
        outcomes, final, obs = walk(env, params, key, actions)
        assert outcomes[:-1] == [(0.0, False, False)] * (len(actions) - 1)
        expected = 1 - 0.9 * len(actions) / 320 if right else 0.0
        assert outcomes[-1] == (pytest.approx(expected), True, False)
        assert (final != obs).any(), "the next episode has begun"
        np.testing.assert_array_equal(obs, env.reset(key, params)[0])


def test_the_time_limit_truncates(package, key):
    env, params = envs.make(MEMORY, max_steps=3)
    assert envs.max_episode_steps(env, params) == 3
    outcomes, *_ = walk(env, params, key, [LEFT] * 7)
    assert [truncated for *_, truncated in outcomes] == [False, False, True, False, False, True, False]
    assert not any(terminated for _, terminated, _ in outcomes)
    assert envs.max_episode_steps(*envs.make(MEMORY)) == 320


def test_splits_of_a_benchmark_are_disjoint_and_complete(benchmark):
    drawn = {}
    for split in ("train", "test"):
        env, _ = envs.make(XLAND, benchmark=benchmark, split=split, test_fraction=0.34)
        goals, grids = colors(env)
        drawn[split] = set(goals.tolist())
        # Whatever is the goal lies in the grid, and nothing else does.
        assert ((grids[..., 0] == 3).sum((1, 2)) == 1).all()
        assert (np.where(grids[..., 0] == 3, grids[..., 1], 0).sum((1, 2)) == goals).all()
    assert not drawn["train"] & drawn["test"]
    assert drawn["train"] | drawn["test"] == {1, 2, 3, 4, 5, 6, 8, 9, 10}
    assert len(drawn["test"]) == 3
    others = [
        set(colors(envs.make(XLAND, benchmark=benchmark, split="test", split_seed=seed)[0])[0].tolist())
        for seed in range(8)
    ]
    assert all(len(color) == 2 for color in others)
    assert len(set(map(frozenset, others))) > 1


def test_both_splits_have_rulesets_whatever_the_fraction(benchmark):
    for fraction, split, count in ((0.01, "test", 1), (0.99, "train", 1)):
        env, _ = envs.make(XLAND, benchmark=benchmark, split=split, test_fraction=fraction)
        assert len(set(colors(env)[0].tolist())) == count


def test_success_in_xland_terminates(benchmark, key):
    """Whoever holds the ball has reached the goal: the ball is put before the agent."""
    env, params = envs.make(XLAND, benchmark=benchmark)
    _, state = env.reset(key, params)
    grid = jnp.where(state.grid[..., :1] == 3, jnp.array([1, 7], jnp.uint8), state.grid)
    grid = grid.at[3, 4].set(state.goal_encoding[1:3])
    agent = state.agent.replace(position=jnp.array([4, 4]), direction=jnp.int32(0))
    _, _, reward, terminated, truncated, _ = env.step(key, state.replace(grid=grid, agent=agent), jnp.int32(3), params)
    assert (bool(terminated), bool(truncated)) == (True, False)
    assert float(reward) == pytest.approx(1 - 0.9 / 243)


def test_wrong_benchmarks_are_refused(package, tmp_path, benchmark, monkeypatch):
    (tmp_path / "text").write_text("no benchmark")
    (tmp_path / "keys").write_bytes(bz2.compress(pickle.dumps({"goals": np.zeros((2, 5))})))
    whole = pickle.loads(bz2.decompress(Path(benchmark).read_bytes()))
    (tmp_path / "one").write_bytes(bz2.compress(pickle.dumps({name: x[-2:] for name, x in whole.items()})))
    (tmp_path / "cut").write_bytes(Path(benchmark).read_bytes()[:-20])
    for name, message in (
        ("text", "text' cannot be read: Invalid data stream"),
        ("keys", "keys' is no whole benchmark of xminigrid: KeyError: 'rules'"),
        ("one", "one' has one ruleset, which cannot be split"),
        ("cut", "cut' is no whole benchmark of xminigrid: EOFError"),
        ("none", r"none' is no file and no benchmark of xminigrid, which are trivial-21k, "),
    ):
        with pytest.raises(ValueError, match=f"env_options.benchmark: .*{message}"):
            envs.make(XLAND, benchmark=str(tmp_path / name))
    with pytest.raises(ValueError, match=r"env_options.split: 'test' is of a benchmark's rulesets; set benchmark too"):
        envs.make(XLAND, split="test")

    def no_network(name):
        raise OSError("no network")

    monkeypatch.setattr(package.benchmarks, "load_benchmark", no_network)
    with pytest.raises(EnvironmentFailure, match=r"benchmark trivial-21k .* failed: no network. Check the network"):
        envs.make(XLAND, benchmark="trivial-21k")


# Trials


def play(env, key, steps, action=None):
    """States and flags of `steps` steps, of random actions unless one is given."""
    params = env.default_params

    def body(carry, now):
        _, state = carry
        chosen = jax.random.randint(now, (), 0, 6) if action is None else jnp.int32(action)
        obs, after, _, terminated, _, _ = env.step(now, state, chosen, params)
        return (obs, after), (state, obs, terminated)

    return jax.jit(lambda k: jax.lax.scan(body, env.reset(k, params), jax.random.split(k, steps))[1])(key)


def test_a_trial_of_xland_keeps_the_ruleset_and_lays_it_out_anew(benchmark, key):
    inner = {"benchmark": benchmark, "max_steps": 4}
    env, params = envs.make("meta/Trials", env=XLAND, inner_options=inner, episodes=3)
    assert env.max_episode_steps(params) == 12
    state, obs, terminated = play(env, key, 60, action=LEFT)
    np.testing.assert_array_equal(np.flatnonzero(terminated) + 1, np.arange(12, 61, 12))
    np.testing.assert_array_equal(np.asarray(obs["episode_start"])[:, 0], [0, 0, 0, 1] * 2 * 5 + [0, 0, 0, 1] * 5)
    trials = np.asarray(state.inner.goal_encoding)[:, 2].reshape(5, 12)
    assert (trials == trials[:, :1]).all(), "one ruleset a trial"
    assert len(set(trials[:, 0].tolist())) > 1, "another one in the next"
    places = np.asarray(state.inner.agent.position).reshape(5, 3, 4, 2)
    assert (places == places[:, :, :1]).all()
    assert (places[:, 1:, 0] != places[:, :-1, 0]).any(axis=-1).mean() > 0.8, "each episode begins elsewhere"
    # The ruleset that is played is that of the task.
    np.testing.assert_array_equal(np.asarray(state.inner.goal_encoding), env.tasks.env.rulesets.goal[state.task])


def test_an_episode_of_a_trial_of_xland_ends_with_success(benchmark, key):
    env, _ = envs.make("meta/Trials", env=XLAND, inner_options={"benchmark": benchmark}, episodes=2)
    state, _, _ = play(env, key, 600)
    time = np.asarray(state.time)
    assert ((np.diff(time) == 1) | (time[1:] == 0)).all()
    lengths = np.diff(np.flatnonzero(time == 0))
    assert lengths.min() < 243


def test_trials_of_the_splits_have_disjoint_rulesets(benchmark):
    drawn = []
    for split in ("train", "test"):
        options = {"env": XLAND, "inner_options": {"benchmark": benchmark, "test_fraction": 0.34}, "split": split}
        env, params = envs.make("meta/Trials", **options)
        _, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(jax.random.key(1), 300), params)
        drawn.append(set(np.asarray(state.inner.goal_encoding)[:, 2].tolist()))
    assert not drawn[0] & drawn[1]
    assert (len(drawn[0]), len(drawn[1])) == (6, 3)


def test_a_trial_of_minigrid_keeps_the_maze(package, key):
    env, _ = envs.make("meta/Trials", env=MEMORY, inner_options={"max_steps": 5}, episodes=3)
    state, _, terminated = play(env, key, 15, action=LEFT)
    np.testing.assert_array_equal(np.flatnonzero(terminated), [14])
    grids, places = np.asarray(state.inner.grid), np.asarray(state.inner.agent.position)
    assert (grids == grids[:1]).all()
    assert (places == places[:1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_options": {"max_step": 3}}, "MemoryS8 has no option 'max_step'; its options are max_steps"),
        ({"inner_options": 3}, "inner_options must give options of env by name, as {max_steps: 50}, got 3"),
        ({"inner_options": {"benchmark": "x", "split": "test"}}, "split of the benchmark is that of the trials"),
        (
            {"inner_options": {"benchmark": "x"}, "vary": {"width": [1, 2]}},
            "vary: a benchmark's rulesets are the tasks",
        ),
        ({"vary": {"width": [7, 9]}}, "vary: the parameters of xminigrid/MiniGrid-MemoryS8 are sizes"),
        (
            {"novelty_bonus": 1.0},
            r"novelty_bonus=1.0 needs at most 1,048,576 .*\(13, 12\) x 9\) has 5.5e\+19; set it to 0",
        ),
    ],
)
def test_wrong_trials_are_refused(package, options, message):
    with pytest.raises(ValueError, match=message):
        envs.make("meta/Trials", **({"env": MEMORY} | options))


def test_agents_train_on_trials(benchmark, tmp_path):
    sizes = {"num_envs": 2, "rollout_length": 16, "update_epochs": 1, "num_minibatches": 1}
    fields = {
        "env": "meta/Trials",
        "env_options": {"env": XLAND, "inner_options": {"benchmark": benchmark, "max_steps": 4}, "episodes": 2},
        "total_steps": 64,
        "network": {"memory": "min_gru", "width": 8},
        "ppo": sizes,
        "eval_episodes": 2,
    }
    run = train(make_config(fields), out=tmp_path / "run")
    assert run.config().env_options["inner_options"] == {"benchmark": benchmark, "max_steps": 4}
    assert 0 <= json.loads(run.summary_path.read_text())["evaluation"]["return"]["mean"]["value"] <= 2
