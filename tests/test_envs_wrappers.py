"""Wrappers: what each does around an environment in JAX and on the host, with lengths and last observations."""

from functools import partial
from typing import Literal

import _host_environments  # noqa: F401
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import envs
from memax_rl.agents.dqn import DQN, DQNConfig
from memax_rl.agents.ppo import PPO, PPOConfig, evaluate_rows
from memax_rl.envs import base, spaces, wrappers
from memax_rl.envs.registry import _OWN
from memax_rl.envs.wrappers.observations import SelectKeysConfig
from memax_rl.envs.wrappers.steps import StickyActions
from memax_rl.networks import NetworkConfig, make_actor_critic, make_q_network
from memax_rl.networks.normalization import NormalizedBox, RunningNormalizer
from memax_rl.runs import make_config, override
from memax_rl.runs.config import TrainConfig

COUNTER = "gym/memax_test/Counter-v0"


class CounterState(eqx.Module):
    number: jax.Array
    time: jax.Array


class Counter(base.Environment):
    """In JAX what the host's Counter is: shows the episode's number and the step count; reward 1 a step."""

    def __init__(self, length=4):
        self.length = length

    @property
    def default_params(self):
        return base.EnvParams(max_steps_in_episode=self.length)

    def max_episode_steps(self, params):
        return self.length

    def fixed_length(self, params):
        return self.length

    def observation_space(self, params):
        return spaces.Box(0.0, 1e6, (2,))

    def action_space(self, params):
        return spaces.Discrete(3)

    def _show(self, state):
        return jnp.stack([state.number, state.time]).astype(jnp.float32)

    def reset_env(self, key, params):
        state = CounterState(jax.random.randint(key, (), 0, 100_000), jnp.zeros((), jnp.int32))
        return self._show(state), state

    def step_env(self, key, state, action, params):
        state = CounterState(state.number, state.time + 1)
        return self._show(state), state, jnp.ones(()), jnp.zeros((), bool), {}


@pytest.fixture(params=["jax", "host"])
def make(request):
    """A function that gives a Counter of some length with wrappers around it, in JAX or on the host."""
    made = []

    def one(*configs, length=4):
        if request.param == "host":
            env, params = envs.make(COUNTER, arguments={"length": length, "ending": "truncated"})
        else:
            env = Counter(length)
            params = env.default_params
        env, params = wrappers.wrap(env, params, "own/Counter", make_config({"env_wrappers": configs}).env_wrappers)
        made.append(env)
        return env, params

    yield one
    for env in made:
        assert base.failure(env) is None
        base.close(env)


def roll(env, params, steps=12, action=lambda t: jnp.int32(1), seed=0, active=lambda t: jnp.asarray(True)):
    """First observation, and observation, last observation, reward and ends of steps [steps, ...] of one stream."""
    reset_key, key = jax.random.split(jax.random.key(seed))

    @jax.jit
    def run():
        obs, state = env.reset(reset_key, params)

        def step(carry, now):
            t, key = now
            obs, state = carry
            new = base.step_if(active(t), env, key, state, action(t), params)
            obs = jnp.where(active(t), new.observation, obs)
            return (obs, new.state), (obs, new.final_observation, new.reward, new.terminated, new.truncated)

        _, out = jax.lax.scan(step, (obs, state), (jnp.arange(steps), jax.random.split(key, steps)))
        return obs, *out

    return [np.asarray(x) for x in run()]


def test_time_limit(make):
    env, params = make({"name": "reward_scaling", "scale": 1.0}, {"name": "time_limit", "steps": 3})
    assert env.max_episode_steps(params) == 3
    _, obs, final, _, terminated, truncated = roll(env, params)
    time = np.arange(1, 13)
    np.testing.assert_array_equal(truncated, time % 3 == 0)
    assert not terminated.any()
    np.testing.assert_array_equal(obs[:, 1], time % 3)
    np.testing.assert_array_equal(final[:, 1], (time - 1) % 3 + 1)
    assert len(np.unique(obs[:, 0])) == 5, "a cut episode is followed by a new one"
    np.testing.assert_array_equal(obs[truncated == 0], final[truncated == 0])


