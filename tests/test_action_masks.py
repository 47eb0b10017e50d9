"""Action masks: an action that is not legal is never taken, and no value of one is ever learned from."""

import json
import re
from typing import Any

import _host_environments  # noqa: F401
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment

import memax_rl
from memax_rl import envs
from memax_rl.agents.dqn import unroll
from memax_rl.agents.epsilon_greedy import epsilon_greedy
from memax_rl.agents.ppo import evaluate_rows
from memax_rl.envs import spaces
from memax_rl.envs.adapters.gymnax import GymnaxAdapter
from memax_rl.envs.base import Environment, close, has_action_mask, step_if
from memax_rl.envs.baselines.policy import PolicyInput, RandomPolicy
from memax_rl.envs.meta.trials import FromReset, Trials
from memax_rl.envs.registry import _OWN
from memax_rl.envs.wrappers import TimeLimitConfig, wrap
from memax_rl.evaluation.export import export
from memax_rl.networks import ActionDistribution, NetworkConfig, QValues, make_q_network
from memax_rl.networks.encoder import AgentInput
from memax_rl.rollout import replay as replays
from memax_rl.rollout.streams import start_stream, step_stream
from memax_rl.runs import make_config
from memax_rl.runs.build import make_agent
from memax_rl.training import check

MASKED = "gym/memax_test/Masked-v0"
LEGAL = jnp.array([[True, True, False, False], [False, True, False, True], [False, False, True, False]])
LEGAL_PAIR = jnp.array([[True, True, False, True], [False, True, False, True], [False, True, True, False]])


class State(eqx.Module):
    """Steps taken, and the row of `LEGAL` that holds now."""

    time: jax.Array
    row: jax.Array


class Masked(Environment):
    """Of four actions some are legal, others by turns; one that is not pays -100. Shows which row of `LEGAL` holds.

    Episodes of four steps, terminated or truncated.
    """

    def __init__(self, space: Any = None, ending: str = "terminated"):
        self.space = spaces.Discrete(4) if space is None else space
        self.ending = ending
        self.legal = LEGAL_PAIR if self.space.shape else LEGAL

    @property
    def default_params(self):
        return None

    def action_space(self, params):
        return self.space

    def observation_space(self, params):
        return spaces.Discrete(3)

    def max_episode_steps(self, params):
        return 4

    def fixed_length(self, params):
        return 4

    def truncates(self, params):
        return self.ending == "truncated"

    def is_truncated(self, state, params):
        return (state.time >= 4) & (self.ending == "truncated")

    def action_mask(self, state, params):
        return self.legal[state.row]

    def reset_env(self, key, params):
        row = jax.random.randint(jax.random.fold_in(key, 1), (), 0, 3)
        return row, State(jnp.zeros((), jnp.int32), row)

    def step_env(self, key, state, action, params):
        parts = spaces.by_component(self.space, self.action_mask(state, params))
        taken = jnp.atleast_1d(action)
        legal = jnp.stack([part[a] for part, a in zip(parts, taken, strict=True)]).all()
        after = State(state.time + 1, jax.random.randint(key, (), 0, 3))
        reward = jnp.where(legal, taken[0].astype(jnp.float32), -100.0)
        return after.row, after, reward, (after.time >= 4) & (self.ending == "terminated"), {}


@pytest.fixture(autouse=True)
def _registered():
    envs.register("own/Masked", Masked)
    envs.register("own/MaskedTruncated", lambda: Masked(ending="truncated"))
    envs.register("own/MaskedPair", lambda: Masked(spaces.MultiDiscrete([2, 2])))
    yield
    for name in [name for name in _OWN if name.startswith("own/")]:
        _OWN.pop(name)


SMALL: dict[str, Any] = {"network": {"memory": "min_gru", "width": 8}, "eval_episodes": 0}
PPO = SMALL | {"total_steps": 512, "ppo": {"num_envs": 8, "rollout_length": 16, "num_minibatches": 2}}
DQN = SMALL | {
    "agent": "dqn",
    "total_steps": 512,
    "dqn": {"num_envs": 4, "tape_length": 8, "batch_size": 2, "learning_starts": 64, "buffer_size": 2000},
}


