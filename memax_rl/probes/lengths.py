"""Tests of a trained probe: on fresh sequences, and at many times the trained length with the norm of the state.

A memory can do well at the trained length and fail beyond it, because it has too little room, or because its state
leaves the range that it was trained in: the state collapse of https://arxiv.org/abs/2410.07145 ("Stuffed Mamba").
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from memax_rl.probes.learner import (
    Batch,
    Learner,
    ProbeNetwork,
    Sums,
    block_norms,
    cut,
    first_states,
    run_through,
    sample_batch,
    score,
)
from memax_rl.probes.tasks import Task
from memax_rl.rollout.streams import seed_key

# No other key of a seed is folded with this number.
_TEST = 2**31 + 1

# (network, key) -> (sums, norms of the states).
Test = Callable[[ProbeNetwork, PRNGKeyArray], tuple[Sums, Float[Array, "times blocks"]]]


def make_test(learner: Learner, times: int = 1, *, norms: bool = False) -> Test:
    """Return a compiled test of one network, on at least `eval_sequences` sequences `times` as long as the trained.

    The memory runs over the trained length at a time, from the state that it had, so that its norm is known in between
    and no more memory is needed than in training; within that by chunks, where it was trained by them.

    Args:
        learner: What was trained.
        times: How many trained lengths a sequence has.
        norms: Whether norms are computed; else they are zero.
    """
    config, length = learner.config, learner.task.length
    task: Task = learner.task if times == 1 else learner.task.at_length(times * length)
    data = learner.test_data
    # One row of a batch is as long as one in training, where that had several sequences in a row.
    size = max(1, config.learner.batch_size // times)
    batches = -(-config.eval_sequences // size)

    def one(network: ProbeNetwork, key: PRNGKeyArray) -> tuple[Sums, Float[Array, "times blocks"]]:
        def body(carry, part: Batch):
            state, more = run_through(task, network, carry[0], part, config.learner.chunk)
            found = block_norms(state) if norms else jnp.zeros(len(state))
            return (state, jax.tree.map(jnp.add, carry[1], more)), found

        parts = cut(sample_batch(task, key, size, 1, data), length)
        (_, sums), found = jax.lax.scan(body, (first_states(network, size), Sums.none(task.outputs)), parts)
        return sums, found

    @eqx.filter_jit
    def test(network: ProbeNetwork, key: PRNGKeyArray):
        keys = jax.random.split(jax.random.fold_in(key, times), batches)
        sums, found = jax.lax.map(functools.partial(one, network), keys)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums), jnp.mean(found, axis=0)

    return test


def one_network(networks: ProbeNetwork, index: int) -> ProbeNetwork:
    """Return the network at `index` of several `networks`, stacked along an axis."""
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, networks)


def score_seeds(learner: Learner, test: Test, networks: ProbeNetwork, seeds: dict[int, int]) -> dict[int, Any]:
    """Return score and loss of seeds, by seed.

    Args:
        learner: The learner.
        test: The compiled test.
        networks: Those of all seeds, stacked along an axis.
        seeds: Which network is whose, by seed.
    """
    found = {}
    for seed, index in seeds.items():
        sums, norms = test(one_network(networks, index), jax.random.fold_in(seed_key(seed), _TEST))
        found[seed] = {
            "score": float(score(learner.task, sums)),
            "loss": float(sums.loss / jnp.maximum(sums.count, 1)),
            "norms": np.asarray(norms).tolist(),
        }
    return found


def score_at_lengths(learner: Learner, networks: ProbeNetwork, seeds: dict[int, int]) -> list[dict[str, Any]]:
    """Return a row for each of `config.test_lengths`: length, scores and norms by seed.

    The norms are of the states of all blocks, each after every trained length of slots.

    Args:
        learner, networks, seeds: As in `score_seeds`.
    """
    rows = []
    for times in sorted(learner.config.test_lengths):
        found = score_seeds(learner, make_test(learner, times, norms=True), networks, seeds)
        rows.append(
            {
                "times": times,
                "length": times * learner.task.length,
                "seeds": list(found),
                "score_per_seed": [one["score"] for one in found.values()],
                "state_norm_per_seed": [one["norms"] for one in found.values()],
            }
        )
    return rows
