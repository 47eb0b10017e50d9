"""The POPGym suite against the popgym package: the same hidden state and actions give the same numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import popgym.envs
import pytest
from _compiler import to_the_bit
from scipy import stats

from memax_rl import envs
from memax_rl.envs.popgym import grids

DIFFICULTIES = ("Easy", "Medium", "Hard")


def ids_of(*families):
    return [f"{family}{level}" for family in families for level in DIFFICULTIES]


def make(name):
    return envs.make(f"popgym/{name}")


def make_package(name):
    return getattr(popgym.envs, name)()


def play(env, params, key, steps, act):
    """Play through automatic resets with `act(key, t, state) -> action`, which may look at the hidden state.

    Returns:
        The observations [steps + 1] as an agent sees them, the final observations, rewards, terminations,
        truncations and actions [steps], and the states [steps + 1].
    """

    def one_step(state, inputs):
        t, step_key = inputs
        act_key, env_key = jax.random.split(step_key)
        action = act(act_key, t, state)
        obs, state, reward, terminated, truncated, info = env.step(env_key, state, action, params)
        return state, (obs, info["final_observation"], reward, terminated, truncated, action, state)

    def rollout(key):
        reset_key, scan_key = jax.random.split(key)
        obs, state = env.reset(reset_key, params)
        _, (later_obs, *outcome, later_states) = jax.lax.scan(
            one_step, state, (jnp.arange(steps), jax.random.split(scan_key, steps))
        )
        observations, states = jax.tree.map(
            lambda first, rest: jnp.concatenate([first[None], rest]), (obs, state), (later_obs, later_states)
        )
        return observations, *outcome, states

    return jax.tree.map(np.asarray, jax.jit(rollout, compiler_options=to_the_bit())(key))


def episodes_of(terminated, truncated):
    """The slices of the complete episodes in a sequence of steps."""
    ends = np.flatnonzero(terminated | truncated) + 1
    return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


class StackedDeck:
    """Stands in for the package's random generator: its decks come out in a given order."""

    def __init__(self, *orders):
        self.orders = list(orders)

    def shuffle(self, cards):
        cards[:] = self.orders.pop(0)


def cards_of_kinds(kinds, kind_of_card):
    """Distinct cards of the package's deck that are of these kinds."""
    cards = np.zeros(len(kinds), dtype=int)
    for kind in np.unique(kind_of_card):
        cards[kinds == kind] = np.flatnonzero(kind_of_card == kind)
    return cards


def dealing(kinds, kind_of_card):
    """The order of the package's deck that deals these kinds; it deals from the end."""
    return cards_of_kinds(kinds, kind_of_card)[::-1]


def stack_deck(name, package, seen):
    """Make the package's next episode deal the cards of an episode of ours.

    Args:
        name: The environment.
        package: The package's environment.
        seen: All observations of our episode.
    """
    if name.startswith("CountRecall"):
        orders = [dealing(column, package.deck_idx_type) for column in seen.T]
    elif name.startswith("HigherLower"):
        orders = [dealing(seen, package.deck.ranks_idx)]
    elif name.startswith("Autoencode"):
        orders = [dealing(seen[1][: package.deck.num_cards], package.deck.suits_idx)]
    else:
        orders = [dealing(seen, package.deck.suits_idx)]
    package.np_random = StackedDeck(*orders)


