"""Scripted policies for POPGym's card games. All are optimal."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int32, PRNGKeyArray

from memax_rl.envs.baselines.policy import Policy
from memax_rl.envs.popgym.deck import RANKS, full_deck
from memax_rl.envs.popgym.recall import Autoencode, CountRecall, HigherLower
from memax_rl.envs.popgym.repeat import RepeatPrevious

Count = Int32[Array, ""]


class RepeatFirstPolicy(Policy):
    """Remember the first card. The carry is the first card, or -1 before it."""

    def initial_carry(self, task: Any = None) -> Count:
        """No card yet."""
        return jnp.full((), -1, jnp.int32)

    def act(self, carry: Count, inputs: Any, key: PRNGKeyArray) -> tuple[Count, Count]:
        """Name the first card."""
        obs: Count = inputs.observation
        first = jnp.where(carry < 0, obs, carry)
        return first, first


class RepeatPreviousPolicy(Policy):
    """Remember the last k cards. The carry is these cards, oldest first."""

    k: int = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> Int32[Array, " k"]:
        """Any cards: the first answers do not count."""
        return jnp.zeros(self.k, jnp.int32)

    def act(self, carry: Int32[Array, " k"], inputs: Any, key: PRNGKeyArray) -> tuple[Int32[Array, " k"], Count]:
        """Name the oldest of the last k cards."""
        obs: Count = inputs.observation
        recent = jnp.append(carry[1:], obs)
        return recent, recent[0]


class AutoencodePolicy(Policy):
    """Remember all cards. The carry is the number of observations so far, and the cards in order."""

    cards: int = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> tuple[Count, Int32[Array, " cards"]]:
        """No cards yet."""
        return jnp.zeros((), jnp.int32), jnp.zeros(self.cards, jnp.int32)

    def act(
        self, carry: tuple[Count, Int32[Array, " cards"]], inputs: Any, key: PRNGKeyArray
    ) -> tuple[tuple[Count, Int32[Array, " cards"]], Count]:
        """Name the last card first; answers while watching do not count."""
        obs: tuple[Count, Count] = inputs.observation
        time, cards = carry
        position = jnp.arange(self.cards)
        cards = jnp.where(position == time, obs[1], cards)
        answer = jnp.sum(jnp.where(position == 2 * self.cards - 2 - time, cards, 0))
        return (time + 1, cards), answer


class CountRecallPolicy(Policy):
    """Count all cards. The carry is how often each kind was dealt."""

    kinds: int = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> Int32[Array, " kinds"]:
        """No cards yet."""
        return jnp.zeros(self.kinds, jnp.int32)

    def act(
        self, carry: Int32[Array, " kinds"], inputs: Any, key: PRNGKeyArray
    ) -> tuple[Int32[Array, " kinds"], Count]:
        """Say how often the queried kind was dealt."""
        obs = inputs.observation  # [2]
        kind = jnp.arange(self.kinds)
        counts = carry + (kind == obs[0])
        return counts, jnp.sum(jnp.where(kind == obs[1], counts, 0))


class HigherLowerPolicy(Policy):
    """Count all cards. The carry is how many of each rank are left."""

    decks: int = eqx.field(static=True)

    def initial_carry(self, task: Any = None) -> Int32[Array, "13"]:
        """All cards are left."""
        return full_deck(RANKS, self.decks)

    def act(self, carry: Int32[Array, "13"], inputs: Any, key: PRNGKeyArray) -> tuple[Int32[Array, "13"], Count]:
        """Guess the side on which more cards are left."""
        obs: Count = inputs.observation
        rank = jnp.arange(RANKS)
        left = carry - (rank == obs)
        higher = jnp.sum(jnp.where(rank > obs, left, 0))
        lower = jnp.sum(jnp.where(rank < obs, left, 0))
        return left, jnp.where(higher >= lower, 0, 1).astype(jnp.int32)


def repeat_first(env: Any) -> Policy:
    """The policy for RepeatFirst."""
    return RepeatFirstPolicy()


def repeat_previous(env: RepeatPrevious) -> Policy:
    """The policy for RepeatPrevious."""
    return RepeatPreviousPolicy(k=env.k)


def autoencode(env: Autoencode) -> Policy:
    """The policy for Autoencode."""
    return AutoencodePolicy(cards=env.cards)


def count_recall(env: CountRecall) -> Policy:
    """The policy for CountRecall."""
    return CountRecallPolicy(kinds=env.kinds)


def higher_lower(env: HigherLower) -> Policy:
    """The policy for HigherLower."""
    return HigherLowerPolicy(decks=env.decks)
