"""POPGym's RepeatFirst and RepeatPrevious: name the suit of an earlier card.

- RepeatFirst: the first card of the episode, at every step.
- RepeatPrevious: the card k-1 steps before the one on screen (k counts the card on screen).

Source: `popgym.envs.repeat_first` and `popgym.envs.repeat_previous`, popgym 1.0.7.
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
from memax_rl.envs.popgym.deck import DECK_SIZE, SUITS, CardGame, deal, full_deck


class SuitGame(CardGame):
    """A deck whose suits are shown one by one; the answer is a suit too."""

    def __init__(self, decks: int):
        super().__init__(length=DECK_SIZE * decks - 1)
        self.decks = decks

    def action_space(self, params: EnvParams) -> spaces.Discrete:
        """A suit."""
        return spaces.Discrete(SUITS)

    def observation_space(self, params: EnvParams) -> spaces.Discrete:
        """A suit."""
        return spaces.Discrete(SUITS)


class RepeatFirstState(eqx.Module):
    """The state of RepeatFirst: steps taken, cards left of each suit, the first card."""

    time: Int32[Array, ""]
    counts: Int32[Array, "4"]
    first: Int32[Array, ""]


class RepeatFirst(SuitGame):
    """Name the suit of the first card at every step.

    Observation: Discrete(4), the suit on screen. Action: Discrete(4). Reward: 1/(N-1) if the action is the
    suit of the episode's first card, else -1/(N-1), with N = 52 * decks. Terminates after N-1 steps.
    """

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Int32[Array, ""], RepeatFirstState]:
        """Deal the first card."""
        card, counts = deal(jax.random.bits(key), full_deck(SUITS, self.decks))
        return card, RepeatFirstState(time=jnp.zeros((), jnp.int32), counts=counts, first=card)

    def step_env(
        self, key: PRNGKeyArray, state: RepeatFirstState, action: Int32[Array, ""], params: EnvParams
    ) -> tuple[Int32[Array, ""], RepeatFirstState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Judge the answer and deal the next card."""
        scale = jnp.float32(1 / self.length)
        reward = jnp.where(action == state.first, scale, -scale)
        card, counts = deal(jax.random.bits(key), state.counts)
        state = RepeatFirstState(time=state.time + 1, counts=counts, first=state.first)
        return card, state, reward, state.time >= self.length, {}


class RepeatPreviousState(eqx.Module):
    """The state of RepeatPrevious: steps taken, cards left of each suit, the last k cards, oldest first."""

    time: Int32[Array, ""]
    counts: Int32[Array, "4"]
    recent: Int32[Array, " k"]


class RepeatPrevious(SuitGame):
    """Name the suit of the card k-1 steps before the one on screen.

    Observation: Discrete(4), the suit on screen. Action: Discrete(4). Reward: 0 until k cards were seen, then
    1/(N-k) if right, else -1/(N-k), with N = 52 * decks. Terminates after N-1 steps.
    """

    def __init__(self, decks: int, k: int):
        super().__init__(decks)
        self.k = k

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Int32[Array, ""], RepeatPreviousState]:
        """Deal the first card."""
        card, counts = deal(jax.random.bits(key), full_deck(SUITS, self.decks))
        # The other entries leave the buffer before the first answer counts.
        recent = jnp.broadcast_to(card, (self.k,))
        return card, RepeatPreviousState(time=jnp.zeros((), jnp.int32), counts=counts, recent=recent)

    def step_env(
        self, key: PRNGKeyArray, state: RepeatPreviousState, action: Int32[Array, ""], params: EnvParams
    ) -> tuple[Int32[Array, ""], RepeatPreviousState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Judge the answer and deal the next card."""
        scale = jnp.float32(1 / (self.length + 1 - self.k))
        reward = jnp.where(action == state.recent[0], scale, -scale)
        cards_seen = state.time + 1
        reward = jnp.where(cards_seen >= self.k, reward, 0.0)
        card, counts = deal(jax.random.bits(key), state.counts)
        recent = jnp.append(state.recent[1:], card)
        state = RepeatPreviousState(time=state.time + 1, counts=counts, recent=recent)
        return card, state, reward, state.time >= self.length, {}


BUILDERS: dict[str, Callable[[], Environment]] = {
    "RepeatFirstEasy": partial(RepeatFirst, decks=1),
    "RepeatFirstMedium": partial(RepeatFirst, decks=8),
    "RepeatFirstHard": partial(RepeatFirst, decks=16),
    "RepeatPreviousEasy": partial(RepeatPrevious, decks=1, k=4),
    "RepeatPreviousMedium": partial(RepeatPrevious, decks=2, k=32),
    "RepeatPreviousHard": partial(RepeatPrevious, decks=3, k=64),
}