def test_a_step_that_is_left_out_changes_nothing(make):
    """All wrappers with a state of their own at once; every other step is left out."""
    configs = (
        {"name": "sticky_actions", "probability": 0.5},
        {"name": "time_limit", "steps": 3},
        {"name": "frame_skip", "frames": 2},
        {"name": "observation_noise", "std": 0.0},
    )
    env, params = make(*configs)
    _, obs, _, reward, _, truncated = roll(env, params, active=lambda t: t % 2 == 1)
    np.testing.assert_array_equal(obs[::2][1:], obs[1::2][:-1])
    np.testing.assert_array_equal(obs[1::2, 1], [2, 0, 2, 0, 2, 0])
    np.testing.assert_array_equal(reward[1::2], [2, 1, 2, 1, 2, 1])
    np.testing.assert_array_equal(truncated[1::2], [False, True] * 3)


def test_frame_skip(make):
    env, params = make({"name": "frame_skip", "frames": 3})
    fixed = env.fixed_length(params)
    assert fixed in (None, 2)
    _, obs, final, reward, _, truncated = roll(env, params)
    np.testing.assert_array_equal(reward, [3, 1] * 6)
    np.testing.assert_array_equal(truncated, [False, True] * 6)
    np.testing.assert_array_equal(obs[:, 1], [3, 0] * 6)
    np.testing.assert_array_equal(final[:, 1], [3, 4] * 6)
    assert len(np.unique(obs[:, 0])) == 7, "the frames after an end are not taken in the next episode"


def test_reward_scaling_and_mask(make):
    env, params = make({"name": "reward_scaling", "scale": -0.5}, {"name": "mask_observation", "keep": [1]})
    first, obs, final, reward, *_ = roll(env, params)
    assert (reward == -0.5).all()
    assert env.observation_space(params).shape == first.shape == (1,)
    np.testing.assert_array_equal(obs[:, 0], np.arange(1, 13) % 4)
    np.testing.assert_array_equal(final[:, 0], np.arange(12) % 4 + 1)


def test_every_joint_action_is_one_combination():
    env, params = envs.make("popgym/BattleshipEasy")
    configs = make_config({"env_wrappers": [{"name": "joint_action"}]}).env_wrappers
    joint, params = wrappers.wrap(env, params, "popgym/BattleshipEasy", configs)
    space = joint.action_space(params)
    assert isinstance(space, spaces.Discrete)
    assert space.n == 64
    taken = jax.vmap(joint.inner_action, in_axes=(0, None))(jnp.arange(64), params)
    np.testing.assert_array_equal(taken, np.stack(np.unravel_index(np.arange(64), (8, 8)), axis=-1))
    key = jax.random.key(3)
    _, state = joint.reset(key, params)
    for action in (0, 13, 63):
        there, here = env.step(key, state, taken[action], params), joint.step(key, state, jnp.int32(action), params)
        jax.tree.map(np.testing.assert_array_equal, here, there)


def test_observation_noise(make):
    env, params = make({"name": "observation_noise", "std": 0.1}, length=200)
    first, obs, final, *_ = roll(env, params, steps=199)
    plain, plain_obs, *_ = roll(*make(length=200), steps=199)
    noise = np.concatenate([first[None], obs])[1:] - np.concatenate([plain[None], plain_obs])[1:]
    assert np.std(noise[:, 1]) == pytest.approx(0.1, abs=0.02)
    assert abs(np.corrcoef(noise[:-1, 1], noise[1:, 1])[0, 1]) < 0.25
    np.testing.assert_array_equal(obs, final)
    assert abs(first[1]) < 0.5
    short = roll(*make({"name": "observation_noise", "std": 0.1}), steps=12)
    done = np.arange(1, 13) % 4 == 0
    assert (np.abs(short[2][done, 1] - 4) < 0.5).all()
    assert (short[1][done, 1] < 0.5).all()
    assert (short[1][..., 1] >= 0).all(), "clipped to the box"


class Echo(Counter):
    """Observes the action that it was given."""

    def step_env(self, key, state, action, params):
        obs, state, *rest = super().step_env(key, state, action, params)
        return obs.at[0].set(action.astype(jnp.float32)), state, *rest


