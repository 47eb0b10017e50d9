"""Sizes of outputs and gradients at the start, where a memory sits in a residual block behind a norm."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import memory

WIDTH = 64
LOW, HIGH = 0.2, 3.0
# The models' files give the reasons at length.
SMALLER = {
    "aaren": (0.05, "a mean over the whole episode, as in the paper"),
    "linear_transformer": (0.02, "a mean over the whole episode, as in the paper"),
    "para_lstm": (0.1, "the state itself, a gate times tanh of a running average"),
}


def _run(model, xs):
    return model.scan(model.initial_state(), xs, jnp.arange(len(xs)) == 0)[1]


@pytest.mark.parametrize("name", memory.names())
def test_outputs_are_of_a_stated_size_after_1000_steps(name):
    """On unit noise, the size of the last 100 of 1,000 outputs, and no output beyond 20."""
    model = memory.make(name, in_size=WIDTH, out_size=WIDTH, key=jax.random.key(0))
    ys = np.asarray(eqx.filter_jit(_run)(model, jax.random.normal(jax.random.key(1), (1000, WIDTH))))
    low, _ = SMALLER.get(name, (LOW, ""))
    assert low <= np.sqrt(np.mean(ys[-100:] ** 2)) <= HIGH
    assert np.max(np.abs(ys)) < 20


@pytest.mark.parametrize("name", ["mlstm", "slstm", "m2rnn", "ttt_linear"])
def test_gradients_are_bounded_over_1000_steps_at_the_start(name):
    """Without the norm of each head, mLSTM's is 750."""
    model = memory.make(name, in_size=WIDTH, out_size=WIDTH, key=jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (1000, WIDTH))
    gradients = eqx.filter_jit(eqx.filter_grad(lambda model: jnp.mean(_run(model, xs) ** 2)))(model)
    assert np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradients))) < 3


@pytest.mark.parametrize("name", memory.names())
def test_says_against_what_it_was_verified(name):
    assert memory.spec(name).verified


@pytest.mark.parametrize(("name", "options"), [("mlstm", {"head_size": 1}), ("slstm", {"heads": 8})])
def test_norm_of_a_single_number_is_refused(name, options):
    """It is zero: the memory would never reach the output."""
    with pytest.raises(ValueError, match="head"):
        memory.make(name, in_size=3, out_size=8, key=jax.random.key(0), **options)
