"""PPO on small environments with known answers, and each mistake of recurrent PPO that it must not make."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _probes import Probe, Recall

from memax_rl import memory
from memax_rl.agents.ppo import PPO, PPOConfig, evaluate_rows
from memax_rl.envs import make
from memax_rl.networks import NetworkConfig, make_actor_critic
from memax_rl.tape import previous


def _agent(env, name="gru", width=16, env_params=None, past=True, **settings) -> PPO:
    settings = {"num_envs": 4, "minibatches": 2, "epochs": 2, "schedule": "constant"} | settings
    network = NetworkConfig(memory=name, width=width, previous_action=past, previous_reward=past, start=past)
    return PPO(env, env_params, partial(_network, network), PPOConfig(**settings), 10_000)


def _network(config, observation_space, action_space, key):
    return make_actor_critic(config, observation_space, action_space, key=key)


def _init(agent, key):
    # Not jitted as a whole: the small pieces are compiled once and serve all tests.
    return agent.init(key)


def _updates(agent, state, n):
    arrays, static = eqx.partition(state, eqx.is_array)

    @jax.jit
    def many(arrays):
        def one(arrays, _):
            new, metrics = agent.update(eqx.combine(arrays, static))
            return eqx.filter(new, eqx.is_array), metrics

        return jax.lax.scan(one, arrays, None, n)

    arrays, metrics = many(arrays)
    return eqx.combine(arrays, static), metrics


def _collect(agent, state, n=1):
    """Return the rows of the n-th collection with unchanged parameters."""
    collect = eqx.filter_jit(agent._collect)
    for i in range(n):
        streams, rows, carried, used, metrics = collect(state, jax.random.key(i))
        state = eqx.tree_at(lambda s: (s.streams, s.carried, s.used), state, (streams, carried, used))
    return rows, metrics, state


# How the tape is filled matters to the agent, not to the memory: for the other way three memories are enough.
FRESH = [(name, "stream") for name in memory.names()]
FRESH += [(name, "episodes") for name in ("gru", "lru", "linear_transformer")]


@pytest.mark.parametrize(("name", "fill"), FRESH)
def test_ratio_is_one_on_a_fresh_tape(name, fill, key):
    """Row 1: a memory stored after the step and replayed from there gives ratios far from 1."""
    agent = _agent(Probe(random=True), name, fill=fill, slots=16)
    state = _init(agent, key)
    # Away from the nearly uniform first policy, so that a wrong memory shows.
    head = state.network.policy_head
    state = eqx.tree_at(lambda s: s.network.policy_head.weight, state, head.weight * 100)
    rows, _, state = _collect(agent, state, n=2)
    distribution, _ = eqx.filter_jit(evaluate_rows)(state.network, rows)
    log_prob = jax.vmap(jax.vmap(lambda d, a: d.log_prob(a)))(distribution, rows.tape.action)
    ratio = jnp.where(rows.tape.valid, jnp.exp(log_prob - rows.tape.log_prob), 1)
    np.testing.assert_allclose(ratio, 1, atol=1e-5)


def test_memory_resets_exactly_at_the_start_while_acting(key):
    """Row 2: the state that the agent holds before the second step of an episode is that of the first step alone."""
    agent = _agent(Probe(longest=3, ending="terminated"), slots=12, num_envs=1, minibatches=1)
    state = _init(agent, key)
    network, stream = state.network, jax.tree.map(lambda x: x[0], state.streams)
    step = eqx.filter_jit(agent._step)
    starts, memories = [], []
    for i in range(7):
        inputs = stream.inputs
        starts.append(bool(inputs.start))
        stream, _, _ = step(network, stream, jax.random.split(jax.random.key(i)))
        fresh, _, _ = network.step(network.initial_state(), inputs)
        same = all(
            bool(jnp.allclose(a, b, atol=1e-6))
            for a, b in zip(jax.tree.leaves(stream.memory), jax.tree.leaves(fresh), strict=True)
        )
        memories.append(same)
    assert starts == [True, False, False, True, False, False, True]
    assert memories == starts


@pytest.mark.parametrize("fill", ["episodes", "stream"])
@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_what_the_tape_holds(fill, ending, key):
    """Slot by slot: observation, start and end flags, the final observation after a truncation, and no gap between."""
    agent = _agent(Probe(longest=4, ending=ending, random=True), fill=fill, slots=11)
    rows, _, _ = _collect(agent, _init(agent, key), n=3)
    tape = jax.tree.map(np.asarray, rows.tape)
    for row in range(4):
        time = 0
        for slot in range(11):
            count = tape.observation[row, slot, 0]
            if fill == "stream" and slot == 0:
                time = count
            assert count == time
            assert tape.start[row, slot] == (count == 0)
            is_final = slot > 0 and tape.truncated[row, slot - 1]
            if fill == "stream" and slot == 0:
                is_final = not tape.valid[row, 0]
            ended = tape.terminated[row, slot] or is_final
            time = 0 if ended else time + 1


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_every_transition_is_learnt_from_once(ending, key):
    """Nothing is thrown away: over many updates each episode's transitions enter the loss once, all of them."""
    agent = _agent(Probe(longest=5, ending=ending, random=True), slots=13)
    state = _init(agent, key)
    learnt, steps = 0, 0
    collect = eqx.filter_jit(agent._collect)
    for i in range(8):
        streams, rows, carried, used, metrics = collect(state, jax.random.key(i))
        state = eqx.tree_at(lambda s: (s.streams, s.carried, s.used), state, (streams, carried, used))
        learnt += int(jnp.sum(rows.tape.valid))
        steps += int(metrics["env_steps"])
        assert int(metrics["tape/overlong"]) == 0
    waiting = int(jnp.sum(carried.valid & (jnp.arange(13)[None, :] < used[:, None])))
    assert learnt + waiting == steps


