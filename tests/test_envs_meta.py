"""The families of the meta suite: dynamics step by step, and known strategies with known returns."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import envs
from memax_rl.envs.baselines.bandit_indices import gittins, two_arm_values
from memax_rl.envs.baselines.strategies import spiral, strategies
from memax_rl.envs.meta.mdp import finite_horizon_q
from memax_rl.envs.popgym import cartpole
from memax_rl.evaluation.in_context import best_returns, play_trials

STAY, UP, DOWN, LEFT, RIGHT = range(5)


def returns(name, strategy, tasks, key, episodes=None, **options):
    """Returns [tasks, episodes] of a known strategy."""
    env, _ = envs.make(name, **options)
    episodes = episodes or env.episodes
    chosen = strategies(env, episodes)[strategy]

    def act(memory, inputs, k):
        return *chosen.act(memory, inputs, k), jnp.zeros(())

    def play(key):
        return play_trials(env, act, chosen.initial_carry, key, tasks=tasks, episodes=episodes, most_episodes=episodes)

    return np.asarray(eqx.filter_jit(play)(key), np.float64)


def walk(tasks, task, actions):
    """Observations, rewards and ends of an episode."""
    obs, state = tasks.reset_episode(jax.random.key(0), task)
    seen, rewards, ends = [np.asarray(obs).tolist()], [], []
    for action in actions:
        obs, state, reward, ended = tasks.step_episode(jax.random.key(0), task, state, jnp.int32(action))
        seen.append(np.asarray(obs).tolist())
        rewards.append(float(reward))
        ends.append(bool(ended))
    return seen, rewards, ends


# The figures are those known for five arms and 100 pulls. A mean of 2,000 trials has a standard error of 0.3 (a trial's
# deviation is 13 to 16), that of the figures is taken to be as large: their difference has one of 0.43. A difference
# below 3 of them, 1.3, passes; a strategy that is off by 2.2 is found out in 98 of 100 cases.
@pytest.mark.parametrize(("strategy", "known"), [("random", 50.3), ("UCB1", 66.3), ("Thompson sampling", 75.1)])
def test_bandit_strategies_reproduce_known_figures(strategy, known, key):
    total = returns("meta/BernoulliBandit", strategy, 2000, key).sum(axis=1)
    assert 12 < total.std() < 17
    assert total.mean() == pytest.approx(known, abs=1.3)


def test_bayes_optimal_value_of_two_arms():
    assert two_arm_values(1)[0] == pytest.approx(1 / 2)
    # Pull one; after a payout again (2/3), else the other (1/2).
    assert two_arm_values(2)[0] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3 + 1 / 2 * 1 / 2)


def test_the_bayes_optimal_strategy_gets_its_value_and_the_index_almost(key):
    value, _ = two_arm_values(30)
    options = {"arms": 2, "episode_length": 10, "episodes": 3}
    optimal = returns("meta/BernoulliBandit", "Bayes-optimal", 6000, key, **options).sum(axis=1)
    assert optimal.mean() == pytest.approx(value, abs=4 * optimal.std() / 6000**0.5)
    index = returns("meta/BernoulliBandit", "Gittins index", 6000, key, **options).sum(axis=1)
    assert index.mean() == pytest.approx(optimal.mean(), abs=0.15)


def test_gittins_index_of_the_last_pulls():
    table = np.asarray(gittins(4, grid=1000).table)
    # One pull to come: the mean. Two to come from (0, 0): 1/2 + p/2 (2/3 - x) = x at x = 1/2 + 1/18 ...
    assert table[0, 0, 0] == pytest.approx(1 / 2, abs=2e-3)
    assert table[0, 2, 1] == pytest.approx(3 / 5, abs=2e-3)
    # ... x solves (1/2 - x) + 1/2 (2/3 - x) = 0.
    assert table[1, 0, 0] == pytest.approx(5 / 9, abs=2e-3)


def test_given_payouts_come_in_random_order(key):
    env, _ = envs.make("meta/BernoulliBandit", arms=2, payouts=[0.1, 0.9])
    tasks = np.asarray(jax.vmap(env.draw_task)(jax.random.split(key, 200)), np.float64)
    assert {tuple(t) for t in tasks.round(3).tolist()} == {(0.1, 0.9), (0.9, 0.1)}
    assert 60 < (tasks[:, 0] > 0.5).sum() < 140
    assert list(strategies(env, 10)) == ["random", "greedy", "UCB1", "Thompson sampling"]


def test_gaussian_bandit_pays_its_mean(key):
    env, _ = envs.make("meta/GaussianBandit")
    task = jnp.array([-1.0, 0.0, 2.0, 0.5, 1.0])
    step = jax.vmap(lambda k: env.tasks.step_episode(k, task, jnp.int32(0), jnp.int32(2))[2])
    pays = np.asarray(step(jax.random.split(key, 4000)))
    assert pays.mean() == pytest.approx(2, abs=0.07)
    assert pays.std() == pytest.approx(1, abs=0.05)


def test_dark_room_pays_for_every_step_on_the_goal():
    tasks = envs.make("meta/DarkRoom")[0].tasks
    seen, rewards, ends = walk(tasks, jnp.array([[1, 3]]), [UP, RIGHT, STAY, RIGHT, RIGHT, LEFT, LEFT])
    assert seen == [[2, 2], [1, 2], [1, 3], [1, 3], [1, 4], [1, 4], [1, 3], [1, 2]]
    assert rewards == [0, 1, 1, 0, 0, 1, 0]
    assert not any(ends)
    assert float(tasks.best_return(jnp.array([[1, 3]]))) == 10 - 2 + 1


def test_key_to_door_pays_once_for_each_in_order():
    tasks = envs.make("meta/KeyToDoor")[0].tasks
    task = jnp.array([[2, 3], [1, 2]])
    _, rewards, ends = walk(tasks, task, [UP, DOWN, RIGHT, LEFT, RIGHT, LEFT, UP])
    assert rewards == [0, 0, 1, 0, 0, 0, 1], "the door does not open without the key, and the key pays once"
    assert ends == [False] * 6 + [True]


@pytest.mark.parametrize("size", [3, 4, 5, 7])
def test_the_spiral_visits_every_cell_once(size):
    tasks = envs.make("meta/DarkRoom", size=size)[0].tasks
    seen, _, _ = walk(tasks, jnp.array([[0, 0]]), spiral(size))
    assert len({tuple(cell) for cell in seen}) == len(seen) == size**2


def test_dark_room_strategies(key):
    env, _ = envs.make("meta/DarkRoom")
    best = best_returns(env, key, 200)
    assert best is not None
    oracle = returns("meta/DarkRoom", "oracle", 200, key)
    np.testing.assert_array_equal(oracle, np.repeat(best[:, None], 8, axis=1))
    searcher = returns("meta/DarkRoom", "searcher", 200, key)
    np.testing.assert_array_equal(searcher, np.repeat(searcher[:, :1], 8, axis=1))
    explorer = returns("meta/DarkRoom", "explorer", 200, key)
    np.testing.assert_array_equal(explorer[:, -1], best)
    assert explorer[:, 0].mean() < 0.6 * best.mean()


@pytest.mark.parametrize(("name", "slack"), [("KeyToDoor", 0), ("PointMass", 1e-4)])
def test_oracles_get_the_best_return(name, slack, key):
    best = best_returns(envs.make(f"meta/{name}")[0], key, 100)
    assert best is not None
    np.testing.assert_allclose(returns(f"meta/{name}", "oracle", 100, key, episodes=2)[:, 1], best, atol=slack)


def test_the_oracle_balances_every_cart_pole(key):
    assert returns("meta/ProjectedCartPole", "oracle", 50, key, episodes=2).mean() > 0.99
    options = {"vary_physics": True, "split": "test"}
    assert returns("meta/ProjectedCartPole", "oracle", 50, key, episodes=2, **options).mean() > 0.95


def test_a_projected_cart_pole_is_a_cart_pole(key):
    """The same motion as popgym's, seen through orthonormal columns, with the actions as they are or swapped."""
    tasks = envs.make("meta/ProjectedCartPole")[0].tasks
    step = jax.jit(tasks.step_episode)
    for seed in range(4):
        task = tasks.draw_task(jax.random.key(seed))
        np.testing.assert_allclose(task.projection.T @ task.projection, np.eye(2), atol=1e-6)
        _, state = tasks.reset_episode(key, task)
        plain = state
        for action in (0, 1, 1, 0, 1):
            obs, state, reward, _ = step(key, task, state, jnp.int32(action))
            force = 10.0 if (action == 1) != bool(task.swapped) else -10.0
            plain = cartpole.advance(plain, jnp.float32(force))
            scale = np.array([cartpole.X_LIMIT, cartpole.THETA_LIMIT])
            np.testing.assert_allclose(task.projection.T @ obs * scale, [plain.x, plain.theta], atol=1e-5)
            assert float(reward) == pytest.approx(1 / 200)