def test_sticky_actions():
    env = StickyActions(Echo(50), 0.25)
    params = env.default_params
    # Every action differs from the two before, so that a repetition shows.
    outs = [roll(env, params, steps=200, action=lambda t: (t % 3).astype(jnp.int32), seed=s) for s in range(5)]
    taken = np.stack([out[2][:, 0] for out in outs])
    asked = np.arange(200) % 3
    sticks = taken != asked
    assert not sticks[:, ::50].any(), "the first action of an episode is the agent's"
    assert sticks.mean() == pytest.approx(0.25 * 49 / 50, abs=0.05)
    previous = np.roll(taken, 1, axis=1)
    np.testing.assert_array_equal(taken[sticks], previous[sticks])


@pytest.mark.parametrize(
    ("env_id", "name", "components"),
    [
        ("gymnax/CartPole-v1", "position_only", [0, 2]),
        ("gym/CartPole-v1", "velocity_only", [1, 3]),
        ("gymnax/Pendulum-v1", "velocity_only", [2]),
        ("gymnax/Acrobot-v1", "position_only", [0, 1, 2, 3]),
        ("gym/MountainCar-v0", "position_only", [0]),
    ],
)
def test_presets_take_the_right_components(env_id, name, components, key):
    env, params = envs.make(env_id)
    wrapped, params = wrappers.wrap(env, params, env_id, make_config({"env_wrappers": [{"name": name}]}).env_wrappers)
    whole, _ = env.reset(key, params)
    part, _ = wrapped.reset(key, params)
    np.testing.assert_array_equal(part, np.asarray(whole)[components])
    box, inner = wrapped.observation_space(params), env.observation_space(params)
    np.testing.assert_array_equal(box.high, np.broadcast_to(inner.high, inner.shape)[components])
    base.close(env)


def test_time_limits_that_an_environment_has_itself():
    def limited(env_id, steps):
        configs = make_config({"env_wrappers": [{"name": "time_limit", "steps": steps}]}).env_wrappers
        return wrappers.wrap(*envs.make(env_id), env_id, configs)

    for env_id in ("gymnax/CartPole-v1", "gymnax/Pendulum-v1", "gym/CartPole-v1"):
        for steps in (7, 900):
            assert envs.max_episode_steps(*limited(env_id, steps)) == steps
    assert envs.fixed_length(*limited("gymnax/Pendulum-v1", 7)) == 7
    assert envs.fixed_length(*limited("popgym/RepeatPreviousEasy", 7)) == 7
    env, params = limited("gymnax/Pendulum-v1", 7)
    zero = lambda t: jnp.zeros(1)  # noqa: E731
    np.testing.assert_array_equal(roll(env, params, steps=14, action=zero)[-1], np.arange(1, 15) % 7 == 0)
    with pytest.raises(ValueError, match=r"time_limit of 51 steps does nothing, .* no episode .* more than 51"):
        limited("popgym/RepeatPreviousEasy", 51)


