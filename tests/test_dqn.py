"""DQN on small environments with known answers, and each mistake of recurrent Q-learning that it must not make."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from _probes import Probe, Recall, run_updates

from memax_rl.agents.dqn import DQN, DQNConfig, unroll
from memax_rl.agents.epsilon_greedy import epsilon_greedy
from memax_rl.envs import make, spaces
from memax_rl.networks import NetworkConfig, QValues, make_q_network
from memax_rl.networks.encoder import AgentInput
from memax_rl.rollout import replay as replays
from memax_rl.rollout.step_count import StepCount

ROWS, SLOTS = 4, 16


def _agent(env, name="gru", width=16, total_steps=10_000, env_params=None, past=True, **settings) -> DQN:
    """Return an agent; without `past` its network is shown the observation alone."""
    settings = {
        "num_envs": 4,
        "batch_size": ROWS,
        "tape_length": SLOTS,
        "buffer_size": 4 * 64,
        "learning_starts": 40,
        "lr_schedule": "constant",
        "samples_per_insert": 2.0,
        "q_lambda": None,
    } | settings
    config = DQNConfig(**settings)

    def network(observation_space, action_space, key):
        sizes = NetworkConfig(memory=name, width=width, previous_action=past, previous_reward=past, start=past)
        return make_q_network(sizes, observation_space, action_space, dueling=config.dueling, key=key)

    return DQN(env, env_params, network, config, total_steps)


def _loud(state):
    """Return the state with values that are far apart, and a target network of its own."""
    head, bias = state.network.head.weight, state.target.head.bias
    state = eqx.tree_at(lambda s: (s.network.head.weight, s.target.head.weight), state, (head * 100, -head * 70))
    return eqx.tree_at(lambda s: s.target.head.bias, state, bias + 0.5)


@pytest.fixture(scope="module")
def probed():
    """An agent, its state after some collecting, and tapes sampled from its replay."""
    agent = _agent(Probe(random=True), learning_starts=80, dueling=False)
    state = _loud(agent.init(jax.random.key(0)))
    collect = eqx.filter_jit(agent._collect)
    for i in range(4):
        streams, _, replay, _ = collect(state, jax.random.key(i))
        state = eqx.tree_at(lambda s: (s.streams, s.replay), state, (streams, replay))
    sample = jax.jit(agent.sample)(state.replay, jax.random.key(7))
    assert bool(jnp.any(sample.tape.truncated & sample.tape.valid))
    return agent, state, sample


_unroll = eqx.filter_jit(unroll)


def _stepped(network, tape) -> np.ndarray:
    """Return the action values [rows, slots, outputs] by acting slot by slot, as the agent did."""
    step = jax.jit(lambda memory, inputs: jax.vmap(network.step)(memory, inputs))
    rows, slots = tape.start.shape
    first = jax.tree.map(lambda leaf: jnp.stack([leaf] * rows), network.initial_state())
    memory, action, reward, found = first, jnp.zeros(rows, jnp.int32), jnp.zeros(rows), []
    for t in range(slots):
        start = tape.start[:, t]
        inputs = AgentInput(tape.observation[:, t], jnp.where(start, 0, action), jnp.where(start, 0, reward), start)
        memory, q = step(memory, inputs)
        action, reward = tape.action[:, t], tape.reward[:, t]
        found.append(q.raw)
    return np.stack(found, axis=1)


def test_next_values_are_one_unroll_shifted_by_one_slot(probed):
    """Q at t+1 is what the agent would see on acting through the whole episode, final observation included."""
    agent, state, sample = probed
    tape = sample.tape
    q, target_q = _unroll(state.network, tape), _unroll(state.target, tape)
    stepped, target_stepped = _stepped(state.network, tape), _stepped(state.target, tape)
    valid = np.asarray(tape.valid)
    np.testing.assert_allclose(q.raw[valid], stepped[valid], atol=1e-5)
    targets = eqx.filter_jit(agent.targets)(q, target_q, tape)
    checked = 0
    for row, t in zip(*np.nonzero(valid), strict=True):
        want = float(tape.reward[row, t])
        if not tape.terminated[row, t]:
            best = stepped[row, t + 1].argmax()
            want += 0.99 * target_stepped[row, t + 1, best]
            checked += 1
        assert float(targets[row, t]) == pytest.approx(want, abs=1e-5)
    assert checked > 20


def test_the_first_observation_changes_the_target_at_the_last_step(probed):
    """The first observation of another episode does not change it."""
    agent, state, sample = probed
    tape = sample.tape
    starts = np.asarray(tape.start)

    def targets(tape):
        return agent.targets(unroll(state.network, tape), unroll(state.target, tape), tape)

    targets = eqx.filter_jit(targets)
    before = np.asarray(targets(tape))
    row, last = next(zip(*np.nonzero(np.asarray(tape.truncated & tape.valid)), strict=True))
    first = np.flatnonzero(starts[row, : last + 1])[-1]
    assert last - first >= 1, "an episode of more than one step"
    other = eqx.tree_at(lambda t: t.observation, tape, tape.observation.at[row, first].add(3.0))
    after = np.asarray(targets(other))
    assert abs(after[row, last] - before[row, last]) > 1e-4
    end = next((t for t in np.flatnonzero(starts[row]) if t > last), SLOTS)
    np.testing.assert_array_equal(after[row, end:], before[row, end:])


def test_targets_follow_the_parameters(probed):
    """Nothing of a target is stored. The target network's values rise by 2, and each target by 2 gamma."""
    agent, state, sample = probed
    tape, q = sample.tape, _unroll(state.network, sample.tape)
    raised = eqx.tree_at(lambda n: n.head.bias, state.target, state.target.head.bias + 2)
    before = agent.targets(q, _unroll(state.target, tape), tape)
    after = agent.targets(q, _unroll(raised, tape), tape)
    want = np.where(tape.terminated, 0, 2 * 0.99)
    np.testing.assert_allclose((after - before)[tape.valid], want[tape.valid], atol=1e-5)