def test_cart_poles_begin_as_far_from_rest_as_asked(key):
    ranges = [0.5, 0.25, 0.1, 2.0]
    tasks = envs.make("meta/ProjectedCartPole", start_range=ranges)[0].tasks
    task = tasks.draw_task(key)
    _, state = jax.vmap(lambda k: tasks.reset_episode(k, task))(jax.random.split(key, 500))
    for name, limit in zip(("x", "x_dot", "theta", "theta_dot"), ranges, strict=True):
        drawn = np.abs(getattr(state, name))
        assert 0.95 * limit < drawn.max() <= limit
        assert 0.4 * limit < drawn.mean() < 0.6 * limit


def test_swapped_actions_are_half_of_the_tasks(key):
    tasks = envs.make("meta/ProjectedCartPole")[0].tasks
    swapped = jax.vmap(tasks.draw_task)(jax.random.split(key, 200)).swapped
    assert 60 < int(swapped.sum()) < 140


def test_an_mdp_moves_and_pays_as_its_model_says(key):
    tasks = envs.make("meta/TabularMDP", states=3, actions=2)[0].tasks
    task = tasks.draw_task(key)
    model = tasks.model(task)
    np.testing.assert_allclose(model.transition.sum(axis=-1), 1, rtol=1e-5)
    step = jax.vmap(lambda k: tasks.step_episode(k, task, jnp.int32(1), jnp.int32(1)))
    following, _, reward, _ = step(jax.random.split(key, 8000))
    share = np.bincount(np.asarray(following), minlength=3) / 8000
    np.testing.assert_allclose(share, model.transition[1, 1], atol=0.02)
    assert np.mean(reward) == pytest.approx(float(model.reward[1, 1]), abs=0.05)
    assert np.std(reward) == pytest.approx(1, abs=0.05)
    means = jax.vmap(lambda k: tasks.model(tasks.draw_task(k)).reward)(jax.random.split(key, 1000))
    assert np.mean(means) == pytest.approx(1, abs=0.05)
    assert np.std(means) == pytest.approx(1, abs=0.05)


