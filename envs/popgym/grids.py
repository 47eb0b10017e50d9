"""POPGym's Battleship and MineSweeper: search a board that is never shown.

- Battleship: hit all ships, told only hit or miss.
- MineSweeper: visit every cell without a mine, told only the number of mines around the cell just visited.

Source: `popgym.envs.battleship` and `popgym.envs.minesweeper`, popgym 1.0.7.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray, UInt32

from memax_rl.envs import spaces
from memax_rl.envs.base import Environment, EnvParams
from memax_rl.envs.popgym.timed import TimedEnvironment

SHIP_SIZES = (2, 3, 3, 4)
SHIP_CELLS = sum(SHIP_SIZES)


def place_ship(
    bits: UInt32[Array, ""], lines: UInt32[Array, " lines"], size: int | Int32[Array, ""]
) -> UInt32[Array, " lines"]:
    """Add a ship at a place drawn uniformly from all that are free.

    The package draws places until one is free, which is the same distribution. The board is kept as bits, so
    that all places of a line are checked at once; with arrays of cells a step on the 12 x 12 board took twice
    as long.

    Args:
        bits: 32 random bits. lines: The taken cells of an n x n board: the n rows, whose bit c is column c,
        then the n columns, whose
            bit r is row r.
        size: The number of cells of the ship, at most 4, which lie in a row or in a column.

    Returns:
        The lines with the ship.
    """
    n = lines.size // 2
    index_of_line = jnp.arange(2 * n)
    # Bit i of a line: a ship can begin at its cell i, because none of its cells is taken or off the board.
    ship_cells = (jnp.uint32(1) << jnp.asarray(size, jnp.uint32)) - 1
    taken = reduce(jnp.bitwise_or, [jnp.where(ship_cells >> i & 1 == 1, lines >> i, 0) for i in range(max(SHIP_SIZES))])
    free = ~taken & ((jnp.uint32(2) << jnp.asarray(n - size, jnp.uint32)) - 1)

    # Find the index-th free place: first its line, then its start within the line.
    free_in_line = jax.lax.population_count(free)
    index = bits % jnp.sum(free_in_line)
    # A cumulative sum of small numbers, hence exact, as a product: with a scan, a step takes 1.7 times as long.
    up_to_line = (free_in_line.astype(jnp.float32) @ jnp.triu(jnp.ones((2 * n, 2 * n)))).astype(jnp.uint32)
    before = up_to_line <= index
    line = jnp.sum(before, dtype=jnp.int32)
    index_in_line = (index - jnp.max(jnp.where(before, up_to_line, 0))).astype(jnp.int32)
    its_free = jnp.sum(jnp.where(index_of_line == line, free, 0), dtype=jnp.uint32)
    up_to = (jnp.uint32(2) << jnp.arange(n, dtype=jnp.uint32)) - 1
    free_up_to = jax.lax.population_count(its_free & up_to).astype(jnp.int32)
    start = jnp.sum(free_up_to <= index_in_line, dtype=jnp.int32)

    along = ship_cells << start.astype(jnp.uint32)
    across = jnp.uint32(1) << (line % n).astype(jnp.uint32)
    crosses = ((index_of_line < n) != (line < n)) & (index_of_line % n >= start) & (index_of_line % n < start + size)
    ship = jnp.where(index_of_line == line, along, jnp.where(crosses, across, 0))
    return lines | ship


class BattleshipState(eqx.Module):
    """Steps taken, cells with a ship, cells guessed, the number of hits, and the next episode's ships.

    Cells are bits, that of column c in row r being bit c of the r-th number; `next_ships` are `place_ship`'s lines.

    To place four ships takes longer than the rest of a step, and a reset is computed at every step. So each of an
    episode's first four steps places one ship of the next episode.
    """

    time: Int32[Array, ""]
    ships: UInt32[Array, " n"]
    guessed: UInt32[Array, " n"]
    hits: Int32[Array, ""]
    next_ships: UInt32[Array, " lines"]


class Battleship(TimedEnvironment):
    """Hit the 12 cells of the ships of sizes 2, 3, 3 and 4 on an n x n board.

    Observation: Discrete(2), whether the last guess hit a ship at a cell not guessed before; 0 at first.
    Action: MultiDiscrete [n, n], row and column. Reward: 1/12 for a hit, -1/(n^2 - 12) otherwise. Terminates
    at 12 hits; truncated after n^2 steps.
    """

    def __init__(self, size: int):
        self.size = size
        self.max_steps = size**2

    def max_episode_steps(self, params: EnvParams) -> int | None:
        """The time limit, four steps at least."""
        return max(int(params.max_steps_in_episode), len(SHIP_SIZES))

    def action_space(self, params: EnvParams) -> spaces.MultiDiscrete:
        """A row and a column."""
        return spaces.MultiDiscrete((self.size, self.size))

    def observation_space(self, params: EnvParams) -> spaces.Discrete:
        """Miss (0) or hit (1)."""
        return spaces.Discrete(2)

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Int32[Array, ""], BattleshipState]:
        """Place the ships, one after the other."""
        lines = jnp.zeros(2 * self.size, jnp.uint32)
        for bits, size in zip(jax.random.bits(key, (len(SHIP_SIZES),)), SHIP_SIZES, strict=True):
            lines = place_ship(bits, lines, size)
        return self._begin(lines)

    def next_episode(
        self, key: PRNGKeyArray, state: BattleshipState, params: EnvParams
    ) -> tuple[Int32[Array, ""], BattleshipState]:
        """Take the ships that were placed during the last episode."""
        return self._begin(state.next_ships)

    def _begin(self, lines: UInt32[Array, " lines"]) -> tuple[Int32[Array, ""], BattleshipState]:
        ships, zero = lines[: self.size], jnp.zeros((), jnp.int32)
        return zero, BattleshipState(
            time=zero, ships=ships, guessed=jnp.zeros_like(ships), hits=zero, next_ships=jnp.zeros_like(lines)
        )

    def step_env(
        self, key: PRNGKeyArray, state: BattleshipState, action: Int32[Array, "2"], params: EnvParams
    ) -> tuple[Int32[Array, ""], BattleshipState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Guess a cell, and place a ship of the next episode."""
        row, column = action[0], action[1].astype(jnp.uint32)
        cell = jnp.where(jnp.arange(self.size) == row, jnp.uint32(1) << column, 0)
        hit = jnp.any(cell & state.ships & ~state.guessed != 0)
        reward = jnp.where(hit, jnp.float32(1 / SHIP_CELLS), jnp.float32(-1 / (self.size**2 - SHIP_CELLS)))
        placing = state.time < len(SHIP_SIZES)
        size = jnp.sum(jnp.where(jnp.arange(len(SHIP_SIZES)) == state.time, jnp.array(SHIP_SIZES), 0), dtype=jnp.int32)
        next_ships = jnp.where(placing, place_ship(jax.random.bits(key), state.next_ships, size), state.next_ships)
        state = BattleshipState(
            time=state.time + 1,
            ships=state.ships,
            guessed=state.guessed | cell,
            hits=state.hits + hit,
            next_ships=next_ships,
        )
        return hit.astype(jnp.int32), state, reward, state.hits >= SHIP_CELLS, {}

    def is_truncated(self, state: BattleshipState, params: EnvParams) -> Bool[Array, ""]:
        """Whether the time is up, which is not before the next episode's ships are placed."""
        return (state.time >= params.max_steps_in_episode) & (state.time >= len(SHIP_SIZES))