@pytest.mark.parametrize("by", ["transition", "priority"])
def test_slots_that_do_not_count_do_not_matter(by, probed):
    """Scramble action and reward where the loss does not look; loss, gradient and errors stay to the bit."""
    agent, state, sample = probed
    valid = sample.tape.valid
    assert not bool(jnp.all(valid))
    # The reward of a slot that does not count is seen by the network in the slot after it, if that is no start: the
    # slot after a final observation, or after the tape's cut, always is.
    tape = sample.tape
    noise = jnp.arange(valid.size, dtype=jnp.float32).reshape(valid.shape)
    other = eqx.tree_at(
        lambda s: (s.tape.reward, s.tape.action),
        sample,
        (jnp.where(valid, tape.reward, 1e6 + noise), jnp.where(valid, tape.action, 2 - tape.action)),
    )
    online, static = eqx.partition((state.network, state.target), eqx.is_inexact_array)
    loss = jax.jit(jax.value_and_grad(lambda p, s: agent._loss(p, online[1], static, s), has_aux=True))
    for a, b in zip(jax.tree.leaves(loss(online[0], sample)), jax.tree.leaves(loss(online[0], other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_inputs_at_a_start_show_nothing_of_the_last_episode(probed):
    """On a sampled tape, where any episode may follow another."""
    _, state, sample = probed
    tape = sample.tape
    last = jnp.concatenate([tape.start[:, 1:], jnp.zeros((ROWS, 1), bool)], axis=1)
    other = eqx.tree_at(
        lambda t: (t.reward, t.action), tape, (jnp.where(last, 99.0, tape.reward), jnp.where(last, 2, tape.action))
    )
    np.testing.assert_array_equal(_unroll(state.network, tape).raw, _unroll(state.network, other).raw)


def test_double_and_plain_targets_by_hand():
    q, target_q = jnp.array([[[0.0, 0], [1, 2], [5, 3]]]), jnp.array([[[9.0, 9], [40, 30], [70, 80]]])
    values = jax.vmap(jax.vmap(lambda raw: QValues(spaces.Discrete(2), raw)))
    q, target_q = values(q), values(target_q)
    no = jnp.zeros((1, 3), bool)
    flags = {"terminated": no.at[0, 2].set(True), "truncated": no, "valid": ~no, "start": no.at[0, 0].set(True)}
    tape = replays.Tape(jnp.zeros((1, 3)), jnp.zeros((1, 3), jnp.int32), jnp.array([[1.0, 2.0, 4.0]]), **flags)
    probe = Probe(longest=3)
    for settings, want in [
        ({}, [1 + 0.5 * 30, 2 + 0.5 * 70, 4]),
        ({"double": False}, [1 + 0.5 * 40, 2 + 0.5 * 80, 4]),
        ({"n_step": 2}, [1 + 0.5 * (2 + 0.5 * 70), 2 + 0.5 * 4, 4]),
        ({"q_lambda": 1.0}, [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4]),
        # The second action is not the best of the second step, the third is that of the third.
        ({"q_lambda": 1.0, "watkins": True}, [1 + 0.5 * 30, 2 + 0.5 * 4, 4]),
    ]:
        agent = _agent(probe, gamma=0.5, **settings)
        np.testing.assert_allclose(agent.targets(q, target_q, tape)[0], want)


def _one_episode(reward, said, double_by=None) -> tuple[QValues, QValues, replays.Tape]:
    """Return Q of the online network, Q of the target network, and the tape [1, slots] of one open episode."""
    values = jax.vmap(jax.vmap(lambda raw: QValues(spaces.Discrete(said.shape[1]), raw)))
    slots = len(reward)
    no = jnp.zeros((1, slots), bool)
    flags = {"terminated": no, "truncated": no, "valid": no.at[0, :-1].set(True), "start": no.at[0, 0].set(True)}
    tape = replays.Tape(jnp.zeros((1, slots)), jnp.zeros((1, slots), jnp.int32), jnp.asarray(reward)[None], **flags)
    chosen = said if double_by is None else double_by
    return values(jnp.asarray(chosen)[None]), values(jnp.asarray(said)[None]), tape


def test_rescaled_targets_by_hand():
    """h(3) = 2 - 1 + .003, h(8) = 3 - 1 + .008 and h(15) = 4 - 1 + .015; h(-x) = -h(x)."""
    said = np.array([[0, 0], [1.003, 0], [-2.008, -3.015], [0, 2.008]], np.float32)
    q, target_q, tape = _one_episode([6.5, 19, -1, 0], said)
    # Followed by 3, -8 and 8. One step: 6.5 + 3 / 2 = 8, 19 - 8 / 2 = 15, -1 + 8 / 2 = 3.
    agent = _agent(Probe(longest=3), gamma=0.5, rescale_values=True)
    np.testing.assert_allclose(agent.targets(q, target_q, tape)[0, :3], [2.008, 3.015, 1.003], atol=2e-4)
    # Two steps: 6.5 + 19 / 2 - 8 / 4 = 14, 19 - 1 / 2 + 8 / 4 = 20.5, and the last, which has no second step.
    agent = _agent(Probe(longest=3), gamma=0.5, rescale_values=True, n_step=2)
    want = [15**0.5 - 1 + 0.014, 21.5**0.5 - 1 + 0.0205, 1.003]
    np.testing.assert_allclose(agent.targets(q, target_q, tape)[0, :3], want, atol=2e-4)


@pytest.mark.parametrize("settings", [{"q_lambda": 0.7}, {"n_step": 1}, {"n_step": 3}], ids=str)
def test_rescaled_targets_agree_with_rlax(settings, key):
    """Q-learning of Kapturowski et al. 2019 over one episode, with values of both signs and many sizes."""
    slots, (reward_key, q_key, choice_key) = 12, jax.random.split(key, 3)
    reward = 20 * jax.random.normal(reward_key, (slots,))
    said, by = 3 * jax.random.normal(q_key, (slots, 3)), jax.random.normal(choice_key, (slots, 3))
    discount, taken = jnp.full(slots - 1, 0.9), jnp.zeros(slots - 1, jnp.int32)
    nothing, pair = jnp.zeros((slots - 1, 3)), rlax.SIGNED_HYPERBOLIC_PAIR
    if "q_lambda" in settings:
        by = said
        arguments = nothing, taken, reward[:-1], discount, said[1:], jnp.asarray(0.7)
        want = rlax.transformed_q_lambda(*arguments, tx_pair=pair)
    else:
        arguments = nothing, taken, said[1:], jnp.argmax(by[1:], axis=1).astype(jnp.int32), reward[:-1], discount
        want = rlax.transformed_n_step_q_learning(*arguments, settings["n_step"], tx_pair=pair)
    agent = _agent(Probe(longest=3), gamma=0.9, rescale_values=True, **settings)
    np.testing.assert_allclose(agent.targets(*_one_episode(reward, said, by))[0, :-1], want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_priorities_mix_the_greatest_and_the_mean_error(key):
    """By the share that is set, from the errors before the gradient step."""
    agent = _agent(Probe(random=True), sample_by="priority", priority_eta=0.25)
    assert agent.sizes.gradient_steps == 1
    state, _ = run_updates(agent, agent.init(key), 3)
    after, _ = eqx.filter_jit(agent._learn)(state, 1e-3, key)
    sample = jax.jit(agent.sample)(state.replay, jax.random.split(key, 1)[0])
    online, static = eqx.partition((state.network, state.target), eqx.is_inexact_array)
    _, (error, _) = jax.jit(lambda a, b, s: agent._loss(a, b, static, s))(*online, sample)
    want = jax.jit(lambda *a: replays.reprioritize(*a, eta=0.25))(state.replay, sample, error).priority
    np.testing.assert_allclose(after.replay.priority, want, rtol=1e-4)
    assert not np.allclose(want, state.replay.priority)


def test_multi_discrete_values_are_sums_over_components():
    q = QValues(spaces.MultiDiscrete((2, 3)), jnp.array([1.0, 4.0, 10.0, 30.0, 20.0]))
    assert float(q.of(jnp.array([0, 2]))) == 21
    assert float(q.max()) == 34
    assert q.mode().tolist() == [1, 1]
    one = QValues(spaces.Discrete(3), jnp.array([1.0, 4.0, 2.0]))
    assert (float(one.of(jnp.array(2))), float(one.max()), int(one.mode())) == (2, 4, 1)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete((2, 3))])
def test_dueling_values_have_the_mean_of_the_state_value(space, key):
    network = make_q_network(NetworkConfig(memory="mlp", width=8), spaces.Box(0, 1, (2,)), space, dueling=True, key=key)
    features = jnp.linspace(-1, 1, 8)
    q = network._values(features, None)
    assert network.value_head is not None
    mean = sum(jnp.mean(c) for c in spaces.by_component(q.space, q.raw))
    np.testing.assert_allclose(mean, network.value_head(features)[0], atol=1e-6)
    moved = eqx.tree_at(lambda n: n.head.bias, network, network.head.bias + 5)
    np.testing.assert_allclose(moved._values(features, None).raw, q.raw, atol=1e-5)


# Exploring


def test_epsilon_falls_as_it_should(key):
    agent = _agent(Probe(), epsilon_end=0.2, epsilon_decay_steps=100)
    for steps, want in [(0, 1.0), (50, 0.6), (100, 0.2), (10_000, 0.2)]:
        np.testing.assert_allclose(agent.epsilons(StepCount.of(steps)), np.full(4, want), rtol=1e-6)
    each = _agent(Probe(), epsilon_start=0.4, epsilon_end=0.4, epsilon_per_env=True)
    np.testing.assert_allclose(each.epsilons(StepCount.of(0)), 0.4 ** (1 + 7 * np.arange(4) / 3), rtol=1e-5)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete((2, 3))])
