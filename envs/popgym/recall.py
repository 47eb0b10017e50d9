"""POPGym's Autoencode, CountRecall and HigherLower: remember many cards.

- Autoencode: watch a deck, then name its suits in reverse order.
- CountRecall: say how often the queried kind of card was dealt so far.
- HigherLower: guess whether the next card's rank is higher or lower; counting cards helps a little.

Source: `popgym.envs.autoencode`, `popgym.envs.count_recall` and `popgym.envs.higher_lower`, popgym 1.0.7.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.base import Environment, EnvParams
from memax_rl.envs.popgym.deck import COLORS, DECK_SIZE, RANKS, SUITS, CardGame, deal, full_deck

PLAY, WATCH = 0, 1


class AutoencodeState(eqx.Module):
    """Steps taken, cards left of each suit, and the suits shown so far, in order."""

    time: Int32[Array, ""]
    counts: Int32[Array, "4"]
    shown: Int32[Array, " cards"]


class Autoencode(CardGame):
    """Watch a deck of N = 52 * decks cards, then name its suits, the last one first.

    Observation: (Discrete(2), Discrete(4)), the mode (1 watch, 0 play) and the suit on screen. The last card
    is already shown with mode 0; while playing the suit is 0. Action: Discrete(4). Reward: 0 while the mode
    was watch, then 1/N if right, else -1/N. Terminates after 2N-1 steps.
    """

    def __init__(self, decks: int):
        self.decks = decks
        self.cards = DECK_SIZE * decks
        super().__init__(length=2 * self.cards - 1)

    def action_space(self, params: EnvParams) -> spaces.Discrete:
        """A suit."""
        return spaces.Discrete(SUITS)

    def observation_space(self, params: EnvParams) -> spaces.Tuple:
        """A mode and a suit."""
        return spaces.Tuple((spaces.Discrete(2), spaces.Discrete(SUITS)))

    def reset_env(
        self, key: PRNGKeyArray, params: EnvParams
    ) -> tuple[tuple[Int32[Array, ""], Int32[Array, ""]], AutoencodeState]:
        """Show the first card."""
        card, counts = deal(jax.random.bits(key), full_deck(SUITS, self.decks))
        shown = jnp.where(jnp.arange(self.cards) == 0, card, 0)
        state = AutoencodeState(time=jnp.zeros((), jnp.int32), counts=counts, shown=shown)
        return (jnp.full((), WATCH, jnp.int32), card), state

    def step_env(
        self, key: PRNGKeyArray, state: AutoencodeState, action: Int32[Array, ""], params: EnvParams
    ) -> tuple[
        tuple[Int32[Array, ""], Int32[Array, ""]],
        AutoencodeState,
        Float32[Array, ""],
        Bool[Array, ""],
        dict[str, Any],
    ]:
        """Show the next card, or judge the answer once all cards were shown."""
        positions = jnp.arange(self.cards)
        watching = state.time < self.cards - 1

        target_position = 2 * self.cards - 2 - state.time
        target = jnp.sum(jnp.where(positions == target_position, state.shown, 0))
        scale = jnp.float32(1 / self.cards)
        reward = jnp.where(watching, 0.0, jnp.where(action == target, scale, -scale))

        card, counts_after = deal(jax.random.bits(key), state.counts)
        card = jnp.where(watching, card, 0)
        time = state.time + 1
        state = AutoencodeState(
            time=time,
            counts=jnp.where(watching, counts_after, state.counts),
            shown=jnp.where(watching & (positions == time), card, state.shown),
        )
        mode = jnp.where(time < self.cards - 1, WATCH, PLAY).astype(jnp.int32)
        return (mode, card), state, reward, time >= self.length, {}


class CountRecallState(eqx.Module):
    """Steps taken, cards of each kind left to deal and left to query, and the query on screen."""

    time: Int32[Array, ""]
    left_to_deal: Int32[Array, " kinds"]
    left_to_query: Int32[Array, " kinds"]
    query: Int32[Array, ""]


class CountRecall(CardGame):
    """Say how often the queried kind was dealt so far, the card on screen included.

    Observation: MultiDiscrete [c, c], the kinds dealt and queried, from two independent decks of N = 52 *
    decks cards. Action: Discrete(N/c + 1), a count. Reward: 1/(N-1) if right, else -1/(N-1). Terminates after
    N-1 steps.
    """

    def __init__(self, decks: int, kinds: int):
        super().__init__(length=DECK_SIZE * decks - 1)
        self.decks = decks
        self.kinds = kinds
        self.cards_per_kind = DECK_SIZE * decks // kinds

    def action_space(self, params: EnvParams) -> spaces.Discrete:
        """A count of cards."""
        return spaces.Discrete(self.cards_per_kind + 1)

    def observation_space(self, params: EnvParams) -> spaces.MultiDiscrete:
        """The kind dealt and the kind queried."""
        return spaces.MultiDiscrete((self.kinds, self.kinds))

    def _deal_both(
        self,
        key: PRNGKeyArray,
        time: Int32[Array, ""],
        left_to_deal: Int32[Array, " kinds"],
        left_to_query: Int32[Array, " kinds"],
    ) -> tuple[Int32[Array, "2"], CountRecallState]:
        deal_bits, query_bits = jax.random.bits(key, (2,))
        value, left_to_deal = deal(deal_bits, left_to_deal)
        query, left_to_query = deal(query_bits, left_to_query)
        state = CountRecallState(time=time, left_to_deal=left_to_deal, left_to_query=left_to_query, query=query)
        return jnp.stack([value, query]), state

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Int32[Array, "2"], CountRecallState]:
        """Deal the first card of both decks."""
        deck = full_deck(self.kinds, self.decks)
        return self._deal_both(key, jnp.zeros((), jnp.int32), deck, deck)

    def step_env(
        self, key: PRNGKeyArray, state: CountRecallState, action: Int32[Array, ""], params: EnvParams
    ) -> tuple[Int32[Array, "2"], CountRecallState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Judge the count and deal the next cards."""
        left = jnp.sum(jnp.where(jnp.arange(self.kinds) == state.query, state.left_to_deal, 0))
        scale = jnp.float32(1 / self.length)
        reward = jnp.where(action == self.cards_per_kind - left, scale, -scale)
        obs, state = self._deal_both(key, state.time + 1, state.left_to_deal, state.left_to_query)
        return obs, state, reward, state.time >= self.length, {}


