"""Tasks of tracking: a state that every input changes, and that has to be known all the time or at the end."""

import itertools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from memax_rl.envs import spaces
from memax_rl.probes.tasks.base import Classification, Sequence, Task

_BITS = 2
# Tokens of the flip-flop language, after the two bits.
_WRITE, _READ, _IGNORE = 2, 3, 4


class _RunningSum(Classification):
    """The sum of all numbers so far, modulo the classes."""

    length: int = Field(default=64, ge=1, le=10**7)
    """Slots of a sequence."""
    every: bool = True
    """Ask at every slot; else at the last one alone."""

    @property
    def input_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.classes)

    def sample(self, key, data=()) -> Sequence:
        inputs = jax.random.randint(key, (self.length,), 0, self.classes)
        return Sequence(inputs, jnp.cumsum(inputs) % self.classes, _asked(self.length, self.every))


class ModularCounting(_RunningSum):
    """Say the sum of all numbers so far, modulo m."""

    known: ClassVar[str] = (
        "Nonlinear memories, and linear ones whose transition depends on the input and has eigenvalues that are "
        "complex (m > 2) or products of reflections. Not linear ones with positive eigenvalues, nor attention."
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2411.12537"

    modulus: int = Field(default=5, ge=2, le=1_000)
    """m; the numbers are 0 to m - 1."""

    @property
    def classes(self) -> int:
        return self.modulus


class Parity(_RunningSum):
    """Say whether the number of ones so far is odd."""

    known: ClassVar[str] = (
        "Nonlinear memories, and linear ones whose transition depends on the input and may have negative eigenvalues. "
        "At lengths beyond training neither linear ones with positive eigenvalues nor attention."
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2411.12537 and https://arxiv.org/abs/2405.17394"

    @property
    def classes(self) -> int:
        return _BITS


class Permutations(Classification):
    """Say the product of all permutations so far: with five points, state tracking in S5."""

    known: ClassVar[str] = (
        "For five points nonlinear memories and products of Householder reflections (DeltaProduct with four of them). "
        "Diagonal linear memories and attention of a fixed depth cannot at all lengths."
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2404.08819 and https://arxiv.org/abs/2502.10297"

    length: int = Field(default=32, ge=1, le=10**6)
    """Slots of a sequence."""
    points: int = Field(default=5, ge=2, le=6)
    """How many points are permuted. Up to four the group is solvable, and easier."""
    every: bool = True
    """Ask at every slot; else at the last one alone."""

    @property
    def input_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.classes)

    @property
    def classes(self) -> int:
        return math.factorial(self.points)

    def table(self) -> np.ndarray:
        """Return all permutations, [classes, points], in the order of their numbers."""
        return np.array(list(itertools.permutations(range(self.points))))

    def sample(self, key, data=()) -> Sequence:
        table, powers = self.table(), self.points ** np.arange(self.points)
        number = np.zeros(self.points**self.points, np.int32)
        number[table @ powers] = np.arange(len(table))
        inputs = jax.random.randint(key, (self.length,), 0, self.classes)
        # First the earlier one: x -> later[earlier[x]].
        products = jax.lax.associative_scan(
            lambda earlier, later: jnp.take_along_axis(later, earlier, axis=-1), jnp.asarray(table)[inputs]
        )
        targets = jnp.asarray(number)[jnp.sum(products * jnp.asarray(powers)[None], axis=-1)]
        return Sequence(inputs, targets, _asked(self.length, self.every))


class FlipFlop(Classification):
    """Say the bit that was last written, at every read, and ignore the rest (flip-flop language)."""

    known: ClassVar[str] = (
        "Gated recurrent memories exactly (LSTM). Attention makes rare errors where reads are far from writes."
    )
    source: ClassVar[str] = "https://arxiv.org/abs/2306.00946"

    length: int = Field(default=128, ge=4, le=10**7, multiple_of=2)
    """Slots of a sequence: an instruction and a bit, in turn."""
    ignore: float = Field(default=0.8, ge=0, lt=1)
    """Share of instructions to ignore their bit; the others write or read, as often."""

    @property
    def input_space(self) -> spaces.Discrete:
        return spaces.Discrete(_IGNORE + 1)

    @property
    def classes(self) -> int:
        return _BITS

    def sample(self, key, data=()) -> Sequence:
        key_kind, key_bits = jax.random.split(key)
        pairs = self.length // 2
        draw = jax.random.uniform(key_kind, (pairs,))
        kinds = jnp.where(draw < self.ignore, _IGNORE, jnp.where(draw < (1 + self.ignore) / 2, _WRITE, _READ))
        kinds = kinds.at[0].set(_WRITE).at[-1].set(_READ)
        bits = jax.random.randint(key_bits, (pairs,), 0, _BITS)
        written = jax.lax.cummax(jnp.where(kinds == _WRITE, jnp.arange(pairs), 0))
        stored = bits[written]
        bits = jnp.where(kinds == _READ, stored, bits)

        def interleave(first, second):
            return jnp.stack([first, second], axis=1).reshape(-1)

        reads = kinds == _READ
        return Sequence(
            interleave(kinds, bits),
            interleave(stored, jnp.zeros_like(stored)),
            interleave(reads, jnp.zeros_like(reads)),
        )


class Adding(Task):
    """Say the sum of the two marked numbers at the end (adding problem)."""

    known: ClassVar[str] = "Gated recurrent memories, and linear ones with long decays."
    source: ClassVar[str] = "Hochreiter and Schmidhuber 1997; as of https://arxiv.org/abs/1504.00941"

    length: int = Field(default=200, ge=2, le=10**7)
    """Slots of a sequence; one number is marked in each half."""

    @property
    def input_space(self) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, (2,))

    @property
    def outputs(self) -> int:
        return 1

    def sample(self, key, data=()) -> Sequence:
        key_numbers, key_first, key_second = jax.random.split(key, 3)
        numbers = jax.random.uniform(key_numbers, (self.length,))
        half = self.length // 2
        first = jax.random.randint(key_first, (), 0, half)
        second = jax.random.randint(key_second, (), half, self.length)
        marks = jnp.zeros(self.length).at[first].set(1).at[second].set(1)
        last = _asked(self.length, every=False)
        answer = jnp.where(last, numbers[first] + numbers[second], 0)
        return Sequence(jnp.stack([numbers, marks], axis=1), answer[:, None], last)


class Localization(Task):
    """Say position and orientation in the global frame from steps and turns in the local one, in three dimensions.

    A step has an exponential length of mean 2 and a random direction, a turn a random axis and a uniform angle. It is
    taken in the frame of before the turn. The position is divided by its root mean square at the last slot; the
    orientation is said by the first two rows of the rotation matrix, which are continuous in it, where a rotation
    vector is not (https://arxiv.org/abs/1812.07035).

    With turns of up to pi, as in Memax, the correlation with the true orientation falls to a third with each turn that
    is left out, so that at a hundred slots a memory scores zero until it composes nearly all of them exactly. Turns of
    up to 0.5 leave 0.97 of it: what composes some of them scores something.
    """

    known: ClassVar[str] = (
        "Nonlinear memories and products of Householder reflections, since rotations do not commute; how far is not "
        "known. Diagonal linear memories cannot compose rotations in one layer."
    )
    source: ClassVar[str] = "Continuous localization of https://github.com/smorad/memax"

    angle: float = Field(default=math.pi, ge=0, le=math.pi)
    """The largest angle of a turn, radians. With 0.5 or less memories are told apart at a hundred slots."""
    every: bool = True
    """Ask at every slot; else at the last one alone."""

    @property
    def input_space(self) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, (6,))

    @property
    def outputs(self) -> int:
        return 9

    def sample(self, key, data=()) -> Sequence:
        keys = jax.random.split(key, 4)
        steps = 2 * jax.random.exponential(keys[0], (self.length, 1)) * _directions(keys[1], self.length)
        turns = self.angle * jax.random.uniform(keys[2], (self.length, 1)) * _directions(keys[3], self.length)
        after = jax.lax.associative_scan(jnp.matmul, jax.vmap(rotation_matrix)(turns))
        before = jnp.concatenate([jnp.eye(3)[None], after[:-1]])
        # A step's mean square is 8, a third of it along each axis.
        positions = jnp.cumsum(jnp.einsum("tij,tj->ti", before, steps), axis=0) / (8 * self.length / 3) ** 0.5
        targets = jnp.concatenate([positions, after[:, :2].reshape(self.length, 6)], axis=1)
        return Sequence(jnp.concatenate([turns, steps], axis=1), targets, _asked(self.length, self.every))


def rotation_matrix(turn: jax.Array) -> jax.Array:
    """Return the matrix of a rotation vector, whose length is the angle, by Rodrigues' formula."""
    x, y, z = turn
    cross = jnp.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = jnp.maximum(jnp.linalg.norm(turn), 1e-12)
    return jnp.eye(3) + jnp.sin(angle) / angle * cross + (1 - jnp.cos(angle)) / angle**2 * cross @ cross


def _directions(key: jax.Array, count: int) -> jax.Array:
    drawn = jax.random.normal(key, (count, 3))
    return drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)


def _asked(length: int, every: bool) -> jax.Array:
    return jnp.ones(length, bool) if every else jnp.arange(length) == length - 1
