"""Scripted policies for POPGym's board games and its bandit. Strong, not proven optimal."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs.baselines.policy import Policy
from memax_rl.envs.popgym.bandit import MultiarmedBandit
from memax_rl.envs.popgym.concentration import Concentration
from memax_rl.envs.popgym.grids import SHIP_SIZES, Battleship, MineSweeper

Index = Int32[Array, ""]


class ConcentrationCarry(NamedTuple):
    """What a player with perfect memory knows.

    Attributes:
        kinds: The kind of each card ever seen; the number of kinds for the others.
        matched: The cards that lie face up for good.
        hand: The first card of an unfinished pair of flips, or -1.
        flipped: The card flipped last, or -1 at first.
    """

    kinds: Int32[Array, " cards"]
    matched: Bool[Array, " cards"]
    hand: Index
    flipped: Index


class ConcentrationPolicy(Policy):
    """Take a known pair, else flip a new card and then its partner if that is known, else another new one."""

    cards: int = eqx.field(static=True)
    kinds: int = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> ConcentrationCarry:
        """Nothing is known."""
        none = jnp.full((), -1, jnp.int32)
        unknown = jnp.full(self.cards, self.kinds, jnp.int32)
        return ConcentrationCarry(unknown, jnp.zeros(self.cards, bool), none, none)

    def act(self, carry: ConcentrationCarry, inputs: Any, key: PRNGKeyArray) -> tuple[ConcentrationCarry, Index]:
        """Choose the card to flip."""
        obs: Int32[Array, " cards"] = inputs.observation
        position = jnp.arange(self.cards)
        kinds = jnp.where(obs == self.kinds, carry.kinds, obs)
        # The policy never flips the same card twice nor one that is face up, so equal kinds were a match.
        pair = (position == carry.hand) | (position == carry.flipped)
        second = carry.hand >= 0
        matches = second & (self._kind(kinds, carry.hand) == self._kind(kinds, carry.flipped))
        matched = carry.matched | (matches & pair)
        hand = jnp.where(second, -1, carry.flipped)

        unknown = kinds == self.kinds
        open_kind = jnp.where(matched, self.kinds, kinds)
        is_kind = open_kind[:, None] == jnp.arange(self.kinds)[None, :]  # [cards, kinds]
        in_pair = jnp.any(is_kind & (jnp.sum(is_kind, axis=0) >= 2)[None, :], axis=1)
        partner = (open_kind == self._kind(kinds, hand)) & (position != hand)
        other = ~matched & (position != hand)
        wanted = jnp.where(hand >= 0, partner, in_pair)
        choice = jnp.argmax(4 * wanted + 2 * unknown + other).astype(jnp.int32)
        return ConcentrationCarry(kinds, matched, hand, choice), choice

    def _kind(self, kinds: Int32[Array, " cards"], card: Index) -> Index:
        return jnp.sum(jnp.where(jnp.arange(self.cards) == card, kinds, 0))


class SearchCarry(NamedTuple):
    """Cells known to hold a ship, all cells guessed, and the cell guessed last (-1, -1 at first)."""

    hits: Bool[Array, "n n"]
    guessed: Bool[Array, "n n"]
    last: Int32[Array, "2"]


class BattleshipPolicy(Policy):
    """Guess the cell that most possible places of the ships cover, those through hits foremost."""

    size: int = eqx.field(static=True)
    hit_weight: float = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> SearchCarry:
        """Nothing is known."""
        none = jnp.zeros((self.size, self.size), bool)
        return SearchCarry(none, none, jnp.full(2, -1, jnp.int32))

    def act(self, carry: SearchCarry, inputs: Any, key: PRNGKeyArray) -> tuple[SearchCarry, Int32[Array, "2"]]:
        """Choose the cell to guess."""
        obs: Index = inputs.observation
        last = _cell(self.size, carry.last)
        guessed = carry.guessed | last
        hits = carry.hits | (last & (obs == 1))
        misses = guessed & ~hits
        heat = self._heat(hits, misses) + self._heat(hits.T, misses.T).T
        choice = jnp.argmax(jnp.where(guessed, -1.0, heat)).astype(jnp.int32)
        cell = jnp.stack([choice // self.size, choice % self.size])
        return SearchCarry(hits, guessed, cell), cell

    def _heat(self, hits: Bool[Array, "n n"], misses: Bool[Array, "n n"]) -> Float32[Array, "n n"]:
        """The weight of all places of ships along a row that cover each cell."""
        heat = jnp.zeros(hits.shape)
        for length in SHIP_SIZES:
            starts = self.size - length + 1
            covered_hits = sum(hits[:, i : i + starts].astype(jnp.float32) for i in range(length))
            possible = ~jnp.any(jnp.stack([misses[:, i : i + starts] for i in range(length)]), axis=0)
            weight = jnp.where(possible, self.hit_weight**covered_hits, 0.0)
            for i in range(length):
                heat = heat.at[:, i : i + starts].add(weight)
        return heat


def _cell(size: int, cell: Int32[Array, "2"]) -> Bool[Array, "n n"]:
    """A board on which one cell is true."""
    index = jnp.arange(size)
    return (index == cell[0])[:, None] & (index == cell[1])[None, :]


class MineSweeperCarry(NamedTuple):
    """The cells visited, the numbers of mines seen there, and the cell visited last (-1, -1 at first)."""

    visited: Bool[Array, "n n"]
    numbers: Float32[Array, "n n"]
    last: Int32[Array, "2"]


class MineSweeperPolicy(Policy):
    """Visit the cell that is least likely to hold a mine.

    The probabilities are fitted in turn to every number seen and to the total number of mines by scaling odds
    (iterative proportional fitting). Where a number leaves no doubt, the odds go to 0 or infinity.
    """

    size: int = eqx.field(static=True)
    mines: int = eqx.field(static=True)
    sweeps: int = eqx.field(static=True)
    rate: float = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> MineSweeperCarry:
        """Nothing is known."""
        board = (self.size, self.size)
        return MineSweeperCarry(jnp.zeros(board, bool), jnp.zeros(board), jnp.full(2, -1, jnp.int32))

    def act(
        self, carry: MineSweeperCarry, inputs: Any, key: PRNGKeyArray
    ) -> tuple[MineSweeperCarry, Int32[Array, "2"]]:
        """Choose the cell to visit."""
        obs: Index = inputs.observation
        last = _cell(self.size, carry.last)
        visited = carry.visited | last
        numbers = jnp.where(last, obs.astype(jnp.float32), carry.numbers)
        danger = self._mine_probability(visited, numbers)
        choice = jnp.argmin(jnp.where(visited, 2.0, danger)).astype(jnp.int32)
        cell = jnp.stack([choice // self.size, choice % self.size])
        return MineSweeperCarry(visited, numbers, cell), cell

    def _mine_probability(self, visited: Bool[Array, "n n"], numbers: Float32[Array, "n n"]) -> Float32[Array, "n n"]:
        unvisited = (~visited).astype(jnp.float32)
        neighbors = _sum_3x3(unvisited)
        wanted = _logit(numbers / jnp.maximum(neighbors, 1.0))
        all_unvisited = jnp.sum(unvisited)
        density = _logit(self.mines / all_unvisited)

        def sweep(_, log_odds: Float32[Array, "n n"]) -> Float32[Array, "n n"]:
            probability = unvisited * jax.nn.sigmoid(log_odds)
            fitted = _logit(_sum_3x3(probability) / jnp.maximum(neighbors, 1.0))
            surprise = jnp.where(visited & (neighbors > 0), wanted - fitted, 0.0)
            total_surprise = density - _logit(jnp.sum(probability) / all_unvisited)
            return jnp.clip(log_odds + self.rate * (_sum_3x3(surprise) + total_surprise), -20.0, 20.0)

        log_odds = jax.lax.fori_loop(0, self.sweeps, sweep, jnp.full(visited.shape, density))
        return jax.nn.sigmoid(log_odds)


def _logit(probability: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Log odds, kept finite."""
    inside = jnp.clip(probability, 1e-4, 1 - 1e-4)
    return jnp.log(inside / (1 - inside))