def test_fixed_lengths_fill_the_tape(key):
    agent = _agent(*make("popgym/RepeatPreviousEasy")[:1], env_params=make("popgym/RepeatPreviousEasy")[1])
    assert agent.config.slots is not None
    assert agent.config.slots % 51 == 0
    _, metrics, _ = _collect(agent, _init(agent, key), n=2)
    assert float(metrics["tape/utilization"]) == 1
    assert float(metrics["tape/lag"]) == 0


@pytest.mark.parametrize(("ending", "want"), [("truncated", 5.0), ("terminated", 1.0)])
@pytest.mark.parametrize("fill", ["episodes", "stream"])
def test_value_at_an_end(ending, want, fill, key):
    """Rows 4 and 5: one step a episode, reward 1, discount 0.8. V -> 1 / (1 - 0.8) if truncated, 1 if terminated."""
    # All that is shown is alike, so the final observation, which is never learnt from, has the value of the first.
    agent = _agent(
        Probe(longest=1, ending=ending, constant=True),
        "mlp",
        past=False,
        fill=fill,
        slots=16,
        discount=0.8,
        learning_rate=1e-2,
        epochs=4,
    )
    state, _ = _updates(agent, _init(agent, key), 200)
    rows, _, _ = _collect(agent, state)
    value = eqx.filter_jit(evaluate_rows)(state.network, rows)[1]
    got = float(jnp.mean(value[:, :16], where=rows.tape.start[:, :16]))
    assert got == pytest.approx(want, abs=0.25)


def test_bootstrap_is_the_final_observation_with_its_memory(key):
    """Row 5: the value after a truncation is the final observation's, seen with the memory of the whole episode."""
    agent = _agent(Probe(longest=3), slots=8, discount=0.5, gae_lambda=0.0)
    state = _init(agent, key)
    rows, _, _ = _collect(agent, state)
    batch = eqx.filter_jit(agent._advantages)(state.network, rows)
    # Episode of three transitions: slots 0, 1, 2, and slot 3 holds observation 3.
    assert rows.tape.observation[0, :4, 0].tolist() == [0, 1, 2, 3]
    value = batch.value[0]
    np.testing.assert_allclose(batch.advantage[0, 2], 1 + 0.5 * value[3] - value[2], atol=1e-6)


