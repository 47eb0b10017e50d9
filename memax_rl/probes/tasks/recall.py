"""Tasks of recall: keep something of what was seen, and say it when asked."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from pydantic import Field, model_validator

from memax_rl.envs import spaces
from memax_rl.probes.tasks.base import Classification, Sequence, at_least

# Tokens of copying: nothing, and the request to say the next symbol. The symbols follow.
_BLANK, _RECALL, _FIRST = 0, 1, 2


class Copying(Classification):
    """Say the first symbols again, in order, at the end."""

    known: ClassVar[str] = (
        "All memories whose state holds the symbols for long enough, linear time-invariant ones (LRU, S5) included."
    )
    source: ClassVar[str] = (
        "Hochreiter and Schmidhuber 1997; as of https://arxiv.org/abs/1511.06464; linear ones: "
        "https://arxiv.org/abs/2303.06349"
    )

    symbols: int = Field(default=10, ge=1, le=10_000)
    """How many symbols there are to copy."""
    alphabet: int = Field(default=8, ge=2, le=10_000)
    """How many different symbols there are."""

    @model_validator(mode="after")
    def _check(self) -> "Copying":
        at_least(self, 2 * self.symbols, "twice the symbols")
        return self

    @property
    def input_space(self) -> spaces.Discrete:
        return spaces.Discrete(_FIRST + self.alphabet)

    @property
    def classes(self) -> int:
        return self.alphabet

    def positions(self, key: PRNGKeyArray) -> jax.Array:
        """Return the slots of the symbols, in order."""
        del key
        return jnp.arange(self.symbols)

    def sample(self, key, data=()) -> Sequence:
        key_symbols, key_positions = jax.random.split(key)
        symbols = jax.random.randint(key_symbols, (self.symbols,), 0, self.alphabet)
        blank, asked = jnp.full(self.length, _BLANK), self.length - self.symbols
        inputs = blank.at[self.positions(key_positions)].set(_FIRST + symbols).at[asked:].set(_RECALL)
        targets = jnp.zeros(self.length, jnp.int32).at[asked:].set(symbols)
        return Sequence(inputs, targets, jnp.arange(self.length) >= asked)


class SelectiveCopying(Copying):
    """Say the symbols that stand somewhere among blanks, in order, at the end."""

    known: ClassVar[str] = (
        "Memories whose update depends on the input (gates, selective state spaces, delta rules, attention). Linear "
        "time-invariant ones (LRU, S5) cannot tell how many blanks lie between."
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2312.00752, section 3.1"

    def positions(self, key: PRNGKeyArray) -> jax.Array:
        return jnp.sort(jax.random.permutation(key, self.length - self.symbols)[: self.symbols])


class FirstSymbol(Classification):
    """Say the first of many random symbols at the end.

    With `doublings`, say it after 1, 2, 4, 8, ... slots too: what is near is learned first, and leads on to what is
    twice as far. The score is then the share of these distances over which the symbol is held.
    """

    known: ClassVar[str] = "Memories that can keep a value while they ignore inputs; a gate or a decay near one."
    source: ClassVar[str] = "The latching problem of https://doi.org/10.1109/72.279181"

    length: int = Field(default=1_000, ge=2, le=10**7)
    """Slots of a sequence; the last one asks."""
    alphabet: int = Field(default=4, ge=2, le=10_000)
    """How many different symbols there are."""
    doublings: bool = False
    """Ask after 1, 2, 4, 8, ... slots too; else at the last one alone."""

    @property
    def input_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.alphabet + 1)

    @property
    def classes(self) -> int:
        return self.alphabet

    def sample(self, key, data=()) -> Sequence:
        inputs = jax.random.randint(key, (self.length,), 0, self.alphabet).at[-1].set(self.alphabet)
        if self.doublings:
            slots = jnp.arange(self.length)
            # One bit is set in a power of two.
            asked = ((slots > 0) & ((slots & (slots - 1)) == 0)) | (slots == self.length - 1)
            return Sequence(inputs, jnp.where(asked, inputs[0], 0), asked)
        return _asked_at_the_end(inputs, inputs[0])


class InductionHeads(Classification):
    """Say what followed the special symbol the first time, when it comes again at the end."""

    known: ClassVar[str] = (
        "Two layers of attention, and selective state spaces (Mamba), which also do at lengths far beyond training."
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2209.11895; as of https://arxiv.org/abs/2312.00752, section 4.1.2"

    length: int = Field(default=256, ge=4, le=10**7)
    """Slots of a sequence; the last one asks."""
    alphabet: int = Field(default=16, ge=2, le=10_000)
    """How many different symbols there are, without the special one."""

    @property
    def input_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.alphabet + 1)

    @property
    def classes(self) -> int:
        return self.alphabet

    def sample(self, key, data=()) -> Sequence:
        key_symbols, key_place = jax.random.split(key)
        place = jax.random.randint(key_place, (), 0, self.length - 2)
        inputs = jax.random.randint(key_symbols, (self.length,), 0, self.alphabet)
        inputs = inputs.at[place].set(self.alphabet).at[-1].set(self.alphabet)
        return _asked_at_the_end(inputs, inputs[place + 1])


class AssociativeRecall(Classification):
    """See pairs of a key and a value, then say the value of each key that is shown (multi-query)."""

    known: ClassVar[str] = (
        "Attention at any width; matrix states (linear attention, delta rules) up to about as many pairs as the state "
        "has rows; vector states need a width that grows with the pairs."
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2312.04927 and https://arxiv.org/abs/2402.18668"

    pairs: int = Field(default=8, ge=1, le=10_000)
    """How many pairs there are to remember."""
    keys: int = Field(default=16, ge=1, le=10_000)
    """How many different keys there are; those of a sequence differ."""
    values: int = Field(default=16, ge=2, le=10_000)
    """How many different values there are."""

    @model_validator(mode="after")
    def _check(self) -> "AssociativeRecall":
        at_least(self, 3 * self.pairs, "three times the pairs")
        if self.keys < self.pairs:
            raise ValueError(f"keys must be at least pairs={self.pairs}, got {self.keys}; set it, or lower pairs")
        return self

    @property
    def input_space(self) -> spaces.Discrete:
        return spaces.Discrete(1 + self.keys + self.values)

    @property
    def classes(self) -> int:
        return self.values

    def sample(self, key, data=()) -> Sequence:
        keys = jax.random.split(key, 3)
        shown = jax.random.permutation(keys[0], self.keys)[: self.pairs]
        values = jax.random.randint(keys[1], (self.pairs,), 0, self.values)
        queries = 2 * self.pairs + jax.random.permutation(keys[2], self.length - 2 * self.pairs)[: self.pairs]
        firsts = 2 * jnp.arange(self.pairs)
        inputs = jnp.zeros(self.length, jnp.int32).at[firsts].set(1 + shown).at[queries].set(1 + shown)
        inputs = inputs.at[firsts + 1].set(1 + self.keys + values)
        nothing = jnp.zeros(self.length, jnp.int32)
        return Sequence(inputs, nothing.at[queries].set(values), nothing.at[queries].set(1) > 0)


class Needle(Classification):
    """Say at the end which symbol stood, flagged, somewhere in noise of real numbers."""

    known: ClassVar[str] = "Memories whose update depends on the input; a longer sequence needs a sharper gate."
    source: ClassVar[str] = "After the passkey task of https://arxiv.org/abs/2305.16300, with noise in place of text"

    length: int = Field(default=256, ge=2, le=10**7)
    """Slots of a sequence; the last one asks."""
    alphabet: int = Field(default=8, ge=2, le=10_000)
    """How many different symbols there are."""
    noise: float = Field(default=1.0, ge=0, le=1_000)
    """Standard deviation of the noise; the symbol's own component is 1."""

    @property
    def input_space(self) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, (self.alphabet + 1,))

    @property
    def classes(self) -> int:
        return self.alphabet

    def sample(self, key, data=()) -> Sequence:
        key_noise, key_place, key_symbol = jax.random.split(key, 3)
        place = jax.random.randint(key_place, (), 0, self.length - 1)
        symbol = jax.random.randint(key_symbol, (), 0, self.alphabet)
        noise = self.noise * jax.random.normal(key_noise, (self.length, self.alphabet))
        flags = jnp.zeros((self.length, 1)).at[place].set(1)
        inputs = jnp.concatenate([noise.at[place].set(jax.nn.one_hot(symbol, self.alphabet)), flags], axis=1)
        return _asked_at_the_end(inputs, symbol)


def _asked_at_the_end(inputs: jax.Array, answer: jax.Array) -> Sequence:
    """Return a sequence whose only target is at the last slot."""
    last = jnp.arange(len(inputs)) == len(inputs) - 1
    return Sequence(inputs, jnp.where(last, answer, 0), last)
