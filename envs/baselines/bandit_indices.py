"""Index policies for bandits: the score of each arm that a strategy maximizes at every pull."""

import abc
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

# The tables of the Gittins index and of the Bayes-optimal strategy grow with the third and fourth power of this.
MOST_PULLS = 120


class Counts(eqx.Module):
    """The total payout of every arm, and its number of pulls."""

    paid: Float[Array, " arms"]
    pulls: Int[Array, " arms"]


class Score(eqx.Module):
    """A score for every arm; the first of the highest is pulled."""

    @abc.abstractmethod
    def __call__(self, counts: Counts, key: PRNGKeyArray) -> Float[Array, " arms"]:
        """The scores."""


class Greedy(Score):
    """The posterior mean, from the prior U(0, 1) of a Bernoulli arm or N(0, 1) of a Gaussian one."""

    bernoulli: bool = eqx.field(static=True)

    def __call__(self, counts: Counts, key: PRNGKeyArray) -> Float[Array, " arms"]:
        """The posterior mean."""
        if self.bernoulli:
            return (counts.paid + 1) / (counts.pulls + 2)
        return counts.paid / (counts.pulls + 1)


class UCB1(Score):
    """mean_k + c sqrt(2 ln t / n_k), every arm once before (Auer, Cesa-Bianchi and Fischer 2002, figure 1)."""

    scale: float = eqx.field(static=True, default=1.0)

    def __call__(self, counts: Counts, key: PRNGKeyArray) -> Float[Array, " arms"]:
        """The upper confidence bound."""
        total, pulls = jnp.maximum(jnp.sum(counts.pulls), 1), jnp.maximum(counts.pulls, 1)
        bound = counts.paid / pulls + self.scale * jnp.sqrt(2 * jnp.log(total) / pulls)
        return jnp.where(counts.pulls == 0, jnp.inf, bound)


class Thompson(Score):
    """A draw from the posterior of every arm's mean (Thompson 1933)."""

    bernoulli: bool = eqx.field(static=True)

    def __call__(self, counts: Counts, key: PRNGKeyArray) -> Float[Array, " arms"]:
        """The draws."""
        if self.bernoulli:
            return jax.random.beta(key, counts.paid + 1, counts.pulls - counts.paid + 1)
        precision = counts.pulls + 1
        return counts.paid / precision + jax.random.normal(key, counts.paid.shape) / jnp.sqrt(precision)


class Gittins(Score):
    """The finite-horizon Gittins index of a Bernoulli arm: the sure payout a pull that is as good as the arm.

    Whittle 1980, as in Lattimore and Szepesvari 2020, "Bandit Algorithms", section 35.4. Discounted and without an end
    the index is optimal; with an end it is not, but close to it.

    Attributes:
        table: [pulls to come - 1, ones, zeros].
    """

    table: Float[Array, "horizon horizon horizon"]

    def __call__(self, counts: Counts, key: PRNGKeyArray) -> Float[Array, " arms"]:
        """The indices."""
        last = self.table.shape[0] - 1
        to_come = jnp.maximum(last - jnp.sum(counts.pulls), 0)
        ones = jnp.round(counts.paid).astype(jnp.int32)
        return self.table[to_come, jnp.minimum(ones, last), jnp.minimum(counts.pulls - ones, last)]


@functools.cache
def gittins(pulls: int, grid: int = 200) -> Gittins:
    """Return the index for trials of so many pulls, to 1 / grid.

    For each sure payout, value iteration over (ones, zeros) gives the advantage of the arm over it. With the payout
    taken off every reward, stopping is worth 0, and the index is the payout at which the arm is too.
    """
    payout = (np.arange(grid) + 0.5) / grid
    ones, zeros = np.meshgrid(np.arange(pulls + 1), np.arange(pulls + 1), indexing="ij")
    mean = ((ones + 1) / (ones + zeros + 2)).astype(np.float32)[None]
    value = np.zeros((grid, pulls + 1, pulls + 1), np.float32)
    table = np.zeros((pulls, pulls, pulls), np.float32)
    gain = mean - payout.astype(np.float32)[:, None, None]
    for to_come in range(pulls):
        one_more, zero_more = np.zeros_like(value), np.zeros_like(value)
        one_more[:, :-1] = value[:, 1:]
        zero_more[:, :, :-1] = value[:, :, 1:]
        pull = gain + mean * one_more + (1 - mean) * zero_more
        # The advantage falls with the payout, so that counting where it is positive finds the zero.
        table[to_come] = (pull > 0).sum(axis=0)[:pulls, :pulls] / grid
        value = np.maximum(pull, 0)
    return Gittins(jnp.asarray(table))


class BayesOptimal(Score):
    """The optimal choice between two Bernoulli arms with prior U(0, 1), by dynamic programming.

    Attributes:
        second: Whether to pull the second arm; one flat table over (pulls of both, pulls of the first, ones of each).
        offset: Where in it the numbers of pulls of both and of the first arm begin.
    """

    second: Bool[Array, " states"]
    offset: Int[Array, "horizon horizon"]

    def __call__(self, counts: Counts, key: PRNGKeyArray) -> Float[Array, " arms"]:
        """1 for the arm to pull, 0 for the other."""
        last = self.offset.shape[0] - 1
        first, total = counts.pulls[0], jnp.minimum(jnp.sum(counts.pulls), last)
        ones = jnp.round(counts.paid).astype(jnp.int32)
        index = self.offset[total, jnp.minimum(first, last)] + ones[0] * (total - first + 1) + ones[1]
        second = self.second[index].astype(jnp.float32)
        return jnp.stack([1 - second, second])


def two_arm_values(pulls: int) -> tuple[float, list[list[np.ndarray]]]:
    """Return the Bayes-optimal value of two arms, and for each (total, first) whether to pull the second [ones, ones].

    V(n1, s1, n2, s2) is the largest expected payout of the pulls that are left.
    """
    value = {first: np.zeros((first + 1, pulls - first + 1)) for first in range(pulls + 1)}
    choices: list[list[np.ndarray]] = []
    for total in range(pulls - 1, -1, -1):
        now, row = {}, []
        for first in range(total + 1):
            other = total - first
            p = ((np.arange(first + 1) + 1) / (first + 2))[:, None]
            q = ((np.arange(other + 1) + 1) / (other + 2))[None, :]
            after_first, after_second = value[first + 1], value[first]
            pull_first = p * (1 + after_first[1:]) + (1 - p) * after_first[:-1]
            pull_second = q * (1 + after_second[:, 1:]) + (1 - q) * after_second[:, :-1]
            now[first] = np.maximum(pull_first, pull_second)
            row.append(pull_second > pull_first)
        value = now
        choices.append(row)
    return float(value[0][0, 0]), choices[::-1]


@functools.cache
def bayes_optimal(pulls: int) -> BayesOptimal:
    """Return the optimal strategy for two arms and so many pulls."""
    _, choices = two_arm_values(pulls)
    offset, size = np.zeros((pulls, pulls), np.int32), 0
    for total, row in enumerate(choices):
        for first, choice in enumerate(row):
            offset[total, first] = size
            size += choice.size
    flat = np.concatenate([choice.ravel() for row in choices for choice in row])
    return BayesOptimal(jnp.asarray(flat), jnp.asarray(offset))
