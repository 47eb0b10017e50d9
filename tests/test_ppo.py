"""PPO on small environments with known answers, and each mistake of recurrent PPO that it must not make."""

import functools
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _probes import Probe, ProbeState, Recall, run_updates

from memax_rl import memory
from memax_rl.agents.ppo import PPO, PPOConfig, PPOState, Scheduled, evaluate_rows
from memax_rl.envs import make, spaces
from memax_rl.evaluation import play
from memax_rl.networks import NetworkConfig, make_actor_critic
from memax_rl.networks.encoder import AgentInput
from memax_rl.rollout.collect import RolloutBatch, rollout_size
from memax_rl.rollout.step_count import StepCount
from memax_rl.rollout.streams import step_stream
from memax_rl.rollout.tape import previous, segment_ids


def _agent(env, name="gru", width=16, env_params=None, sees_last_step=True, separate=False, **settings) -> PPO:
    settings = {"num_envs": 4, "num_minibatches": 2, "update_epochs": 2, "lr_schedule": "constant"} | settings
    shown = sees_last_step
    network = NetworkConfig(
        memory=name,
        width=width,
        previous_action=shown,
        previous_reward=shown,
        start=shown,
        separate_value=separate,
    )
    return PPO(env, env_params, partial(_network, network), PPOConfig(**settings), 10_000)


def _network(config, observation_space, action_space, key):
    return make_actor_critic(config, observation_space, action_space, key=key)


def _init(agent, key) -> PPOState:
    # Not jitted as a whole: the small pieces are compiled once and serve all tests.
    state = agent.init(key)
    # Away from the nearly uniform first policy, so that a wrong memory shows in the probabilities.
    head = state.network.policy_head
    return eqx.tree_at(lambda s: s.network.policy_head.weight, state, head.weight * 100)


@eqx.filter_jit
def _collect(agent, state, n) -> tuple[RolloutBatch, dict[str, jax.Array], PPOState]:
    """Return rows and metrics of n collections, stacked, with unchanged parameters, and the state after them."""

    def with_(streams, pending):
        return eqx.tree_at(lambda s: (s.streams, s.pending), state, (streams, pending))

    def one(carry, key):
        streams, pending, rows, metrics = agent.collect(with_(*carry), key)
        return (streams, pending), (rows, metrics)

    keys = jax.random.split(jax.random.key(0), n)
    carry, (rows, metrics) = jax.lax.scan(one, (state.streams, state.pending), keys)
    return rows, metrics, with_(*carry)


