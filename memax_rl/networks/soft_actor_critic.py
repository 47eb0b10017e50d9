"""Actor and twin critics with memory, for soft actor-critic."""

from typing import Any, cast

import distrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree

from memax_rl.envs import spaces
from memax_rl.networks.actions import ActionDistribution, action_outputs, check_action_space
from memax_rl.networks.encoder import AgentInput, Dense, Space, one_hot
from memax_rl.networks.torso import NetworkConfig, Torso, make_torso, on_slots

# Bounds of the logarithm of the standard deviation, before the squashing.
_LOG_STD = (-5.0, 2.0)


class SquashedNormal(eqx.Module):
    """A normal with independent components, squashed into (-1, 1) by tanh: the policy's actions of a bounded Box.

    Haarnoja et al. 2018, https://arxiv.org/abs/1801.01290, appendix C. `raw` holds mean and logarithm of the standard
    deviation of each component before the squashing, the latter mapped smoothly into [-5, 2].
    """

    space: Any = eqx.field(static=True)
    raw: Float[Array, " twice_outputs"]

    def _parts(self) -> tuple[Float[Array, " outputs"], Float[Array, " outputs"]]:
        mean, log_std = jnp.split(self.raw, 2)
        low, high = _LOG_STD
        return mean, jnp.exp(low + 0.5 * (high - low) * (jnp.tanh(log_std) + 1))

    def sample(self, key: PRNGKeyArray) -> tuple[Array, Float[Array, ""]]:
        """Return a random action and the logarithm of its density; gradients reach the parameters through both."""
        mean, std = self._parts()
        squashed = distrax.Transformed(distrax.MultivariateNormalDiag(mean, std), distrax.Block(distrax.Tanh(), 1))
        with jax.numpy_rank_promotion("allow"):
            action, log_prob = squashed.sample_and_log_prob(seed=key)
        return action.reshape(self.space.shape), cast(Array, log_prob)

    def mode(self) -> Array:
        """Return the squashed mean."""
        return jnp.tanh(self._parts()[0]).reshape(self.space.shape)


class SoftActor(eqx.Module):
    """A policy with memory: a squashed normal for a Box, categoricals for discrete actions."""

    action_space: Any = eqx.field(static=True)
    torso: Torso
    head: Dense

    def initial_state(self) -> tuple[Any, ...]:
        """Return the initial carry."""
        return self.torso.initial_state()

    def act(self, state: tuple[Any, ...], inputs: AgentInput) -> tuple[tuple[Any, ...], Any]:
        """Return the next carry and the distribution over actions of one step."""
        state, features = self.torso.step(state, inputs)
        return state, self.distribution(features, inputs.action_mask)

    def distribution(
        self, features: Float[Array, " width"], action_mask: Bool[Array, " outputs"] | None = None
    ) -> SquashedNormal | ActionDistribution:
        """Return the distribution over (legal) actions, from the features of one step."""
        raw = self.head(features)
        if isinstance(self.action_space, spaces.Box):
            return SquashedNormal(self.action_space, raw)
        return ActionDistribution(self.action_space, raw, None, action_mask)

    def observe(self, observation: PyTree[Array], valid: Bool[Array, "rows slots"]) -> "SoftActor":
        """Return the actor after its running statistics, if it has any, have seen the valid slots of a tape."""
        return eqx.tree_at(lambda n: n.torso.encoder, self, self.torso.encoder.observe(observation, valid))


