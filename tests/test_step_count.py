"""Runs longer than int32 can count: steps stay exact, and schedules and the replay go on."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl.agents.dqn import DQN
from memax_rl.rollout import replay as replays
from memax_rl.rollout.step_count import StepCount
from memax_rl.runs import make_config
from memax_rl.runs.build import make_agent
from memax_rl.training import loop
from memax_rl.training.rows import metric_rows
from memax_rl.training.updates import make_many_updates

NEAR = 2**31 - 40
PPO_FIELDS: dict[str, Any] = {"ppo": {"num_envs": 4, "rollout_length": 102, "num_minibatches": 1, "update_epochs": 1}}
DQN_FIELDS: dict[str, Any] = {
    "agent": "dqn",
    "dqn": {
        "num_envs": 4,
        "batch_size": 2,
        "tape_length": 64,
        "learning_starts": 24,
        "buffer_size": 2_000,
        "samples_per_insert": 1,
    },
}
SMALL: dict[str, Any] = {"env": "popgym/RepeatFirstEasy", "network": {"memory": "min_gru", "width": 8}}


@pytest.mark.parametrize("start", [0, 2**30 - 3, 2**31 - 5, 2**40 + 7])
def test_a_count_is_that_of_python(start):
    count, steps = StepCount.of(start), [1, 2, 5, 2**30]
    for total in steps:
        count = jax.jit(StepCount.add)(count, jnp.int32(total))
        start += total
        assert int(count.to_numpy()) == start
        for bound in (start - 1, start, start + 1):
            assert bool(count.reached(bound)) == (start >= bound)
        np.testing.assert_allclose(count.fraction_of(2**41), start / 2**41, rtol=2e-7)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [PPO_FIELDS, DQN_FIELDS], ids=["ppo", "dqn"])
def test_a_run_goes_on_beyond_what_int32_counts(settings):
    """With the counter started near 2**31: rows are exact, the step size falls on, and the run ends where it should."""
    total = NEAR + 3_000
    config = make_config(SMALL | settings | {"total_steps": total})
    agent = make_agent(config)
    arrays, static = loop.init_state(config, agent)
    near = jax.tree.map(lambda leaf: leaf[None], StepCount.of(NEAR))
    arrays = eqx.tree_at(lambda s: s.env_steps, arrays, near)
    many = make_many_updates(agent, static, total)
    arrays, _, metrics = many(arrays, 256, jnp.ones(1, bool))
    made = int(arrays.updates[0])
    rows = metric_rows(config, metrics, 0, made, 1.0)
    steps = [row["env_steps"] for row in rows]
    assert all(b > a for a, b in zip([NEAR, *steps], steps, strict=False))
    assert steps[-1] == int(arrays.env_steps.to_numpy()[0]) >= total > steps[-2], "it stopped at the first update"
    assert all(0 <= row["learning_rate"] < 1e-3 * 3_100 / NEAR * 3 for row in rows)


def test_a_replay_is_the_same_after_its_slots_were_numbered_anew(key, monkeypatch):
    """The rings of two replays, one of which took multiples of the capacity off its numbers, give equal samples."""
    monkeypatch.setattr(replays, "_RENUMBER_AT", 100)
    renumbered = _filled(key)
    monkeypatch.setattr(replays, "_RENUMBER_AT", 2**30)
    plain = _filled(key)
    assert int(plain.count) > 100 > int(renumbered.count)
    assert (int(plain.count) - int(renumbered.count)) % 20 == 0
    for a, b in zip(jax.tree.leaves(replays.abandon(plain)), jax.tree.leaves(replays.abandon(renumbered)), strict=True):
        if a.shape == (3, 20):
            np.testing.assert_array_equal(a, b)
    for i in range(5):
        sampled = [replays.sample(r, jax.random.fold_in(key, i), rows=4, slots=8) for r in (plain, renumbered)]
        for a, b in zip(*map(jax.tree.leaves, sampled), strict=True):
            np.testing.assert_array_equal(a, b)


def _filled(key: jax.Array) -> replays.Replay:
    """Return a replay of 20 slots for each of 3 streams, to which 40 times 5 slots were added."""
    config = make_config(SMALL | DQN_FIELDS | {"dqn": DQN_FIELDS["dqn"] | {"num_envs": 3}})
    agent = make_agent(config)
    assert isinstance(agent, DQN)
    state = agent.init(key)
    replay = replays.init(jax.tree.map(lambda x: x[0, 0], state.replay.tape), 3, 20)
    slots = jax.tree.map(lambda x: jnp.zeros((3, 5, *x.shape[2:]), x.dtype), state.replay.tape)
    for i in range(40):
        start = jax.random.bernoulli(jax.random.fold_in(key, i), 0.2, (3, 6))
        slots = eqx.tree_at(lambda t: (t.start, t.valid), slots, (start[:, :5], jnp.ones((3, 5), bool)))
        shown = jax.tree.map(lambda x: x[:, 0], slots.observation)
        replay = replays.add(replay, slots, state.streams.inputs._replace(observation=shown, start=start[:, 5]))
    return replay


def test_counts_that_no_run_can_hold_are_refused():
    with pytest.raises(ValueError, match=r"num_envs \* rollout_length is 2,097,152,000 steps an update"):
        make_agent(make_config(SMALL | {"ppo": {"num_envs": 2**11, "rollout_length": 1_024_000}}))
    with pytest.raises(ValueError, match=r"makes .* updates, and a run can have at most 2,147,483,647"):
        make_agent(make_config(SMALL | PPO_FIELDS | {"total_steps": 10**14}))