def _at(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


@eqx.filter_jit
def _ratios(network, rows):
    """Return probability ratios of the actions on the tape; 1 where a slot does not count."""
    distribution = evaluate_rows(network, rows).distribution
    log_prob = jax.vmap(jax.vmap(lambda d, a: d.log_prob(a)))(distribution, rows.tape.action)
    return jnp.where(rows.tape.valid, jnp.exp(log_prob - rows.tape.log_prob), 1)


class Collected(NamedTuple):
    """Eight collections of eleven slots in four streams, whose episodes have one to four steps."""

    agent: PPO
    rows: RolloutBatch
    metrics: dict[str, jax.Array]
    state: PPOState


COLLECTIONS, SLOTS = 8, 11
FILLS, ENDINGS = ("whole_episodes", "truncated_bptt"), ("terminated", "truncated")
every_way = pytest.mark.parametrize(("fill", "ending"), [(fill, ending) for fill in FILLS for ending in ENDINGS])


@functools.cache
def _collected(fill, ending) -> Collected:
    agent = _agent(
        Probe(longest=4, ending=ending, random=True), rollout=fill, rollout_length=SLOTS, gamma=0.9, gae_lambda=0.8
    )
    return Collected(agent, *_collect(agent, _init(agent, jax.random.key(0)), COLLECTIONS))


# The tape


@every_way
def test_ratio_is_one_on_a_fresh_tape(fill, ending):
    """A memory stored after the step and replayed from there gives ratios far from 1."""
    _, rows, _, state = _collected(fill, ending)
    for i in range(COLLECTIONS):
        np.testing.assert_allclose(_ratios(state.network, _at(rows, i)), 1, atol=1e-5)


# How the tape is filled matters to the agent, not to the memory: for the other way two memories more are enough.
REST = [(name, "truncated_bptt") for name in memory.names() if name != "gru"]
REST += [(name, "whole_episodes") for name in ("lru", "linear_transformer")]


@pytest.mark.parametrize(("name", "fill"), REST)
def test_ratio_is_one_with_every_memory(name, fill, key):
    """The same for the other memories."""

    @eqx.filter_jit
    def ratios(state):
        return _ratios(state.network, _at(_collect(agent, state, 2)[0], -1))

    agent = _agent(Probe(random=True), name, rollout=fill, rollout_length=16)
    np.testing.assert_allclose(ratios(_init(agent, key)), 1, atol=1e-5)


@every_way
def test_what_the_tape_holds(fill, ending):
    """Slot by slot: observation, start and end flags, the final observation after a truncation, and no gap between."""
    rows = _collected(fill, ending).rows
    tape = jax.tree.map(np.asarray, rows.tape)
    assert not (tape.truncated if ending == "terminated" else tape.terminated).any()
    for stream in range(4):
        time, final = 0, False
        for i in range(COLLECTIONS):
            if fill != "truncated_bptt":
                # A row begins with an episode, of which it may have been seen before.
                time, final = 0, False
            elif i > 0 and ending == "truncated":
                final = not tape.valid[i, stream, 0]
            for slot in range(SLOTS):
                at = (i, stream, slot)
                assert tape.observation[at] == time
                assert tape.start[at] == (time == 0)
                assert not (final and tape.valid[at])
                ended, cut = final or tape.terminated[at], tape.truncated[at]
                time, final = (0, False) if ended else (time + 1, bool(cut))
            if fill == "truncated_bptt":
                assert rows.after.observation[i, stream] == time
                assert rows.after.start[i, stream] == (time == 0)


@every_way
def test_every_transition_is_learnt_from_once(fill, ending):
    """Nothing is thrown away: over many updates each episode's transitions enter the loss once, all of them."""
    _, rows, metrics, state = _collected(fill, ending)
    waiting = jnp.sum(state.pending.tape.valid & (jnp.arange(SLOTS)[None, :] < state.pending.length[:, None]))
    waiting = int(waiting) if fill == "whole_episodes" else 0
    assert int(jnp.sum(rows.tape.valid)) + waiting == int(jnp.sum(metrics["env_steps"]))
    assert not np.any(metrics["tape/overlong"])


def test_fixed_lengths_fill_the_tape(key):
    env, env_params = make("popgym/RepeatPreviousEasy")
    agent = _agent(env, env_params=env_params)
    assert agent.config.rollout_length is not None
    assert agent.config.rollout_length % 51 == 0
    _, metrics, _ = _collect(agent, _init(agent, key), 2)
    assert np.all(metrics["tape/utilization"] == 1)
    assert np.all(metrics["tape/lag"] == 0)


# Values and advantages


@every_way
def test_advantages_agree_with_a_loop_over_episodes(fill, ending):
    """Values by `step` with the memory of the whole episode, and GAE transition by transition.

    The value after a truncation is the final observation's, which is unlike the next episode's first.
    """
    agent, rows, _, state = _collected(fill, ending)
    step = eqx.filter_jit(eqx.filter_vmap(state.network.step))
    memories = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), state.network.initial_state())
    action, reward = jnp.zeros(4, jnp.int32), jnp.zeros(4)
    for i in range(COLLECTIONS):
        tape, value = _at(rows.tape, i), []
        for slot in range(SLOTS):
            now = jax.tree.map(lambda leaf, slot=slot: leaf[:, slot], tape)
            inputs = AgentInput(
                now.observation, jnp.where(now.start, 0, action), jnp.where(now.start, 0, reward), now.start
            )
            memories, _, values = step(memories, inputs)
            value.append(np.asarray(values))
            action, reward = now.action, now.reward
        # The row's end is bootstrapped by what the agent is shown next, unless that belongs to another episode.
        value.append(np.asarray(step(memories, _at(rows.after, i))[2]) if fill == "truncated_bptt" else np.zeros(4))
        value = np.stack(value, axis=1)
        tape = jax.tree.map(np.asarray, tape)
        advantage = np.zeros_like(value)
        for stream, slot in np.ndindex(4, SLOTS):
            slot = SLOTS - 1 - slot
            at, after = (stream, slot), (stream, slot + 1)
            following = value[after] if not tape.terminated[at] else 0
            advantage[at] = tape.reward[at] + 0.9 * following - value[at]
            if not (tape.terminated[at] or tape.truncated[at]):
                advantage[at] += 0.9 * 0.8 * advantage[after]
        value, advantage = value[:, :SLOTS], advantage[:, :SLOTS]
        batch = _batch(agent, state.network, _at(rows, i))
        np.testing.assert_allclose(batch.advantage[tape.valid], advantage[tape.valid], atol=1e-4)
        np.testing.assert_allclose(batch.returns[tape.valid], (advantage + value)[tape.valid], atol=1e-4)


