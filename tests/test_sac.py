"""SAC on small environments with known answers, and each mistake of recurrent soft actor-critic it must not make."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _probes import Probe, Recall, run_updates

from memax_rl.agents.sac import SAC, SACConfig
from memax_rl.envs import spaces
from memax_rl.networks import NetworkConfig
from memax_rl.networks.soft_actor_critic import (
    SquashedNormal,
    action_values,
    action_vector,
    make_soft_actor_critic,
    random_action,
    soft_policy,
    unroll,
)
from memax_rl.rollout import replay as replays

ROWS, SLOTS = 4, 16


class Steered(Probe):
    """The probe with an action of two real numbers."""

    def action_space(self, params):
        return spaces.Box(-2.0, 2.0, (2,))


def _agent(env, name="gru", width=16, total_steps=10_000, past=True, **settings) -> SAC:
    """Return an agent; without `past` its networks are shown the observation alone."""
    settings = {
        "num_envs": 4,
        "batch_size": ROWS,
        "tape_length": SLOTS,
        "buffer_size": 4 * 64,
        "learning_starts": 40,
        "samples_per_insert": 2.0,
    } | settings
    config = SACConfig(**settings)
    network = NetworkConfig(memory=name, width=width, previous_action=past, previous_reward=past, start=past)

    def networks(observation_space, action_space, key):
        separate = config.separate_critic
        return make_soft_actor_critic(network, observation_space, action_space, separate=separate, key=key)

    return SAC(env, None, networks, config, total_steps)


def _sampled(agent, key):
    """Return a state after some collecting, and tapes sampled from its replay."""
    state = eqx.filter_jit(agent.init)(key)
    collect = eqx.filter_jit(agent._collect)
    for i in range(4):
        streams, _, replay, _ = collect(state, jax.random.key(i))
        state = eqx.tree_at(lambda s: (s.streams, s.replay), state, (streams, replay))

    def sample(replay):
        return replays.sample(replay, key, rows=ROWS, slots=SLOTS, by="transition", alpha=1.0, beta=1.0)

    return state, jax.jit(sample)(state.replay)


def _parts(state):
    from memax_rl.agents.sac import Models

    models = Models(state.network, state.critic, state.log_temperature)
    return eqx.partition((models, state.target), eqx.is_inexact_array)


# Distributions and values


def test_density_of_squashed_actions(key):
    """The share of samples in a cell is the density at its middle times its size."""
    distribution = SquashedNormal(spaces.Box(-1.0, 1.0, (1,)), jnp.array([0.4, 0.8]))
    actions, log_prob = jax.jit(jax.vmap(distribution.sample))(jax.random.split(key, 200_000))
    actions, log_prob = np.asarray(actions)[:, 0], np.asarray(log_prob)
    assert (np.abs(actions) < 1).all()
    for low in (-0.6, 0.0, 0.3, 0.8):
        inside = (actions > low) & (actions < low + 0.1)
        assert np.exp(log_prob[inside]).mean() * 0.1 == pytest.approx(inside.mean(), rel=0.04)
    np.testing.assert_allclose(distribution.mode(), np.tanh([0.4]), rtol=1e-6)


def test_random_actions_fill_the_space(key):
    keys = jax.random.split(key, 3000)
    box = jax.vmap(lambda k: random_action(spaces.Box(-9.0, 9.0, (2,)), None, k))(keys)
    assert box.shape == (3000, 2)
    assert (float(box.min()), float(box.max())) == (pytest.approx(-1, abs=0.01), pytest.approx(1, abs=0.01))
    pairs = jax.vmap(lambda k: random_action(spaces.MultiDiscrete((2, 3)), None, k))(keys)
    assert sorted({tuple(p) for p in np.asarray(pairs).tolist()}) == [(a, b) for a in range(2) for b in range(3)]


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete((2, 3))])
def test_soft_value_of_discrete_actions_is_the_expectation(space, key):
    """Summed over all actions, with the entropy of each."""
    actor, critic = make_soft_actor_critic(
        NetworkConfig(memory="mlp", width=8), spaces.Box(0, 1, (2,)), space, separate=False, key=key
    )
    actor = eqx.tree_at(lambda a: a.head.weight, actor, 100 * actor.head.weight)
    features = jax.random.normal(key, (2, 3, 8))
    policy = soft_policy(actor, features, None, jax.random.split(key, (2, 3)))
    value = policy.soft_value(critic, features, jnp.array(0.5))
    every = [(a,) for a in range(3)] if not space.shape else [(a, b) for a in range(2) for b in range(3)]
    # The least is taken of each component's outputs; with one component that is the least of the two values.
    raw = jax.vmap(jax.vmap(lambda f: jnp.min(critic(f, jnp.zeros(0)), axis=0)))(features)
    want = np.zeros((2, 3))
    for action in every:
        array = jnp.array(action if space.shape else action[0])
        log_prob = jax.vmap(jax.vmap(lambda f, a=array: actor.distribution(f).log_prob(a)))(features)
        q = jnp.sum(raw * action_vector(space, array)[None, None], axis=-1)
        want += np.asarray(jnp.exp(log_prob) * (q - 0.5 * log_prob))
    np.testing.assert_allclose(value, want, rtol=1e-4)
    entropy = jax.vmap(jax.vmap(lambda f: actor.distribution(f).entropy()))(features)
    np.testing.assert_allclose(policy.entropy, entropy, rtol=1e-4)


# The loss


@pytest.mark.slow
@pytest.mark.parametrize("separate", [True, False])
def test_targets_are_soft_values_of_the_episodes_own_next_observation(separate, key):
    """By acting slot by slot from the tape's start, the final observation of a truncated episode included."""
    agent = _agent(Steered(random=True), gamma=0.9, separate_critic=separate, reward_scale=2.0)
    state, sample = _sampled(agent, key)
    tape, inputs = sample.tape, replays.inputs_of(sample.tape)
    actor, target = state.network, state.target
    target = eqx.tree_at(lambda t: [out.weight for out in t.critic.out], target, replace_fn=lambda w: 20 * w)
    policy = soft_policy(actor, unroll(actor.torso, inputs), None, jax.random.split(key, (ROWS, SLOTS)))
    assert policy.action is not None
    soft_value = policy.soft_value(target.critic, target.unroll(inputs), jnp.array(0.3))
    targets = np.asarray(agent.targets(soft_value, tape, 2.0))

    torso = target.critic.torso if separate else target.torso
    step = jax.jit(lambda carry, inputs: jax.vmap(torso.step)(carry, inputs))
    carry = jax.tree.map(lambda leaf: jnp.stack([leaf] * ROWS), torso.initial_state())
    stepped = []
    for t in range(SLOTS):
        carry, features = step(carry, jax.tree.map(lambda leaf, t=t: leaf[:, t], inputs))
        values = action_values(target.critic, features[:, None], policy.action[:, t : t + 1])[:, 0]
        stepped.append(jnp.min(values, axis=-1) - 0.3 * policy.log_prob[:, t])
    stepped = np.stack(stepped, axis=1)
    assert np.ptp(stepped) > 0.3
    checked = 0
    for row, t in zip(*np.nonzero(np.asarray(tape.valid)), strict=True):
        want = 2 * float(tape.reward[row, t])
        if not tape.terminated[row, t]:
            want += 0.9 * stepped[row, t + 1]
            checked += 1
        assert targets[row, t] == pytest.approx(want, abs=1e-4)
    assert checked > 20


