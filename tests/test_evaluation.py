"""Evaluation plays by the rules of training: scripted policies get the returns that they are known to get."""

from functools import partial
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _fresh_runs import fresh_run
from _probes import Probe

from memax_rl import envs
from memax_rl.agents.ppo import PPO, PPOConfig
from memax_rl.envs.baselines import scores
from memax_rl.evaluation import evaluate, evaluate_state, make_player, play, print_table, summarize
from memax_rl.networks import NetworkConfig, make_actor_critic
from memax_rl.runs import TrainConfig


class Paid(Probe):
    """Pays the number of the action."""

    def step(self, key, state, action, params=None):
        observation, after, reward, *rest = Probe.step(self, key, state, action, params)
        return observation, after, reward * action, *rest


def _always(network, action):
    """Return the network with a policy head that takes one action always."""
    head = network.policy_head
    changed = (jnp.zeros_like(head.weight), 100.0 * jax.nn.one_hot(action, 3))
    return eqx.tree_at(lambda n: (n.policy_head.weight, n.policy_head.bias), network, changed)


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_a_known_policy_gets_its_return_while_training_and_in_evaluation(ending):
    """Two seeds that take different actions are not averaged."""
    config = TrainConfig(num_seeds=2, network=NetworkConfig(memory="min_gru", width=8))

    def network(observation_space, action_space, key):
        return make_actor_critic(config.network, observation_space, action_space, key=key)

    agent = PPO(
        Paid(longest=3, ending=ending), None, network, PPOConfig(num_envs=8, rollout_length=16, num_minibatches=1), 1000
    )
    state = agent.init(jax.random.key(0))
    networks = [_always(state.network, action) for action in (1, 2)]
    training = eqx.tree_at(lambda s: s.network, state, networks[1])
    *_, metrics = eqx.filter_jit(agent.collect)(training, jax.random.key(1))
    assert float(metrics["episode/return"]) == 6
    assert float(metrics["episode/length"]) == 3
    arrays, static = eqx.partition(networks, eqx.is_array)
    stacked = eqx.combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays), static[0])
    result = evaluate_state(agent, stacked, config, range(config.num_seeds), episodes=16)
    assert result["mean_return_per_seed"] == [3, 6]
    assert result["mean_length"] == 3
    assert result["unfinished_episodes"] == 0
    assert result["return"]["mean"]["value"] == 4.5
    assert (result["return"]["over"], result["return_over_episodes"]["over"]) == ("runs", "episodes")


def test_a_scripted_policy_solves_repeat_previous():
    """A memory of the last cards, kept through the episode and emptied at its start."""
    env, params = envs.make("popgym/RepeatPreviousEasy")
    policy = scores.best_policy("popgym/RepeatPreviousEasy")

    def act(memory, inputs, key):
        initial = policy.initial_carry()
        memory = jax.tree.map(lambda fresh, old: jnp.where(inputs.start, fresh, old), initial, memory)
        memory, action = policy.act(memory, inputs, key)
        return memory, action, jnp.zeros(())

    run = partial(play, env, params, act, policy.initial_carry(), episodes=8, max_steps=60)
    returns, lengths, ended = jax.jit(run)(jax.random.key(0))
    np.testing.assert_allclose(returns, 1, atol=1e-5)
    assert np.all(lengths == 51)
    assert np.all(ended)


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_each_environment_counts_for_one_whole_episode(ending):
    """Later episodes of an environment that ended early are not counted, and short ones not more often."""

    def act(memory, inputs, key):
        # Memory: how many episodes were begun. Only the first is played for reward.
        begun = memory + inputs.start
        return begun, (begun == 1).astype(jnp.int32), jnp.zeros(())

    env = Paid(longest=5, ending=ending, random=True)
    run = partial(play, env, None, act, jnp.zeros((), jnp.int32), episodes=512, max_steps=20)
    returns, lengths, ended = jax.jit(run)(jax.random.key(0))
    assert np.all(ended)
    np.testing.assert_array_equal(returns, lengths)
    counts = np.bincount(lengths)
    assert len(counts) == 6
    # 102.4 of each length are expected, with a standard deviation of 9.
    assert counts[1:].min() > 65
    assert counts[1:].max() < 140


@pytest.mark.parametrize(
    ("wrapper", "known"), [({"name": "joint_action"}, True), ({"name": "time_limit", "steps": 9}, False)]
)
def test_known_scores_are_told_where_the_wrappers_leave_the_task_as_it_is(wrapper, known, tmp_path):
    small = {"network": {"memory": "mlp", "width": 4}, "ppo": {"num_envs": 2, "num_minibatches": 1}}
    run = fresh_run(tmp_path / "run", env="popgym/MineSweeperEasy", env_wrappers=[wrapper], **small)
    result = evaluate(run.folder, episodes=2)
    scores_of_it = scores.find_scores("popgym/MineSweeperEasy")
    assert (result["chance"], result["best"]) == (scores_of_it if known else (None, None))


def test_episodes_that_do_not_end_count_as_far_as_they_went():
    def act(memory, inputs, key):
        return memory, jnp.ones((), jnp.int32), jnp.zeros(())

    run = partial(play, Paid(longest=5, random=True), None, act, (), episodes=64, max_steps=3)
    returns, lengths, ended = jax.jit(run)(jax.random.key(0))
    assert 0 < np.sum(ended) < 64
    assert np.all(lengths[~ended] == 3)
    assert lengths[ended].max() == 3
    np.testing.assert_array_equal(returns, lengths)


class _Endless(Probe):
    def max_episode_steps(self, params=None):
        return None


class _Memoryless(eqx.Module):
    unused: jax.Array

    def initial_state(self):
        return ()


def test_an_episode_is_played_for_ten_thousand_steps_where_no_longest_is_stated(key):
    agent = SimpleNamespace(act=lambda network, greedy: lambda memory, *_: (memory, jnp.int32(0), jnp.zeros(())))
    player = make_player(agent, _Endless(longest=20_000), None, 1, False)
    _, lengths, ended = player(_Memoryless(jnp.zeros(1)), key[None])
    assert (int(lengths[0, 0]), bool(ended[0, 0])) == (10_000, False)


@pytest.mark.parametrize(("seeds", "over"), [(1, "episodes"), (2, "runs")])
def test_the_table_says_what_its_numbers_are_over(seeds, over, capsys):
    returns = np.arange(8.0).reshape(seeds, -1)
    print_table(
        {"env": "a/b", "memory": "gru", "policy": "sampled", "episodes_per_seed": 8 // seeds, "chance": None}
        | {"seeds": list(range(seeds)), "mean_return_per_seed": list(returns.mean(axis=1)), "unfinished_episodes": 0}
        | {"return": summarize(returns), "return_over_episodes": summarize(returns, over="episodes")}
        | {"diverged_seeds": [5, 7][: seeds - 1], "unusable_episodes": seeds - 1}
    )
    shown = capsys.readouterr().out
    for left_out in ("diverged in training: seed 5", "1 have a return that is not finite"):
        assert (left_out in " ".join(shown.split())) == (seeds > 1)
    assert f"interquartile mean over {over}" in shown
    assert ("over runs" in shown) == (seeds > 1)
    assert "interquartile mean over episodes" in shown
