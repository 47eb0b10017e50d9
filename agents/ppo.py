"""Proximal policy optimization on tapes of whole episodes.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347.

One update:
1. `collect` acts in N environments until each has filled a row of the tape (memax_rl/rollout/collect.py).
2. `_scale` finds the unit of rewards; `_advantages` makes one forward pass over the tape: values, and from them
   advantages and returns, in that unit. A value network of its own is not needed for acting, and is not run there.
3. `_learn` makes `update_epochs` passes over minibatches of rows.

With several devices each does this for its share of the rows, and so of every minibatch (memax_rl/sharding.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import rlax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from pydantic import Field, model_validator

from memax_rl import sharding
from memax_rl.agents import auxiliary
from memax_rl.agents.acting import acting_by_policy, follow_policy
from memax_rl.agents.auxiliary import AuxiliaryLoss, MakeAuxiliaryLoss
from memax_rl.agents.optimizer import OptimizerSettings, Schedule, clip, make_optimizer, make_schedule
from memax_rl.networks import ActorCritic, NetworkConfig, Outputs
from memax_rl.networks.normalization import RunningMeanStd
from memax_rl.rollout.collect import Collected, Pending, Rollout, RolloutBatch, collect, inputs_of, rollout_size
from memax_rl.rollout.returns import generalized_advantages
from memax_rl.rollout.step_count import StepCount, check_counts
from memax_rl.rollout.streams import Act, RolloutState, as_metrics, slot_shapes, start_streams
from memax_rl.rollout.tape import Tape, learning_discount, learning_reward
from memax_rl.unused import refuse_unused


class PPOConfig(OptimizerSettings):
    """Settings of PPO, with those of its optimizer."""

    num_envs: int | None = Field(default=None, ge=1, le=2**20)
    """Environments in parallel, one row of the tape each. None: so many that an update has about
    8,192 slots, a run 24 updates or more, and the minibatches divide them."""
    rollout_length: int | None = Field(default=None, ge=1, le=2**24)
    """Slots a row, that is steps an environment takes in an update. None: chosen from the episodes' length."""
    rollout: Rollout = "whole_episodes"
    """What a row holds: whole episodes, or a stretch of episodes that goes on where the last row ended."""
    update_epochs: int = Field(default=4, ge=1, le=10_000)
    """Passes over the tape in an update."""
    num_minibatches: int = Field(default=8, ge=1, le=2**20)
    """Minibatches in a pass. Must divide num_envs, because a row is never cut."""
    learning_rate: float = Field(default=1.5e-3, gt=0)
    """Step size at the start."""
    optimizer_eps: float = Field(default=1e-5, gt=0)
    """What is added to the root of the mean square of gradients. For adam, adamw, nadam, radam, rmsprop."""
    gamma: float = Field(default=0.99, ge=0, le=1)
    """Discount factor."""
    gae_lambda: float = Field(default=0.9, ge=0, le=1)
    """Lambda of the generalized advantage estimate."""
    reward_scale: float | None = Field(default=None, gt=0)
    """What the learner, and it alone, multiplies rewards by. A value network learns returns of about 1 faster than
    those of .01. None: one over the standard deviation of all discounted returns so far (Engstrom et al. 2020,
    https://arxiv.org/abs/2005.12729, section 3). Values are in this unit."""
    clip_eps: float = Field(default=0.2, gt=0)
    """The probability ratio counts between 1 - clip_eps and 1 + clip_eps."""
    clip_schedule: Schedule = "constant"
    """How clip_eps falls over the run, to zero at the end."""
    value_clip_eps: float | None = Field(default=None, gt=0)
    """If set, a value counts only as far as this from its value before the update."""
    value_coef: float = Field(default=1.0, ge=0)
    """Weight of the value loss."""
    entropy_coef: float = Field(default=0.003, ge=0)
    """Weight of the entropy bonus."""
    entropy_schedule: Schedule = "constant"
    """How entropy_coef falls over the run, to zero at the end."""
    normalize_advantages: bool = True
    """Scale the advantages of a minibatch to mean 0 and standard deviation 1, over the slots that count."""
    auxiliary: str | None = None
    """Name of a loss on the memory's features that is trained beside: "next_observation", or one of your own (see
    docs/ppo.md)."""
    auxiliary_coef: float = Field(default=0.1, ge=0)
    """Weight of the auxiliary loss."""
    target_kl: float | None = Field(default=None, gt=0)
    """If set, an update stops at the first minibatch after the KL divergence has passed this."""

    @model_validator(mode="after")
    def _check_used(self) -> "PPOConfig":
        if self.auxiliary is None:
            refuse_unused(self, ("auxiliary_coef",), "weighs an auxiliary loss, and there is none; set auxiliary")
        if not self.entropy_coef:
            refuse_unused(self, ("entropy_schedule",), "is of the entropy bonus; set entropy_coef above 0")
        return self


