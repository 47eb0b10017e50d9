"""Recurrent soft actor-critic on tapes of whole episodes.

Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905; recurrent and off-policy as in Ni et al. 2022,
https://arxiv.org/abs/2110.05038; for discrete actions as Christodoulou 2019, https://arxiv.org/abs/1910.07207.

One update:
1. `_collect` takes some steps in each of N environment streams, and adds them to the replay.
2. `_learn` makes gradient steps, each on freshly sampled tapes (see `memax_rl.rollout.replay`).

A sampled tape begins at an episode's start, so every transition has its whole history on it. One unroll of the actor,
one of the critics and one of the target critics give all values at t and, one slot further, at t+1.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import rlax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import Field

from memax_rl import sharding
from memax_rl.agents.acting import follow_soft_policy
from memax_rl.agents.optimizer import Schedule, clip, make_optimizer, make_schedule
from memax_rl.agents.replay_settings import ReplaySettings, size_of
from memax_rl.envs import spaces
from memax_rl.networks import NetworkConfig
from memax_rl.networks.encoder import nvec
from memax_rl.networks.normalization import RunningMeanStd
from memax_rl.networks.soft_actor_critic import (
    SoftActor,
    SoftCritic,
    TargetCritic,
    action_values,
    action_vector,
    check_soft_action_space,
    make_soft_actor_critic,
    random_action,
    soft_policy,
    unroll,
)
from memax_rl.rollout import replay as replays
from memax_rl.rollout.collect import collect_steps
from memax_rl.rollout.replay import Replay, Sample
from memax_rl.rollout.step_count import StepCount, check_counts
from memax_rl.rollout.streams import Act, RolloutState, as_metrics, slot_shapes, start_streams
from memax_rl.rollout.tape import Tape, learning_discount, learning_reward, next_slot, without_log_prob


class SACConfig(ReplaySettings):
    """Settings of SAC, with those of its replay and its optimizer."""

    batch_size: int = Field(default=2, ge=1, le=2**20)
    """Tapes in a gradient step."""
    samples_per_insert: float = Field(default=16.0, gt=0, le=10_000)
    """Slots learned from for each slot collected, counting every time one is learned from. An update collects the
    fewest steps that make its gradient steps a whole number."""
    learning_starts: int = Field(default=5_000, ge=1, le=2**28)
    """Transitions in the replay before learning begins. Until then actions are drawn evenly from all of the space."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size at the start."""
    lr_schedule: Schedule = "constant"
    """How the step size falls over the run, to zero at the end."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradients of actor, critics and temperature are each scaled down to this global norm."""
    gamma: float = Field(default=0.99, ge=0, le=1)
    """Discount factor."""
    reward_scale: float | None = Field(default=None, gt=0)
    """What the learner, and it alone, multiplies rewards by, so that the entropy counts alike in every unit of rewards.
    None: one over the standard deviation of all rewards so far."""
    target_tau: float = Field(default=0.05, gt=0, le=1)
    """How far each gradient step moves the target critics to the critics."""
    separate_critic: bool = True
    """Give the critics an encoder and a memory of their own. Else they read the actor's, which the critics' loss alone
    trains then."""
    initial_temperature: float = Field(default=0.1, gt=0)
    """Weight of the entropy at the start."""
    target_entropy: float | None = None
    """Entropy in nats to which the temperature is adjusted. None: minus the number of components of a Box, of which
    each is between -1 and 1; three tenths of the largest entropy for discrete actions."""


class Models(NamedTuple):
    """What the gradients train: the `actor`, the `critic`, and the logarithm of the temperature."""

    actor: SoftActor
    critic: SoftCritic
    log_temperature: Float[Array, ""]


class SACState(eqx.Module):
    """All that changes while training."""

    network: SoftActor
    critic: SoftCritic
    log_temperature: Float[Array, ""]
    target: TargetCritic
    optimizer: optax.OptState
    rewards: RunningMeanStd
    streams: RolloutState
    replay: Replay
    key: PRNGKeyArray
    env_steps: StepCount
    updates: Int[Array, ""]
    gradient_steps: Int[Array, ""]