PQN = SMALL | {"agent": "pqn", "total_steps": 512, "pqn": PPO["ppo"]}
SAC = SMALL | {
    "agent": "sac",
    "total_steps": 512,
    "sac": {"num_envs": 4, "tape_length": 8, "batch_size": 2, "learning_starts": 64, "buffer_size": 2000},
}


JOINT = {"env_wrappers": [{"name": "joint_action"}]}


@pytest.mark.slow
@pytest.mark.parametrize("env", ["own/MaskedTruncated", "own/MaskedPair"])
@pytest.mark.parametrize("fields", [PPO, DQN, PQN, SAC], ids=["ppo", "dqn", "pqn", "sac"])
def test_no_illegal_action_is_taken_in_training_or_evaluation(fields, env, tmp_path):
    run = memax_rl.train(env=env, out=tmp_path / "run", **fields)
    returns = [row["episode/return"] for row in run.metrics() if not np.isnan(row["episode/return"])]
    assert returns
    assert min(returns) >= 0
    for greedy in (False, True):
        assert memax_rl.evaluate(run.folder, episodes=32, greedy=greedy)["mean_return_per_seed"][0] >= 0


def play(env, action, steps, key=None):
    """The slots of a stream that takes what `action(inputs, key)` says."""
    params = env.default_params

    def body(stream, keys):
        act = lambda carry, inputs, k: (carry, action(inputs, k), jnp.zeros(()))  # noqa: E731
        after, slot, _ = step_stream(env, params, act, stream, keys)
        return after, slot

    key = jax.random.key(0) if key is None else key
    stream = start_stream(env, params, None, key)
    return jax.lax.scan(body, stream, jax.random.split(key, (steps, 2)))[1]


def legal(inputs, key):
    return jnp.argmax(inputs.action_mask)


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
@pytest.mark.parametrize("limit", [None, 3])
def test_every_slot_holds_the_mask_of_its_observation(ending, limit):
    env = Masked(ending=ending)
    if limit is not None:
        env, _ = wrap(env, None, "own/Masked", (TimeLimitConfig(steps=limit),))
    tape = play(env, legal, 40)
    assert tape.truncated.any() == (ending == "truncated" or limit is not None)
    np.testing.assert_array_equal(tape.action_mask, LEGAL[tape.observation])
    assert len(set(tape.observation.tolist())) == 3


def test_trials_carry_the_masks_of_their_tasks():
    tape = play(Trials(FromReset(Masked(), None), episodes=2), legal, 40)
    np.testing.assert_array_equal(tape.action_mask, LEGAL[tape.observation["observation"]])
    assert tape.reward.min() >= 0


def test_without_masks_no_array_is_carried():
    env, params = envs.make("popgym/RepeatFirstEasy")
    assert not has_action_mask(env, params)
    assert start_stream(env, params, None, jax.random.key(0)).inputs.action_mask is None
    agent = make_agent(make_config(DQN | {"env": "popgym/RepeatFirstEasy", "dqn": {"buffer_size": 20_000}}))
    assert agent.init(jax.random.key(0)).replay.tape.action_mask is None


def test_a_mask_that_allows_nothing_counts_as_one_that_allows_all():
    nothing = jnp.zeros(4, bool)
    assert spaces.usable_mask(spaces.Discrete(4), nothing).all()
    pair = spaces.usable_mask(spaces.MultiDiscrete([2, 2]), nothing.at[0].set(True))
    assert pair.tolist() == [True, False, True, True]


# What the networks make of it


