"""Auxiliary losses: what counts, what they reach, and that the policy's own learning is the same without weight."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _probes import Probe

from memax_rl.agents import auxiliary
from memax_rl.agents.auxiliary import AuxiliaryLoss, NextObservation
from memax_rl.agents.ppo import PPO, PPOConfig
from memax_rl.envs import spaces
from memax_rl.networks import NetworkConfig, make_actor_critic
from memax_rl.rollout.tape import Tape
from memax_rl.runs import make_config
from memax_rl.runs.build import make_agent

NETWORK = NetworkConfig(memory="min_gru", width=8, previous_action=False, previous_reward=False, start=False)


def _agent(loss=None, env=None, **settings) -> PPO:
    def make_network(observation_space, action_space, key):
        return make_actor_critic(NETWORK, observation_space, action_space, key=key)

    config = PPOConfig(num_envs=4, num_minibatches=2, rollout_length=12).model_copy(update=settings)
    return PPO(env or Probe(5), None, make_network, config, 10_000, make_auxiliary=loss)


class Exact(NextObservation):
    """Predicts the observation after the one that the probe shows, a step count: one more, without parameters."""

    def _loss(self, encoder, features, action, observation):
        return optax.l2_loss(features[0], encoder.flat_observation(observation)[0][0])


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_what_is_predicted_is_the_episodes_own_next_observation(ending, key):
    """Features that say what the probe shows next leave no loss anywhere, the last slot of an episode included."""
    agent = _agent(Exact, Probe(5, ending))
    state = eqx.filter_jit(agent.init)(key)
    rows = eqx.filter_jit(agent.collect)(state, key).rows
    assert isinstance(state.auxiliary, Exact)
    encoder = state.network.torso.encoder
    shown = jax.vmap(jax.vmap(lambda o: encoder.flat_observation(o)[0]))(rows.tape.observation)
    unit = (encoder.flat_observation(jnp.ones(1))[0] - encoder.flat_observation(jnp.zeros(1))[0])[0]
    loss = state.auxiliary(state.network, shown + unit, rows.tape)
    counts = np.array(rows.tape.valid & ~rows.tape.terminated)
    counts[:, -1] = False
    assert counts.sum() > 12
    np.testing.assert_allclose(loss, 0, atol=1e-12)
    wrong = state.auxiliary(state.network, shown, rows.tape)
    np.testing.assert_array_equal(
        np.asarray(wrong)[np.asarray(rows.tape.valid)] > 0, counts[np.asarray(rows.tape.valid)]
    )


def test_without_weight_the_policy_learns_as_without_the_loss(key):
    networks = []
    for agent in (_agent(), _agent(NextObservation, auxiliary_coef=0.0, max_grad_norm=1e9)):
        plain = agent.make_auxiliary is None
        agent = _agent(max_grad_norm=1e9) if plain else agent
        state, _ = eqx.filter_jit(agent.update)(eqx.filter_jit(agent.init)(key))
        networks.append(eqx.filter(state.network, eqx.is_array))
    for one, other in zip(*map(jax.tree.leaves, networks), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_the_loss_trains_itself_memory_and_encoder(key):
    """Without a value loss the value's head stays; memory and encoder learn what the probe shows next."""
    agent = _agent(NextObservation, value_coef=0.0, auxiliary_coef=1.0)
    first = state = eqx.filter_jit(agent.init)(key)
    update, losses = eqx.filter_jit(agent.update), []
    for _ in range(40):
        state, metrics = update(state)
        losses.append(float(metrics["auxiliary_loss"]))
    assert losses[-1] < 0.1 * losses[0]
    moved = jax.tree.map(
        lambda a, b: float(jnp.max(jnp.abs(a - b))),
        *(eqx.filter((s.network, s.auxiliary), eqx.is_inexact_array) for s in (first, state)),
    )
    assert moved[0].value_head.weight == 0
    assert min(jax.tree.leaves(moved[0].torso.blocks[0].memory)) > 1e-3
    assert min(moved[0].torso.encoder.project.weight, moved[1].hidden.weight, moved[1].out.weight) > 1e-2