@pytest.mark.parametrize("name", ids_of("RepeatFirst", "RepeatPrevious", "Autoencode", "CountRecall", "HigherLower"))
def test_card_games_agree_with_the_package(name, key):
    env, params = make(name)
    length = env.length
    sample = env.action_space(params).sample
    obs, final_obs, reward, terminated, truncated, action, _ = play(
        env, params, key, 2 * length, lambda key, t, state: sample(key)
    )
    package = make_package(name)
    episodes = episodes_of(terminated, truncated)
    assert [(episode.start, episode.stop) for episode in episodes] == [(0, length), (length, 2 * length)]
    for episode in episodes:
        seen = jax.tree.map(
            lambda obs, final_obs, episode=episode: np.concatenate([obs[episode][:1], final_obs[episode]]),
            obs,
            final_obs,
        )
        stack_deck(name, package, seen)
        first = [leaf[0] for leaf in jax.tree.leaves(seen)]
        np.testing.assert_array_equal(first, jax.tree.leaves(package.reset()[0]))
        for t in range(episode.start, episode.stop):
            expected_obs, expected_reward, *expected_ends, _ = package.step(action[t])
            ours = jax.tree.map(lambda leaf, t=t: leaf[t], final_obs)
            np.testing.assert_array_equal(jax.tree.leaves(ours), jax.tree.leaves(expected_obs))
            assert reward[t] == pytest.approx(expected_reward, abs=1e-7)
            assert [terminated[t], truncated[t]] == expected_ends


def draw_pairs(cards, first, second):
    """How often each pair of kinds came at two places of a sequence of cards."""
    kinds = cards.max() + 1
    return np.histogram2d(cards[:, first], cards[:, second], bins=[range(kinds + 1)] * 2)[0]