def test_a_policy_gives_illegal_actions_nothing(key):
    mask = jnp.array([True, False, True, False])
    raw = jnp.array([0.3, 50.0, 1.1, -2.0])
    masked = ActionDistribution(spaces.Discrete(4), raw, None, mask)
    alone = ActionDistribution(spaces.Discrete(2), raw[jnp.array([0, 2])], None)
    drawn = jax.vmap(lambda k: masked.sample(k)[0])(jax.random.split(key, 200))
    assert set(drawn.tolist()) == {0, 2}
    assert int(masked.mode()) == 2
    np.testing.assert_allclose(masked.entropy(), alone.entropy(), rtol=1e-6)
    np.testing.assert_allclose(masked.log_prob(jnp.array(2)), alone.log_prob(jnp.array(1)), rtol=1e-6)
    gradient = jax.grad(lambda raw: ActionDistribution(spaces.Discrete(4), raw, None, mask).entropy())(raw)
    np.testing.assert_array_equal(gradient == 0, ~mask)
    assert jnp.isfinite(gradient).all()


def test_a_policy_of_several_components_is_masked_by_component(key):
    mask = jnp.array([True, False, False, True, True])
    d = ActionDistribution(spaces.MultiDiscrete([2, 3]), jnp.array([0.0, 9.0, 9.0, 0.0, 0.0]), None, mask)
    drawn = jax.vmap(lambda k: d.sample(k)[0])(jax.random.split(key, 100))
    assert set(map(tuple, drawn.tolist())) == {(0, 1), (0, 2)}
    np.testing.assert_allclose(d.entropy(), np.log(2), rtol=1e-6)


def test_the_best_action_value_is_of_a_legal_action():
    q = QValues(spaces.Discrete(3), jnp.array([1.0, 9.0, 2.0]), jnp.array([True, False, True]))
    assert (float(q.max()), int(q.mode()), float(q.of(jnp.array(0)))) == (2, 2, 1)
    pair = QValues(spaces.MultiDiscrete([2, 2]), jnp.array([1.0, 9.0, 2.0, 3.0]), jnp.array([True, False, True, True]))
    assert (float(pair.max()), pair.mode().tolist()) == (4, [0, 1])


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 2])])
def test_exploration_is_even_over_what_is_legal(space, key):
    mask = jnp.array([True, False, True, True])
    network = make_q_network(NetworkConfig(memory="mlp", width=8), spaces.Discrete(3), space, dueling=True, key=key)
    inputs = AgentInput(jnp.array(0), jnp.zeros(space.shape, jnp.int32), jnp.zeros(()), jnp.array(True), mask)
    act = epsilon_greedy(network, space, 1.0)
    _, actions, log_prob = jax.vmap(lambda k: act(network.initial_state(), inputs, k))(jax.random.split(key, 3000))
    seen, counts = np.unique(actions.reshape(3000, -1), axis=0, return_counts=True)
    expected = [[0], [2], [3]] if space.shape == () else [[0, 0], [0, 1]]
    assert seen.tolist() == expected
    np.testing.assert_allclose(counts / 3000, 1 / len(expected), atol=0.04)
    np.testing.assert_allclose(np.exp(log_prob), 1 / len(expected), atol=1e-6)


def test_a_random_player_takes_legal_actions(key):
    mask = jnp.array([False, True, False, True])
    policy = RandomPolicy(spaces.Discrete(4))
    shown = PolicyInput(jnp.array(0), jnp.array(0), jnp.zeros(()), jnp.array(True), mask)
    drawn = jax.vmap(lambda k: policy.act(None, shown, k)[1])(jax.random.split(key, 100))
    assert set(drawn.tolist()) == {1, 3}


# What is learned from


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_the_target_of_q_learning_is_the_best_legal_value_also_at_a_time_limit(double, ending, key):
    env = "own/Masked" if ending == "terminated" else "own/MaskedTruncated"
    settings = DQN["dqn"] | {"double": double, "dueling": False, "q_lambda": None, "gamma": 0.5}
    agent: Any = make_agent(make_config(DQN | {"env": env, "dqn": settings}))
    state = agent.init(key)
    collect = eqx.filter_jit(agent._collect)
    for i in range(12):
        streams, _, replay, _ = collect(state, jax.random.fold_in(key, i))
        state = eqx.tree_at(lambda s: (s.streams, s.replay), state, (streams, replay))
    tape = replays.sample(state.replay, key, rows=4, slots=8).tape
    # Without its observation the network says the same everywhere: action 0 would be the best, were it always legal.
    best = jnp.array([9.0, 1.0, 2.0, 3.0])
    network = jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_inexact_array(x) else x, state.network)
    network = eqx.tree_at(lambda n: n.head.bias, network, best)
    q = unroll(network, tape)
    targets = agent.targets(q, q, tape)
    next_best = jnp.max(jnp.where(LEGAL, best, -jnp.inf), axis=1)[tape.observation[:, 1:]]
    expected = tape.reward[:, :-1] + 0.5 * jnp.where(tape.terminated[:, :-1], 0, next_best)
    counts = tape.valid[:, :-1]
    assert (counts & tape.truncated[:, :-1]).any() == (ending == "truncated")
    np.testing.assert_allclose(targets[:, :-1][counts], expected[counts], atol=1e-5)