class PPOState(eqx.Module):
    """All that changes while training. Saved and restored whole."""

    network: ActorCritic
    auxiliary: AuxiliaryLoss | None
    optimizer: optax.OptState
    streams: RolloutState
    pending: Pending
    returns: RunningMeanStd
    key: PRNGKeyArray
    env_steps: StepCount
    updates: Int[Array, ""]


class Batch(NamedTuple):
    """The `rows` with what the loss needs of their slots; every leaf has a leading row axis."""

    rows: RolloutBatch
    advantage: Float[Array, "rows slots"]
    returns: Float[Array, "rows slots"]
    value: Float[Array, "rows slots"]


class AdvantageStats(NamedTuple):
    """How many slots of a minibatch count, and mean and standard deviation (`std`) of their advantages."""

    count: Float[Array, "*minibatches"]
    mean: Float[Array, "*minibatches"]
    std: Float[Array, "*minibatches"]


class Scheduled(NamedTuple):
    """`learning_rate`, `clip_eps`, `entropy_coef`: how they fall over the run, or what they are in an update."""

    learning_rate: Any
    clip_eps: Any
    entropy_coef: Any


def evaluate_rows(network: ActorCritic, rows: RolloutBatch) -> Outputs:
    """Return what the network makes of all slots, and the carry after the rows, from one pass over them."""
    return network.scan(rows.carry, inputs_of(rows))