def test_epsilon_is_how_often_the_action_is_random(space, key):
    agent = _agent(Probe())
    agent.action_space = space
    network = make_q_network(NetworkConfig(memory="mlp", width=8), spaces.Box(0, 1, (2,)), space, dueling=True, key=key)
    inputs = AgentInput(jnp.ones(2), jnp.zeros(space.shape, jnp.int32), jnp.zeros(()), jnp.array(True))
    best = np.asarray(network.step(network.initial_state(), inputs)[1].mode())

    @jax.jit
    def actions(epsilon):
        act = epsilon_greedy(network, space, epsilon)
        run = jax.vmap(lambda k: act(network.initial_state(), inputs, k)[1:])
        return run(jax.random.split(key, 20_000))

    names, count = (6, np.array([3, 1])) if space.shape else (3, np.array([1]))
    for epsilon in (0.0, 0.3, 1.0):
        action, log_prob = map(np.asarray, actions(epsilon))
        name = action.reshape(20_000, -1) @ count
        want = np.full(names, epsilon / names)
        want[best.reshape(-1) @ count] += 1 - epsilon
        np.testing.assert_allclose(np.bincount(name, minlength=names) / 20_000, want, atol=0.015)
        np.testing.assert_allclose(np.exp(log_prob), want[name], rtol=1e-5)
    greedy = agent.act(network, greedy=True)(network.initial_state(), inputs, key)
    assert greedy[1].tolist() == best.tolist()
    assert agent.config.epsilon_end == 0.05
    usual = jax.jit(lambda k: jax.vmap(lambda k: agent.act(network)(network.initial_state(), inputs, k)[1])(k))
    share = np.mean(
        np.asarray(usual(jax.random.split(key, 20_000))).reshape(20_000, -1) @ count != best.reshape(-1) @ count
    )
    assert share == pytest.approx(0.05 * (1 - 1 / names), abs=0.01)


