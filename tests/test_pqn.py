"""PQN on small environments with known answers, and each mistake of recurrent Q-learning that it must not make."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _probes import Probe, ProbeState, Recall, run_updates

from memax_rl.agents.pqn import PQN, PQNConfig
from memax_rl.envs import make
from memax_rl.networks import NetworkConfig, make_q_network
from memax_rl.networks.encoder import AgentInput
from memax_rl.rollout.collect import inputs_of

MODES = ["whole_episodes", "truncated_bptt"]


def _agent(env, name="gru", width=16, total_steps=10_000, env_params=None, past=True, **settings) -> PQN:
    """Return an agent; without `past` its network is shown the observation alone."""
    settings = {"num_envs": 4, "num_minibatches": 2, "rollout_length": 16, "lr_schedule": "constant"} | settings

    def network(observation_space, action_space, key):
        sizes = NetworkConfig(memory=name, width=width, previous_action=past, previous_reward=past, start=past)
        return make_q_network(sizes, observation_space, action_space, dueling=True, key=key)

    return PQN(env, env_params, network, PQNConfig(**settings), total_steps)


def _rows(agent, state, key, updates=2):
    """Return the network, its values far apart, and the rows that the last of some updates learns from."""
    seen = []
    learn = PQN._learn

    def keep(self, network, optimizer, rows, *rest):
        seen.append(rows)
        return learn(self, network, optimizer, rows, *rest)

    spied = eqx.tree_at(lambda s: s.network.head.weight, state, 100 * state.network.head.weight)
    for _ in range(updates):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PQN, "_learn", keep)
            state, _ = agent.update(spied)
        spied = eqx.tree_at(lambda s: s.network, state, spied.network)
    return spied.network, seen[-1]


def _stepped(network, rows) -> np.ndarray:
    """Return the best action's value [rows, slots + 1] by acting slot by slot, and once more on what comes after."""
    step = eqx.filter_jit(lambda carry, inputs: jax.vmap(network.step)(carry, inputs))
    carry, found = rows.carry, []
    inputs = inputs_of(rows)
    for t in range(inputs.start.shape[1]):
        carry, q = step(carry, jax.tree.map(lambda leaf, t=t: leaf[:, t], inputs))
        found.append(jax.vmap(lambda q: q.max())(q))
    found.append(jax.vmap(lambda q: q.max())(step(carry, rows.after)[1]))
    return np.stack(found, axis=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ending", ["truncated", "terminated"])
def test_targets_agree_with_a_loop_over_episodes(mode, ending, key):
    """G = r + gamma ((1 - lambda) V' + lambda G'), V' of the episode's own next observation, by acting through it."""
    agent = _agent(Probe(random=True, ending=ending), rollout=mode, gamma=0.9, q_lambda=0.7)
    network, rows = _rows(agent, agent.init(key), key)
    carry, q = network.scan(rows.carry, inputs_of(rows))
    targets = np.asarray(agent.targets(network, rows, carry, q))
    value, tape = _stepped(network, rows), jax.tree.map(np.asarray, rows.tape)
    assert np.ptp(value) > 0.5
    checked = 0
    for row in range(4):
        following = None
        for t in reversed(range(16)):
            if not tape.valid[row, t]:
                following = None
                continue
            if tape.terminated[row, t]:
                want = tape.reward[row, t]
            elif tape.truncated[row, t] or following is None:
                want = tape.reward[row, t] + 0.9 * value[row, t + 1]
                checked += 1
            else:
                want = tape.reward[row, t] + 0.9 * (0.3 * value[row, t + 1] + 0.7 * following)
                checked += 1
            assert targets[row, t] == pytest.approx(want, abs=1e-4)
            following = want
    assert checked > 20


def test_slots_that_do_not_count_do_not_matter(key):
    """Scramble action and reward where the loss does not look; loss and gradient stay to the bit."""
    agent = _agent(Probe(random=True))
    network, rows = _rows(agent, agent.init(key), key)
    valid = rows.tape.valid
    assert not bool(jnp.all(valid))
    noise = 1e6 + jnp.arange(valid.size, dtype=jnp.float32).reshape(valid.shape)
    # A slot that does not count is shown in the one after it, if that is no start: after a final observation it is, and
    # what follows the last whole episode does not count either.
    other = eqx.tree_at(
        lambda r: (r.tape.reward, r.tape.action),
        rows,
        (jnp.where(valid, rows.tape.reward, noise), jnp.where(valid, rows.tape.action, 2 - rows.tape.action)),
    )
    params, static = eqx.partition(network, eqx.is_inexact_array)
    loss = jax.jit(jax.value_and_grad(lambda p, r: agent._loss(p, static, r, jnp.sum(1.0 * valid)), has_aux=True))
    for a, b in zip(jax.tree.leaves(loss(params, rows)), jax.tree.leaves(loss(params, other)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(loss(params, rows)[0][0]) > 0.01


def test_the_gradient_is_that_of_fixed_targets(key):
    agent = _agent(Probe(random=True))
    network, rows = _rows(agent, agent.init(key), key)
    carry, q = network.scan(rows.carry, inputs_of(rows))
    fixed, valid = agent.targets(network, rows, carry, q), rows.tape.valid
    params, static = eqx.partition(network, eqx.is_inexact_array)

    def loss(params):
        _, q = eqx.combine(params, static).scan(rows.carry, inputs_of(rows))
        value = jax.vmap(jax.vmap(lambda q, action: q.of(action)))(q, rows.tape.action)
        return jnp.sum(jnp.where(valid, 0.5 * (value - fixed) ** 2, 0)) / jnp.sum(valid)

    got = jax.jit(jax.grad(lambda p: agent._loss(p, static, rows, jnp.sum(1.0 * valid))[0]))(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(jax.jit(jax.grad(loss))(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_each_row_is_learned_from_once_in_an_epoch(key):
    """With hardly a step between minibatches, the mean of their losses is that of the whole tape."""
    sizes: Any = {"update_epochs": 1, "num_minibatches": 4}
    agent = _agent(Probe(ending="terminated", random=True), rollout="truncated_bptt", learning_rate=1e-12, **sizes)
    state = agent.init(key)
    network, rows = _rows(agent, state, key, updates=1)
    params, static = eqx.partition(network, eqx.is_inexact_array)
    whole, _ = agent._loss(params, static, rows, jnp.sum(1.0 * rows.tape.valid))
    _, _, metrics = agent._learn(network, state.optimizer, rows, 1e-12, key)
    np.testing.assert_allclose(metrics["loss"], whole, rtol=1e-5)
    one_row, _ = agent._loss(params, static, jax.tree.map(lambda leaf: leaf[:1], rows), jnp.array(16.0))
    assert abs(float(one_row / whole) - 1) > 1e-3


class Fork(Probe):
    """Episodes of one step that terminate, and of one that truncates, each with an observation of its own."""

    def __init__(self):
        super().__init__(longest=1)

    def reset(self, key, params=None):
        cut = jax.random.bernoulli(key)
        state = ProbeState(jnp.array(0), jnp.where(cut, 3, 1))
        return jnp.where(cut, 1.0, 0.0)[None], state

    def step(self, key, state, action, params=None):
        cut = state.length == 3
        obs, first = self.reset(key)
        return obs, first, jnp.ones(()), ~cut, cut, {"final_observation": jnp.where(cut, 1.0, 0.0)[None]}


@pytest.mark.parametrize("mode", MODES)
def test_value_at_an_end(mode, key):
    """Reward 1 a step, discount 0.8: Q -> 1 where the step terminates, 1 / (1 - 0.8) where it is cut.

    The step size is 0 in the end, so that values have settled: the 150 updates take 6,240 steps or more.
    """
    agent = _agent(
        Fork(), "mlp", rollout=mode, gamma=0.8, learning_rate=1e-2, past=False, lr_schedule="linear", total_steps=6_200
    )
    state, _ = run_updates(agent, agent.init(key), 150)
    inputs = AgentInput(jnp.array([[0.0], [1.0]]), jnp.zeros(2, jnp.int32), jnp.zeros(2), jnp.ones(2, bool))
    _, q = jax.vmap(state.network.step, in_axes=(None, 0))(state.network.initial_state(), inputs)
    np.testing.assert_allclose(jax.vmap(lambda q: q.max())(q), [1, 5], atol=0.02)


def test_epsilon_falls_and_is_what_is_acted_with(key):
    agent = _agent(Probe(), epsilon_start=1.0, epsilon_end=0.0, epsilon_decay_steps=100, learning_rate=1e-12)
    state = eqx.tree_at(lambda s: s.network.head.bias, agent.init(key), jnp.array([0.0, 5.0, 0.0]))
    update, epsilons, shares = eqx.filter_jit(agent.update), [], []
    for _ in range(5):
        before = state
        state, metrics = update(state)
        epsilons.append(float(metrics["epsilon"]))
        action = before.pending.tape.action if len(epsilons) == 1 else state.pending.tape.action
        length = state.pending.length
        shares.append(np.asarray(action)[np.arange(16) < np.asarray(length)[:, None]])
    np.testing.assert_allclose(epsilons[0], 1)
    assert (np.diff(epsilons) <= 0).all()
    assert epsilons[-1] == 0
    assert (shares[-1] == 1).all()
    assert agent.act(state.network, greedy=True) is not None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [("gru", "whole_episodes"), ("lru", "truncated_bptt")])
def test_learns_to_remember(name, mode, key):
    """A cue is shown once; the reward is for naming it three steps later. No memory can do no better than chance."""
    sizes: Any = {"num_envs": 32, "num_minibatches": 4, "rollout_length": 16}
    agent = _agent(Recall(), name, 32, 60_000, rollout=mode, gamma=0.9, learning_rate=3e-3, **sizes)
    _, metrics = run_updates(agent, agent.init(key), 100)
    assert float(jnp.nanmean(metrics["episode/return"][-10:])) > 0.9


def test_mistakes_in_the_settings_are_explained():
    env, params = make("popgym/PositionOnlyPendulumEasy")
    with pytest.raises(ValueError, match=r"pqn cannot act in the action space .*; expected Discrete or MultiDiscrete"):
        _agent(env, env_params=params)
    with pytest.raises(
        ValueError, match=r"rollout_length=4 is shorter than the longest episode, 5 slots; set pqn.rollout_length to 6"
    ):
        _agent(Probe(), rollout_length=4)
    with pytest.raises(ValueError, match=r"num_minibatches=3 must divide num_envs=4, .* set pqn.num_minibatches"):
        _agent(Probe(), num_minibatches=3)