@pytest.mark.parametrize("family", ["RepeatFirst", "RepeatPrevious", "HigherLower", "CountRecall"])
def test_cards_are_dealt_as_from_a_shuffled_deck(family, key):
    """Each deck is whole, and pairs of cards are as likely as without replacement, also across the reset."""
    env, params = make(f"{family}Easy")
    copies, length = 8192, 51

    def cards_of_two_episodes(copy_key):
        def one_step(carry, step_key):
            obs, state, *_, info = env.step(step_key, carry, jnp.int32(0), params)
            return state, (obs, info["final_observation"])

        reset_key, scan_key = jax.random.split(copy_key)
        first, state = env.reset(reset_key, params)
        _, (obs, final_obs) = jax.lax.scan(one_step, state, jax.random.split(scan_key, 2 * length))
        return jnp.concatenate([first[None], final_obs[:length], obs[length - 1 : length], final_obs[length:]])

    all_cards = np.asarray(jax.jit(jax.vmap(cards_of_two_episodes))(jax.random.split(key, copies)))
    for cards in np.moveaxis(all_cards, 2, 0) if all_cards.ndim == 3 else [all_cards]:
        kinds = cards.max() + 1
        for kind in range(kinds):
            assert (np.sum(cards[:, :52] == kind, axis=1) == 52 // kinds).all()
            assert (np.sum(cards[:, 52:] == kind, axis=1) == 52 // kinds).all()
        same, other = (52 // kinds - 1) / 51 / kinds, 52 // kinds / 51 / kinds
        dependent = copies * np.where(np.eye(kinds, dtype=bool), same, other).ravel()
        independent = np.full(kinds**2, copies / kinds**2)
        for places in [(0, 1), (0, 51), (24, 25), (49, 50), (50, 51), (52, 53), (102, 103)]:
            assert stats.chisquare(draw_pairs(cards, *places).ravel(), dependent).pvalue > 1e-3
        for places in [(51, 52), (50, 52), (51, 53), (0, 52)]:
            assert stats.chisquare(draw_pairs(cards, *places).ravel(), independent).pvalue > 1e-3


def test_count_recall_decks_are_independent(key):
    env, params = make("CountRecallHard")
    obs, _ = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key, 8192), params)
    pairs = np.histogram2d(obs[:, 0], obs[:, 1], bins=[range(14), range(14)])[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("name", ids_of("Concentration"))
@pytest.mark.parametrize("skilled", [False, True])
def test_concentration_agrees_with_the_package(name, skilled, key):
    """Random flips until the time is up, and skilled ones with a limit long enough to find all pairs."""
    env, params = make(name)
    package = make_package(name)
    max_steps = 1000 if skilled else env.max_steps
    if skilled:
        params = params.replace(max_steps_in_episode=max_steps)
        package.episode_length = max_steps
        package.failure_reward_scale = -1 / max_steps

    def act(key, t, state):
        # A card that is face down, and for the second of a pair a known match if any; now and then any card.
        any_key, choice_key, random_key = jax.random.split(key, 3)
        wanted = jnp.where(state.face_up, -jnp.inf, 0.0)
        held = jnp.arange(env.cards) == state.hand
        held_kind = jnp.sum(jnp.where(held, state.kinds, 0))
        matches = (state.kinds == held_kind) & ~held & ~state.face_up
        wanted = jnp.where((state.hand >= 0) & jnp.any(matches) & ~matches, -jnp.inf, wanted)
        good = jax.random.categorical(choice_key, wanted).astype(jnp.int32)
        any_card = (jax.random.uniform(any_key) < 0.1) | (not skilled)
        return jnp.where(any_card, env.action_space(params).sample(random_key), good)

    obs, final_obs, reward, terminated, truncated, action, _ = play(env, params, key, 2 * max_steps, act)
    episodes = episodes_of(terminated, truncated)
    assert terminated.any() if skilled else truncated.any()
    for episode in episodes:
        # What lies where is known at the last step, except for cards that were never flipped.
        kinds = final_obs[episode].min(axis=0)
        unseen = np.flatnonzero(kinds == env.kinds)
        missing = 52 * env.decks // env.kinds - np.bincount(kinds, minlength=env.kinds)[: env.kinds]
        kinds[unseen] = np.repeat(np.arange(env.kinds), missing)
        package.np_random = StackedDeck(cards_of_kinds(kinds, package.deck_idx_type))
        np.testing.assert_array_equal(package.reset()[0], obs[episode.start])
        for t in range(episode.start, episode.stop):
            expected_obs, expected_reward, *expected_ends, _ = package.step(action[t])
            np.testing.assert_array_equal(final_obs[t], expected_obs)
            assert reward[t] == pytest.approx(expected_reward, abs=1e-7)
            assert [terminated[t], truncated[t]] == expected_ends


def test_concentration_cards_lie_as_in_a_shuffled_deck(key):
    """Flip the cards in order: the deck is whole, and pairs of neighbors are as likely as they should be."""
    env, params = make("ConcentrationHard")
    copies = 4096

    def kinds_after(copy_key):
        def flip(state, inputs):
            return env.step_env(inputs[0], state, inputs[1], params)[1], None

        _, state = env.reset(copy_key, params)
        state, _ = jax.lax.scan(flip, state, (jax.random.split(copy_key, 52), jnp.arange(52)))
        return state.kinds

    cards = np.asarray(jax.jit(jax.vmap(kinds_after))(jax.random.split(key, copies)))
    assert (np.sort(cards, axis=1) == np.repeat(np.arange(13), 4)).all()
    expected = copies * np.where(np.eye(13, dtype=bool), 3 / 51 / 13, 4 / 51 / 13)
    for places in [(0, 1), (0, 51), (30, 31), (50, 51)]:
        assert stats.chisquare(draw_pairs(cards, *places).ravel(), expected.ravel()).pvalue > 1e-3


def sample_cell(key, allowed):
    """A cell drawn from those that are allowed."""
    cell = jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf).ravel())
    return jnp.stack([cell // allowed.shape[1], cell % allowed.shape[1]]).astype(jnp.int32)


def board_of(lines):
    """The cells [..., n, n] of lines whose bit c is column c."""
    columns = np.arange(lines.shape[-1], dtype=np.uint32).reshape([1] * lines.ndim + [-1])
    return lines[..., None] >> columns & 1 == 1


@pytest.mark.parametrize("name", ids_of("Battleship"))
def test_battleship_agrees_with_the_package(name, key):
    """Random guesses until the time is up, then mostly hits."""
    env, params = make(name)

    def act(key, t, state):
        cell_key, luck_key = jax.random.split(key)
        knowing = (t >= env.size**2) & (jax.random.uniform(luck_key) < 0.75)
        return sample_cell(cell_key, jnp.where(knowing, board_of(state.ships & ~state.guessed), True))

    obs, final_obs, reward, terminated, truncated, action, states = play(env, params, key, 2 * env.size**2, act)
    package = make_package(name)
    assert terminated.any()
    assert truncated.any()
    for episode in episodes_of(terminated, truncated):
        assert package.reset()[0] == obs[episode.start]
        package.board = board_of(states.ships[episode.start]).astype(np.int8)
        for t in range(episode.start, episode.stop):
            expected_obs, expected_reward, *expected_ends, _ = package.step(action[t])
            assert final_obs[t] == expected_obs
            assert reward[t] == pytest.approx(expected_reward, abs=1e-7)
            assert [terminated[t], truncated[t]] == expected_ends


def test_ships_are_placed_uniformly(key):
    """On a board with a ship, a second one lies at each free place equally often, and nowhere else."""
    n, size, draws = 5, 3, 20_000
    board = np.zeros((n, n), bool)
    board[1, 1:4] = True
    weights = 1 << np.arange(n)
    lines = jnp.array(np.concatenate([board @ weights, board.T @ weights]), jnp.uint32)
    after = jax.vmap(grids.place_ship, in_axes=(0, None, None))(jax.random.bits(key, (draws,)), lines, size)
    rows, columns = np.asarray(after)[:, :n], np.asarray(after)[:, n:]
    boards = board_of(rows)
    np.testing.assert_array_equal(boards.transpose(0, 2, 1), board_of(columns))

    places = []
    for row, column in itertools.product(range(n), range(n)):
        for cells in (np.s_[row, column : column + size], np.s_[row : row + size, column]):
            ship = np.zeros((n, n), bool)
            ship[cells] = True
            if ship.sum() == size and not (ship & board).any():
                places.append(ship | board)
    found = [np.sum((boards == place).all(axis=(1, 2))) for place in places]
    assert sum(found) == draws
    assert stats.chisquare(found).pvalue > 1e-3


@pytest.mark.parametrize("episode", [0, 1])
def test_battleship_boards_are_distributed_as_in_the_package(episode, key):
    """The board of a reset, and that of the next episode, which is placed at the first four steps of the one before."""
    env, params = make("BattleshipEasy")

    def board(key):
        reset_key, steps_key = jax.random.split(key)
        _, state = env.reset(reset_key, params)
        keys = jax.random.split(steps_key, episode * env.size**2)
        return jax.lax.scan(lambda state, key: (env.step(key, state, first_cell, params)[1], None), state, keys)[0]

    first_cell = jnp.zeros(2, jnp.int32)
    states = jax.jit(jax.vmap(board))(jax.random.split(key, 4000))
    assert (np.asarray(states.time) == 0).all()
    package = make_package("BattleshipEasy")
    package.reset(seed=0)
    theirs = np.sum([package.reset() and package.board for _ in range(4000)], axis=0)
    boards = board_of(np.asarray(states.ships))
    assert (boards.sum(axis=(1, 2)) == 12).all()
    # The counts of cells of one board depend on each other, so a chi-squared test of all would be too strict.
    assert np.abs(np.sum(boards, axis=0) - theirs).max() < 4.5 * np.sqrt(2 * 4000 * 12 / 64 * 52 / 64)


def test_battleship_has_its_ships_however_short_the_episodes(key):
    env, params = make("BattleshipEasy")
    params = params.replace(max_steps_in_episode=1)
    assert env.max_episode_steps(params) == 4
    cell = jnp.zeros(2, jnp.int32)
    _, state = env.reset(key, params)
    for step_key in jax.random.split(key, 9):
        _, state, *_ = env.step(step_key, state, cell, params)
        assert board_of(np.asarray(state.ships)).sum() == 12


@pytest.mark.parametrize("name", ids_of("MineSweeper"))
def test_mine_sweeper_agrees_with_the_package(name, key):
    """Any cell, then no mine, then neither mines nor repeats: mines, times that are up, cleared boards."""
    env, params = make(name)

    def act(key, t, state):
        cells = jnp.arange(env.size**2).reshape(env.size, env.size)
        mine = jnp.any(cells[:, :, None] == state.mines[None, None, :], axis=-1)
        phase = t // (2 * env.free_cells)
        return sample_cell(key, ((phase == 0) | ~mine) & ((phase < 2) | ~state.visited))

    obs, final_obs, reward, terminated, truncated, action, states = play(env, params, key, 6 * env.free_cells, act)

    class Mines:
        cells = np.zeros(0)

        def choice(self, cells, size, replace):
            assert len(cells) == env.size**2
            assert not replace
            return self.cells[:size]

    package, mines = make_package(name), Mines()
    package.np_random = mines
    cleared = reward[terminated] > 0
    assert cleared.any()
    assert not cleared.all()
    assert truncated.any()
    for episode in episodes_of(terminated, truncated):
        mines.cells = states.mines[episode.start]
        assert package.reset()[0] == obs[episode.start]
        for t in range(episode.start, episode.stop):
            expected_obs, expected_reward, *expected_ends, _ = package.step(action[t])
            assert final_obs[t] == expected_obs
            assert reward[t] == pytest.approx(expected_reward, abs=1e-7)
            assert [terminated[t], truncated[t]] == expected_ends


def test_mines_are_drawn_uniformly(key):
    subsets = jax.vmap(grids.draw_subset, in_axes=(0, None))(jax.random.bits(key, (20_000, 3)), 6)
    codes = np.sum(1 << np.asarray(subsets), axis=1)
    expected = [sum(1 << cell for cell in cells) for cells in itertools.combinations(range(6), 3)]
    counts = [np.sum(codes == code) for code in expected]
    assert sum(counts) == 20_000
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("name", ids_of("MultiarmedBandit"))
def test_bandit_agrees_with_the_package(name, key):
    env, params = make(name)
    steps = 2 * env.max_steps
    sample = env.action_space(params).sample
    obs, final_obs, reward, terminated, truncated, action, states = play(
        env, params, key, steps, lambda key, t, state: sample(key)
    )

    class Payouts:
        """The package asks for the arms' probabilities, then for one number a pull."""

        payout = np.zeros(0)
        uniform = 0.0

        def random(self, size=None, dtype=None):
            return self.payout if size else self.uniform

    package, payouts = make_package(name), Payouts()
    package.np_random = payouts
    episodes = episodes_of(terminated, truncated)
    assert len(episodes) == 2
    for episode in episodes:
        # An arm is drawn when it is pulled first; the package never asks for those that were not.
        payouts.payout = states.payout[episode.stop - 1].copy()
        assert (payouts.payout < 1).all()
        payouts.payout[payouts.payout < 0] = 0.5
        assert package.reset()[0] == obs[episode.start]
        for t in range(episode.start, episode.stop):
            payouts.uniform = 0.0 if final_obs[t] else 1.0
            expected_obs, expected_reward, *expected_ends, _ = package.step(action[t])
            assert final_obs[t] == expected_obs
            assert reward[t] == pytest.approx(expected_reward, abs=1e-7)
            assert [terminated[t], truncated[t]] == expected_ends


def test_bandit_arms_are_uniform_and_pay_as_often_as_they_should(key):
    """Arm 3 in one episode, then arms 3 and 4 in turn in the next: what an arm pays is drawn once an episode."""
    env, params = make("MultiarmedBanditEasy")
    arms = jnp.where(jnp.arange(400) < 200, 3, 3 + jnp.arange(400) % 2)

    def pull(state, inputs):
        step_key, arm = inputs
        _, state, *_, info = env.step(step_key, state, arm, params)
        return state, (info["final_observation"], state.payout)

    def pulls(copy_key):
        _, state = env.reset(copy_key, params)
        return jax.lax.scan(pull, state, (jax.random.split(copy_key, 400), arms))[1]

    paid, payout = (np.asarray(x) for x in jax.jit(jax.vmap(pulls))(jax.random.split(key, 1000)))
    assert (payout[:, 199] == -1).all()
    for begin, end, arm in ((0, 199, 3), (200, 399, 3), (201, 399, 4)):
        mine = slice(begin, end, 1 if begin == 0 else 2)
        drawn = payout[:, begin, arm]
        assert (payout[:, begin:end, arm] == drawn[:, None]).all()
        assert stats.kstest(drawn, "uniform").pvalue > 1e-3
        # The number that draws the arm is not the one that decides about its first pull.
        assert stats.kstest(drawn[paid[:, begin] == 1], stats.beta(2, 1).cdf).pvalue > 1e-3
        pulls_of_arm = paid[:, mine].shape[1]
        excess = np.sum(paid[:, mine], axis=1) - pulls_of_arm * drawn
        assert abs(np.sum(excess)) < 4 * np.sqrt(np.sum(pulls_of_arm * drawn * (1 - drawn)))
    assert abs(np.corrcoef(payout[:, 398, 3], payout[:, 398, 4])[0, 1]) < 4 / np.sqrt(1000)


@pytest.mark.parametrize("name", ids_of("PositionOnlyCartPole", "VelocityOnlyCartPole", "NoisyPositionOnlyCartPole"))
def test_cart_poles_agree_with_the_package(name, key):
    """One step at a time from the same state: the pole is unstable, so rounding differences would grow.

    First a linear controller that sees the whole state holds the pole until the time is up, then it falls.
    """
    env, params = make(name)

    def act(key, t, state):
        lean = state.theta + 0.3 * state.theta_dot + 0.1 * state.x + 0.2 * state.x_dot
        any_action = env.action_space(params).sample(key)
        return jnp.where(t < env.max_steps, (lean > 0).astype(jnp.int32), any_action)

    obs, final_obs, reward, terminated, truncated, action, states = play(env, params, key, env.max_steps + 100, act)
    assert truncated[env.max_steps - 1]
    assert terminated.any()
    package = make_package(name)
    package.noise_sigma = np.zeros(2)
    for episode in episodes_of(terminated, truncated):
        package.reset()
        for t in range(episode.start, episode.stop):
            state = [states.x[t], states.x_dot[t], states.theta[t], states.theta_dot[t]]
            package.state = np.array(state, float)
            expected_obs, expected_reward, *expected_ends, _ = package.step(action[t])
            assert reward[t] == pytest.approx(expected_reward, rel=1e-6)
            assert [terminated[t], truncated[t]] == expected_ends
            if t + 1 < episode.stop:
                after = [states.x[t + 1], states.x_dot[t + 1], states.theta[t + 1], states.theta_dot[t + 1]]
                np.testing.assert_allclose(after, package.state, atol=1e-6)
            if env.noise == 0.0:
                np.testing.assert_allclose(final_obs[t], expected_obs, atol=1e-6)
                np.testing.assert_array_equal(obs[t], state[::2] if env.shown == "positions" else state[1::2])


@pytest.mark.parametrize("name", ids_of("PositionOnlyPendulum", "NoisyPositionOnlyPendulum"))
def test_pendulums_agree_with_the_package(name, key):
    env, params = make(name)

    def act(key, t, state):  # beyond the limits, too
        return jax.random.uniform(key, (1,), minval=-3.0, maxval=3.0)

    obs, final_obs, reward, terminated, truncated, action, states = play(env, params, key, 2 * env.max_steps, act)
    package = make_package(name)
    package.noise_sigma = np.zeros(2)
    episodes = episodes_of(terminated, truncated)
    assert len(episodes) == 2
    for episode in episodes:
        package.reset()
        for t in range(episode.start, episode.stop):
            package.state = np.array([states.theta[t], states.theta_dot[t]], float)
            expected_obs, expected_reward, *expected_ends, _ = package.step(action[t])
            assert reward[t] == pytest.approx(expected_reward, abs=1e-6)
            assert [terminated[t], truncated[t]] == expected_ends
            if t + 1 < episode.stop:
                after = [states.theta[t + 1], states.theta_dot[t + 1]]
                np.testing.assert_allclose(after, package.state, atol=2e-6)
            if env.noise == 0.0:
                np.testing.assert_allclose(final_obs[t], expected_obs, atol=2e-6)
                np.testing.assert_allclose(obs[t], [np.cos(states.theta[t]), np.sin(states.theta[t])], atol=1e-6)


@pytest.mark.parametrize("name", ids_of("NoisyPositionOnlyCartPole", "NoisyPositionOnlyPendulum"))
def test_noise_is_as_strong_as_in_the_package(name):
    assert make_package(name).noise_sigma == pytest.approx(make(name)[0].noise)


@pytest.mark.parametrize("name", ["NoisyPositionOnlyCartPoleHard", "NoisyPositionOnlyPendulumEasy"])
def test_noise_is_gaussian_and_clipped(name, key):
    """At reset and at every step, on both components, independently."""
    env, params = make(name)
    space = env.observation_space(params)
    low, high = np.broadcast_to(space.low, 2), np.broadcast_to(space.high, 2)
    keys = jax.random.split(key, 4000)
    action = jax.tree.map(jnp.zeros_like, env.action_space(params).sample(key))
    reset_obs, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
    step_obs, next_state, *_ = jax.vmap(env.step, in_axes=(0, 0, None, None))(keys, state, action, params)

    quantiles = []  # of the noise that was not clipped: uniform and independent of each other
    for obs, hidden in [(np.asarray(reset_obs), state), (np.asarray(step_obs), next_state)]:
        if "CartPole" in name:
            truth = np.stack([hidden.x, hidden.theta], axis=1)
        else:
            truth = np.stack([np.cos(hidden.theta), np.sin(hidden.theta)], axis=1)
        lowest, highest = (stats.norm.cdf((bound - truth) / env.noise) for bound in (low, high))
        quantile = stats.norm.cdf((obs - truth) / env.noise)
        clipped = (obs <= low) | (obs >= high)
        assert ((obs >= low) & (obs <= high)).all()
        assert np.mean(clipped) == pytest.approx(np.mean(lowest + 1 - highest), abs=0.02)
        quantiles.extend(np.where(clipped, np.nan, (quantile - lowest) / (highest - lowest))[:, i] for i in range(2))
    for quantile in quantiles:
        assert stats.kstest(quantile[~np.isnan(quantile)], "uniform").pvalue > 1e-3
    for one, other in itertools.combinations(quantiles, 2):
        both = ~np.isnan(one) & ~np.isnan(other)
        assert abs(np.corrcoef(one[both], other[both])[0, 1]) < 4 / np.sqrt(np.sum(both))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("PositionOnlyCartPoleEasy", [-0.05] * 4, [0.05] * 4),
        ("NoisyPositionOnlyCartPoleEasy", [-0.05] * 4, [0.05] * 4),
        ("PositionOnlyPendulumEasy", [-np.pi, -1.0], [np.pi, 1.0]),
    ],
)
def test_first_states_are_uniform(name, low, high, key):
    env, params = make(name)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key, 4000), params)
    variables = jax.tree.leaves(state)[1:]
    assert len(variables) == len(low)
    for variable, lowest, highest in zip(variables, low, high, strict=True):
        assert stats.kstest((np.asarray(variable) - lowest) / (highest - lowest), "uniform").pvalue > 1e-3


def test_velocity_only_cart_pole_shows_velocities_at_reset(key):
    """The package shows positions there, a mistake we do not copy."""
    env, params = make("VelocityOnlyCartPoleEasy")
    obs, state = env.reset(key, params)
    np.testing.assert_array_equal(obs, [state.x_dot, state.theta_dot])


@pytest.mark.parametrize("env_id", [env_id for env_id in envs.names() if env_id.startswith("popgym/")])
def test_spaces_agree_with_the_package(env_id):
    env, params = envs.make(env_id)
    package = make_package(env_id.removeprefix("popgym/"))

    def describe(space):
        if hasattr(space, "spaces"):
            return [describe(part) for part in space.spaces]
        if hasattr(space, "nvec"):
            return [int(n) for n in space.nvec]
        if hasattr(space, "n"):
            return int(space.n)
        return [np.broadcast_to(bound, space.shape).astype(np.float32).tolist() for bound in (space.low, space.high)]

    assert describe(env.action_space(params)) == describe(package.action_space)
    assert describe(env.observation_space(params)) == describe(package.observation_space)