class PPO:
    """PPO behind the agent protocol (`memax_rl.agents.base.Agent`).

    Args:
        env, env_params: From `memax_rl.envs.make`.
        make_network: (observation space, action space, key) -> network.
        config: Settings; `num_envs` and `rollout_length` may be None.
        total_steps: Environment steps over which the learning-rate schedule runs.
        make_auxiliary: Makes the auxiliary loss, or None.
        devices: How many share the rows; if more than one, `update` runs inside `memax_rl.sharding.shard_map`.

    Raises:
        ValueError: If an episode cannot fit into a row, or the minibatches do not divide the rows.
    """

    name = "ppo"
    size_hint = "lower ppo.num_envs, ppo.rollout_length or num_seeds, or set ppo.rollout to 'truncated_bptt'"
    evaluates_greedily = False
    transient_fields: tuple[str, ...] = ()
    transient_hint = ""
    learned_fields: tuple[str, ...] = ("network", "auxiliary", "optimizer", "returns")
    sharded_fields: tuple[str, ...] = ("streams", "pending")

    def __init__(
        self,
        env: Any,
        env_params: Any,
        make_network: Callable[[Any, Any, PRNGKeyArray], ActorCritic],
        config: PPOConfig,
        total_steps: int,
        devices: int = 1,
        make_auxiliary: MakeAuxiliaryLoss | None = None,
    ):
        self.devices, self.total_steps = devices, total_steps
        self.env, self.env_params, self.make_network = env, env_params, make_network
        self.make_auxiliary = make_auxiliary
        self.observation_space, self.action_space = env.observation_space(env_params), env.action_space(env_params)
        self.num_envs, self.slots = rollout_size(
            env,
            env_params,
            num_envs=config.num_envs,
            rollout_length=config.rollout_length,
            mode=config.rollout,
            num_minibatches=config.num_minibatches,
            total_steps=total_steps,
            devices=devices,
            name=self.name,
        )
        length = f"ppo.rollout_length, now {self.slots},"
        self.overlong_hint = f"set {length} to more than the longest episode, or ppo.rollout to 'truncated_bptt'"
        self.config = config.model_copy(update={"num_envs": self.num_envs, "rollout_length": self.slots})
        gradient_steps = config.update_epochs * config.num_minibatches
        check_counts(total_steps, self.num_envs * self.slots, gradient_steps, "num_envs * rollout_length")
        self.schedules = Scheduled(
            make_schedule(config.lr_schedule, config.learning_rate),
            make_schedule(config.clip_schedule, config.clip_eps),
            make_schedule(config.entropy_schedule, config.entropy_coef),
        )
        self.optimizer = make_optimizer(config)

    def init(self, key: PRNGKeyArray) -> PPOState:
        """Return the state before training."""
        network_key, stream_key, key = jax.random.split(key, 3)
        network = self.make_network(self.observation_space, self.action_space, network_key)
        loss = None
        if self.make_auxiliary is not None:
            loss = self.make_auxiliary(network, jax.random.fold_in(network_key, 2**30))
        streams = start_streams(self.env, self.env_params, network, stream_key, self.num_envs)
        slot = slot_shapes(self.env, self.env_params, self.act(network), streams)
        return PPOState(
            network=network,
            auxiliary=loss,
            optimizer=self.optimizer.init(eqx.filter((network, loss), eqx.is_inexact_array)),
            streams=streams,
            pending=Pending.none(slot, self.num_envs, self.slots),
            returns=RunningMeanStd(),
            key=key,
            env_steps=StepCount.of(0),
            updates=jnp.zeros((), jnp.int32),
        )

    def reset_environments(self, state: PPOState) -> PPOState:
        """Return the state with every environment at the start of a new episode, and nothing pending."""
        # A constant that no other use of this key has.
        key = jax.random.fold_in(state.key, 2**30)
        streams = start_streams(self.env, self.env_params, state.network, key, self.num_envs)
        nothing = jnp.zeros_like(state.pending.length)
        return eqx.tree_at(lambda s: (s.streams, s.pending.length), state, (streams, nothing))

    def act(self, network: ActorCritic, greedy: bool = False) -> Act:
        """Return how the network plays: (carry, inputs, key) -> (carry, action, log-probability)."""
        return follow_policy(network, greedy)

    def update(self, state: PPOState) -> tuple[PPOState, dict[str, Any]]:
        """Collect a tape and learn from it. Return the new state and the metrics of this update."""
        key, collect_key, learn_key = jax.random.split(state.key, 3)
        streams, pending, rows, collected = self.collect(state, collect_key)
        returns, scale = self._scale(state.returns, rows.tape)
        batch, carry = self._advantages(state.network, rows, scale)
        if self.config.rollout == "truncated_bptt":
            # The next row begins with what acting left in the policy's carry, and this pass in that of the values.
            streams = eqx.tree_at(lambda s: s.carry, streams, (streams.carry[0], *carry[1:]))
        passed = state.env_steps.fraction_of(self.total_steps)
        now = Scheduled(*(jnp.asarray(falls(passed)) for falls in self.schedules))
        models = (state.network, state.auxiliary)
        (network, loss), optimizer, learned = self._learn(models, state.optimizer, batch, now, learn_key)
        # After the learning, so that it sees the observations as the acting did.
        network = network.observe(*sharding.all_gather((rows.tape.observation, rows.tape.valid), self.devices))
        env_steps = state.env_steps.add(collected.pop("env_steps"))
        metrics = {**collected, **learned, "reward_scale": scale, **now._asdict(), "env_steps": env_steps}
        new = PPOState(network, loss, optimizer, streams, pending, returns, key, env_steps, state.updates + 1)
        return new, as_metrics(metrics)

    def collect(self, state: PPOState, key: PRNGKeyArray) -> Collected:
        """Fill this device's rows. Return streams and pending episodes after it, the rows, and metrics."""
        keys = jax.random.split(key, (self.slots, self.num_envs, 2))
        return collect(
            self.env,
            self.env_params,
            self.act(state.network),
            state.streams,
            state.pending,
            sharding.local_shard(keys, self.devices, axis=1),
            mode=self.config.rollout,
            devices=self.devices,
        )

    def _scale(self, returns: RunningMeanStd, tape: Tape) -> tuple[RunningMeanStd, Float[Array, ""]]:
        """Return the moments of all discounted returns, those of the tape with them, and the scale of rewards."""
        if self.config.reward_scale is not None:
            return returns, jnp.asarray(self.config.reward_scale)
        zeros = jnp.zeros_like(tape.reward)
        discount = learning_discount(tape, self.config.gamma)
        of_tape = jax.vmap(generalized_advantages, in_axes=(0, 0, 0, 0, 0, 0, None))(
            learning_reward(tape), zeros, zeros, tape.terminated, tape.truncated, discount, 1.0
        )
        of_tape, valid = sharding.all_gather((of_tape, tape.valid), self.devices)
        returns = returns.update(of_tape.reshape(-1), valid.reshape(-1))
        # Returns that differ by rounding alone are all the same.
        spread = returns.variance > 1e-8 * returns.mean**2
        return returns, jnp.where(spread, jax.lax.rsqrt(jnp.where(spread, returns.variance, 1)), 1)

    def _advantages(
        self, network: ActorCritic, rows: RolloutBatch, scale: Float[Array, ""]
    ) -> tuple[Batch, PyTree[Array]]:
        """Return the rows with values, advantages and returns of scaled rewards, and the carry after them.

        All from one forward pass.
        """
        tape = rows.tape
        carry, _, value, _ = evaluate_rows(network, rows)
        after = jnp.zeros_like(value[:, 0])
        if self.config.rollout == "truncated_bptt":
            # A row that ends within an episode is bootstrapped there, as at a time limit.
            after = jax.vmap(network.step)(carry, rows.after)[2]
        # The slot after a truncated transition holds the final observation, so the next slot's value is always right:
        # where it belongs to another episode, the transition was terminated and the value is not used.
        next_value = jnp.concatenate([value[:, 1:], after[:, None]], axis=1)
        advantage = jax.vmap(generalized_advantages, in_axes=(0, 0, 0, 0, 0, 0, None))(
            scale * learning_reward(tape),
            value,
            next_value,
            tape.terminated,
            tape.truncated,
            learning_discount(tape, self.config.gamma),
            self.config.gae_lambda,
        )
        return Batch(rows, advantage, advantage + value, value), carry

    def _learn(self, models, optimizer, batch: Batch, now: Scheduled, key):
        """Return (network, auxiliary loss) and optimizer after all epochs, and mean metrics of the minibatches."""
        config = self.config
        params, static = eqx.partition(models, eqx.is_inexact_array)
        gradients = jax.grad(self._loss, has_aux=True)

        def minibatch_step(carry, minibatch):
            params, optimizer, stopped = carry
            indices, stats = minibatch
            rows = jax.tree.map(lambda leaf: leaf[indices], batch)
            grads, metrics = sharding.psum(gradients(params, static, rows, stats, now), self.devices)
            metrics["grad_norm"] = norm = optax.tree.norm(grads)
            updates, new_optimizer = self.optimizer.update(clip(grads, norm, config.max_grad_norm), optimizer, params)
            new_params = optax.apply_updates(params, jax.tree.map(lambda u: -now.learning_rate * u, updates))
            if config.target_kl is not None:
                new_params, new_optimizer = jax.tree.map(
                    lambda old, new: jnp.where(stopped, old, new), (params, optimizer), (new_params, new_optimizer)
                )
                stopped = stopped | (metrics["approx_kl"] > config.target_kl)
            metrics["stopped"] = jnp.asarray(stopped, jnp.float32)
            return (new_params, new_optimizer, stopped), metrics

        if self.devices > 1:
            key = jax.random.fold_in(key, sharding.index(self.devices))
        keys = jax.random.split(key, config.update_epochs)
        order = jax.vmap(lambda k: jax.random.permutation(k, len(batch.value)))(keys)
        order = order.reshape(config.update_epochs * config.num_minibatches, -1)
        carry = (params, optimizer, jnp.zeros((), bool))
        (params, optimizer, _), metrics = jax.lax.scan(minibatch_step, carry, (order, self._stats(batch, order)))
        return eqx.combine(params, static), optimizer, {name: jnp.mean(m) for name, m in metrics.items()}

    def _stats(self, batch: Batch, order: Int[Array, "minibatches rows"]) -> AdvantageStats:
        """Return the statistics of each minibatch, over the rows of all devices."""
        valid, advantage = batch.rows.tape.valid[order], batch.advantage[order]

        def sums(x):
            return jnp.sum(jnp.where(valid, x, 0), axis=(1, 2))

        count, advantages = sharding.psum((sums(1.0), sums(advantage)), self.devices)
        count = jnp.maximum(count, 1)
        mean = advantages / count
        variance = sharding.psum(sums((advantage - mean[:, None, None]) ** 2), self.devices) / count
        return AdvantageStats(count, mean, jnp.sqrt(variance))

    def _loss(
        self, params, static, batch: Batch, stats: AdvantageStats, now: Scheduled
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Return the PPO loss of a minibatch of rows, a mean over the slots that count, and its parts.

        With several devices: this one's part of them, so that the sum over the devices is the mean.
        """
        config, tape = self.config, batch.rows.tape
        network, auxiliary_loss = eqx.combine(params, static)
        _, distribution, value, features = evaluate_rows(network, batch.rows)
        on_slots = jax.vmap(jax.vmap(lambda d, a: (d.log_prob(a), d.entropy())))
        log_prob, entropy = on_slots(distribution, tape.action)
        advantage = batch.advantage
        if config.normalize_advantages:
            advantage = (advantage - stats.mean) / (stats.std + 1e-8)

        def mean(x: Float[Array, "rows slots"]) -> Float[Array, ""]:
            return jnp.sum(jnp.where(tape.valid, x, 0)) / stats.count

        # On a slot that does not count the ratio is set to 1, so that no overflow there can reach the gradient.
        log_ratio = jnp.where(tape.valid, log_prob - tape.log_prob, 0)
        ratio = jnp.exp(log_ratio)
        surrogate = jax.vmap(jax.vmap(lambda r, a: rlax.clipped_surrogate_pg_loss(r[None], a[None], now.clip_eps)))
        value_loss = rlax.l2_loss(value, batch.returns)
        if config.value_clip_eps is not None:
            change = jnp.clip(value - batch.value, -config.value_clip_eps, config.value_clip_eps)
            value_loss = jnp.maximum(value_loss, rlax.l2_loss(batch.value + change, batch.returns))
        metrics = {
            "policy_loss": mean(jnp.asarray(surrogate(ratio, advantage))),
            "value_loss": mean(jnp.asarray(value_loss)),
            "entropy": mean(entropy),
            "approx_kl": mean(ratio - 1 - log_ratio),
            "clip_fraction": mean((jnp.abs(ratio - 1) > now.clip_eps).astype(jnp.float32)),
        }
        loss = metrics["policy_loss"] + config.value_coef * metrics["value_loss"]
        loss -= now.entropy_coef * metrics["entropy"]
        if auxiliary_loss is not None:
            metrics["auxiliary_loss"] = mean(auxiliary_loss(network, features, tape))
            loss += config.auxiliary_coef * metrics["auxiliary_loss"]
        return loss, jax.lax.stop_gradient({"loss": loss} | metrics)


def make(settings: PPOConfig, network: NetworkConfig, env: Any, env_params: Any, total_steps: int, devices: int) -> PPO:
    """Return the agent of a configuration. Raises `ValueError` as `PPO` does."""
    make_loss = None if settings.auxiliary is None else auxiliary.get(settings.auxiliary)
    make_network = acting_by_policy(settings, network).make_network
    return PPO(env, env_params, make_network, settings, total_steps, devices, make_loss)