@pytest.mark.slow
@pytest.mark.parametrize("separate", [True, False])
def test_each_part_is_trained_by_its_own_loss_alone(separate, key):
    """Critics: by their errors. Actor: by soft values that are held fixed in all but its actions."""
    agent = _agent(Steered(), separate_critic=separate)
    state, sample = _sampled(agent, key)
    (online, target), static = _parts(state)
    inputs = replays.inputs_of(sample.tape)
    grads, metrics = jax.jit(
        lambda online, target: jax.grad(agent._loss, has_aux=True)(online, target, static, sample, 1.0, key)
    )(online, target)

    def critic_loss(critic, torso):
        features = unroll(torso, inputs)
        keys = jax.random.split(key, (ROWS, SLOTS))
        policy = soft_policy(state.network, unroll(state.network.torso, inputs), None, keys)
        soft = policy.soft_value(state.target.critic, state.target.unroll(inputs), jnp.exp(state.log_temperature))
        values = action_values(critic, features, sample.tape.action)
        error = values - jax.lax.stop_gradient(agent.targets(soft, sample.tape, 1.0))[..., None]
        return jnp.sum(sample.weight[..., None] * jnp.where(sample.tape.valid[..., None], 0.5 * error**2, 0))

    torso = state.critic.torso if separate else state.network.torso
    want = eqx.filter_grad(lambda parts: critic_loss(*parts))((state.critic, torso))
    got = grads.critic.torso if separate else grads.actor.torso
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    for a, b in zip(jax.tree.leaves(grads.critic.out), jax.tree.leaves(want[0].out), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    # The actor's head sees the actor's loss.
    assert float(jnp.max(jnp.abs(grads.actor.head.weight))) > 1e-4
    if separate:
        assert float(jnp.max(jnp.abs(grads.actor.torso.encoder.project.weight))) > 1e-6
    weight = jnp.sum(sample.weight)
    np.testing.assert_allclose(grads.log_temperature, metrics["entropy"] - agent.target_entropy * weight, rtol=1e-4)


def test_slots_that_do_not_count_do_not_matter(key):
    """Scramble action and reward where the loss does not look; loss and gradients stay to the bit."""
    agent = _agent(Steered(random=True))
    state, sample = _sampled(agent, key)
    valid = sample.tape.valid
    assert not bool(jnp.all(valid))
    noise = 1e6 + jnp.arange(valid.size, dtype=jnp.float32).reshape(valid.shape)
    other = eqx.tree_at(
        lambda s: (s.tape.reward, s.tape.action),
        sample,
        (jnp.where(valid, sample.tape.reward, noise), jnp.where(valid[..., None], sample.tape.action, 0.7)),
    )
    (online, target), static = _parts(state)
    loss = jax.jit(jax.grad(lambda p, s: agent._loss(p, target, static, s, 1.0, key), has_aux=True))
    for a, b in zip(jax.tree.leaves(loss(online, sample)), jax.tree.leaves(loss(online, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_target_follows_by_tau(key):
    agent = _agent(Steered(), target_tau=0.25, separate_critic=False, samples_per_insert=0.5)
    assert agent.sizes.gradient_steps == 1
    state = eqx.filter_jit(agent.init)(key)
    update = eqx.filter_jit(agent.update)
    while int(state.gradient_steps) == 0:
        before, (state, _) = state, update(state)

    def check(target, old, new):
        np.testing.assert_allclose(target, old + 0.25 * (new - old), rtol=1e-4, atol=1e-6)
        assert float(jnp.max(jnp.abs(new - old))) > 0

    check(state.target.critic.out[0].weight, before.target.critic.out[0].weight, state.critic.out[0].weight)
    torsos: Any = (state.target.torso, before.target.torso, state.network.torso)
    weights = [torso.encoder.project.weight for torso in torsos]
    check(*weights)


def test_rewards_are_scaled_by_their_deviation(key):
    agent = _agent(Steered(random=True))
    state = eqx.filter_jit(agent.init)(key)
    _, metrics = eqx.filter_jit(agent.update)(state)
    # The probe's rewards are all 1.
    assert float(metrics["reward_scale"]) == 1
    assert float(_agent(Steered(), reward_scale=3.0)._scale(state.rewards)) == 3
    rewards = state.rewards.update(jnp.array([0.0, 1.0]), jnp.ones(2, bool))
    assert float(agent._scale(rewards)) == pytest.approx(2)


# Learning


@pytest.mark.parametrize(("ending", "want"), [("truncated", 5.0), ("terminated", 1.0)])
def test_value_at_an_end(ending, want, key):
    """One step an episode, reward 1, discount 0.8, hardly any weight on entropy. Q -> 1, or 1 / (1 - 0.8) if cut."""

    class OneStep(Steered):
        def __init__(self):
            super().__init__(longest=1, ending=ending, constant=True)

    settings: Any = {"learning_rate": 1e-2, "target_tau": 0.2, "initial_temperature": 1e-6, "target_entropy": -50.0}
    agent = _agent(OneStep(), "mlp", 8, past=False, gamma=0.8, reward_scale=1.0, **settings)
    _, metrics = run_updates(agent, agent.init(key), 300)
    assert float(metrics["q_value"][-1]) == pytest.approx(want, abs=0.3)


class Match(Recall):
    """Recall by a real number: the reward is for naming the cue, -0.8, 0 or 0.8, at the last step."""

    def action_space(self, params):
        return spaces.Box(-1.0, 1.0, ())

    def step(self, key, state, action, params=None):
        observation, after, _, done, *rest = super().step(key, state, jnp.int32(0), params)
        error = jnp.abs(action - 0.8 * (state.length.astype(jnp.float32) - 1))
        return observation, after, jnp.where(done, jnp.maximum(1 - error, 0), 0.0), done, *rest


@pytest.mark.slow
@pytest.mark.parametrize(("name", "env", "separate"), [("gru", Match(), True), ("lru", Recall(), False)])
def test_learns_to_remember(name, env, separate, key):
    """A cue is shown once; the reward is for naming it three steps later. No memory gets no more than .6, and 1/3."""
    settings = {
        "num_envs": 16,
        "batch_size": 16,
        "buffer_size": 8192,
        "learning_starts": 256,
        "samples_per_insert": 8.0,
        "learning_rate": 3e-3,
        "gamma": 0.9,
        "target_tau": 0.05,
        "separate_critic": separate,
    }
    agent = _agent(env, name, 32, **settings)
    _, metrics = run_updates(agent, agent.init(key), 400)
    assert float(jnp.nanmean(metrics["episode/return"][-20:])) > 0.85
    assert float(metrics["temperature"][-1]) != float(metrics["temperature"][200])


def test_mistakes_in_the_settings_are_explained(key):
    class Unbounded(Probe):
        def action_space(self, params):
            return spaces.Box(-jnp.inf, jnp.inf, (2,))

    with pytest.raises(ValueError, match=r"sac cannot act in .*squashed between bounds.* set agent to 'ppo' or 'bc'"):
        _agent(Unbounded())
    with pytest.raises(ValueError, match=r"tape_length=4 is shorter than the longest episode, 5 slots; set sac.tape"):
        _agent(Probe(), tape_length=4)
    with pytest.raises(ValueError, match=r"set sac.buffer_size"):
        _agent(Probe(), buffer_size=100, samples_per_insert=1.0)
    config = NetworkConfig(separate_value=True)
    with pytest.raises(ValueError, match=r"separate_value is for ppo; .* sac.separate_critic"):
        make_soft_actor_critic(config, spaces.Discrete(2), spaces.Discrete(2), separate=True, key=key)