class SoftCritic(eqx.Module):
    """Two action-value functions on one memory of their own, or on features that are given.

    Each is a layer of `width` and a head. For a Box they see the action too and give one number; for discrete actions
    they give one for each value of each component, of which an action's value is the sum, as in `QValues`.
    """

    of_box: bool = eqx.field(static=True)
    torso: Torso | None
    hidden: tuple[Dense, Dense]
    out: tuple[Dense, Dense]

    def __call__(self, features: Float[Array, " width"], action: Float[Array, " size"]) -> Float[Array, "2 outputs"]:
        """Return the outputs of both.

        Args:
            features: Of one step.
            action: As a vector; of size 0 for discrete actions.
        """
        x = jnp.concatenate([features, action])
        pairs = zip(self.hidden, self.out, strict=True)
        return jnp.stack([out(jax.nn.gelu(hidden(x))) for hidden, out in pairs])

    def observe(self, observation: PyTree[Array], valid: Bool[Array, "rows slots"]) -> "SoftCritic":
        """Return the critic after its running statistics, if it has any, have seen the valid slots of a tape."""
        if self.torso is None:
            return self
        return eqx.tree_at(lambda n: n.torso.encoder, self, self.torso.encoder.observe(observation, valid))


class TargetCritic(eqx.Module):
    """Critics that follow others slowly, and the torso that they read where they have none of their own."""

    critic: SoftCritic
    torso: Torso | None

    @classmethod
    def of(cls, actor: SoftActor, critic: SoftCritic) -> "TargetCritic":
        """Return what follows these."""
        return cls(critic, actor.torso if critic.torso is None else None)

    def unroll(self, inputs: AgentInput) -> Float[Array, "rows slots width"]:
        """Return the features of all slots of rows that begin at an episode's start."""
        torso = self.critic.torso if self.torso is None else self.torso
        assert torso is not None
        return unroll(torso, inputs)

    def observe(self, observation: PyTree[Array], valid: Bool[Array, "rows slots"]) -> "TargetCritic":
        """Return the critics after their running statistics, if they have any, have seen the valid slots of a tape."""
        if self.torso is None:
            return TargetCritic(self.critic.observe(observation, valid), None)
        encoder = self.torso.encoder.observe(observation, valid)
        return eqx.tree_at(lambda t: t.torso.encoder, self, encoder)


def unroll(torso: Torso, inputs: AgentInput) -> Float[Array, "rows slots width"]:
    """Return the features of all slots of rows that begin at an episode's start, from one pass over them."""
    rows = inputs.start.shape[0]
    carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (rows, *leaf.shape)), torso.initial_state())
    return torso.scan(carry, inputs)[1]


def check_soft_action_space(space: Any) -> None:
    """Raise `ValueError` unless actions are discrete or real numbers between finite bounds."""
    check_action_space(space)
    if isinstance(space, spaces.Box):
        low, high = np.asarray(space.low), np.asarray(space.high)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(
                f"sac cannot act in the action space {space!r}: its policy is squashed between bounds, and some of "
                "these are infinite; set agent to 'ppo' or 'bc', or give the environment finite bounds"
            )


def make_soft_actor_critic(
    config: NetworkConfig, observation_space: Space, action_space: Space, *, separate: bool, key: PRNGKeyArray
) -> tuple[SoftActor, SoftCritic]:
    """Return actor and critics for the spaces.

    Args:
        separate: Whether the critics have an encoder and a memory of their own.

    Raises:
        ValueError: For a space, memory or setting that they cannot handle.
    """
    check_soft_action_space(action_space)
    if (setting := config.of_actor_critics()) is not None:
        more = "and see sac.separate_critic" if setting == "separate_value" else "its deviation always does so"
        raise ValueError(f"network.{setting} is for ppo; with sac set it to false, {more}")
    actor_key, critic_key, head_key, *keys = jax.random.split(key, 7)
    outputs, is_box = action_outputs(action_space), isinstance(action_space, spaces.Box)
    sizes = (config.width + outputs, 1) if is_box else (config.width, outputs)
    actor = SoftActor(
        action_space=action_space,
        torso=make_torso(config, observation_space, action_space, key=actor_key),
        # A small gain makes the first policy nearly uniform.
        head=Dense(config.width, outputs * (2 if is_box else 1), 0.01, key=head_key),
    )
    critic = SoftCritic(
        of_box=is_box,
        torso=make_torso(config, observation_space, action_space, key=critic_key) if separate else None,
        hidden=(Dense(sizes[0], config.width, 2**0.5, key=keys[0]), Dense(sizes[0], config.width, 2**0.5, key=keys[1])),
        out=(Dense(config.width, sizes[1], 0.1, key=keys[2]), Dense(config.width, sizes[1], 0.1, key=keys[3])),
    )
    return actor, critic