@pytest.mark.slow
def test_the_policy_that_learns_is_the_one_that_acted(key):
    agent: Any = make_agent(make_config(PPO | {"env": "own/MaskedTruncated"}))
    state = agent.init(key)
    rows = agent.collect(state, key).rows
    distribution = evaluate_rows(state.network, rows).distribution
    log_prob = jax.vmap(jax.vmap(lambda d, a: d.log_prob(a)))(distribution, rows.tape.action)
    np.testing.assert_allclose(log_prob[rows.tape.valid], rows.tape.log_prob[rows.tape.valid], atol=1e-5)
    assert float(jnp.exp(rows.tape.log_prob[rows.tape.valid]).min()) > 0.4, "at most two of four are legal"


# Environments of one's own


@struct.dataclass
class GymnaxState(environment.EnvState):
    time: jax.Array


class Gymnax(environment.Environment):
    """gymnax's own interface, with a mask: action 0 is legal at even steps, 1 at odd ones."""

    how = "right"

    @property
    def default_params(self):
        return environment.EnvParams(max_steps_in_episode=3)

    def action_space(self, params):
        return spaces.Box(0.0, 1.0, (2,)) if self.how == "box" else spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Discrete(4)

    def action_mask(self, state, params):
        wrong = {"nothing": jnp.zeros(2, bool), "size": jnp.ones(3, bool), "dtype": jnp.ones(2)}
        return wrong.get(self.how, jnp.arange(2) == state.time % 2)

    def reset_env(self, key, params):
        return jnp.zeros((), jnp.int32), GymnaxState(time=jnp.zeros((), jnp.int32))

    def step_env(self, key, state, action, params):
        time = state.time + 1
        reward = jnp.where(action == state.time % 2, 1.0, -100.0)
        return time, GymnaxState(time=time), jnp.sum(reward), jnp.zeros((), bool), {}


def test_a_gymnax_environment_says_what_is_legal_by_a_method():
    env = GymnaxAdapter("own/Gymnax", Gymnax())
    assert has_action_mask(env, env.default_params)
    tape = play(env, legal, 12)
    # Slots of final observations are written where three steps are over.
    np.testing.assert_array_equal(tape.observation, [0, 1, 2, 3] * 3)
    assert tape.action_mask is not None
    np.testing.assert_array_equal(jnp.argmax(tape.action_mask, axis=1), [0, 1, 0, 1] * 3)
    assert tape.reward[tape.valid].tolist() == [1.0] * 9


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("nothing", "action_mask leaves no legal action"),
        ("size", r"action_mask must return an array of 2 bools, one for each value, got bool \(3,\)"),
        ("dtype", r"action_mask must return an array of 2 bools, one for each value, got float32 \(2,\)"),
        ("box", r"action_mask is for Discrete and MultiDiscrete actions, and these are Box\(2\)"),
    ],
)
def test_a_mask_that_cannot_be_one_is_refused_when_the_environment_is_made(how, says):
    wrong = type("Wrong", (Gymnax,), {"how": how})
    envs.register("own/Wrong", wrong)
    with pytest.raises(ValueError, match=f"own/Wrong: {says}"):
        envs.make("own/Wrong")