@pytest.mark.parametrize("fill", FILLS)
def test_the_memory_of_the_values_goes_on_from_row_to_row_without_being_acted_with(fill, key):
    # The two networks are the same, so their memories must be. A row of whole episodes begins with an empty one.
    agent = _agent(
        Probe(longest=4, random=True), rollout=fill, rollout_length=SLOTS, separate=True, learning_rate=1e-20
    )
    state = _init(agent, key)
    state = eqx.tree_at(lambda s: s.network.value_torso, state, state.network.torso)
    state, _ = run_updates(agent, state, 3)
    policy, value = state.streams.carry
    assert np.any(jax.tree.leaves(policy)[0] != 0)
    want = policy if fill == "truncated_bptt" else jax.tree.map(jnp.zeros_like, value)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), value, want)


class Fork(Probe):
    """Episodes of two kinds, drawn at random and shown: one terminates after a step, one is cut after three."""

    def __init__(self):
        super().__init__(longest=3, random=True)

    def observation_space(self, params: Any) -> spaces.Discrete:
        return spaces.Discrete(2)

    def _show(self, state: ProbeState) -> jax.Array:
        return (state.length == 3).astype(jnp.int32)

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, ProbeState]:
        state = ProbeState(jnp.array(0), jnp.where(jax.random.bernoulli(key), 3, 1))
        return self._show(state), state

    def step(self, key, state, action, params=None):
        following = ProbeState(state.time + 1, state.length)
        done, cut = following.time >= state.length, state.length == 3
        obs, first = self.reset(key)
        final = self._show(following)
        after = jax.tree.map(lambda a, b: jnp.where(done, a, b), first, following)
        return jnp.where(done, obs, final), after, jnp.ones(()), done & ~cut, done & cut, {"final_observation": final}


@pytest.mark.parametrize("fill", FILLS)
def test_value_at_an_end(fill, key):
    """Reward 1 a step, discount 0.8. V -> 1 where the step terminates, 1 / (1 - 0.8) where it is cut."""
    agent = _agent(
        Fork(),
        "mlp",
        rollout=fill,
        rollout_length=16,
        # On a torso of its own, else the policy's noise moves the values by up to .2.
        separate=True,
        sees_last_step=False,
        gamma=0.8,
        reward_scale=1.0,
        learning_rate=1e-2,
        lr_schedule="linear",
        update_epochs=4,
    )
    state, _ = run_updates(agent, agent.init(key), 150)
    inputs = AgentInput(jnp.arange(2), jnp.zeros(2, jnp.int32), jnp.zeros(2), jnp.ones(2, bool))
    _, _, value = jax.vmap(state.network.step, in_axes=(None, 0))(state.network.initial_state(), inputs)
    np.testing.assert_allclose(value, [1, 5], atol=0.01)


# The scale of rewards


def test_the_scale_is_one_over_the_deviation_of_all_returns(key):
    """Reward 1 a step, so that the return n steps before the end is 2 - 2 ** -n at discount 0.5."""
    agent = _agent(Probe(longest=4, ending="terminated", random=True), "mlp", rollout_length=SLOTS, gamma=0.5)
    rows, _, state = _collect(agent, agent.init(key), COLLECTIONS)
    moments, seen = state.returns, []
    for i in range(COLLECTIONS):
        tape = _at(rows, i).tape
        moments, scale = agent._scale(moments, tape)
        for terminated, valid in zip(np.asarray(tape.terminated), np.asarray(tape.valid), strict=True):
            ends = np.flatnonzero(terminated & valid)
            lengths = np.diff(ends, prepend=-1)
            seen += [2 - 2.0**-n for length in lengths for n in range(length)]
        np.testing.assert_allclose(scale, 1 / np.std(seen), rtol=1e-5)


