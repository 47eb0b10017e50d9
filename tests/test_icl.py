"""The in-context evaluation and the look inside: statistics, controls, files, and mistakes that are explained."""

import csv
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import envs
from memax_rl.cli import main
from memax_rl.envs import spaces
from memax_rl.envs.meta.trials import TaskEnvironment, Trials
from memax_rl.envs.registry import _OWN
from memax_rl.evaluation import in_context
from memax_rl.evaluation import sensitivity as inspection
from memax_rl.evaluation.in_context import (
    evaluate_in_context,
    play_trials,
    print_icl_table,
    same_tasks,
    summarize_trials,
    trained_episodes,
)
from memax_rl.evaluation.sensitivity import action_change_by_lag, collect, gradients_by_lag, total_variation
from memax_rl.networks import ActionDistribution, NetworkConfig, make_actor_critic
from memax_rl.runs import Run, make_config
from memax_rl.training import train

SMALL = {
    "env": "meta/BernoulliBandit",
    "env_options": {"arms": 3, "episode_length": 2, "episodes": 3},
    "total_steps": 48,
    "network": {"memory": "min_gru", "width": 8},
    "ppo": {"num_envs": 4, "rollout_length": 6, "update_epochs": 1, "num_minibatches": 2},
    "eval_episodes": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run on trials, of two seeds."""
    return train(make_config(SMALL | {"num_seeds": 2}), out=tmp_path_factory.mktemp("runs") / "trials")


@pytest.mark.slow
def test_icl_measures_everything_and_writes_it(run, tmp_path, capsys):
    assert main(["icl", str(run.folder), "--tasks", "8", "--out", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "icl.json").read_text())
    assert (tmp_path / "icl.png").read_bytes().startswith(b"\x89PNG")
    assert (result["episodes"], result["trained_episodes"], result["seeds"]) == (3, 3, [0, 1])
    for split in ("train", "test"):
        for who in ("agent", "wiped"):
            summary = result[split][who]
            assert len(summary["return_by_episode"]) == 3
            assert summary["area"]["value"] == pytest.approx(sum(e["value"] for e in summary["return_by_episode"]))
            assert summary["regret"] is not None
    assert [len(result["longer"][n]["return_by_episode"]) for n in ("2", "4")] == [6, 12]
    assert set(result["strategies"]) == {"random", "greedy", "UCB1", "Thompson sampling", "Gittins index"}
    assert result["strategies"]["Gittins index"]["area"]["value"] > 0
    assert result["distinct_tasks"] == {"train": 8, "test": 8}
    print_icl_table(result)
    assert "8 tasks, 2 seeds" in capsys.readouterr().out
    print_icl_table(result | {"distinct_tasks": {"train": 8, "test": 3}})
    assert "8 trials of 3 held-out and 8 training tasks, 2 seeds" in " ".join(capsys.readouterr().out.split())
    print_icl_table(result | {"distinct_tasks": {"train": 4, "test": 8}})
    assert "8 trials of 8 held-out and 4 training tasks" in " ".join(capsys.readouterr().out.split())
    print_icl_table(result)
    assert "held-out, memory wiped" in capsys.readouterr().out


@pytest.mark.slow
def test_unrewarded_trials_are_not_measured(tmp_path):
    options = {"payouts": [1.0, 1.0, 1.0], "novelty_bonus": 0.5, "unrewarded_fraction": 0.5}
    fields = SMALL | {"env_options": SMALL["env_options"] | options}
    result = evaluate_in_context(train(make_config(fields), out=tmp_path / "run").folder, tasks=8, longer=())
    assert result["train"]["agent"]["area"]["value"] == 6


def test_a_wiped_memory_forgets_and_a_kept_one_remembers(key):
    """An agent that repeats its first action of a trial for ever, on a bandit whose arms pay 1 and 0."""
    env, _ = envs.make("meta/BernoulliBandit", arms=2, payouts=[0.0, 1.0], episode_length=1, episodes=4)

    def act(memory, inputs, k):
        # A pull that paid is repeated, one that did not is left; what is remembered is the arm to pull.
        paid = inputs.previous_reward > 0
        better = jnp.where(paid, inputs.previous_action, 1 - inputs.previous_action)
        action = jnp.where(inputs.start, 0, better).astype(jnp.int32)
        return memory, action, jnp.zeros(())

    def play(wiped):
        return play_trials(env, act, lambda task: None, key, tasks=50, episodes=4, most_episodes=4, wiped=wiped).mean(
            axis=0
        )

    kept, wiped = (np.asarray(eqx.filter_jit(play)(jnp.asarray(w))) for w in (False, True))
    assert 0.2 < kept[0] < 0.8
    np.testing.assert_array_equal(kept[1:], 1)
    np.testing.assert_array_equal(wiped, np.repeat(kept[0], 4))


def test_summary_of_trials_by_hand():
    returns = np.array([[[0.0, 1.0, 2.0], [2.0, 2.0, 2.0]]])
    summary = summarize_trials(returns, np.array([2.0, 2.0]))
    assert [e["value"] for e in summary["return_by_episode"]] == [1, 1.5, 2]
    assert summary["gain"]["value"] == 1
    assert (summary["gain"]["low"], summary["gain"]["high"]) == (0, 2)
    assert summary["area"]["value"] == 4.5
    assert summary["regret"]["value"] == 12 / 2 - 4.5
    assert summarize_trials(returns, None)["regret"] is None


def test_intervals_cover_the_mean_as_often_as_they_say():
    """200 samples of 40 tasks: 95 % coverage has a deviation of 1.5 %; the bootstrap of 40 is a little too narrow."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        entry = summarize_trials(rng.normal(1, 2, (1, 40, 2)), None, resamples=300)["return_by_episode"][0]
        covered += entry["low"] <= 1 <= entry["high"]
    assert 0.88 < covered / 200 < 0.99


def test_seeds_that_play_the_same_tasks_make_no_interval_narrower():
    """Eight seeds that get the same returns know of 40 tasks, not of 320."""
    one = np.random.default_rng(0).normal(1, 2, (1, 40, 2))
    alone, together = (summarize_trials(x, None)["area"] for x in (one, np.repeat(one, 8, axis=0)))
    widths = [entry["high"] - entry["low"] for entry in (alone, together)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_trials_of_the_same_task_make_no_interval_narrower():
    """Eight trials each of 40 tasks, whose returns hang on the task alone, know of 40 tasks, not of 320."""
    one = np.random.default_rng(0).normal(1, 2, (1, 40, 2))
    alone = summarize_trials(one, None)["area"]
    together = summarize_trials(np.repeat(one, 8, axis=1), None, same=np.repeat(np.arange(40), 8))["area"]
    assert (together["low"], together["high"]) == pytest.approx((alone["low"], alone["high"]))
    # Of one task its trials are all that is known.
    single = summarize_trials(one, None, same=np.zeros(40, int))["area"]
    assert (single["low"], single["high"]) == (alone["low"], alone["high"])


def test_trials_of_the_same_task_are_found():
    env, _ = envs.make("meta/DarkRoom", size=3, split="test")
    key = jax.random.key(0)
    same = same_tasks(env, key, 32)
    goals = np.asarray(jax.vmap(lambda k: env.reset(k)[1].task)(jax.random.split(jax.random.split(key)[0], 32)))
    goals = goals.reshape(32, -1)
    assert set(same) == {0, 1}
    for i in range(32):
        np.testing.assert_array_equal(same == same[i], (goals == goals[i]).all(axis=1))
    assert same_tasks(envs.make("meta/BernoulliBandit")[0], key, 32).max() == 31


def test_a_family_of_one_task_may_need_no_arrays_for_it(key):
    class OneTask(Trials):
        @property
        def default_params(self):
            return None

        def __init__(self):
            pass

        def reset(self, key, params=None):
            return None, SimpleNamespace(task=())

    np.testing.assert_array_equal(same_tasks(OneTask(), key, 3), [0, 0, 0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("popgym/RepeatFirstEasy", {}, "trained on popgym/RepeatFirstEasy, which has no hidden tasks"),
        ("meta/EndlessTMaze", {}, "trained on meta/EndlessTMaze, which has no hidden tasks to adapt to; train on"),
        ("meta/DarkRoom", {"episodes": 1}, "trials of one episode of meta/DarkRoom, .* --env-options.episodes 2"),
    ],
)
def test_a_run_without_trials_is_told_what_to_do(name, options, message):
    with pytest.raises(ValueError, match=message):
        trained_episodes(envs.make(name, **options)[0], name)


# Here the tests check the types of all arguments; a program does not.
GREEDY = """
import sys
from memax_rl.evaluation import collect, evaluate, load
from memax_rl.evaluation.export import export
from memax_rl.evaluation.in_context import evaluate_in_context
from memax_rl.evaluation.playback import play_episodes

run, out = sys.argv[1:]
collects = lambda run, **greedy: collect(run, out=out + "/episodes.npz", episodes=1, **greedy)
exports = lambda run, **greedy: export(run, out + "/policy", **greedy)
for play in (evaluate, evaluate_in_context, load, play_episodes, collects, exports):
    try:
        play(run, greedy="yes")
    except ValueError as error:
        assert str(error) == "greedy must be True, False or None, got 'yes'", error
    else:
        raise AssertionError(play)
"""


@pytest.mark.slow
def test_greedy_is_a_bool(run, tmp_path):
    subprocess.run([sys.executable, "-c", GREEDY, str(run.folder), str(tmp_path)], check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["icl", "--tasks", "1"], "tasks must be at least 2, got 1"),
        (["icl", "--episodes", "1"], "episodes must be at least 2"),
        (["inspect", "--rows", "1"], "rows must be at least 2"),
        (["inspect", "--steps", "1"], "steps must be at least 2"),
    ],
)
def test_wrong_arguments_are_one_message(run, arguments, message, capsys):
    command, *rest = arguments
    assert main([command, str(run.folder), *rest]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_icl_measures_every_finished_run_of_a_study(run, tmp_path, capsys, monkeypatch):
    traced = []
    monkeypatch.setattr(in_context, "play_trials", lambda *args, **kw: traced.append(1) or play_trials(*args, **kw))
    study = tmp_path / "study"
    for name in ("lru/seed0", "lru/seed1", "gru/seed0", "gru/seed1"):
        shutil.copytree(run.folder, study / name)
    (study / "gru/seed0/icl.json").write_text("{}")
    (study / "gru/seed1/summary.json").unlink()
    diverged = Run.create(study / "lru/seed2", make_config(SMALL | {"num_seeds": 2}))
    diverged.write_summary({})
    diverged.append_metrics([{"update": 1, "seed": seed, "env_steps": 24, "finite": 0} for seed in (0, 1)])
    assert main(["icl", str(study), "--tasks", "5", "--missing"]) == 0
    said = capsys.readouterr()
    assert said.err == "2 of 5 runs have not finished or diverged, and are left out\n"
    first, second = said.out.splitlines()
    line = r"first block \S+ ± \S+, last \S+ ± \S+, last with the memory wiped \S+ ± \S+, whole trial \S+ ± \S+"
    assert re.fullmatch(r"1/2 lru/seed0: " + line, first)
    assert second == first.replace("1/2 lru/seed0", "2/2 lru/seed1")
    # Training tasks, held-out tasks and five strategies are compiled once, not for each run.
    assert len(traced) == 7
    assert json.loads((study / "lru/seed0/icl.json").read_text())["tasks"] == 5
    assert (study / "gru/seed0/icl.json").read_text() == "{}"
    assert not (study / "gru/seed1/icl.json").exists()
    assert main(["icl", str(study), "--missing"]) == 0
    assert "nothing to measure" in capsys.readouterr().err


def test_icl_of_a_study_with_a_run_without_trials_measures_none(run, tmp_path, capsys):
    study = tmp_path / "study"
    shutil.copytree(run.folder, study / "a")
    Run.create(study / "b", make_config({})).write_summary({})
    assert main(["icl", str(study)]) == 2
    said = capsys.readouterr().err
    assert f"{study / 'b'}: the run was trained on popgym/RepeatPreviousEasy, which has no hidden tasks" in said
    assert main(["icl", str(study), "--out", str(tmp_path / "out")]) == 2
    assert "--out takes the files of one run folder" in capsys.readouterr().err
    assert main(["icl", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
    assert not list(tmp_path.rglob("icl.*"))


@pytest.mark.slow
def test_icl_measures_an_agent_of_dqn_and_inspect_does_not(tmp_path, capsys):
    dqn = {
        "num_envs": 2,
        "batch_size": 2,
        "tape_length": 8,
        "samples_per_insert": 1.0,
        "buffer_size": 64,
        "learning_starts": 8,
    }
    small = {name: value for name, value in SMALL.items() if name != "ppo"}
    run = train(make_config(small | {"agent": "dqn", "dqn": dqn | {"save_replay": False}}), out=tmp_path / "run")
    assert main(["icl", str(run.folder), "--tasks", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["policy"] == "greedy"
    assert len(result["test"]["agent"]["return_by_episode"]) == 3
    assert main(["inspect", str(run.folder)]) == 2
    assert "which agents of ppo have; this run's agent is 'dqn'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (SMALL | {"env_wrappers": [{"name": "sticky_actions"}]}, "env_wrappers sticky_actions, and trials are played"),
        ({"env": "gym/CartPole-v1"}, "trained on gym/CartPole-v1, which has no hidden tasks"),
    ],
)
def test_icl_refuses_a_run_that_it_cannot_measure(fields, message, tmp_path):
    run = Run.create(tmp_path / "run", make_config(fields))
    with pytest.raises(ValueError, match=message):
        evaluate_in_context(run.folder)


def test_trials_cut_by_steps_count_as_the_episodes_they_hold():
    assert trained_episodes(envs.make("meta/ProjectedCartPole", steps=500)[0], "meta/ProjectedCartPole") == 3


def test_inspect_writes_lags(run, tmp_path, capsys):
    assert main(["inspect", str(run.folder), "--out", str(tmp_path)]) == 0
    assert "value's gradient" in capsys.readouterr().out
    result = json.loads((tmp_path / "inspect.json").read_text())
    with (tmp_path / "inspect.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value_gradient"]) for row in rows] == [entry["value_gradient"] for entry in result["lags"]]
    # Two seeds of 16 episodes of six steps: the first step is apart, so the longest lag is 4, of 32 pairs.
    assert [(entry["lag"], entry["pairs"]) for entry in result["lags"]] == [(d, 32 * (5 - d)) for d in range(5)]
    assert [(entry["from"], entry["to"], entry["pairs"]) for entry in result["first_step"]] == [
        (d, d, 32) for d in range(6)
    ]
    for entry in (*result["lags"], *result["first_step"]):
        for name in ("value_gradient", "policy_gradient", "action_change"):
            assert entry[f"{name}_low"] <= entry[name] <= entry[f"{name}_high"]
    assert (tmp_path / "inspect.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_lags_of_few_pairs_are_left_out(run, tmp_path, capsys):
    assert main(["inspect", str(run.folder), "--rows", "8", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "inspect.json").read_text())
    assert [entry["pairs"] for entry in result["lags"]] == [80, 64, 48, 32]
    capsys.readouterr()
    assert main(["inspect", str(run.folder), "--rows", "2", "--out", str(tmp_path)]) == 2
    assert "fewer than 32 pairs of steps behind a lag of 0" in capsys.readouterr().err


def look(memory, key, *, length=5, episodes=2, rows=4, **options):
    """Sums and numbers of gradients of policy and value, and of the action's change, by row and lag."""
    env, params = envs.make("meta/BernoulliBandit", episode_length=length, episodes=episodes)
    config = NetworkConfig(memory=memory, width=8, memory_options=options)
    network = make_actor_critic(config, env.observation_space(params), env.action_space(params), key=key)
    # Away from the nearly uniform first policy.
    network = eqx.tree_at(lambda n: n.policy_head.weight, network, network.policy_head.weight * 100)

    @eqx.filter_jit
    def measure(network):
        def act(memory, inputs, k):
            memory, distribution, _ = network.step(memory, inputs)
            return memory, *distribution.sample(k)

        steps = max(20, length * episodes)
        tape = collect(env, params, act, network.initial_state(), key, rows=rows, steps=steps)
        return *gradients_by_lag(network, tape, key), *action_change_by_lag(network, tape, key)

    return [np.asarray(x) for x in measure(network)]


def test_a_memory_of_three_steps_owes_nothing_to_what_lies_before(key):
    policy, value, pairs, change, changes = look("frame_stack", key, window=3)
    for total, number in ((policy, pairs), (value, pairs), (change, changes)):
        for inputs, longest in ((0, 9), (1, 10)):
            # A lag counts within an episode: trials of ten steps know nine, and eight without their first step.
            behind = number.sum(axis=0)[inputs]
            np.testing.assert_array_equal(behind > 0, np.arange(20) < longest)
            curve = total.sum(axis=0)[inputs][:longest] / behind[:longest]
            # Every trial of a bandit begins with the same input: that of another episode changes nothing.
            same = total is change and inputs == 1
            assert (curve[:3] == 0 if same else curve[:3] > 1e-4).all()
            np.testing.assert_array_equal(curve[3:], 0)
    np.testing.assert_array_equal(pairs.sum(axis=0)[0, :10], 4 * 2 * (9 - np.arange(10)))
    np.testing.assert_array_equal(pairs.sum(axis=0)[1, :10], 4 * 2)


@pytest.mark.slow
def test_the_drawn_steps_make_the_curve_that_all_steps_make(key, monkeypatch):
    """No sawtooth: evenly spaced steps, with the large gradient of the first among them, would be off by half."""
    drawn = look("gru", key, length=45, episodes=2, rows=48)
    monkeypatch.setattr(inspection, "_MOST_PLACES", 90)
    every = look("gru", key, length=45, episodes=2, rows=48)
    pairs = drawn[2].sum(axis=0)[0]
    assert (pairs[:80] >= 32).all()
    # Beyond these the curves fall to rounding.
    lags = slice(0, 25)
    assert len({tuple(row) for row in drawn[2][:, 0].tolist()}) == 48, "each row has its own steps"
    for i in (0, 1):
        some, all_steps = (x[i].sum(axis=0)[0][lags] / x[2].sum(axis=0)[0][lags] for x in (drawn, every))
        np.testing.assert_allclose(some, all_steps, rtol=0.3)
        assert np.median(np.abs(some / all_steps - 1)) < 0.05


def test_total_variation_by_hand():
    discrete = spaces.Discrete(2)
    p = ActionDistribution(discrete, jnp.log(jnp.array([0.5, 0.5])), None)
    q = ActionDistribution(discrete, jnp.log(jnp.array([0.9, 0.1])), None)
    assert float(total_variation(p, q)) == pytest.approx(0.4, abs=1e-6)
    both = spaces.MultiDiscrete([2, 2])
    p = ActionDistribution(both, jnp.log(jnp.array([0.5, 0.5, 0.5, 0.5])), None)
    q = ActionDistribution(both, jnp.log(jnp.array([0.9, 0.1, 0.5, 0.5])), None)
    assert float(total_variation(p, q)) == pytest.approx(0.2, abs=1e-6)
    box = spaces.Box(-1.0, 1.0, (2,))
    p = ActionDistribution(box, jnp.zeros(2), jnp.log(jnp.array([2.0, 1.0])))
    q = ActionDistribution(box, jnp.array([4.0, 0.0]), jnp.log(jnp.array([2.0, 1.0])))
    # Two standard deviations apart: 2 Phi(1) - 1.
    assert float(total_variation(p, q)) == pytest.approx(0.682689, abs=1e-5)


class HiddenArm(TaskEnvironment):
    """One of two arms pays; an episode is one pull."""

    episode_length = 1
    has_boundaries = False
    observation_space = spaces.Discrete(1)
    action_space = spaces.Discrete(2)

    def draw_task(self, key):
        return jax.random.bernoulli(key).astype(jnp.int32)

    def reset_episode(self, key, task):
        zero = jnp.zeros((), jnp.int32)
        return zero, zero

    def step_episode(self, key, task, state, action):
        return state, state, (action == task).astype(jnp.float32), jnp.ones((), bool)


@pytest.mark.slow
def test_icl_measures_a_family_of_ones_own(tmp_path, capsys):
    envs.register("own/HiddenArm", lambda: Trials(HiddenArm(), episodes=3, num_tasks=5))
    try:
        run = train(make_config(SMALL | {"env": "own/HiddenArm", "env_options": {}}), out=tmp_path / "run")
        assert main(["icl", str(run.folder), "--tasks", "4", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
    finally:
        _OWN.pop("own/HiddenArm")
    assert result["episodes"] == 3
    assert list(result["strategies"]) == ["random"]
    assert len(result["test"]["agent"]["return_by_episode"]) == len(result["train"]["agent"]["return_by_episode"]) == 3


def test_trials_to_measure_are_of_the_split_and_pay_in_all_of_them():
    env = envs.make("meta/DarkRoom", novelty_bonus=0.1, unrewarded_fraction=0.5, num_tasks=3, split_seed=4)[0]
    test = env.to_measure("test", None)
    assert (test.split, test.num_tasks, test.unrewarded_fraction, test.split_seed) == ("test", None, 0.0, 4)
    assert (test.episodes, test.steps, test.novelty_bonus, test.tasks) == (env.episodes, None, 0.1, env.tasks)