def test_an_environment_with_its_own_step_says_what_was_legal_at_the_end():
    class Forgets(Masked):
        def step(self, key, state, action, params=None):
            obs, state, reward, terminated, truncated, info = super().step(key, state, action, params)
            return obs, state, reward, terminated, truncated, {"final_observation": info["final_observation"]}

    envs.register("own/Forgets", Forgets)
    with pytest.raises(ValueError, match=r"step must return info\['final_action_mask'\]"):
        envs.make("own/Forgets")


@pytest.mark.parametrize("wrapper", [{"name": "sticky_actions"}, {"name": "frame_skip", "frames": 2}])
def test_wrappers_that_repeat_an_action_are_refused_where_it_may_be_illegal(wrapper):
    with pytest.raises(ValueError, match="takes actions again, and in own/Masked they may no longer be legal"):
        make_agent(make_config(PPO | {"env": "own/Masked", "env_wrappers": [wrapper]}))


def test_a_step_that_is_not_taken_keeps_the_mask():
    env = Masked()
    _, state = env.reset(jax.random.key(1), None)
    step = step_if(jnp.zeros((), bool), env, jax.random.key(2), state, jnp.array(0), None)
    np.testing.assert_array_equal(step.action_mask, env.action_mask(state, None))


def test_of_joint_actions_those_are_legal_whose_components_all_are():
    env, params = wrap(Masked(spaces.MultiDiscrete([2, 2])), None, "own/MaskedPair", make_config(JOINT).env_wrappers)
    _, state = env.reset(jax.random.key(1), params)
    wanted = {0: [False, True, False, True], 1: [False, False, False, True], 2: [False, False, True, False]}
    for time in range(12):
        np.testing.assert_array_equal(env.action_mask(state, params), wanted[int(state.row)])
        legal = jnp.argmax(env.action_mask(state, params))
        step = step_if(jnp.ones((), bool), env, jax.random.key(time), state, legal, params)
        assert step.reward >= 0, "the component that pays is the first"
        assert step.final_action_mask is not None
        assert step.final_action_mask.shape == (4,)
        state = step.state
    nothing = jnp.array([False, False, False, True])
    np.testing.assert_array_equal(env.show_action_mask(nothing, params), [False, True, False, True])


@pytest.mark.slow
@pytest.mark.parametrize("fields", [PPO, DQN], ids=["ppo", "dqn"])
def test_joint_actions_are_learned_and_taken_outside_too(fields, tmp_path):
    run = memax_rl.train(env="own/MaskedPair", out=tmp_path / "run", **fields | JOINT)
    assert run.metrics()[-1]["episode/return"] >= 0
    policy = memax_rl.load(run.folder, batch_size=2)
    mask = np.array([[False, True, True, False], [True, False, False, True]])
    for _ in range(3):
        taken = policy.step(np.zeros(2, np.int32), np.zeros(2), action_mask=mask)
        assert taken.tolist() == [[1, 0], [0, 1]]


# On the host


@pytest.fixture
def host():
    """Make environments of `_host_environments.Masked`; they are closed after the test."""
    made = []

    def make(processes=0, action_masks=True, **arguments):
        made.append(envs.make(MASKED, processes=processes, action_masks=action_masks, arguments=arguments)[0])
        return made[-1]

    yield make
    for env in made:
        close(env)


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("arguments", [{}, {"ending": "truncated"}, {"pair": True}], ids=str)
def test_a_gymnasium_environment_says_what_is_legal_in_info(arguments, processes, host):
    env = host(processes, **arguments)
    assert spaces.describe(env.observation_space(None)) == "Discrete(5)"

    def first_legal(inputs, key):
        parts = spaces.by_component(env.action_space(None), inputs.action_mask)
        return jnp.stack([jnp.argmax(part) for part in parts]).reshape(env.action_space(None).shape)

    keys = jax.random.split(jax.random.key(0), 3)
    tape = jax.jit(jax.vmap(lambda key: play(env, first_legal, 12, key)))(keys)
    # An illegal action would have raised.
    assert env.host.failure is None
    assert tape.truncated.any() == ("ending" in arguments)
    expected = np.asarray(tape.observation)[..., None] % 3 == np.arange(3)
    np.testing.assert_array_equal(tape.action_mask[..., -3:], expected)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "step 3 .* info has no 'action_mask', which a reset before had; set env_options.action_masks to"),
        ("long", r"step 3 .* the observation\['action_mask'\] has shape \[4\], expected \[3\]"),
    ],
)
def test_a_mask_of_a_gymnasium_environment_that_goes_wrong_is_told(how, says, host):
    env = host(how=how)
    jax.block_until_ready(jax.jit(lambda: play(env, legal, 12))())
    assert re.search(says, env.host.failure)