class SoftPolicy(eqx.Module):
    """What soft values are computed from, of all slots: for a Box a sampled action, for discrete ones probabilities.

    Attributes:
        action: For a Box, as vectors; else None.
        log_prob: Of `action` [rows, slots], or of each value of each component [rows, slots, outputs].
        entropy: In nats; for a Box an estimate from the sampled action.
    """

    action: Float[Array, "rows slots size"] | None
    log_prob: Float[Array, "rows slots *outputs"]
    entropy: Float[Array, "rows slots"]

    def soft_value(
        self, critic: SoftCritic, features: Float[Array, "rows slots width"], temperature: Float[Array, ""]
    ) -> Float[Array, "rows slots"]:
        """Return the expected lesser of the two action values, plus temperature times entropy (equation 3).

        Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905; for discrete actions the expectation is exact
        (Christodoulou 2019, https://arxiv.org/abs/1910.07207, equation 10).
        """
        if self.action is not None:
            least = jnp.min(action_values(critic, features, self.action), axis=-1)
            return least - temperature * self.log_prob
        least = jnp.min(_outputs(critic, features), axis=-2)
        return jnp.sum(jnp.exp(self.log_prob) * (least - temperature * self.log_prob), axis=-1)


def soft_policy(
    actor: SoftActor,
    features: Float[Array, "rows slots width"],
    action_mask: Bool[Array, "rows slots outputs"] | None,
    keys: Key[Array, "rows slots"],
) -> SoftPolicy:
    """Return what the actor does in all slots; illegal values of discrete actions have a probability of 0."""
    rows, slots, _ = features.shape
    distribution = on_slots(actor.distribution, features, action_mask)
    if isinstance(distribution, SquashedNormal):
        action, log_prob = jax.vmap(jax.vmap(lambda d, k: d.sample(k)))(distribution, keys)
        return SoftPolicy(action.reshape(rows, slots, -1), log_prob, -log_prob)
    log_prob = on_slots(_log_probabilities, distribution)
    return SoftPolicy(None, log_prob, -jnp.sum(jnp.exp(log_prob) * log_prob, axis=-1))


def _log_probabilities(distribution: ActionDistribution) -> Float[Array, " outputs"]:
    return jnp.concatenate([jax.nn.log_softmax(logits) for logits in distribution.logits()])


def action_values(
    critic: SoftCritic, features: Float[Array, "rows slots width"], action: Float[Array, "rows slots size"]
) -> Float[Array, "rows slots 2"]:
    """Return both action values of all slots.

    Args:
        action: As vectors; discrete ones one-hot.
    """
    if critic.of_box:
        return jax.vmap(jax.vmap(critic))(features, action)[..., 0]
    return jnp.sum(_outputs(critic, features) * action[..., None, :], axis=-1)


def _outputs(critic: SoftCritic, features: Float[Array, "rows slots width"]) -> Float[Array, "rows slots 2 outputs"]:
    return on_slots(lambda f: critic(f, jnp.zeros(0)), features)


def action_vector(space: Any, action: Array) -> Float[Array, " size"]:
    """Return an action of the policy's as a vector, discrete ones one-hot."""
    return action.reshape(-1) if isinstance(space, spaces.Box) else one_hot(space, action)


def random_action(space: Any, action_mask: Bool[Array, " outputs"] | None, key: PRNGKeyArray) -> Array:
    """Return a (legal) action of the policy's drawn evenly from the space; a Box's components are in [-1, 1]."""
    if isinstance(space, spaces.Box):
        return jax.random.uniform(key, space.shape, minval=-1.0)
    components = len(space.nvec) if isinstance(space, spaces.MultiDiscrete) else 1
    return spaces.draw_action(space, jax.random.uniform(key, (components,)), action_mask)