def test_value_iteration_on_a_chain():
    """Two states; action 1 moves on, action 0 stays; only staying in the second pays."""
    transition = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    q = finite_horizon_q(transition, jnp.array([[0.1, 0.0], [1.0, 0.0]]), 3)
    np.testing.assert_allclose(q[2], [[0.1, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(q[0], [[1.1, 2.0], [3.0, 1.0]], rtol=1e-6)


@pytest.mark.slow
# Duan et al. 2016, table 2: random 100.1, posterior sampling 138.1 over 10 episodes. A loop in NumPy over 1,500 trials,
# written apart from ours, gets 134.2 with a standard error of 0.7, whether or not it learns from an episode's last
# transition. Why the published figure is higher is not known.
def test_mdp_strategies_reproduce_known_figures(key):
    random = returns("meta/TabularMDP", "random", 300, key).sum(axis=1)
    assert random.mean() == pytest.approx(100.1, abs=3.5)
    sampling = returns("meta/TabularMDP", "posterior sampling", 300, key).sum(axis=1)
    assert sampling.mean() == pytest.approx(134.2, abs=3.5)
    known = returns("meta/TabularMDP", "known model", 300, key)
    best = best_returns(envs.make("meta/TabularMDP")[0], key, 300)
    assert best is not None
    assert known.mean() == pytest.approx(best.mean(), abs=4 * (known.mean(axis=1) - best).std() / 300**0.5)


def test_endless_t_maze(key):
    env, params = envs.make("meta/EndlessTMaze", corridors=2, length=2)
    assert int(params.max_steps_in_episode) == 6 * 3 * 2
    obs, state = env.reset(key, params)
    total = 0.0
    for corridor in range(2):
        assert float(obs[0]) == 0
        np.testing.assert_array_equal(obs[1:], [0, 1] if state.right else [1, 0])
        turn = 2 if state.right else 1
        # A turn on the way does nothing, and the cue is gone after the first step.
        for action in (0, turn, 0, 0, turn):
            obs, state, reward, terminated, truncated, info = env.step(key, state, jnp.int32(action), params)
            total += float(reward)
            if action == 0:
                np.testing.assert_array_equal(info["final_observation"][1:], [0, 0])
        assert bool(terminated) == (corridor == 1)
        assert not bool(truncated)
    assert total == pytest.approx(2 - 0.1)


def test_a_wrong_turn_ends_the_t_maze(key):
    env, params = envs.make("meta/EndlessTMaze", length=1)
    _, state = env.reset(key, params)
    wrong = 1 if state.right else 2
    _, state, *_ = env.step(key, state, jnp.int32(0), params)
    _, _, reward, terminated, _, _ = env.step(key, state, jnp.int32(wrong), params)
    assert bool(terminated)
    assert float(reward) == pytest.approx(-0.01)


def test_corridors_of_random_length(key):
    env, params = envs.make("meta/EndlessTMaze", length=5, random_length=True)
    _, state = jax.vmap(lambda k: env.reset(k, params))(jax.random.split(key, 300))
    assert set(state.length.tolist()) == {1, 2, 3, 4, 5}
    assert 100 < int(state.right.sum()) < 200
