"""The optimizers: each is optax's own, trains both agents, and takes its own options alone."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memax_rl.agents.dqn import DQNConfig
from memax_rl.agents.optimizer import OPTIONS, OptimizerSettings, make_optimizer
from memax_rl.agents.ppo import PPOConfig
from memax_rl.networks.normalization import RunningMeanStd
from memax_rl.runs import make_config, override
from memax_rl.runs.build import make_agent

RATE = 0.03
OWN = {
    "adam": ({"beta1": 0.8, "optimizer_eps": 1e-5}, optax.adam(RATE, b1=0.8, eps=1e-5)),
    "adamw": ({"weight_decay": 0.1}, optax.adamw(RATE, weight_decay=0.1)),
    "nadam": ({"beta2": 0.9}, optax.nadam(RATE, b2=0.9)),
    "radam": ({}, optax.radam(RATE)),
    "rmsprop": ({"beta2": 0.8, "momentum": 0.5}, optax.rmsprop(RATE, decay=0.8, momentum=0.5)),
    "sgd": ({"momentum": 0.9, "nesterov": True}, optax.sgd(RATE, momentum=0.9, nesterov=True)),
    "lion": ({}, optax.lion(RATE)),
}


def _minimize(optimizer, rate):
    """Return the parameters after ten steps on a small problem."""
    target = jnp.arange(6.0).reshape(2, 3)

    def step(carry, _):
        x, state = carry
        gradient = jax.grad(lambda x: jnp.sum((x - target) ** 4))(x)
        updates, state = optimizer.update(gradient, state, x)
        return (x + rate * updates, state), None

    x = jnp.ones((2, 3))
    return jax.lax.scan(step, (x, optimizer.init(x)), None, 10)[0][0]


@pytest.mark.parametrize("name", OPTIONS)
def test_each_is_optax_s_own(name):
    settings, own = OWN[name]
    made = make_optimizer(OptimizerSettings(optimizer=name, **settings))
    np.testing.assert_allclose(_minimize(made, -RATE), _minimize(own, 1.0), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_matrices_decay_and_vectors_and_statistics_do_not(name):
    optimizer = make_optimizer(OptimizerSettings(optimizer=name, weight_decay=0.5))
    params = {"weight": jnp.ones((2, 3)), "bias": jnp.ones(3), "seen": RunningMeanStd((2, 3))}
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates: Any = optimizer.update(nothing, optimizer.init(params), params)[0]
    np.testing.assert_array_equal(updates["weight"], 0.5)
    assert not np.any(updates["bias"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates["seen"]))


SMALL = {
    "ppo": {"num_envs": 4, "rollout_length": 51, "num_minibatches": 2, "update_epochs": 1},
    "dqn": {"num_envs": 4, "learning_starts": 1, "tape_length": 64, "samples_per_insert": 1.0, "buffer_size": 4_000},
}


@pytest.mark.parametrize("agent", SMALL)
@pytest.mark.parametrize("name", OPTIONS)
def test_each_trains(name, agent):
    """An update moves the network and leaves it finite, and a configuration is read as it was written."""
    own = SMALL[agent] | {"optimizer": name}
    config = make_config(
        {"env": "popgym/RepeatPreviousEasy", "network": {"memory": "mlp", "width": 8}, "agent": agent, agent: own}
    )
    assert make_config(config.model_dump(mode="json")) == config
    made = make_agent(config)
    before = made.init(jax.random.key(0))
    after, metrics = eqx.filter_jit(made.update)(before)
    assert np.isfinite(float(metrics["loss"]))
    moved = 0
    for a, b in zip(jax.tree.leaves(before.network), jax.tree.leaves(after.network), strict=True):
        if eqx.is_inexact_array(a):
            assert np.all(np.isfinite(b))
            moved += bool(np.any(np.asarray(a) != np.asarray(b)))
    assert moved > 2


def test_options_of_another_optimizer_are_refused():
    with pytest.raises(
        ValueError, match=r"weight_decay=0.01 is no option of optimizer 'adam'; set optimizer to 'adamw'"
    ):
        make_config({"ppo": {"weight_decay": 0.01}})
    with pytest.raises(ValueError, match=r"momentum=0.9 is no option of optimizer 'adam'; .* to its default, 0"):
        DQNConfig(momentum=0.9)
    with pytest.raises(ValueError, match=r"beta1=0.5 is no option of optimizer 'sgd'"):
        PPOConfig(optimizer="sgd", beta1=0.5)
    with pytest.raises(ValueError, match=r"optimizer_eps=0.001 is no option of optimizer 'lion'"):
        PPOConfig(optimizer="lion", optimizer_eps=1e-3)
    with pytest.raises(ValueError, match=r"the momentum, which is 0; set momentum"):
        PPOConfig(optimizer="sgd", nesterov=True)
    config = override(make_config({}), ["--ppo.optimizer", "adamw", "--ppo.weight_decay", ".01"])
    assert config.model_dump()["ppo"]["weight_decay"] == 0.01
    # The defaults of another optimizer are nobody's choice.
    assert override(make_config({}), ["--ppo.optimizer", "lion"]).model_dump()["ppo"]["optimizer"] == "lion"