class Paid(Probe):
    """Pays `price` for action 0, and `otherwise` for the others."""

    def __init__(self, price: float, otherwise: float = 0.0):
        super().__init__(longest=3, ending="terminated")
        self.price, self.otherwise = price, otherwise

    def step(self, key, state, action, params=None):
        observation, state, _, *rest = super().step(key, state, action)
        return observation, state, jnp.where(action == 0, self.price, self.otherwise), *rest


@pytest.mark.slow
def test_what_is_learnt_does_not_depend_on_the_unit_of_rewards(key):
    def learned(price, **settings):
        agent = _agent(Paid(price), "mlp", rollout_length=12, sees_last_step=False, **settings)
        state, metrics = run_updates(agent, agent.init(key), 5)
        return jax.tree.leaves(eqx.filter(state.network, eqx.is_inexact_array)), metrics["reward_scale"]

    (small, small_scale), (large, large_scale) = learned(2.0**-8), learned(2.0**8)
    np.testing.assert_allclose(small_scale, large_scale * 2.0**16, rtol=1e-5)
    for a, b in zip(small, large, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    (fixed, _) = learned(2.0**8, reward_scale=1.0)
    assert any(np.max(np.abs(a - b)) > 1e-2 for a, b in zip(large, fixed, strict=True))


@pytest.mark.parametrize("price", [0.0, 0.3])
def test_returns_that_are_all_the_same_are_not_scaled(price, key):
    agent = _agent(Paid(price, otherwise=price), "mlp", rollout_length=12, gamma=0.0)
    _, metrics = run_updates(agent, agent.init(key), 2)
    np.testing.assert_array_equal(metrics["reward_scale"], 1)


# The loss


@eqx.filter_jit
def _now(agent, passed=0.0) -> Scheduled:
    """Return the settings that may fall, as they are when so much of the run has passed."""
    return Scheduled(*(jnp.asarray(falls(passed)) for falls in agent.schedules))


def _loss(agent, network, batch):
    """Return the gradient, and the metrics of the loss."""
    params, static = eqx.partition((network, None), eqx.is_inexact_array)
    moments = _at(agent._stats(batch, jnp.arange(len(batch.value))[None]), 0)
    (grads, _), metrics = jax.grad(agent._loss, has_aux=True)(params, static, batch, moments, _now(agent))
    return grads, metrics


@eqx.filter_jit
def _batch(agent, network, rows):
    return agent._advantages(network, rows, jnp.ones(()))[0]


def _scrambled(leaf, where):
    """Return the leaf with a large number of its own in each slot where `where`."""
    numbers = 1000 + jnp.arange(leaf.size).reshape(leaf.shape).astype(leaf.dtype)
    return jnp.where(where.reshape(where.shape + (1,) * (leaf.ndim - 2)), numbers, leaf)


def _assert_same(tree, other):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_slots_that_do_not_count_do_not_matter():
    """Scramble what enters no loss; loss and gradient stay the same to the bit."""
    agent, rows, _, state = _collected("whole_episodes", "truncated")
    rows = _at(rows, 3)
    batch = _batch(agent, state.network, rows)
    want = _loss(agent, state.network, batch)
    off = ~rows.tape.valid
    assert bool(jnp.any(off))

    def fields(b):
        return b.advantage, b.returns, b.value, b.rows.tape.log_prob

    other = eqx.tree_at(fields, batch, tuple(_scrambled(leaf, off) for leaf in fields(batch)))
    _assert_same(_loss(agent, state.network, other), want)

    # What does not count is no context of later slots either: final observations are seen, and nothing else.
    final = jnp.pad(rows.tape.truncated[:, :-1], ((0, 0), (1, 0)))
    tape = eqx.tree_at(
        lambda t: (t.observation, t.action, t.reward),
        rows.tape,
        (
            _scrambled(rows.tape.observation, off & ~final),
            jnp.where(off, (rows.tape.action + 1) % 3, rows.tape.action),
            _scrambled(rows.tape.reward, off),
        ),
    )
    other = _batch(agent, state.network, rows._replace(tape=tape))
    _assert_same(_loss(agent, state.network, other), want)


def test_loss_by_hand_over_the_slots_that_count():
    """Means, and the mean and standard deviation of the advantages, are over the slots that count."""
    agent, rows, _, state = _collected("whole_episodes", "truncated")
    rows = _at(rows, 3)
    batch = _batch(agent, state.network, rows)
    # As if another policy had acted, so that ratios differ from 1 and some are clipped.
    noise = 0.3 * jax.random.normal(jax.random.key(5), rows.tape.valid.shape)
    batch = eqx.tree_at(lambda b: b.rows.tape.log_prob, batch, rows.tape.log_prob + noise)
    _, got = _loss(agent, state.network, batch)
    on = np.asarray(rows.tape.valid)
    distribution = eqx.filter_jit(evaluate_rows)(state.network, rows).distribution
    p = np.asarray(jax.nn.softmax(distribution.raw))[on]
    advantage, ratio = np.asarray(batch.advantage)[on], np.exp(-np.asarray(noise)[on])
    advantage = (advantage - advantage.mean()) / advantage.std()
    assert (ratio > 1.2).any()
    assert (ratio < 0.8).any()
    want = {
        "policy_loss": -np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage).mean(),
        "value_loss": 0.5 * (np.asarray(batch.value - batch.returns)[on] ** 2).mean(),
        "entropy": -(p * np.log(p)).sum(axis=1).mean(),
        "approx_kl": (ratio - 1 - np.log(ratio)).mean(),
        "clip_fraction": (np.abs(ratio - 1) > 0.2).mean(),
    }
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)
    total = want["policy_loss"] + want["value_loss"] - 0.003 * want["entropy"]
    np.testing.assert_allclose(got["loss"], total, rtol=1e-4)