def test_slots_that_do_not_count_do_not_matter(key):
    """Row 8: scramble what enters no loss; loss and gradient stay the same to the bit."""
    agent = _agent(Probe(longest=5, random=True), slots=13)
    state = _init(agent, key)
    rows, _, state = _collect(agent, state, n=2)
    batch = eqx.filter_jit(agent._advantages)(state.network, rows)
    valid = rows.tape.valid
    assert not bool(jnp.all(valid))

    def scramble(leaf):
        return jnp.where(valid, leaf, 1e6 + jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape))

    def fields(b):
        return b.advantage, b.returns, b.value, b.rows.tape.log_prob

    other = eqx.tree_at(fields, batch, tuple(map(scramble, fields(batch))))
    # The action of a slot that does not count is only ever seen as the previous action of a slot in the same episode.
    params, static = eqx.partition(state.network, eqx.is_inexact_array)
    grad = jax.jit(jax.grad(lambda p, b: agent._loss(p, static, b)[0]))
    for a, b in zip(jax.tree.leaves(grad(params, batch)), jax.tree.leaves(grad(params, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_inputs_at_an_episodes_start_show_nothing_of_the_last(key):
    """Row 11, while acting and while learning."""
    agent = _agent(Probe(longest=3, random=True), slots=12)
    state = _init(agent, key)
    step = eqx.filter_jit(lambda s, k: jax.vmap(agent._step, in_axes=(None, 0, 0))(state.network, s, k)[0])
    streams, seen = state.streams, 0
    for i in range(12):
        streams = step(streams, jax.random.split(jax.random.key(i), (4, 2)))
        at_start = np.asarray(streams.inputs.start)
        np.testing.assert_array_equal(at_start, np.asarray(streams.inputs.observation[:, 0]) == 0)
        assert not np.asarray(streams.inputs.previous_action)[at_start].any()
        assert not np.asarray(streams.inputs.previous_reward)[at_start].any()
        assert np.asarray(streams.inputs.previous_reward)[~at_start].all()
        seen += at_start.sum()
    assert seen > 5
    rows, _, _ = _collect(agent, state)
    reward = jax.vmap(previous)(rows.tape.reward, rows.tape.start, rows.before[1])
    starts = np.asarray(rows.tape.start)
    assert not np.asarray(reward)[starts].any()


def test_gradients_do_not_cross_episodes_on_the_tape(key):
    """Row 16, through the whole network."""
    agent = _agent(Probe(longest=4, ending="terminated"), slots=8)
    state = _init(agent, key)
    rows, _, _ = _collect(agent, state)

    def later(observation):
        moved = eqx.tree_at(lambda r: r.tape.observation, rows, observation)
        return jnp.sum(evaluate_rows(state.network, moved)[1][:, 4:8])

    grad = jax.jit(jax.grad(later))(rows.tape.observation)
    assert not np.asarray(grad[:, :4]).any()
    assert np.asarray(grad[:, 4:]).any()


def test_target_kl_stops_an_update(key):
    agent = _agent(Probe(), slots=12, learning_rate=0.1, target_kl=1e-6, epochs=8)
    _, metrics = _updates(agent, _init(agent, key), 2)
    assert float(metrics["stopped"][-1]) > 0.5
    free = _agent(Probe(), slots=12, learning_rate=0.1, epochs=8)
    _, metrics = _updates(free, eqx.filter_jit(free.init)(key), 2)
    assert float(metrics["stopped"][-1]) == 0


def test_learning_rate_falls_to_zero(key):
    agent = _agent(Probe(), slots=12, schedule="linear")
    state = _init(agent, key)
    np.testing.assert_allclose(agent.schedule(jnp.array(5_000)), 0.5 * agent.config.learning_rate, rtol=1e-6)
    end = eqx.tree_at(lambda s: s.env_steps, state, jnp.array(10_000))
    after, _ = _updates(agent, end, 1)
    for a, b in zip(jax.tree.leaves(after.network), jax.tree.leaves(end.network), strict=True):
        if eqx.is_array(a):
            np.testing.assert_allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("name", ["gru", "lru"])
def test_learns_to_remember(name, key):
    """A cue is shown once; the reward is for naming it three steps later. No memory can do no better than chance."""
    agent = _agent(Recall(), name, width=32, num_envs=32, slots=32, minibatches=4, epochs=4, learning_rate=3e-3)
    _, metrics = _updates(agent, _init(agent, key), 60)
    assert float(jnp.mean(metrics["episode/return"][-5:])) > 0.9


def test_mistakes_in_the_settings_are_explained():
    with pytest.raises(ValueError, match=r"minibatches=3 must divide num_envs=4"):
        _agent(Probe(), minibatches=3, slots=12)
    with pytest.raises(ValueError, match=r"slots=4 is shorter than the longest episode, 5 steps; set ppo.slots to 6"):
        _agent(Probe(), slots=4)
    _agent(Probe(), slots=4, fill="stream")