class SAC:
    """Recurrent SAC behind the agent protocol (`memax_rl.agents.base.Agent`).

    Args:
        env, env_params: From `memax_rl.envs.make`.
        make_networks: (observation space, action space, key) -> (actor, critic).
        config: Settings; `tape_length` may be None.
        total_steps: Environment steps over which the learning-rate schedule runs.
        devices: How many share environments, replay and sampled tapes; if more than one, `update` runs inside
            `memax_rl.sharding.shard_map`.

    Raises:
        ValueError: For actions without bounds, an episode longer than a tape, or sizes that do not fit each other.
    """

    name = "sac"
    learned_fields: tuple[str, ...] = ("network", "critic", "log_temperature", "target", "optimizer", "rewards")
    size_hint = "lower sac.buffer_size or num_seeds"
    evaluates_greedily = True
    sharded_fields: tuple[str, ...] = ("streams", "replay")
    transient_hint = replays.NOT_SAVED

    def __init__(
        self,
        env: Any,
        env_params: Any,
        make_networks: Callable[[Any, Any, PRNGKeyArray], tuple[SoftActor, SoftCritic]],
        config: SACConfig,
        total_steps: int,
        devices: int = 1,
    ):
        self.devices = devices
        self.env, self.env_params, self.make_networks = env, env_params, make_networks
        self.observation_space, self.action_space = env.observation_space(env_params), env.action_space(env_params)
        check_soft_action_space(self.action_space)
        sizes = self.sizes = size_of(config, env, env_params, devices, self.name)
        self.overlong_hint = f"set sac.tape_length, now {self.sizes.slots}, to more than the longest episode"
        self.config = config.model_copy(update={"tape_length": self.sizes.slots})
        self.transient_fields: tuple[str, ...] = () if config.save_replay else ("replay",)
        check_counts(total_steps, config.num_envs * sizes.steps, sizes.gradient_steps, "num_envs * steps collected")
        self.total_steps = total_steps
        self.schedule = make_schedule(config.lr_schedule, config.learning_rate)
        self.optimizer = make_optimizer(config)
        self.target_entropy = _target_entropy(self.action_space, config.target_entropy)

    def make_network(self, observation_space: Any, action_space: Any, key: PRNGKeyArray) -> SoftActor:
        """Return an actor, which is all that acting needs."""
        return self.make_networks(observation_space, action_space, key)[0]

    def init(self, key: PRNGKeyArray) -> SACState:
        """Return the state before training."""
        network_key, stream_key, key = jax.random.split(key, 3)
        actor, critic = self.make_networks(self.observation_space, self.action_space, network_key)
        models = Models(actor, critic, jnp.log(jnp.asarray(self.config.initial_temperature)))
        streams = start_streams(self.env, self.env_params, actor, stream_key, self.config.num_envs)
        slot = without_log_prob(slot_shapes(self.env, self.env_params, self.act(actor), streams))
        target = TargetCritic.of(actor, critic)
        return SACState(
            network=actor,
            critic=critic,
            log_temperature=models.log_temperature,
            target=jax.tree.map(lambda leaf: leaf.copy() if eqx.is_array(leaf) else leaf, target),
            optimizer=self.optimizer.init(eqx.filter(models, eqx.is_inexact_array)),
            rewards=RunningMeanStd(),
            streams=streams,
            replay=replays.init(slot, self.config.num_envs, self.sizes.capacity),
            key=key,
            env_steps=StepCount.of(0),
            updates=jnp.zeros((), jnp.int32),
            gradient_steps=jnp.zeros((), jnp.int32),
        )

    def reset_environments(self, state: SACState) -> SACState:
        """Return the state with every environment at the start of a new episode.

        The replay keeps what it has of the open episodes, but for their last transitions: what followed is not known.
        """
        # A constant that no other use of this key has.
        key = jax.random.fold_in(state.key, 2**30)
        streams = start_streams(self.env, self.env_params, state.network, key, self.config.num_envs)
        return eqx.tree_at(lambda s: (s.streams, s.replay), state, (streams, replays.abandon(state.replay)))

    def act(self, network: SoftActor, greedy: bool = False) -> Act:
        """Return how the network plays (see `Agent.act`); the log-probability is not computed and 0."""
        return follow_soft_policy(network, greedy)

    def update(self, state: SACState) -> tuple[SACState, dict[str, Any]]:
        """Collect some steps and learn from the replay. Return the new state and the metrics of this update.

        The metrics of learning are nan while the replay holds fewer than `learning_starts` transitions.
        """
        key, collect_key, learn_key = jax.random.split(state.key, 3)
        streams, new, replay, collected = self._collect(state, collect_key)
        observed, got, valid = sharding.all_gather((new.observation, learning_reward(new), new.valid), self.devices)
        rewards = state.rewards.update(got.reshape(-1), valid.reshape(-1))
        scale = self._scale(rewards)
        learning_rate = self.schedule(state.env_steps.fraction_of(self.total_steps))
        env_steps = state.env_steps.add(collected.pop("env_steps"))
        before = eqx.tree_at(
            lambda s: (s.streams, s.replay, s.rewards, s.key, s.env_steps, s.updates),
            state,
            (streams, replay, rewards, key, env_steps, state.updates + 1),
        )
        after, learned = self._learn(before, scale, learning_rate, learn_key)
        # After the learning, so that acting and learning saw the observations alike.
        parts = (after.network, after.critic, after.target)
        seen = tuple(part.observe(observed, valid) for part in parts)
        after = eqx.tree_at(lambda s: (s.network, s.critic, s.target), after, seen)
        metrics = {
            **collected,
            **learned,
            "replay/size": replays.size(replay, self.devices),
            "reward_scale": scale,
            "learning_rate": learning_rate,
            "gradient_steps": after.gradient_steps - state.gradient_steps,
            "env_steps": env_steps,
        }
        return after, as_metrics(metrics)

    def _collect(self, state: SACState, key: PRNGKeyArray) -> tuple[RolloutState, Tape, Replay, dict[str, Array]]:
        """Return the streams after some steps, these steps [streams, steps], the replay with them, and metrics.

        All but the metrics are of this device.
        """
        keys = jax.random.split(key, (self.sizes.steps, self.config.num_envs, 2))
        keys = sharding.local_shard(keys, self.devices, axis=1)
        explores = jnp.full(keys.shape[1], replays.size(state.replay, self.devices) < self.config.learning_starts)
        by_policy = self.act(state.network)

        def make_act(explores):
            def act(carry, inputs, key):
                policy_key, random_key = jax.random.split(key)
                carry, action, log_prob = by_policy(carry, inputs, policy_key)
                return (
                    carry,
                    jnp.where(explores, random_action(self.action_space, inputs.action_mask, random_key), action),
                    log_prob,
                )

            return act

        arguments = (self.env, self.env_params, make_act, explores, state.streams, keys)
        streams, new, metrics = collect_steps(*arguments, tape_length=self.sizes.slots, devices=self.devices)
        new = without_log_prob(new)
        replay = replays.add(state.replay, new, streams.inputs, self.devices)
        return streams, new, replay, metrics

    def _scale(self, rewards: RunningMeanStd) -> Float[Array, ""]:
        """Return the scale of rewards."""
        if self.config.reward_scale is not None:
            return jnp.asarray(self.config.reward_scale)
        # Rewards that differ by rounding alone are all the same.
        spread = rewards.variance > 1e-8 * rewards.mean**2
        return jnp.where(spread, jax.lax.rsqrt(jnp.where(spread, rewards.variance, 1)), 1)

    # Learning

    def _learn(self, state: SACState, scale, learning_rate, key: PRNGKeyArray) -> tuple[SACState, dict[str, Array]]:
        """Return the state after all gradient steps, and their mean metrics; as it was, and nan, during warm-up."""
        models = Models(state.network, state.critic, state.log_temperature)
        params, static = eqx.partition((models, state.target), eqx.is_inexact_array)

        def gradient_step(carry, key):
            (online, target), optimizer, count = carry
            sample_key, action_key = jax.random.split(key)
            config = self.config
            size = {"rows": config.batch_size, "slots": self.sizes.slots, "devices": self.devices}
            sample = replays.sample(state.replay, sample_key, by="transition", alpha=1.0, beta=1.0, **size)
            gradients, metrics = sharding.psum(
                jax.grad(self._loss, has_aux=True)(online, target, static, sample, scale, action_key), self.devices
            )
            norms = [optax.tree.norm(part) for part in gradients]
            parts = zip(gradients, norms, strict=True)
            grads: Any = Models(*(clip(part, norm, config.max_grad_norm) for part, norm in parts))
            updates, optimizer = self.optimizer.update(grads, optimizer, online)
            new: Any = optax.apply_updates(online, jax.tree.map(lambda u: -learning_rate * u, updates))
            followed = TargetCritic.of(new.actor, new.critic)
            target = jax.tree.map(lambda a, b: b + config.target_tau * (a - b), followed, target)
            metrics |= {"grad_norm": norms[1], "temperature": jnp.exp(online.log_temperature)}
            return ((new, target), optimizer, count + 1), metrics

        def learn(carry):
            carry, metrics = jax.lax.scan(gradient_step, carry, jax.random.split(key, self.sizes.gradient_steps))
            return carry, {name: jnp.mean(m) for name, m in metrics.items()}

        carry = (params, state.optimizer, state.gradient_steps)
        nothing = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), jax.eval_shape(learn, carry)[1])
        ready = replays.can_sample(state.replay, self.config.learning_starts, self.devices)
        carry, metrics = jax.lax.cond(ready, learn, lambda carry: (carry, nothing), carry)
        params, optimizer, count = carry
        models, target = eqx.combine(params, static)
        after = eqx.tree_at(
            lambda s: (s.network, s.critic, s.log_temperature, s.target, s.optimizer, s.gradient_steps),
            state,
            (*models, target, optimizer, count),
        )
        return after, metrics

    def targets(self, soft_value: Float[Array, "rows slots"], tape: Tape, scale) -> Float[Array, "rows slots"]:
        """Return targets of the taken actions' values, from each slot's `soft_value`; `scale` multiplies rewards.

        The slot after a truncated transition holds the final observation, so the next slot's value is always right.
        """
        next_value = jnp.where(tape.terminated, 0, next_slot(soft_value))
        return scale * learning_reward(tape) + learning_discount(tape, self.config.gamma) * next_value

    def _loss(self, online, target, static, sample: Sample, scale, key: PRNGKeyArray):
        """Return the sum of the losses of critics, actor and temperature, and metrics.

        Each is trained by its own alone: what belongs to another is held fixed in it. With several devices: this one's
        part of them, which are sums over the devices.
        """
        models, target = eqx.combine((online, target), static)
        actor, critic, tape = models.actor, models.critic, sample.tape
        inputs = replays.inputs_of(tape)
        actor_features = unroll(actor.torso, inputs)
        features = actor_features if critic.torso is None else unroll(critic.torso, inputs)
        if critic.torso is None:
            actor_features = jax.lax.stop_gradient(actor_features)
        rows, slots = tape.start.shape
        keys = sharding.local_shard(jax.random.split(key, (rows * self.devices, slots)), self.devices)
        policy = soft_policy(actor, actor_features, tape.action_mask, keys)
        temperature = jnp.exp(jax.lax.stop_gradient(models.log_temperature))

        soft_value = policy.soft_value(target.critic, target.unroll(inputs), temperature)
        targets = jax.lax.stop_gradient(self.targets(soft_value, tape, scale))
        taken = jax.vmap(jax.vmap(lambda action: action_vector(self.action_space, action)))(tape.action)
        values = action_values(critic, features, taken)
        error = jnp.where(tape.valid[..., None], values - targets[..., None], 0)
        critic_loss = _weighted(sample, jnp.sum(rlax.l2_loss(error), axis=-1))

        fixed = jax.lax.stop_gradient
        actor_loss = -_weighted(sample, policy.soft_value(fixed(critic), fixed(features), temperature))
        entropy = _weighted(sample, policy.entropy)
        temperature_loss = models.log_temperature * fixed(entropy - self.target_entropy * _weighted(sample, 1.0))
        metrics = {
            "loss": critic_loss,
            "actor_loss": actor_loss,
            "entropy": entropy,
            "td_error": _weighted(sample, jnp.mean(jnp.abs(error), axis=-1)),
            "q_value": _weighted(sample, jnp.mean(values, axis=-1)),
            "tape/utilization": jnp.mean(tape.valid) / self.devices,
        }
        return critic_loss + actor_loss + temperature_loss, jax.lax.stop_gradient(metrics)


def _weighted(sample: Sample, x: Float[Array, "rows slots"] | float) -> Float[Array, ""]:
    """Return the sum over a sample's slots whose expectation is the mean over all stored transitions."""
    return jnp.sum(sample.weight * jnp.where(sample.tape.valid, x, 0))


def _target_entropy(space: Any, entropy: float | None) -> float:
    """Return the entropy to which the temperature is adjusted."""
    if entropy is not None:
        return entropy
    if isinstance(space, spaces.Box):
        return -float(math.prod(space.shape))
    return 0.3 * sum(math.log(n) for n in (nvec(space) if isinstance(space, spaces.MultiDiscrete) else (space.n,)))


def make(settings: SACConfig, network: NetworkConfig, env: Any, env_params: Any, total_steps: int, devices: int) -> SAC:
    """Return the agent of a configuration. Raises `ValueError` as `SAC` does."""

    def networks(observation_space, action_space, key):
        separate = settings.separate_critic
        return make_soft_actor_critic(network, observation_space, action_space, separate=separate, key=key)

    return SAC(env, env_params, networks, settings, total_steps, devices)