def test_clipping_and_the_entropy_bonus_fall_by_their_schedules(key):
    """Half of the run has passed: the loss has half the bonus and half the clipping, and the log says so."""
    agent = _agent(Probe(), rollout_length=12, clip_schedule="linear", entropy_schedule="linear", entropy_coef=0.2)
    halved = _agent(Probe(), rollout_length=12, clip_eps=0.1, entropy_coef=0.1)
    state = _init(agent, key)
    state = eqx.tree_at(lambda s: s.env_steps, state, StepCount.of(5_000))
    (_, got), (_, want) = (eqx.filter_jit(one.update)(state) for one in (agent, halved))
    assert float(got["clip_eps"]) == pytest.approx(0.1)
    assert float(got["entropy_coef"]) == pytest.approx(0.1)
    assert float(want["clip_fraction"]) > 0
    for name in ("loss", "clip_fraction", "grad_norm"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, err_msg=name)


def test_each_row_is_learnt_from_once_in_an_epoch():
    """Minibatches are whole rows, and together all of them. A step size of 0 leaves the values as they are."""
    agent, rows, _, state = _collected("truncated_bptt", "terminated")
    batch = _batch(agent, state.network, _at(rows, 0))
    assert np.all(batch.rows.tape.valid), "else minibatches differ in the number of slots that count"
    _, want = _loss(agent, state.network, batch)
    learn = eqx.filter_jit(agent._learn)
    still = _now(agent)._replace(learning_rate=jnp.zeros(()))
    _, optimizer, got = learn((state.network, None), state.optimizer, batch, still, jax.random.key(0))
    for name in ("value_loss", "entropy"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)
    assert int(optax.tree.get(optimizer, "count")) == agent.config.update_epochs * agent.config.num_minibatches


