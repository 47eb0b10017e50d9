"""POPGym's Concentration: find the pairs among cards that lie face down, two flips at a time.

Source: `popgym.envs.concentration`, popgym 1.0.7.

A card's kind is drawn here when it is first flipped, from the kinds of the cards never flipped: the same
distribution as a shuffled deck, without shuffling one at every step. So a reset is not random.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.base import Environment, EnvParams
from memax_rl.envs.popgym.deck import COLORS, DECK_SIZE, RANKS, deal, full_deck
from memax_rl.envs.popgym.timed import TimedEnvironment


class ConcentrationState(eqx.Module):
    """The state of Concentration.

    Attributes:
        time: Steps taken.
        counts: The number of cards of each kind among those never flipped.
        kinds: The kind of each card that was ever flipped; the number of kinds for the others.
        face_up: The cards that were matched.
        hand: The index of the first card of an unfinished pair of flips, or -1.
    """

    time: Int32[Array, ""]
    counts: Int32[Array, " kinds"]
    kinds: Int32[Array, " cards"]
    face_up: Bool[Array, " cards"]
    hand: Int32[Array, ""]


class Concentration(TimedEnvironment):
    """Find all pairs of N = 52 * decks cards of c kinds.

    Observation: MultiDiscrete [c+1]*N, the kinds of the cards that lie face up or were just flipped, c for
    the others; a mismatched pair is still visible at the step that completes it. Action: Discrete(N), the
    card to flip. Reward, with T = `params.max_steps_in_episode`: 0 for a first flip; for the second 2/N if
    the two match, -2/T if not or if it is the same card again; flipping a card that is face up costs 1/T for
    each card then in hand and ends the pair. Terminates when all cards are face up; truncated after T steps.
    """

    def __init__(self, decks: int, kinds: int):
        self.cards = DECK_SIZE * decks
        self.decks = decks
        self.kinds = kinds
        # The package's formula: near the expected number of flips of a player with perfect memory.
        self.max_steps = math.ceil(2 * self.cards - self.cards / (2 * self.cards - 1))

    def action_space(self, params: EnvParams) -> spaces.Discrete:
        """A card."""
        return spaces.Discrete(self.cards)

    def observation_space(self, params: EnvParams) -> spaces.MultiDiscrete:
        """The kind of each card, or the number of kinds where it lies face down."""
        return spaces.MultiDiscrete((self.kinds + 1,) * self.cards)

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Int32[Array, " cards"], ConcentrationState]:
        """Lay all cards face down."""
        unknown = jnp.full(self.cards, self.kinds, jnp.int32)
        state = ConcentrationState(
            time=jnp.zeros((), jnp.int32),
            counts=full_deck(self.kinds, self.decks),
            kinds=unknown,
            face_up=jnp.zeros(self.cards, bool),
            hand=jnp.full((), -1, jnp.int32),
        )
        return unknown, state

    def step_env(
        self, key: PRNGKeyArray, state: ConcentrationState, action: Int32[Array, ""], params: EnvParams
    ) -> tuple[Int32[Array, " cards"], ConcentrationState, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Flip a card."""
        positions = jnp.arange(self.cards)
        flipped, held = positions == action, positions == state.hand
        drawn, counts_after = deal(jax.random.bits(key), state.counts)
        never_flipped = jnp.any(flipped & (state.kinds == self.kinds))
        kinds = jnp.where(flipped & (state.kinds == self.kinds), drawn, state.kinds)
        counts = jnp.where(never_flipped, counts_after, state.counts)
        obs = jnp.where(state.face_up | flipped | held, kinds, self.kinds)

        second = state.hand >= 0
        wasted = jnp.any(flipped & state.face_up)
        kind = jnp.sum(jnp.where(flipped, kinds, 0))
        held_kind = jnp.sum(jnp.where(held, kinds, 0))
        match = second & ~wasted & (kind == held_kind) & (action != state.hand)
        cost = jnp.float32(1.0) / params.max_steps_in_episode
        reward = jnp.where(
            match,
            jnp.float32(2 / self.cards),
            jnp.where(second, -2 * cost, jnp.where(wasted, -cost, 0.0)),
        )
        face_up = state.face_up | (match & (flipped | held))
        hand = jnp.where(second | wasted, -1, action)
        state = ConcentrationState(time=state.time + 1, counts=counts, kinds=kinds, face_up=face_up, hand=hand)
        return obs, state, reward, jnp.all(face_up), {}


BUILDERS: dict[str, Callable[[], Environment]] = {
    "ConcentrationEasy": partial(Concentration, decks=1, kinds=COLORS),
    "ConcentrationMedium": partial(Concentration, decks=2, kinds=COLORS),
    "ConcentrationHard": partial(Concentration, decks=1, kinds=RANKS),
}
