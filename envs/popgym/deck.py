"""The base of POPGym's card games: a deck is dealt card by card, and an episode ends with the deck.

Source: `popgym.core.deck`, popgym 1.0.7.

The package shuffles a deck in `reset`. With automatic resets under `jit` that would shuffle at every step, so
a card is drawn here when it is dealt, from the numbers of cards of each kind that are left: the same
distribution. Only the kind of a card (its suit, color or rank) is ever seen, so only kinds are drawn.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, UInt32

from memax_rl.envs.base import Environment, EnvParams

DECK_SIZE = 52
COLORS = 2
SUITS = 4
RANKS = 13


def full_deck(kinds: int, decks: int) -> Int32[Array, " kinds"]:
    """The number of cards of each kind in whole decks, whose kinds are equally frequent."""
    return jnp.full(kinds, DECK_SIZE * decks // kinds, jnp.int32)


def deal(bits: UInt32[Array, ""], counts: Int32[Array, " kinds"]) -> tuple[Int32[Array, ""], Int32[Array, " kinds"]]:
    """Deal a card from what is left of the deck.

    Args:
        bits: 32 random bits. Their remainder is off uniform by less than (cards left) / 2^32, below 2e-7.
        counts: The number of cards of each kind that are left.

    Returns:
        The kind of the card and the numbers left after it. An empty deck deals a kind out of range.
    """
    cards_left = jnp.sum(counts)
    index = (bits % jnp.maximum(cards_left, 1).astype(jnp.uint32)).astype(jnp.int32)
    # jnp.cumsum becomes a reduce-window here, with which CountRecallHard took three times as long on a CPU.
    cumulative = jax.lax.associative_scan(jnp.add, counts)
    card = jnp.sum(cumulative <= index, dtype=jnp.int32)
    return card, counts - (jnp.arange(counts.size) == card)


class CardGame(Environment):
    """A game whose every episode ends when a deck runs out, after `length` steps.

    The last card is the only one left, hence no random choice: `reset_env` may use the same bits again.
    """

    def __init__(self, length: int):
        self.length = length

    @property
    def default_params(self) -> EnvParams:
        """A time limit that the game's own end comes before."""
        return EnvParams(max_steps_in_episode=self.length)

    def is_truncated(self, state: Any, params: EnvParams) -> Bool[Array, ""]:
        """Whether a time limit below the game's length was reached."""
        return (state.time >= params.max_steps_in_episode) & (state.time < self.length)

    def max_episode_steps(self, params: EnvParams) -> int | None:
        """The fixed length."""
        return self.fixed_length(params)

    def fixed_length(self, params: EnvParams) -> int | None:
        """The game's length, or the time limit if that is shorter."""
        return min(self.length, int(params.max_steps_in_episode))

    def truncates(self, params: EnvParams) -> bool:
        """Whether a time limit below the game's length is set."""
        return int(params.max_steps_in_episode) < self.length