def test_masks_of_a_gymnasium_environment_can_be_left_out(host):
    assert not has_action_mask(host(action_masks=False), None)
    assert has_action_mask(host(), None)


def test_taxi_is_trained_with_its_masks(tmp_path):
    fields = PPO | {"ppo": PPO["ppo"] | {"rollout": "truncated_bptt"}}
    run = memax_rl.train(env="gym/Taxi-v4", out=tmp_path / "run", **fields)
    assert run.metrics()[-1]["env_steps"] >= 512


def test_a_loaded_policy_takes_a_mask(tmp_path):
    run = memax_rl.train(env="own/Masked", out=tmp_path / "run", **PPO)
    policy = memax_rl.load(run.folder, batch_size=2)
    mask = np.array([[False, True, False, False], [False, False, False, True]])
    for _ in range(3):
        assert policy.step(np.zeros(2, np.int32), np.zeros(2), action_mask=mask).tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"action_mask: expected bools of the shape \[2, 4\], got bool \[4\]"):
        policy.step(np.zeros(2, np.int32), np.zeros(2), action_mask=mask[0])


@pytest.mark.slow
def test_a_policy_of_masked_actions_asks_for_the_mask(tmp_path):
    run = memax_rl.train(env="own/Masked", out=tmp_path / "run", **PPO)
    spaces_file = run.spaces()
    assert spaces_file is not None
    assert spaces_file.action_masks
    with pytest.raises(ValueError, match="action_mask: in training the environment said which actions are legal"):
        memax_rl.load(run.folder).step(0)
    free = memax_rl.train(**SMALL, env="gymnax/CartPole-v1", total_steps=64, out=tmp_path / "free")
    memax_rl.load(free.folder).step(np.zeros(4))
    assert "action Discrete(4), of which a mask says what is legal" in check(run.config())
    assert "action Discrete(2)" in check(free.config())


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("fields", [PPO, DQN], ids=["ppo", "dqn"])
def test_an_exported_policy_takes_the_mask(fields, batch_size, tmp_path):
    run = memax_rl.train(env="own/Masked", out=tmp_path / "run", **fields)
    made = export(run.folder, tmp_path / "out", batch_size=batch_size)
    arguments = json.loads((made / "metadata.json").read_text())["arguments"]
    batch = () if batch_size is None else (batch_size,)
    assert arguments["action_mask"] == {"name": "action_mask", "shape": [*batch, 4], "dtype": "bool"}
    names = ["carry", "observation", "reward", "start", "action_mask", "key"]
    assert [*arguments] == (names if fields is PPO else names[:-1])
    step = jax.export.deserialize(bytearray((made / "policy.stablehlo").read_bytes())).call
    first = np.load(made / "carry.npz")
    carry = [first[x["name"]] for x in arguments["carry"]]
    policy = memax_rl.load(run.folder, batch_size=batch_size)
    for t, legal in enumerate([3, 1, 0, 2]):
        mask = np.broadcast_to(np.arange(4) == legal, (*batch, 4))
        shown, paid = np.full(batch, t % 3, np.int32), np.full(batch, 0.5, np.float32)
        key = [np.full(arguments["key"]["shape"], t, np.uint32)] if "key" in arguments else []
        carry, action = step(carry, [shown], paid, np.full(batch, t == 0), mask, *key)
        np.testing.assert_array_equal(action, legal)
        np.testing.assert_array_equal(policy.step(shown, paid, action_mask=mask), legal)