def draw_subset(bits: UInt32[Array, " chosen"], size: int) -> Int32[Array, " chosen"]:
    """Draw distinct numbers below `size`, every subset equally likely.

    Robert Floyd's algorithm (Bentley, "Programming pearls", CACM 30(9), 1987): the i-th number is drawn from
    those up to a limit; if it was drawn before, the limit itself, which cannot have been, takes its place.

    Args:
        bits: 32 random bits for each number to draw.
        size: The number of numbers to draw from.

    Returns:
        The numbers, in an order that is not random.
    """
    count = bits.size
    chosen = jnp.full(count, -1, jnp.int32)
    for i, limit in enumerate(range(size - count, size)):
        number = (bits[i] % jnp.uint32(limit + 1)).astype(jnp.int32)
        number = jnp.where(jnp.any(chosen == number), limit, number)
        chosen = jnp.where(jnp.arange(count) == i, number, chosen)
    return chosen


class MineSweeperState(eqx.Module):
    """Steps taken, the cells of the mines (row * n + column), the cells visited, whether a mine was hit."""

    time: Int32[Array, ""]
    mines: Int32[Array, " mines"]
    visited: Bool[Array, "n n"]
    exploded: Bool[Array, ""]


class MineSweeper(TimedEnvironment):
    """Visit the L = n^2 - mines cells without a mine.

    Observation: Discrete(mines + 1, at most 10), the number of mines within one step of the cell just
    visited, itself included; 0 at first. Action: MultiDiscrete [n, n], row and column. Reward: 1/L for a new
    cell, -0.5/(L-2) for one visited before, -0.5 - 1/L for a mine. Terminates on a mine or when all other
    cells were visited; truncated after L steps that did not terminate.
    """

    def __init__(self, size: int, mines: int):
        self.size = size
        self.mines = mines
        self.free_cells = self.max_steps = size**2 - mines

    def action_space(self, params: EnvParams) -> spaces.MultiDiscrete:
        """A row and a column."""
        return spaces.MultiDiscrete((self.size, self.size))

    def observation_space(self, params: EnvParams) -> spaces.Discrete:
        """A number of mines."""
        return spaces.Discrete(min(self.mines + 1, 10))

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Int32[Array, ""], MineSweeperState]:
        """Lay the mines."""
        zero = jnp.zeros((), jnp.int32)
        mines = draw_subset(jax.random.bits(key, (self.mines,)), self.size**2)
        visited = jnp.zeros((self.size, self.size), bool)
        return zero, MineSweeperState(time=zero, mines=mines, visited=visited, exploded=jnp.zeros((), bool))

    def step_env(
        self, key: PRNGKeyArray, state: MineSweeperState, action: Int32[Array, "2"], params: EnvParams
    ) -> tuple[Int32[Array, ""], MineSweeperState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Visit a cell."""
        rows = jnp.abs(state.mines // self.size - action[0])
        columns = jnp.abs(state.mines % self.size - action[1])
        obs = jnp.sum((rows <= 1) & (columns <= 1), dtype=jnp.int32)
        on_mine = jnp.any((rows == 0) & (columns == 0))
        index = jnp.arange(self.size)
        cell = (index == action[0])[:, None] & (index == action[1])[None, :]
        repeated = jnp.any(cell & state.visited)
        new = jnp.float32(1 / self.free_cells)
        reward = jnp.where(on_mine, -0.5 - new, jnp.where(repeated, jnp.float32(-0.5 / (self.free_cells - 2)), new))
        state = MineSweeperState(
            time=state.time + 1,
            mines=state.mines,
            visited=state.visited | (cell & ~on_mine),
            exploded=on_mine,
        )
        return obs, state, reward, self._is_over(state), {}

    def is_truncated(self, state: MineSweeperState, params: EnvParams) -> Bool[Array, ""]:
        """Whether the time is up; as in the package, not at a step that terminates."""
        return (state.time >= params.max_steps_in_episode) & ~self._is_over(state)

    def _is_over(self, state: MineSweeperState) -> Bool[Array, ""]:
        return state.exploded | (jnp.sum(state.visited) == self.free_cells)


BUILDERS: dict[str, Callable[[], Environment]] = {
    "BattleshipEasy": partial(Battleship, size=8),
    "BattleshipMedium": partial(Battleship, size=10),
    "BattleshipHard": partial(Battleship, size=12),
    "MineSweeperEasy": partial(MineSweeper, size=4, mines=2),
    "MineSweeperMedium": partial(MineSweeper, size=6, mines=6),
    "MineSweeperHard": partial(MineSweeper, size=8, mines=10),
}