# The rhythm of an update


def test_updates_wait_for_learning_starts_and_follow_a_period_of_gradient_steps(key):
    """3 gradient steps an update, 4 to a period. A copy at 4, 8 and 12, whatever the number of environments."""
    sizes = {
        "num_envs": 7,
        "batch_size": 7,
        "tape_length": 10,
        "samples_per_insert": 3.0,
        "target_update_period": 4,
        "buffer_size": 7 * 64,
    }
    agent = _agent(Probe(longest=5, ending="terminated"), learning_starts=100, **sizes)
    assert (agent.sizes.steps, agent.sizes.gradient_steps) == (10, 3)
    state, update = agent.init(key), eqx.filter_jit(agent.update)
    counts, targets, networks, metrics = [], [], [], []
    for _ in range(6):
        state, now = update(state)
        metrics.append(now)
        counts.append(int(state.gradient_steps))
        targets.append(np.asarray(state.target.torso.encoder.project.weight))
        networks.append(np.asarray(state.network.torso.encoder.project.weight))
    # 70 transitions an update, so the first is not enough.
    assert [float(m["replay/size"]) for m in metrics] == [70, 140, 210, 280, 350, 420]
    assert counts == [0, 3, 6, 9, 12, 15]
    assert [float(m["gradient_steps"]) for m in metrics] == [0, 3, 3, 3, 3, 3]
    assert [bool(jnp.isnan(m["loss"])) for m in metrics] == [True, False, False, False, False, False]
    assert np.array_equal(networks[0], targets[0])
    for i in range(1, 6):
        assert not np.array_equal(networks[i], networks[i - 1])
        moved = counts[i] // 4 > counts[i - 1] // 4
        assert np.array_equal(targets[i], targets[i - 1]) == (not moved)
        assert np.array_equal(targets[i], networks[i]) == (counts[i] % 4 == 0)