class HigherLowerState(eqx.Module):
    """Steps taken, cards left of each rank, and the rank on screen."""

    time: Int32[Array, ""]
    counts: Int32[Array, "13"]
    card: Int32[Array, ""]


class HigherLower(CardGame):
    """Guess whether the next card's rank is higher or lower than the one on screen.

    Observation: Discrete(13), the rank on screen. Action: Discrete(2), 0 = higher, 1 = lower. Reward: 1/N if
    right, -1/N if wrong, 0 if the ranks are equal, with N = 52 * decks. Terminates after N-1 steps.
    """

    def __init__(self, decks: int):
        super().__init__(length=DECK_SIZE * decks - 1)
        self.decks = decks

    def action_space(self, params: EnvParams) -> spaces.Discrete:
        """Higher (0) or lower (1)."""
        return spaces.Discrete(2)

    def observation_space(self, params: EnvParams) -> spaces.Discrete:
        """A rank."""
        return spaces.Discrete(RANKS)

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Int32[Array, ""], HigherLowerState]:
        """Deal the first card."""
        card, counts = deal(jax.random.bits(key), full_deck(RANKS, self.decks))
        return card, HigherLowerState(time=jnp.zeros((), jnp.int32), counts=counts, card=card)

    def step_env(
        self, key: PRNGKeyArray, state: HigherLowerState, action: Int32[Array, ""], params: EnvParams
    ) -> tuple[Int32[Array, ""], HigherLowerState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Deal the next card and judge the guess."""
        card, counts = deal(jax.random.bits(key), state.counts)
        scale = jnp.float32(1 / (self.length + 1))
        right = (card > state.card) == (action == 0)
        reward = jnp.where(card == state.card, 0.0, jnp.where(right, scale, -scale))
        state = HigherLowerState(time=state.time + 1, counts=counts, card=card)
        return card, state, reward, state.time >= self.length, {}


BUILDERS: dict[str, Callable[[], Environment]] = {
    "AutoencodeEasy": partial(Autoencode, decks=1),
    "AutoencodeMedium": partial(Autoencode, decks=2),
    "AutoencodeHard": partial(Autoencode, decks=3),
    "CountRecallEasy": partial(CountRecall, decks=1, kinds=COLORS),
    "CountRecallMedium": partial(CountRecall, decks=2, kinds=SUITS),
    "CountRecallHard": partial(CountRecall, decks=4, kinds=RANKS),
    "HigherLowerEasy": partial(HigherLower, decks=1),
    "HigherLowerMedium": partial(HigherLower, decks=2),
    "HigherLowerHard": partial(HigherLower, decks=3),
}
