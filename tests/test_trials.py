"""Trials: what begins and ends where, disjoint splits, options, and an episode's end within a trial for PPO."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import envs
from memax_rl.agents.dqn import DQN, DQNConfig
from memax_rl.agents.ppo import PPO, PPOConfig
from memax_rl.cli import main
from memax_rl.envs import spaces
from memax_rl.envs.meta.trials import FromParams, FromReset, TaskEnvironment, Trials
from memax_rl.envs.wrappers import wrap
from memax_rl.networks import NetworkConfig, make_actor_critic, make_q_network
from memax_rl.rollout.streams import start_stream, step_stream
from memax_rl.runs import make_config, override


class Count(TaskEnvironment):
    """Episodes of `length` steps, or of one step after action 1; shows the step; reward 1 a step."""

    def __init__(self, length=3, ends_early=False):
        self.episode_length, self.ends_early = length, ends_early
        self.observation_space, self.action_space = spaces.Box(0.0, 100.0, (1,)), spaces.Discrete(2)

    def draw_task(self, key):
        return jax.random.uniform(key)

    def reset_episode(self, key, task):
        return jnp.zeros(1), jnp.zeros((), jnp.int32)

    def step_episode(self, key, task, state, action):
        state = state + 1
        return state[None].astype(jnp.float32), state, jnp.ones(()), self.ends_early & (action == 1)


def play(env, key, actions, params=None):
    """Slots and environment states of a stream that takes the given actions."""
    params = env.default_params if params is None else params

    def body(stream, now):
        action, keys = now
        act = lambda memory, inputs, k: (memory, action, jnp.zeros(()))  # noqa: E731
        after, slot, _ = step_stream(env, params, act, stream, keys)
        return after, (slot, stream.inputs, stream.environment)

    stream = start_stream(env, params, None, key)
    keys = jax.random.split(key, (len(actions), 2))
    return jax.jit(partial(jax.lax.scan, body))(stream, (jnp.asarray(actions, jnp.int32), keys))[1]


def test_the_memory_starts_with_the_trial_and_is_told_of_every_episode(key):
    env = Trials(Count(3), episodes=2)
    slot, inputs, state = play(env, key, [0, 1] * 7)
    np.testing.assert_array_equal(np.flatnonzero(slot.start), [0, 6, 12])
    np.testing.assert_array_equal(np.flatnonzero(slot.terminated), [5, 11])
    assert not slot.truncated.any()
    np.testing.assert_array_equal(slot.observation["episode_start"][:, 0], [1, 0, 0] * 4 + [1, 0])
    np.testing.assert_array_equal(slot.observation["observation"][:, 0], [0, 1, 2] * 4 + [0, 1])
    np.testing.assert_array_equal(state.episode[:7], [0, 0, 0, 1, 1, 1, 0])
    # Action and reward of the last episode's last step are shown in the next episode, not in the next trial.
    np.testing.assert_array_equal(inputs.previous_action[:8], [0, 0, 1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(inputs.previous_reward[:8], [0, 1, 1, 1, 1, 1, 0, 1])
    assert len(set(np.asarray(state.task[:6]).tolist())) == 1
    assert state.task[6] != state.task[0]


def test_a_trial_of_steps_cuts_its_last_episode(key):
    env = Trials(Count(3, ends_early=True), episodes=None, steps=4)
    slot, _, _ = play(env, key, [1, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(slot.observation["episode_start"][:, 0], [1, 1, 0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(np.flatnonzero(slot.terminated), [3, 7])


@pytest.mark.parametrize(
    ("ends_early", "sizes", "horizon", "fixed"),
    [
        (False, {"episodes": 4}, 12, 12),
        (True, {"episodes": 4}, 12, None),
        (True, {"episodes": None, "steps": 7}, 7, 7),
        (False, {"episodes": None, "steps": 7}, 7, 7),
    ],
)
def test_lengths(ends_early, sizes, horizon, fixed):
    env = Trials(Count(3, ends_early), **sizes)
    assert (env.max_episode_steps(env.default_params), env.fixed_length(env.default_params)) == (horizon, fixed)
    assert env.max_episode_steps(env.with_episodes(8)) == 24


@pytest.mark.parametrize("fill", ["whole_episodes", "truncated_bptt"])
@pytest.mark.parametrize(("across", "expected"), [(True, [1.875, 1.75, 1.5, 1.0]), (False, [1.5, 1.0, 1.5, 1.0])])
def test_returns_go_on_into_the_next_episode_or_stop_at_its_end(fill, across, expected, key):
    """Discount 1/2, reward 1 a step, two episodes of two steps; with lambda 1 the returns owe nothing to the values."""
    env = Trials(Count(2), episodes=2, discount_across_episodes=across)
    config = PPOConfig(num_envs=2, num_minibatches=1, rollout_length=8, rollout=fill, gamma=0.5, gae_lambda=1.0)
    make_network = partial(lambda c, o, a, k: make_actor_critic(c, o, a, key=k), NetworkConfig(memory="gru", width=4))
    agent = PPO(env, env.default_params, make_network, config, 100)
    state = eqx.filter_jit(agent.init)(key)
    rows = eqx.filter_jit(agent.collect)(state, key).rows
    assert (rows.tape.discount is None) == across
    _, scale = agent._scale(state.returns, rows.tape)
    batch, _ = eqx.filter_jit(agent._advantages)(state.network, rows, scale)
    np.testing.assert_allclose(scale, 1 / np.std(expected), rtol=1e-5)
    np.testing.assert_allclose(batch.returns[0, :8] / scale, expected * 2, rtol=1e-5)
    # The memory goes on where the value stops.
    np.testing.assert_array_equal(rows.tape.start[0, :8], [True, False, False, False] * 2)


@pytest.mark.parametrize(("across", "expected"), [(True, [1.875, 1.75, 1.5, 1.0]), (False, [1.5, 1.0, 1.5, 1.0])])
@pytest.mark.parametrize("target", [{"q_lambda": 1.0}, {"q_lambda": None, "n_step": 4}])
def test_targets_of_q_learning_go_on_or_stop_too(target, across, expected, key):
    env = Trials(Count(2), episodes=2, discount_across_episodes=across)
    sizes = {
        "num_envs": 2,
        "batch_size": 4,
        "tape_length": 8,
        "samples_per_insert": 2.0,
        "buffer_size": 64,
        "learning_starts": 8,
    }
    config = DQNConfig(**sizes, gamma=0.5, **target)
    make_network = partial(
        lambda c, o, a, k: make_q_network(c, o, a, dueling=True, key=k), NetworkConfig(memory="gru", width=4)
    )
    agent = DQN(env, env.default_params, make_network, config, 100)

    @eqx.filter_jit
    def targets(key):
        state = agent.init(key)
        sample = agent.sample(agent._collect(state, key)[2], key)
        q = agent.unroll(state.network, sample)
        return agent.targets(q, q, sample.tape), sample.tape

    value, tape = targets(key)
    # A tape begins with a whole trial.
    np.testing.assert_array_equal(tape.terminated[:, :4], [[False, False, False, True]] * 4)
    np.testing.assert_allclose(value[:, :4], [expected] * 4, rtol=1e-5)


class Countable(Count):
    """The same, showing the step as a number; a step costs 1 before step `pays_from` of an episode."""

    def __init__(self, space=None, pays_from=100, **kwargs):
        super().__init__(**kwargs)
        self.pays_from = pays_from
        self.observation_space = space or spaces.Discrete(4)

    def _show(self, state):
        return state if isinstance(self.observation_space, spaces.Discrete) else jnp.stack([state % 2, state // 2])

    def reset_episode(self, key, task):
        return self._show(jnp.zeros((), jnp.int32)), jnp.zeros((), jnp.int32)

    def step_episode(self, key, task, state, action):
        _, state, reward, ended = super().step_episode(key, task, state, action)
        return self._show(state), state, jnp.where(state < self.pays_from, -reward, reward), ended


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 2])])
def test_the_learner_alone_gets_a_bonus_for_what_is_new_in_a_trial(space, key):
    """Episodes of two steps or, after action 1, of one: 0 1 2 | 0 1 | 0 1 2 is seen, and a trial is three of them."""
    env = Trials(Countable(space, length=2, ends_early=True), episodes=3, novelty_bonus=0.25)
    slot, inputs, _ = play(env, key, [0, 0, 1, 0, 0] * 2)
    # Observation 0 was there from the start; the next trial knows nothing of this one.
    np.testing.assert_array_equal(slot.intrinsic_reward, [0.25, 0.25, 0, 0, 0] * 2)
    np.testing.assert_array_equal(slot.reward, -np.ones(10))
    np.testing.assert_array_equal(inputs.previous_reward, [0, -1, -1, -1, -1] * 2)
    scaled, _, _ = play(wrapped(env, name="reward_scaling", scale=2.0), key, [0, 0], env.default_params)
    np.testing.assert_array_equal(scaled.intrinsic_reward, [0.5, 0.5])
    assert play(Trials(Countable(space), episodes=2), key, [0])[0].intrinsic_reward is None


def test_the_first_reward_of_a_trial_ends_the_bonus(key):
    """0 1 2 3 is new; the step to 2 pays, and with it the bonus is paid for the last time in this trial."""
    env = Trials(Countable(length=3, pays_from=2), episodes=2, novelty_bonus=0.25)
    slot, _, _ = play(env, key, [0] * 12)
    np.testing.assert_array_equal(slot.reward, [-1, 1, 1] * 4)
    np.testing.assert_array_equal(slot.intrinsic_reward, [0.25, 0.25, 0, 0, 0, 0] * 2)


def test_unrewarded_trials_pay_the_bonus_alone(key):
    def rewards(**options):
        env = Trials(Countable(length=2, pays_from=0), episodes=2, novelty_bonus=0.25, **options)
        slots = jax.vmap(lambda k: play(env, k, [0] * 4)[0])(jax.random.split(key, 200))
        return np.asarray(slots.reward), np.asarray(slots.intrinsic_reward)

    reward, bonus = rewards(unrewarded_fraction=0.25)
    unrewarded = np.all(reward == 0, axis=1)
    # A standard deviation is 6.
    assert 30 < unrewarded.sum() < 70
    np.testing.assert_array_equal(reward[~unrewarded], 1)
    np.testing.assert_array_equal(bonus, np.where(unrewarded[:, None], [0.25, 0.25, 0, 0], [0.25, 0, 0, 0]))
    np.testing.assert_array_equal(rewards(unrewarded_fraction=0.25, split="test")[0], 1)


@pytest.mark.parametrize("fill", ["whole_episodes", "truncated_bptt"])
def test_returns_have_bonus_and_scale_in_them_and_reports_have_not(fill, key):
    env = Trials(Countable(length=2), episodes=2, novelty_bonus=8.0)
    config = PPOConfig(
        num_envs=2, num_minibatches=1, rollout_length=8, rollout=fill, gamma=0.5, gae_lambda=1.0, reward_scale=2.0
    )
    make_network = partial(lambda c, o, a, k: make_actor_critic(c, o, a, key=k), NetworkConfig(memory="gru", width=4))
    agent = PPO(env, env.default_params, make_network, config, 100)
    state = eqx.filter_jit(agent.init)(key)
    _, _, rows, metrics = eqx.filter_jit(agent.collect)(state, key)
    _, scale = agent._scale(state.returns, rows.tape)
    batch, _ = eqx.filter_jit(agent._advantages)(state.network, rows, scale)
    # Rewards 7 7 -1 -1 to the learner: two observations are new, in the first episode of each trial.
    np.testing.assert_allclose(batch.returns[0, :8] / 2, [10.125, 6.25, -1.5, -1.0] * 2, rtol=1e-5)
    np.testing.assert_array_equal(rows.tape.reward[:, :8], -1)
    assert metrics["episode/return"] == -4


def test_targets_of_q_learning_have_the_bonus_in_them(key):
    env = Trials(Countable(length=2), episodes=2, novelty_bonus=8.0)
    sizes = {
        "num_envs": 2,
        "batch_size": 4,
        "tape_length": 8,
        "samples_per_insert": 2.0,
        "buffer_size": 64,
        "learning_starts": 8,
    }
    make_network = partial(
        lambda c, o, a, k: make_q_network(c, o, a, dueling=True, key=k), NetworkConfig(memory="gru", width=4)
    )
    agent = DQN(env, env.default_params, make_network, DQNConfig(**sizes, gamma=0.5, q_lambda=1.0), 100)

    @eqx.filter_jit
    def targets(key):
        state = agent.init(key)
        sample = agent.sample(agent._collect(state, key)[2], key)
        q = agent.unroll(state.network, sample)
        return agent.targets(q, q, sample.tape)

    np.testing.assert_allclose(targets(key)[:, :4], [[10.125, 6.25, -1.5, -1.0]] * 4, rtol=1e-5)


def test_a_bonus_needs_observations_that_can_be_counted(key):
    with pytest.raises(ValueError, match=r"novelty_bonus=1.0 needs observations that can be counted.*Box"):
        Trials(Count(), episodes=2, novelty_bonus=1.0)
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"novelty_bonus must be a finite number of at least 0, got {bad}"):
            Trials(Countable(), episodes=2, novelty_bonus=bad)
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"unrewarded_fraction must be at least 0 and below 1, got {bad}"):
            Trials(Countable(), episodes=2, novelty_bonus=1.0, unrewarded_fraction=bad)
    with pytest.raises(ValueError, match=r"unrewarded_fraction=0.5 with novelty_bonus=0: .*set novelty_bonus too"):
        Trials(Countable(), episodes=2, unrewarded_fraction=0.5)
    env = Trials(Countable(), episodes=2, novelty_bonus=1.0)
    with pytest.raises(ValueError, match=r"frame_skip would lose the intrinsic reward .*novelty_bonus to 0"):
        play(wrapped(env, name="frame_skip", frames=2), key, [0], env.default_params)


def wrapped(env, **config):
    wrappers = make_config({"env_wrappers": [config]}).env_wrappers
    return wrap(env, env.default_params, "meta/Trials", wrappers)[0]


def test_wrappers_keep_the_discount_or_refuse(key):
    env = Trials(Count(2), episodes=2, discount_across_episodes=False)
    for config in (
        {"name": "observation_noise", "std": 0.1},
        {"name": "time_limit", "steps": 3},
        {"name": "frame_skip", "frames": 1},
    ):
        slot, _, _ = play(wrapped(env, **config), key, [0] * 3, env.default_params)
        np.testing.assert_array_equal(slot.discount, [1, 0, 1])
    with pytest.raises(ValueError, match=r"frame_skip would add up rewards on both sides .*discount_across_episodes"):
        play(wrapped(env, name="frame_skip", frames=2), key, [0], env.default_params)


def tasks_of(env, n=300, seed=0):
    keys = jax.random.split(jax.random.key(seed), n)
    return np.asarray(jax.jit(jax.vmap(env.draw_task))(keys)).reshape(n, -1)


@pytest.mark.parametrize("name", ["DarkRoom", "KeyToDoor"])
def test_hidden_cells_of_the_splits_are_disjoint_and_complete(name):
    train, test = (envs.make(f"meta/{name}", split=split)[0].tasks for split in ("train", "test"))
    sets = [set(map(bytes, tasks.possibilities)) for tasks in (train, test)]
    hidden = train.possibilities.shape[1]
    assert not sets[0] & sets[1]
    assert len(sets[0] | sets[1]) == (24 if hidden == 1 else 24 * 23)
    assert len(sets[1]) == round(0.2 * (24 if hidden == 1 else 24 * 23))
    other = envs.make(f"meta/{name}", split="test", split_seed=1)[0].tasks
    assert set(map(bytes, other.possibilities)) != sets[1]


@pytest.mark.parametrize("name", ["BernoulliBandit", "GaussianBandit", "TabularMDP", "PointMass"])
def test_tasks_of_the_splits_differ_and_are_the_same_again(name):
    train, test = (tasks_of(envs.make(f"meta/{name}", split=split)[0]) for split in ("train", "test"))
    assert not set(map(bytes, train)) & set(map(bytes, test))
    np.testing.assert_array_equal(train, tasks_of(envs.make(f"meta/{name}", split="train")[0]))
    assert not set(map(bytes, train)) & set(map(bytes, tasks_of(envs.make(f"meta/{name}", split_seed=1)[0])))


def test_point_mass_goals_of_the_splits_lie_in_other_directions():
    def sectors(split):
        x, y = tasks_of(envs.make("meta/PointMass", split=split)[0]).T
        return set(np.floor(np.arctan2(y, x) % (2 * np.pi) / (np.pi / 4)).astype(int).tolist())

    assert not sectors("train") & sectors("test")
    assert len(sectors("train") | sectors("test")) == 8


def test_held_out_physics_lie_outside_of_training():
    def factors(split):
        env, _ = envs.make("meta/ProjectedCartPole", vary_physics=True, split=split)
        task = jax.vmap(env.draw_task)(jax.random.split(jax.random.key(0), 200))
        return np.abs(np.log(np.stack([task.pole_mass / 0.1, task.half_length / 0.5, task.force / 10])))

    assert factors("train").max() <= np.log(1.25) + 1e-5
    assert factors("test").min() >= np.log(1.25) - 1e-5
    assert factors("test").max() <= np.log(1.6) + 1e-5


def test_num_tasks_limits_the_tasks():
    few = tasks_of(envs.make("meta/BernoulliBandit", num_tasks=3)[0])
    assert len(set(map(bytes, few))) == 3


def test_trials_of_an_environment_whose_reset_draws_the_task(key):
    """MetaMaze and the like: the same key resets every episode."""
    inner, params = envs.make("gymnax/PointRobot-misc")
    env = Trials(FromReset(inner, params), episodes=2)
    length = inner.max_episode_steps(params)

    def body(carry, k):
        obs, state = carry
        obs, after, _, terminated, _, _ = env.step(k, state, jnp.zeros(2), env.default_params)
        return (obs, after), (state, terminated)

    first = env.reset(key, env.default_params)
    _, (state, terminated) = jax.jit(partial(jax.lax.scan, body))(first, jax.random.split(key, 2 * length + 1))
    goal = np.asarray(state.inner.goal)
    np.testing.assert_array_equal(goal[: 2 * length], np.broadcast_to(goal[0], (2 * length, *goal[0].shape)))
    assert (goal[2 * length] != goal[0]).any(), "the next trial has another task"
    np.testing.assert_array_equal(np.flatnonzero(terminated), [2 * length - 1])


def test_trials_of_an_environment_whose_parameters_hold_the_task(key):
    inner, params = envs.make("gymnax/CartPole-v1")
    env = Trials(FromParams(inner, params, {"gravity": (5.0, 15.0)}), episodes=2)
    slot, _, state = play(env, key, [1] * 60)
    gravity, starts = np.asarray(state.task["gravity"]), np.asarray(slot.start)
    assert ((gravity[1:] == gravity[:-1]) == ~starts[1:]).all()
    assert starts.sum() >= 3
    boundary = np.asarray(slot.observation["episode_start"][:, 0]) > 0
    first_states = np.asarray(slot.observation["observation"])[boundary]
    assert len({bytes(s) for s in first_states}) == len(first_states), "every episode begins in a fresh state"
    assert gravity.min() >= 5
    assert gravity.max() <= 15
    # The pole falls sooner where it is pulled down harder: the parameter is used.
    obs = jnp.array([0.0, 0.0, 0.05, 0.0])
    inner_state = dataclass_state(state.inner, obs)
    falls = [
        float(env.tasks.step_episode(key, {"gravity": jnp.float32(g)}, inner_state, jnp.int32(0))[0][3])
        for g in (5.0, 15.0)
    ]
    assert falls[0] != falls[1]


def dataclass_state(states, obs):
    one = jax.tree.map(lambda leaf: leaf[0], states)
    return one.replace(x=obs[0], x_dot=obs[1], theta=obs[2], theta_dot=obs[3])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("meta/DarkRoom", {"sise": 7}, "env_options: meta/DarkRoom has no option 'sise'; its options are size, "),
        ("popgym/RepeatFirstEasy", {"size": 7}, "popgym/RepeatFirstEasy has no option 'size'; it takes none"),
        ("meta/DarkRoom", {"size": "7"}, "size must be of type int, got '7'"),
        ("meta/DarkRoom", {"size": True}, "size must be of type int, got True"),
        ("meta/DarkRoom", {"size": 2}, "size must be at least 3, got 2"),
        ("meta/DarkRoom", {"test_fraction": 1.0}, "test_fraction must lie between 0 and 1"),
        ("meta/DarkRoom", {"split": "tets"}, "split must be 'train' or 'test', got 'tets'"),
        ("meta/DarkRoom", {"episodes": 0}, "episodes must be a number of at least 1, got 0"),
        ("meta/DarkRoom", {"episodes": None}, "give either episodes or steps"),
        ("meta/BernoulliBandit", {"payouts": [0.1, 0.9]}, "payouts must be one number for each of 5 arms"),
        ("meta/BernoulliBandit", {"arms": 2, "payouts": [0.1, 1.9]}, "payouts must be probabilities"),
        ("meta/BernoulliBandit", {"arms": 1}, "arms must be at least 2"),
        ("meta/TabularMDP", {"states": 1}, "states must be at least 2"),
        ("meta/ProjectedCartPole", {"observation_size": 1}, "observation_size must be at least 2"),
        ("meta/ProjectedCartPole", {"start_range": [1, 1, 1, 1]}, r"start_range must be .* got \[1, 1, 1, 1\]"),
        ("meta/ProjectedCartPole", {"start_range": [1, 1, -0.1, 1]}, "start_range must be the largest x"),
        ("meta/ProjectedCartPole", {"start_range": 1.0}, "start_range must be of type list, got 1.0"),
        ("meta/ProjectedCartPole", {"start_range": [1, 1, 0.1, "x"]}, "start_range must be the largest x"),
        ("meta/EndlessTMaze", {"length": 0}, "length must be at least 1"),
        ("meta/Trials", {"env": "gymnax/CartPole-v1", "vary": {"mass": [1, 2]}}, "there is no parameter 'mass'"),
        ("meta/Trials", {"env": "gymnax/CartPole-v1", "vary": {"gravity": [2, 1]}}, "the smaller first"),
        ("meta/Trials", {"env": "gym/CartPole-v1"}, "env: trials are made of environments in JAX"),
        ("meta/Trials", {"env": "gymnax/CartPole-v1", "vary": {"gravity": 2}}, "vary must give each parameter a range"),
        ("meta/Trials", {"env": "gymnax/CartPole-v1", "vary": {}}, "vary must give each parameter a range"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        envs.make(name, **options)


def test_a_configuration_holds_the_options_completely_and_takes_them_from_the_command_line():
    config = override(make_config({"env": "meta/DarkRoom"}), ["--env-options.size", "7", "--env-options.episodes=3"])
    assert config.env_options["size"] == 7
    assert config.env_options["split_seed"] == 0, "the split is stored in the run"
    env, params = envs.make(config.env, **config.env_options)
    assert env.max_episode_steps(params) == 3 * 14
    with pytest.raises(ValueError, match="has no option 'siez'"):
        override(config, ["--env-options.siez", "7"])
    # An option that holds options is made when one of them is given.
    fields = [
        "--env",
        "meta/Trials",
        "--env-options.env",
        "gymnax/CartPole-v1",
        "--env-options.vary.gravity",
        "[8, 12]",
    ]
    assert override(make_config({}), fields).env_options["vary"] == {"gravity": [8, 12]}
    # Defaults of one family are not asked of another.
    assert "corridors" in override(make_config({"env": "meta/DarkRoom"}), ["--env", "meta/EndlessTMaze"]).env_options


def test_the_list_of_environments_names_their_options(capsys, monkeypatch):
    monkeypatch.setattr(envs, "names", lambda: ("popgym/RepeatFirstEasy", "meta/EndlessTMaze"))
    assert main(["list", "envs", "-v"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["popgym/RepeatFirstEasy", "Discrete(4)"]
    assert lines[2].startswith("meta/EndlessTMaze ")
    assert lines[3] == "    corridors: corridors an episode (default: 10)"
    assert any(line.startswith("    arguments: Arguments for gymnasium.make") for line in lines)