@pytest.mark.parametrize(
    ("space", "value", "size"),
    [
        (spaces.Discrete(3), jnp.int32(2), 3),
        (spaces.MultiDiscrete([2, 3]), jnp.array([1, 2]), 5),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1.0, 1.0, (2,))}), {"a": 1, "b": jnp.ones(2)}, 4),
        (spaces.Box(0, 255, (6, 6, 3), jnp.uint8), jnp.full((6, 6, 3), 255, jnp.uint8), 108),
    ],
)
def test_every_space_is_predicted(space, value, size, key):
    """The loss falls to the least there is when the last layer's bias says the value, and not before."""
    network = make_actor_critic(NETWORK, space, spaces.Discrete(2), key=key)
    loss = NextObservation(network, key)
    assert loss.out.bias.shape == (size,)
    one = jax.tree.map(jnp.asarray, value)
    code = jnp.concatenate([x.astype(jnp.float32) for x in network.torso.encoder.flat_observation(one)])
    tape = Tape(
        observation=jax.tree.map(lambda x: jnp.stack([x, x])[None], one),
        action=jnp.zeros((1, 2), jnp.int32),
        reward=jnp.zeros((1, 2)),
        start=jnp.array([[True, False]]),
        terminated=jnp.zeros((1, 2), bool),
        truncated=jnp.zeros((1, 2), bool),
        valid=jnp.ones((1, 2), bool),
    )
    sure = eqx.tree_at(lambda m: (m.out.weight, m.out.bias), loss, (0 * loss.out.weight, code))
    # One-hot codes as logits: surer, and so nearer to zero, the larger they are.
    parts = zip(network.torso.encoder.observation_spaces, network.torso.encoder.flat_observation(one), strict=True)
    scale = jnp.concatenate([jnp.full(x.shape, 1.0 if isinstance(s, spaces.Box) else 50.0) for s, x in parts])
    sure = eqx.tree_at(lambda m: m.out.bias, sure, scale * code)
    features = jnp.zeros((1, 2, NETWORK.width))
    np.testing.assert_allclose(sure(network, features, tape), 0, atol=1e-6)
    assert loss(network, features, tape)[0, 0] > 0.01


class Sum(AuxiliaryLoss):
    """One's own: keeps the features' sum near one."""

    weight: jax.Array

    def __init__(self, network, key):
        self.weight = jnp.ones(())

    def __call__(self, network, features, tape):
        return optax.l2_loss(self.weight * jnp.sum(features, axis=-1) - 1)


def test_a_loss_of_ones_own_is_trained_by_name(key):
    auxiliary.register("sum", Sum)
    with pytest.raises(ValueError, match="there is an auxiliary loss 'sum' already"):
        auxiliary.register("sum", NextObservation)
    fields = {"env": "popgym/RepeatPreviousEasy", "network": {"memory": "min_gru", "width": 8}}
    agent = make_agent(make_config(fields | {"ppo": {"auxiliary": "sum", "num_envs": 4, "num_minibatches": 2}}))
    state = eqx.filter_jit(agent.init)(key)
    assert isinstance(state.auxiliary, Sum)
    with pytest.raises(ValueError, match=r"unknown loss 'mean'; known: next_observation, sum\..*--import"):
        make_agent(make_config(fields | {"ppo": {"auxiliary": "mean"}}))


def test_an_observation_too_large_to_predict_is_refused(key):
    space = spaces.Box(0, 255, (210, 160, 3), jnp.uint8)
    network = make_actor_critic(NETWORK, space, spaces.Discrete(2), key=key)
    with pytest.raises(ValueError, match=r"next_observation cannot predict an observation of 100,800 numbers"):
        NextObservation(network, key)