@pytest.mark.parametrize("ending", ENDINGS)
def test_gradients_do_not_cross_episodes_on_the_tape(ending):
    """Through the whole network."""
    _, rows, _, state = _collected("whole_episodes", ending)
    rows = _at(rows, -1)
    episode = jax.vmap(segment_ids)(rows.tape.start)

    @jax.jit
    def grad(observation, reward):
        def later(observation, reward):
            moved = eqx.tree_at(lambda r: (r.tape.observation, r.tape.reward), rows, (observation, reward))
            return jnp.sum(jnp.where(episode > 1, evaluate_rows(state.network, moved).value, 0))

        return jax.grad(later, argnums=(0, 1))(observation, reward)

    for leaf in grad(rows.tape.observation, rows.tape.reward):
        assert not np.any(leaf[episode == 1])
        assert np.any(leaf[episode > 1])


# Acting


class Acted(NamedTuple):
    """What four streams were shown, did and remembered in 24 steps."""

    inputs: AgentInput
    action: jax.Array
    memory: Any
    fresh: Any


@functools.cache
def _acted(ending) -> Acted:
    agent = _agent(Probe(longest=3, ending=ending, random=True), rollout_length=12)
    state = _init(agent, jax.random.key(0))
    network = state.network

    @jax.jit
    def run(streams):
        def one(streams, keys):
            step = jax.vmap(lambda s, k: step_stream(agent.env, agent.env_params, agent.act(network), s, k))
            after, slot, _ = step(streams, keys)
            fresh, _, _ = jax.vmap(network.step, in_axes=(None, 0))(network.initial_state(), streams.inputs)
            return after, Acted(streams.inputs, slot.action, after.carry, fresh)

        return jax.lax.scan(one, streams, jax.random.split(jax.random.key(1), (24, 4, 2)))[1]

    return jax.tree.map(np.asarray, run(state.streams))


@pytest.mark.parametrize("ending", ENDINGS)
def test_memory_resets_exactly_at_the_start_while_acting(ending):
    """The state that the agent holds after a step is that of the step alone at a start, and nowhere else."""
    acted = _acted(ending)
    starts = acted.inputs.observation[:, :, 0] == 0
    assert 4 < starts.sum() < 80
    np.testing.assert_array_equal(acted.inputs.start, starts)
    (memory,), (fresh,) = jax.tree.leaves(acted.memory), jax.tree.leaves(acted.fresh)
    difference = np.abs(memory - fresh).max(axis=-1)
    assert difference[starts].max() < 1e-6
    assert difference[~starts].min() > 1e-3


@pytest.mark.parametrize("ending", ENDINGS)
def test_inputs_at_an_episodes_start_show_nothing_of_the_last(ending):
    """While acting and while learning."""
    inputs, action, *_ = _acted(ending)
    starts = inputs.observation[:, :, 0] == 0
    np.testing.assert_array_equal(inputs.start, starts)
    np.testing.assert_array_equal(inputs.previous_reward, ~starts)
    np.testing.assert_array_equal(inputs.previous_action[0], 0)
    np.testing.assert_array_equal(inputs.previous_action[1:], np.where(starts[1:], 0, action[:-1]))
    assert action[:-1][starts[1:]].any(), "some action would leak"
    rows = _collected("truncated_bptt", ending).rows
    for i in range(COLLECTIONS):
        tape, before = _at(rows.tape, i), _at(rows.before, i)
        for shown in jax.vmap(previous)((tape.action, tape.reward), tape.start, before):
            assert not np.asarray(shown)[np.asarray(tape.start)].any()


def test_the_first_step_shows_no_action_at_all(key):
    """It is not that of the last episode, and not action 0 either, which is an action as any other."""
    encoder = _agent(Probe()).init(key).network.torso.encoder
    inputs = AgentInput(jnp.ones((3, 1)), jnp.arange(3), jnp.zeros(3), jnp.ones(3, bool))
    first = jax.vmap(encoder)(inputs)
    later = jax.vmap(encoder)(inputs._replace(start=jnp.zeros(3, bool)))
    np.testing.assert_array_equal(first[1:], first[:-1])
    assert np.abs(later[1:] - later[:-1]).max() > 1e-3
    weight = encoder.project.weight[:, 1:4]
    silent = eqx.tree_at(lambda e: e.project.weight, encoder, encoder.project.weight.at[:, 1:4].set(0 * weight))
    np.testing.assert_allclose(first, jax.vmap(silent)(inputs), atol=1e-6)


# Learning