def test_mistakes_are_explained():
    for wrapper, message in [
        (
            {"name": "stiky_actions"},
            r"unknown wrapper 'stiky_actions' in env_wrappers.0; did you mean 'sticky_actions'",
        ),
        ({"name": "sticky_actions", "probability": 2}, r"env_wrappers.0.sticky_actions.probability: .* got 2"),
        ({"name": "sticky_actions", "probabilty": 1}, r"unknown configuration key .*; did you mean 'probability'"),
        ({"name": "time_limit"}, r"env_wrappers.0.time_limit.steps: field required"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            make_config({"env_wrappers": [wrapper]})
        assert "\n" not in str(error.value)
    cart_pole, cards = "gymnax/CartPole-v1", "popgym/RepeatFirstEasy"
    for env_id, configs, message in [
        (cards, [{"name": "observation_noise", "std": 1}], "needs a Box of real numbers to observe"),
        (cards, [{"name": "position_only"}], "knows CartPole-v1.* not popgym/RepeatFirstEasy; use mask_observation"),
        (cart_pole, [{"name": "mask_observation", "keep": [4]}], "different components from 0 to 3"),
        (cart_pole, [{"name": "select_keys", "drop": ["x"]}], "needs a Dict to observe"),
        (
            cart_pole,
            [{"name": "joint_action"}],
            r"joint_action is for MultiDiscrete .* are Discrete\(2, .*; leave it out",
        ),
        (cart_pole, [{"name": "position_only"}, {"name": "velocity_only"}], "must come before a wrapper"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrappers.wrap(*envs.make(env_id), env_id, make_config({"env_wrappers": configs}).env_wrappers)


class Two(Counter):
    """Shows number and time under a key each."""

    def observation_space(self, params):
        return spaces.Dict({name: spaces.Box(0.0, 1e6, ()) for name in ("number", "time")})

    def _show(self, state):
        number, time = super()._show(state)
        return {"number": number, "time": time}


@pytest.mark.parametrize("options", [{"keep": ["time"]}, {"drop": ["number"]}], ids=str)
def test_keys_that_are_left_out_are_not_seen(options):
    inner = Two()
    env, params = SelectKeysConfig(**options).wrap(inner, inner.default_params, "own/Two")
    assert list(env.observation_space(params).spaces) == ["time"]
    observation, state = env.reset(jax.random.key(0), params)
    assert observation == {"time": 0}
    for t in (1, 2, 3, 4):
        observation, state, _, _, _, info = env.step(jax.random.key(t), state, 0, params)
        assert info["final_observation"] == {"time": t}
    assert observation == {"time": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either keep or drop"),
        ({"keep": ["time"], "drop": ["time"]}, "either keep or drop"),
        ({"keep": ["tiem"]}, "has no tiem; the keys of own/Two are number, time"),
        ({"drop": ["time", "number"]}, "would show nothing"),
    ],
    ids=["none", "both", "unknown", "all"],
)
def test_keys_that_cannot_be_selected_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SelectKeysConfig(**options).wrap(Two(), Two().default_params, "own/Two")


def test_wrappers_on_the_command_line():
    config = override(TrainConfig(), ["--env-wrappers", "[{name: sticky_actions}, {name: frame_skip, frames: 4}]"])
    assert [wrapper.name for wrapper in config.env_wrappers] == ["sticky_actions", "frame_skip"]
    again = override(config, ["--env-wrappers.0.probability", "0.5", "--env-wrappers.1.frames=2"])
    assert again.env_wrappers[0].model_dump()["probability"] == 0.5
    assert again.env_wrappers[1].model_dump()["frames"] == 2
    with pytest.raises(ValueError, match=r"unknown field --env-wrappers\.2\.frames"):
        override(config, ["--env-wrappers.2.frames", "2"])
    assert make_config(config.model_dump(mode="json")) == config


# Normalized observations


def normalizing_agent(key, fill: Literal["whole_episodes", "truncated_bptt"] = "whole_episodes", passes: int = 2):
    env = Counter(4)
    params = env.default_params
    network = NetworkConfig(memory="gru", width=8, separate_value=True, normalize_observation=True, normalize_clip=5.0)

    def make_network(observation_space, action_space, key):
        return make_actor_critic(network, observation_space, action_space, key=key)

    settings = PPOConfig(
        num_envs=4, rollout_length=14, num_minibatches=passes, update_epochs=passes, rollout=fill, learning_rate=1e-3
    )
    agent = PPO(env, params, make_network, settings, 10_000)
    return agent, agent.init(key)


def test_statistics_are_those_of_everything_seen(key):
    box = NormalizedBox(spaces.Box(-jnp.inf, jnp.inf, (3,)), 2.0)
    normalizer = RunningNormalizer(box)
    np.testing.assert_array_equal(normalizer(jnp.array([-5.0, 0.5, 5.0])), [-2, 0.5, 2])
    x = jax.random.normal(key, (90, 3)) * jnp.array([[1.0, 10.0, 0.1]]) + jnp.array([[0.0, 50.0, -1.0]])
    valid = jax.random.bernoulli(key, 0.6, (90,))
    scrambled = jnp.where(valid[:, None], x, jnp.nan)
    for part in range(3):
        rows = slice(30 * part, 30 * (part + 1))
        normalizer = normalizer.update(scrambled[rows], valid[rows])
    normalizer = normalizer.update(x[:5], jnp.zeros(5, bool))
    seen = np.asarray(x)[np.asarray(valid)]
    assert int(normalizer.moments.count) == len(seen)
    np.testing.assert_allclose(normalizer.moments.mean, seen.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(normalizer.moments.variance, seen.var(0), rtol=1e-4)
    np.testing.assert_allclose(normalizer(x[0]), np.clip((x[0] - seen.mean(0)) / seen.std(0), -2, 2), rtol=1e-4)


@pytest.mark.slow
def test_the_ratio_is_one_on_a_fresh_tape(key):
    """The statistics that the agent learns with are those it acted with, also once they have changed."""
    agent, state = normalizing_agent(key, "truncated_bptt")
    state, _ = eqx.filter_jit(agent.update)(state)
    head = state.network.policy_head
    state = eqx.tree_at(lambda s: s.network.policy_head.weight, state, head.weight * 100)
    _, _, rows, _ = eqx.filter_jit(agent.collect)(state, key)
    distribution = eqx.filter_jit(evaluate_rows)(state.network, rows).distribution
    log_prob = jax.vmap(jax.vmap(lambda d, a: d.log_prob(a)))(distribution, rows.tape.action)
    ratio = jnp.where(rows.tape.valid, jnp.exp(log_prob - rows.tape.log_prob), 1)
    np.testing.assert_allclose(ratio, 1, atol=1e-5)


def test_an_update_learns_through_the_statistics_that_it_acted_with(key):
    """With one minibatch the policy is still the one that acted, so its divergence from it is 0."""
    agent, state = normalizing_agent(key, "truncated_bptt", passes=1)
    head = state.network.policy_head
    state = eqx.tree_at(lambda s: s.network.policy_head.weight, state, head.weight * 100)
    _, metrics = eqx.filter_jit(agent.update)(state)
    assert abs(float(metrics["approx_kl"])) < 1e-6


def test_normalizing_needs_real_numbers(key):
    with pytest.raises(ValueError, match=r"normalize_observation needs a Box of real numbers to observe, got Discrete"):
        make_actor_critic(NetworkConfig(normalize_observation=True), spaces.Discrete(3), spaces.Discrete(2), key=key)


def test_statistics_change_once_an_update_and_by_nothing_else(key):
    agent, state = normalizing_agent(key)
    _, _, rows, _ = eqx.filter_jit(agent.collect)(state, jax.random.split(state.key, 3)[1])
    after, _ = eqx.filter_jit(agent.update)(state)
    seen = np.asarray(rows.tape.observation)[np.asarray(rows.tape.valid)]
    for torso in (after.network.torso, after.network.value_torso):
        assert torso is not None
        (normalizer,) = torso.encoder.normalizers
        assert normalizer is not None
        assert int(normalizer.moments.count) == len(seen)
        np.testing.assert_allclose(normalizer.moments.mean, seen.mean(0), rtol=1e-5)
        np.testing.assert_allclose(normalizer.moments.variance, seen.var(0), rtol=1e-4)


def test_statistics_of_dqn_are_those_of_what_was_collected(key):
    """In the network that acts and in the target network: else the two would see the same observation differently."""
    env = Counter(4)
    params = env.default_params

    def make_network(observation_space, action_space, key):
        network = NetworkConfig(memory="gru", width=8, normalize_observation=True)
        return make_q_network(network, observation_space, action_space, dueling=True, key=key)

    settings = DQNConfig(
        num_envs=4, batch_size=4, tape_length=12, samples_per_insert=1.0, buffer_size=160, learning_starts=10
    )
    agent = DQN(env, params, make_network, settings, 10_000)
    state = eqx.filter_jit(agent.init)(key)
    _, new, _, _ = eqx.filter_jit(agent._collect)(state, jax.random.split(state.key, 3)[1])
    after, _ = eqx.filter_jit(agent.update)(state)
    seen = np.asarray(new.observation)[np.asarray(new.valid)]
    for network in (after.network, after.target):
        (normalizer,) = network.torso.encoder.normalizers
        assert normalizer is not None
        assert int(normalizer.moments.count) == len(seen)
        np.testing.assert_allclose(normalizer.moments.mean, seen.mean(0), rtol=1e-5)


# One's own environment


@pytest.fixture
def own():
    yield partial(envs.register, "own/Counter")
    _OWN.pop("own/Counter", None)


def test_register(own):
    own(lambda: Counter(6))
    assert "own/Counter" in envs.names()
    env, params = envs.make("own/Counter")
    assert envs.fixed_length(env, params) == 6
    assert make_config({"env": "own/Counter"}).env == "own/Counter"
    own(lambda: Counter(7))
    assert envs.fixed_length(*envs.make("own/Counter")) == 7
    for name in ("Counter", "popgym/Counter", "own/"):
        with pytest.raises(ValueError, match="expected suite/Name in a suite of your own"):
            envs.register(name, Counter)