def test_hard_and_soft_target_updates_by_hand():
    online, target = jnp.array(3.0), jnp.array(1.0)
    hard = _agent(Probe(), target_update_period=4)
    got = [np.asarray(hard.follow(online, target, jnp.array(n))).item() for n in range(1, 10)]
    assert got == [1, 1, 1, 3, 1, 1, 1, 3, 1]
    soft = _agent(Probe(), target_update_period=1, target_tau=0.25)
    assert [np.asarray(soft.follow(online, target, jnp.array(n))).item() for n in range(1, 4)] == [1.5] * 3


@pytest.mark.parametrize(
    ("settings", "steps", "gradient_steps"),
    [
        ({"samples_per_insert": 4.0, "num_envs": 16, "batch_size": 16, "tape_length": 128}, 32, 1),
        ({"samples_per_insert": 1.0, "num_envs": 64, "batch_size": 8, "tape_length": 128}, 16, 1),
        ({"samples_per_insert": 0.5, "num_envs": 3, "batch_size": 2, "tape_length": 12}, 16, 1),
        ({"samples_per_insert": 8.0, "num_envs": 64, "batch_size": 4, "tape_length": 32}, 1, 4),
        ({"samples_per_insert": 2.5, "num_envs": 10, "batch_size": 10, "tape_length": 10}, 4, 1),
    ],
)
def test_samples_per_insert_is_exact(settings, steps, gradient_steps):
    agent = _agent(Probe(), **(settings | {"buffer_size": 100_000}))
    assert (agent.sizes.steps, agent.sizes.gradient_steps) == (steps, gradient_steps)
    learned = gradient_steps * settings["batch_size"] * settings["tape_length"]
    assert learned == settings["samples_per_insert"] * steps * settings["num_envs"]


# Learning


@pytest.mark.parametrize(("ending", "want", "n_step"), [("truncated", 5.0, 1), ("terminated", 1.0, 3)])
def test_value_at_an_end(ending, want, n_step, key):
    """One step an episode, reward 1, discount 0.8. Q -> 1 / (1 - 0.8) if truncated, 1 if terminated."""
    probe = Probe(longest=1, ending=ending, constant=True)
    # All observations are alike, so the final one, which is never learned from, has the value of the first.
    agent = _agent(probe, "mlp", 8, past=False, gamma=0.8, learning_rate=1e-2, target_update_period=1, n_step=n_step)
    _, metrics = run_updates(agent, agent.init(key), 250)
    assert float(metrics["q_value"][-1]) == pytest.approx(want, abs=0.25)


