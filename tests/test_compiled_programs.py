"""No program of ours holds calls that can dead-lock XLA's CPU backend (benchmarks/lapack_deadlock.py)."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import memory
from memax_rl.evaluation.episodes import play
from memax_rl.memory.layers.weights import orthogonal
from memax_rl.runs import make_config
from memax_rl.runs.build import make_agent
from memax_rl.training.loop import init_state

# Targets that are known not to wait for another thread. None is needed so far.
ALLOWED: set[str] = set()
OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0}


def custom_calls(text: str | None) -> set[str]:
    """Return the targets of custom calls in a program, as StableHLO or as compiled HLO."""
    assert text
    return set(re.findall(r'custom_call_target="([^"]+)"', text)) | set(re.findall(r"custom_call @([\w.$]+)", text))


def test_the_check_sees_lapack():
    def qr(x):
        return jnp.linalg.qr(x)[0]

    lowered = jax.jit(qr).lower(jnp.eye(3))
    assert custom_calls(lowered.as_text()) - ALLOWED
    assert custom_calls(lowered.compile().as_text()) - ALLOWED


@pytest.mark.parametrize("name", memory.names())
def test_initialization_step_scan_and_gradient_of_a_memory_hold_no_custom_call(name):
    def everything(key, xs, starts):
        params, static = eqx.partition(memory.make(name, in_size=4, out_size=4, key=key), eqx.is_inexact_array)

        def total(params):
            model = eqx.combine(params, static)
            state, ys = model.scan(model.initial_state(), xs, starts)
            _, y = model.step(state, xs[0], starts[0])
            return jnp.sum(ys) + jnp.sum(y)

        return jax.value_and_grad(total)(params)

    keys = jax.random.split(jax.random.key(0), 2)
    lowered = jax.jit(jax.vmap(everything, (0, None, None))).lower(keys, jnp.ones((5, 4)), jnp.zeros(5, bool))
    assert custom_calls(lowered.as_text()) <= ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"ppo": {"num_envs": 2, "rollout_length": 51, "num_minibatches": 1}},
        {"agent": "dqn", "dqn": {"num_envs": 2, "batch_size": 2, "tape_length": 51}},
    ],
)
def test_initialization_update_and_evaluation_of_an_agent_hold_no_custom_call(settings):
    fields = {"network": {"memory": "gru", "width": 8}, "num_seeds": 2}
    config = make_config(fields | settings)
    agent = make_agent(config)
    keys = jax.random.split(jax.random.key(0), 2)

    def init(keys):
        return jax.vmap(lambda key: eqx.filter(agent.init(key), eqx.is_array))(keys)

    arrays, static = jax.eval_shape(init, keys), init_state(config, agent)[1]

    def update(arrays):
        return jax.vmap(lambda a: eqx.filter(agent.update(eqx.combine(a, static)), eqx.is_array))(arrays)

    def evaluate(arrays, keys):
        def one(a, key):
            network = eqx.combine(a, static).network
            start = network.initial_state()
            return play(agent.env, agent.env_params, agent.act(network), start, key, episodes=2, max_steps=9)

        return jax.vmap(one)(arrays, keys)

    for program, arguments in ((init, (keys,)), (update, (arrays,)), (evaluate, (arrays, keys))):
        lowered = jax.jit(program).lower(*arguments)
        assert custom_calls(lowered.as_text()) <= ALLOWED, program.__name__
        compiled = lowered.compile(compiler_options=OPTIONS)
        assert custom_calls(compiled.as_text()) <= ALLOWED, program.__name__


def test_orthogonal_matrices_are_orthogonal_and_uniform(key):
    for size in (1, 2, 5, 32):
        matrix = orthogonal(key, size)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-5)
    drawn = np.asarray(jax.vmap(lambda k: orthogonal(k, 3))(jax.random.split(key, 20_000)), np.float64)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.02)
    np.testing.assert_allclose((drawn**2).mean(0), 1 / 3, atol=0.01)
    # E x^4 = 3 / (n (n + 2)) for an entry; a trace has the moments 1 and 3; rotations are as frequent as reflections.
    np.testing.assert_allclose((drawn**4).mean(0), 0.2, atol=0.01)
    trace = np.trace(drawn, axis1=1, axis2=2)
    np.testing.assert_allclose([np.mean(trace**2), np.mean(trace**4)], [1, 3], atol=0.15)
    assert abs(np.linalg.det(drawn).mean()) < 0.03