def _sum_3x3(board: Float32[Array, "n n"]) -> Float32[Array, "n n"]:
    """The sum over each cell and its neighbors."""
    rows = jnp.pad(board, 1)
    rows = rows[:-2] + rows[1:-1] + rows[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


class BanditCarry(NamedTuple):
    """Steps taken, pulls and payouts of each arm, and the arm pulled last (-1 at first)."""

    time: Index
    pulls: Float32[Array, " arms"]
    payouts: Float32[Array, " arms"]
    last: Index


class BanditPolicy(Policy):
    """Pull the arm with the highest optimistic estimate: its posterior mean plus some standard deviations."""

    arms: int = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    optimism: float = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> BanditCarry:
        """No pulls yet."""
        zeros = jnp.zeros(self.arms)
        return BanditCarry(jnp.zeros((), jnp.int32), zeros, zeros, jnp.full((), -1, jnp.int32))

    def act(self, carry: BanditCarry, inputs: Any, key: PRNGKeyArray) -> tuple[BanditCarry, Index]:
        """Choose the arm."""
        obs: Index = inputs.observation
        last = jnp.arange(self.arms) == carry.last
        pulls = carry.pulls + last
        payouts = carry.payouts + jnp.where(last, obs, 0)
        # Beta posterior from a uniform prior. Optimism pays less the fewer pulls are left to profit from it.
        mean = (payouts + 1) / (pulls + 2)
        deviation = jnp.sqrt(mean * (1 - mean) / (pulls + 3))
        left = 1 - carry.time / self.horizon
        choice = jnp.argmax(mean + self.optimism * left * deviation).astype(jnp.int32)
        return BanditCarry(carry.time + 1, pulls, payouts, choice), choice


def concentration(env: Concentration) -> Policy:
    """The policy for Concentration."""
    return ConcentrationPolicy(cards=env.cards, kinds=env.kinds)


def battleship(env: Battleship) -> Policy:
    """The policy for Battleship."""
    return BattleshipPolicy(size=env.size, hit_weight=6.0)


def mine_sweeper(env: MineSweeper) -> Policy:
    """The policy for MineSweeper."""
    return MineSweeperPolicy(size=env.size, mines=env.mines, sweeps=100, rate=0.3)


def multiarmed_bandit(env: MultiarmedBandit) -> Policy:
    """The policy for MultiarmedBandit."""
    return BanditPolicy(arms=env.arms, horizon=env.max_steps, optimism=2.0)