def test_a_rescaled_value_at_an_end(key):
    """The network says h(5) = sqrt(6) - 1 + .005 where the return is 5; the metric is of the return."""
    probe = Probe(longest=1, ending="truncated", constant=True)
    settings = {"gamma": 0.8, "learning_rate": 1e-2, "target_update_period": 1, "rescale_values": True}
    agent = _agent(probe, "mlp", 8, past=False, **settings)
    state, metrics = run_updates(agent, agent.init(key), 250)
    assert float(metrics["q_value"][-1]) == pytest.approx(5, abs=0.25)
    sample = jax.jit(agent.sample)(state.replay, key)
    said = np.asarray(_unroll(state.network, sample.tape).raw)[np.asarray(sample.tape.valid)]
    np.testing.assert_allclose(said.max(axis=-1), 6**0.5 - 1 + 0.005, atol=0.06)


class RecallBoth(Recall):
    """Recall, with a second component of the action, for which one of two values is worth a quarter at every step."""

    def action_space(self, params):
        return spaces.MultiDiscrete((3, 2))

    def step(self, key, state, action, params=None):
        observation, after, reward, *rest = super().step(key, state, action[0], params)
        return observation, after, reward + jnp.where(action[1] == 1, 0.25, 0), *rest


@pytest.mark.slow
@pytest.mark.parametrize(("name", "env", "by"), [("gru", Recall(), "transition"), ("lru", RecallBoth(), "priority")])
def test_learns_to_remember(name, env, by, key):
    """A cue is shown once; the reward is for naming it three steps later. No memory can do no better than chance."""
    settings = {
        "num_envs": 16,
        "batch_size": 16,
        "buffer_size": 8192,
        "learning_starts": 256,
        "samples_per_insert": 8.0,
    }
    learning = {"learning_rate": 3e-3, "gamma": 0.9, "target_update_period": 20, "epsilon_decay_steps": 3000}
    agent = _agent(env, name, 32, sample_by=by, **settings, **learning)
    state, metrics = run_updates(agent, agent.init(key), 300)
    best = 2 if by == "priority" else 1
    assert float(jnp.nanmean(metrics["episode/return"][-20:])) > 0.9 * best
    # Priorities are those of episodes, set from their errors.
    priority, length = np.asarray(state.replay.priority), np.asarray(state.replay.length)
    assert (priority[length > 0] > 0).all()
    assert not priority[~np.asarray(state.replay.tape.start)].any()
    assert (len(np.unique(priority[length > 0])) > 5) == (by == "priority")


# Mistakes


@pytest.mark.parametrize(("slots", "fits"), [(15, False), (16, True)])
def test_an_episode_longer_than_the_tape_is_noticed(slots, fits, key):
    agent = _agent(Probe(longest=15), tape_length=slots, num_envs=4, samples_per_insert=1.0)
    metrics = eqx.filter_jit(agent._collect)(agent.init(key), key)[3]
    assert agent.sizes.steps >= 15
    assert (float(metrics["tape/overlong"]) == 0) == fits


def test_mistakes_in_the_settings_are_explained(key):
    with pytest.raises(
        ValueError, match=r"tape_length=4 is shorter than the longest episode, 5 slots; set dqn.tape_length to 6"
    ):
        _agent(Probe(), tape_length=4)
    with pytest.raises(ValueError, match=r"buffer_size=100 gives each of 4 environments 25 slots"):
        _agent(Probe(), buffer_size=100, samples_per_insert=1.0)
    with pytest.raises(ValueError, match=r"learning_starts=900 is more than a replay of 256 slots surely holds"):
        _agent(Probe(), learning_starts=900)
    with pytest.raises(ValueError, match="set either n_step or q_lambda, got n_step=2"):
        DQNConfig(n_step=2, q_lambda=0.5)
    with pytest.raises(ValueError, match=r"priority_eta=0\.5 is for episodes drawn by priority"):
        DQNConfig(priority_eta=0.5)
    DQNConfig(priority_eta=0.5, sample_by="priority")
    with pytest.raises(ValueError, match="watkins=True is about lambda-returns"):
        DQNConfig(watkins=True, q_lambda=None)
    env, params = make("popgym/PositionOnlyPendulumEasy")
    with pytest.raises(ValueError, match=r"dqn cannot act in the action space .*; expected Discrete or MultiDiscrete"):
        _agent(env, env_params=params)
    config = NetworkConfig(separate_value=True)
    with pytest.raises(ValueError, match="separate_value is for actor-critics"):
        make_q_network(config, spaces.Discrete(2), spaces.Discrete(2), dueling=True, key=key)
