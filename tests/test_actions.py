"""Continuous actions: what the policy puts out, and what the environment is given."""

import json
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memax_rl
from memax_rl import envs
from memax_rl.envs import spaces
from memax_rl.envs.base import Environment
from memax_rl.networks import NetworkConfig, from_environment, make_actor_critic, make_q_network, to_environment
from memax_rl.networks.encoder import AgentInput
from memax_rl.networks.soft_actor_critic import make_soft_actor_critic
from memax_rl.runs import Run, make_config

SETTINGS: dict[str, Any] = {
    "network": {"memory": "mlp", "width": 16},
    "ppo": {"num_envs": 16, "rollout_length": 16, "learning_rate": 5e-3, "entropy_coef": 0.0},
    "eval_episodes": 64,
}


class Point(Environment):
    """One step; the reward is -(x - .8)^2, where x is the place of the action between `low` and `high`."""

    def __init__(self, low: float, high: float, space: Any):
        self.low, self.high, self.space = low, high, space

    @property
    def default_params(self):
        return None

    def action_space(self, params):
        return self.space

    def observation_space(self, params):
        return spaces.Discrete(1)

    def max_episode_steps(self, params):
        return 1

    def fixed_length(self, params):
        return 1

    def truncates(self, params):
        return False

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    def reset_env(self, key, params):
        return jnp.zeros((), jnp.int32), jnp.zeros(())

    def step_env(self, key, state, action, params):
        x = (jnp.reshape(action, -1)[0] - self.low) / (self.high - self.low)
        return jnp.zeros((), jnp.int32), state + 1, -((x - 0.8) ** 2), jnp.ones((), bool), {}


def _register(name: str, low: float, high: float, space: Any) -> str:
    name = f"own/{name}"
    if name not in envs.names():
        envs.register(name, lambda: Point(low, high, space))
    return name


def _final_return(run: Run) -> float:
    return json.loads(run.summary_path.read_text())["evaluation"]["return"]["mean"]["value"]


def test_actions_of_a_box_are_mapped_affinely_component_by_component():
    low, high = jnp.array([0.0, -100.0, -jnp.inf, 3.0]), jnp.array([1.0, 100.0, jnp.inf, jnp.inf])
    space = spaces.Box(low, high, (4,))
    action = jnp.array([0.5, -0.25, 7.0, 2.0])
    np.testing.assert_allclose(to_environment(space, action), [0.75, -25.0, 7.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose(to_environment(space, 3 * jnp.ones(4)), [1.0, 100.0, 3.0, 3.0])
    inside = jnp.array([0.25, 30.0, -9.0, 4.0])
    np.testing.assert_allclose(to_environment(space, from_environment(space, inside)), inside, rtol=1e-5)


def test_the_largest_bounds_overflow_nowhere():
    biggest = float(np.finfo(np.float32).max)
    space = spaces.Box(-biggest, biggest, (1,))
    np.testing.assert_allclose(to_environment(space, jnp.array([1.0])), biggest)
    np.testing.assert_allclose(to_environment(space, jnp.array([0.0])), 0.0)


@pytest.mark.slow
def test_training_does_not_depend_on_the_bounds_of_the_action(tmp_path):
    metrics = []
    for i, (low, high) in enumerate([(-1.0, 1.0), (0.0, 1000.0)]):
        name = _register(f"Point{i}", low, high, spaces.Box(low, high, (1,)))
        config = make_config(SETTINGS | {"env": name, "total_steps": 256 * 4, "eval_episodes": 0})
        run = memax_rl.train(config, out=tmp_path / str(i))
        metrics.append([row["policy_loss"] for row in run.metrics()])
    np.testing.assert_allclose(metrics[0], metrics[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("low", "high", "space"),
    [(5.0, 6.0, spaces.Box(5.0, 6.0, ())), (0.0, 1.0, spaces.Box(-jnp.inf, jnp.inf, (1,)))],
    ids=["narrow box of shape ()", "no bounds"],
)
def test_ppo_finds_a_point_in_a_box(low, high, space, tmp_path):
    name = _register(f"Point{space.shape}", low, high, space)
    run = memax_rl.train(env=name, total_steps=30_000, out=tmp_path / "run", **SETTINGS)
    assert _final_return(run) > -0.002


def _deviations(space, state_dependent_std, key):
    """Return the standard deviation of each component for a batch of inputs, and the network."""
    config = NetworkConfig(memory="min_gru", width=8, state_dependent_std=state_dependent_std)
    network = make_actor_critic(config, spaces.Box(-1, 1, (3,)), space, key=key)
    weight = network.policy_head.weight
    network = eqx.tree_at(lambda n: n.policy_head.weight, network, 100 * weight)
    observations = jax.random.normal(key, (5, 3))
    action = jnp.zeros((5, *space.shape))
    inputs = AgentInput(observations, action, jnp.zeros(5), jnp.ones(5, bool), None)
    _, distribution = jax.vmap(lambda x: network.act(network.initial_state(), x))(inputs)
    return np.exp(np.asarray(distribution.log_std)), network, inputs


@pytest.mark.parametrize("shape", [(), (2,)])
def test_the_standard_deviation_may_depend_on_the_state(shape, key):
    space = spaces.Box(-1.0, 1.0, shape)
    fixed, _, _ = _deviations(space, False, key)
    np.testing.assert_array_equal(fixed, 1)
    free, network, inputs = _deviations(space, True, key)
    assert np.ptp(free, axis=0).min() > 0.1
    assert free.min() >= np.exp(-5)
    assert free.max() <= np.exp(2)

    def spread(network):
        _, distribution = jax.vmap(lambda x: network.act(network.initial_state(), x))(inputs)
        return jnp.sum(jax.vmap(lambda d: d.entropy())(distribution))

    gradient = eqx.filter_grad(spread)(network)
    assert float(jnp.abs(gradient.torso.encoder.project.weight).max()) > 1e-3, "the memory is told about it"
    assert float(jnp.abs(gradient.log_std).max()) > 1e-3


def test_the_standard_deviation_of_discrete_actions_is_refused(key):
    config = NetworkConfig(memory="min_gru", width=8, state_dependent_std=True)
    with pytest.raises(ValueError, match=r"network.state_dependent_std is for continuous actions.*Discrete"):
        make_actor_critic(config, spaces.Discrete(2), spaces.Discrete(3), key=key)
    with pytest.raises(ValueError, match=r"network.state_dependent_std is for actor-critics"):
        make_q_network(config, spaces.Discrete(2), spaces.Discrete(3), dueling=True, key=key)
    with pytest.raises(ValueError, match=r"network.state_dependent_std is for ppo; with sac"):
        make_soft_actor_critic(config, spaces.Discrete(2), spaces.Box(-1, 1, (2,)), separate=False, key=key)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (
            spaces.Box(0, 5, (2,), jnp.int32),
            "action space .* of dtype int32; .* whole-number actions as Discrete or MultiDiscrete",
        ),
        (spaces.Dict({"a": spaces.Discrete(2)}), "action space"),
        (spaces.Tuple([spaces.Discrete(2)]), "action space"),
        (spaces.Box(0.0, 1.0, (2, 2)), "action space .* at most one axis"),
    ],
    ids=["integers", "dict", "tuple", "matrix"],
)
def test_an_action_space_without_a_policy_head_is_refused_by_name(space, says):
    with pytest.raises(ValueError, match=says):
        make_actor_critic(NetworkConfig(), spaces.Discrete(2), space, key=jax.random.key(0))