def test_target_kl_stops_an_update(key):
    """And a step size that has fallen to zero neither moves the network nor stops anything."""
    agent = _agent(Probe(), rollout_length=12, learning_rate=0.1, lr_schedule="linear", target_kl=1e-6, update_epochs=8)
    state = _init(agent, key)
    np.testing.assert_allclose(_now(agent, 0.5).learning_rate, 0.05, rtol=1e-6)
    update = eqx.filter_jit(agent.update)
    after, metrics = update(state)
    assert float(metrics["stopped"]) > 0.5
    end = eqx.tree_at(lambda s: s.env_steps, after, StepCount.of(10_000))
    last, metrics = update(end)
    assert float(metrics["stopped"]) == 0
    for a, b in zip(jax.tree.leaves(last.network), jax.tree.leaves(end.network), strict=True):
        if eqx.is_array(a):
            np.testing.assert_allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("name", ["gru", "lru"])
def test_learns_to_remember(name, key):
    """A cue is shown once; the reward is for naming it three steps later. No memory can do no better than chance."""
    agent = _agent(
        Recall(), name, width=32, num_envs=32, rollout_length=32, num_minibatches=4, update_epochs=4, learning_rate=3e-3
    )
    state, metrics = run_updates(agent, agent.init(key), 25)
    assert float(jnp.mean(metrics["episode/return"][-10:])) > 0.9
    # Right while training, wrong in evaluation.
    run = partial(play, agent.env, None, agent.act(state.network), state.network.initial_state())
    returns, _, _ = jax.jit(partial(run, episodes=64, max_steps=5))(key)
    assert float(jnp.mean(returns)) > 0.7
    # Nothing that is counted is skipped.
    assert int(state.updates) == 25
    assert int(optax.tree.get(state.optimizer, "count")) == 25 * 4 * 4
    assert int(state.env_steps.to_numpy()) == 25 * 32 * 32


def test_rows_that_are_chosen_fit_the_minibatches():
    """Of an environment with long episodes there are few, and a search tries 16 minibatches."""
    size = partial(rollout_size, Probe(longest=500), None, num_envs=None, rollout_length=None, mode="whole_episodes")
    assert size(num_minibatches=16, total_steps=10**6, name="ppo") == (16, 2004)
    assert size(num_minibatches=3, total_steps=10**6, name="ppo", devices=2) == (12, 2004)
    message = (
        r"num_minibatches=64 needs 64 environments or more, .* ppo.num_envs, which is not set, would be 8, for about "
        r"8,192 slots an update in rows of 2,004; set ppo.num_envs to 64, or ppo.num_minibatches to 32 or less"
    )
    with pytest.raises(ValueError, match=message):
        size(num_minibatches=64, total_steps=10**6, name="ppo")
    assert size(num_minibatches=32, total_steps=10**6, name="ppo") == (32, 2004)
    message = (
        "num_minibatches=17 on each of 2 devices needs 34 .* set pqn.num_envs to 34, or pqn.num_minibatches to 16 or"
    )
    with pytest.raises(ValueError, match=message):
        size(num_minibatches=17, total_steps=10**6, name="pqn", devices=2)
    assert size(num_minibatches=16, total_steps=10**6, name="pqn", devices=2) == (32, 2004)


def test_mistakes_in_the_settings_are_explained():
    with pytest.raises(ValueError, match=r"num_minibatches=3 must divide num_envs=4"):
        _agent(Probe(), num_minibatches=3, rollout_length=12)
    with pytest.raises(
        ValueError, match=r"rollout_length=4 is shorter than the longest episode, 5 slots; set ppo.rollout_length to 6"
    ):
        _agent(Probe(), rollout_length=4)
    _agent(Probe(), rollout_length=4, rollout="truncated_bptt")


@pytest.mark.parametrize(
    ("name", "slots"),
    [("PositionOnlyPendulumEasy", 201), ("PositionOnlyPendulumHard", 101), ("RepeatPreviousEasy", 3 * 51)],
)
def test_rows_by_default_hold_whole_episodes_and_final_observations(name, slots):
    """An episode that a time limit cuts takes one slot more than it has steps."""
    env, params = make(f"popgym/{name}")
    assert _agent(env, env_params=params, rollout_length=None).config.rollout_length == slots
