"""Auxiliary losses: what the memory's features are trained for beside the policy and its value.

The loss is a module with parameters of its own, made for a network and trained with it by the same optimizer, and no
part of the policy: acting, evaluation and exports never see it.
"""

import abc
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from memax_rl.envs import spaces
from memax_rl.networks import ActorCritic
from memax_rl.networks.encoder import Dense, Encoder, flat, flat_size, nvec
from memax_rl.rollout.tape import Tape, has_next


class AuxiliaryLoss(eqx.Module):
    """Base of auxiliary losses. A subclass has what parameters it likes, and says what each slot loses."""

    @abc.abstractmethod
    def __call__(
        self, network: ActorCritic, features: Float[Array, "rows slots width"], tape: Tape
    ) -> Float[Array, "rows slots"]:
        """Return the loss of each slot. It is averaged over the slots that are `tape.valid`; others are not read.

        Args:
            network: The network that is trained.
            features: Its memory's output at each slot, which has seen the slot's observation and all before it in the
                episode. Gradients through it reach memory and encoder.
            tape: What was collected, [rows, slots]. `memax_rl.rollout.tape.has_next` says where the next slot holds
                what followed.
        """


# More numbers or values in one array of an observation are not predicted: the layer would outweigh the network.
_LARGEST_PART = 65_536

# (network, key) -> the loss of its features.
MakeAuxiliaryLoss = Callable[[ActorCritic, PRNGKeyArray], AuxiliaryLoss]


class NextObservation(AuxiliaryLoss):
    """Predict the next observation from the memory's features and the action.

    Real numbers, as the encoder scales or normalizes them, by half the squared error; discrete ones by cross-entropy.
    The mean over the parts of an observation. Nothing is predicted beyond the end of an episode or of a row. As in
    Ni et al. 2023, https://arxiv.org/abs/2307.03864, section 4, for the observation itself in place of a latent.

    Attributes:
        hidden, out: The two layers of the prediction.
    """

    hidden: Dense
    out: Dense

    def __init__(self, network: ActorCritic, key: PRNGKeyArray):
        """Make the two layers of the prediction.

        Raises:
            ValueError: If the observation has a part of more than 65,536 numbers or values.
        """
        encoder = network.torso.encoder
        sizes = [flat_size(space) for space in encoder.observation_spaces]
        if max(sizes) > _LARGEST_PART:
            raise ValueError(
                f"ppo.auxiliary: next_observation cannot predict an observation of {max(sizes):,} numbers or values; "
                f"at most {_LARGEST_PART:,} are, so leave it out or make the observation smaller"
            )
        width = network.torso.width
        hidden_key, out_key = jax.random.split(key)
        self.hidden = Dense(width + flat_size(network.action_space), width, 2**0.5, key=hidden_key)
        self.out = Dense(width, sum(sizes), key=out_key)

    def __call__(
        self, network: ActorCritic, features: Float[Array, "rows slots width"], tape: Tape
    ) -> Float[Array, "rows slots"]:
        """Return the loss of each slot; 0 where nothing followed."""
        action = jax.vmap(jax.vmap(lambda a: flat(network.action_space, a)))(tape.action)
        following = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=1), tape.observation)
        loss = jax.vmap(jax.vmap(lambda f, a, o: self._loss(network.torso.encoder, f, a, o)))
        return jnp.where(has_next(tape), loss(features, action, following), 0)

    def _loss(self, encoder: Encoder, features: Array, action: Array, observation: PyTree[Array]) -> Float[Array, ""]:
        predicted = self.out(jax.nn.gelu(self.hidden(jnp.concatenate([features, action]))))
        losses, first = [], 0
        for space, x in zip(encoder.observation_spaces, encoder.flat_observation(observation), strict=True):
            losses.append(_prediction_loss(space, predicted[first : first + len(x)], x))
            first += len(x)
        return jnp.mean(jnp.stack(losses))


def _prediction_loss(space: Any, predicted: Float[Array, " n"], target: Float[Array, " n"]) -> Float[Array, ""]:
    """Return half the mean squared error for a Box, else the mean cross-entropy of the components."""
    if isinstance(space, spaces.Box):
        return jnp.mean(optax.l2_loss(predicted, target))
    bounds = list(itertools.accumulate(nvec(space) if isinstance(space, spaces.MultiDiscrete) else (space.n,)))[:-1]
    parts = zip(jnp.split(predicted, bounds), jnp.split(target, bounds), strict=True)
    return jnp.mean(jnp.stack([optax.softmax_cross_entropy(logits, code) for logits, code in parts]))


_LOSSES: dict[str, MakeAuxiliaryLoss] = {"next_observation": NextObservation}


def register(name: str, make: MakeAuxiliaryLoss) -> None:
    """Make an auxiliary loss of one's own known by a name, for `ppo.auxiliary`, in this process.

    Args:
        name: How a configuration names it.
        make: (network, key) -> the loss; a subclass of `AuxiliaryLoss` with that `__init__` is one.

    Raises:
        ValueError: If the name is taken by another one.
    """
    if _LOSSES.get(name, make) is not make:
        raise ValueError(f"name: there is an auxiliary loss {name!r} already; choose another name")
    _LOSSES[name] = make


def get(name: str) -> MakeAuxiliaryLoss:
    """Return the maker of an auxiliary loss. Raises `ValueError` if there is none of that name."""
    if name not in _LOSSES:
        raise ValueError(
            f"auxiliary: unknown loss {name!r}; known: {', '.join(sorted(_LOSSES))}. One of your own is registered by "
            "memax_rl.agents.auxiliary.register, in a module that --import names"
        )
    return _LOSSES[name]
