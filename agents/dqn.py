"""Recurrent deep Q-learning on tapes of whole episodes.

Mnih et al. 2015, https://doi.org/10.1038/nature14236; recurrent as in Hausknecht and Stone 2015,
https://arxiv.org/abs/1507.06527; rescaled values and priorities of episodes as in Kapturowski et al. 2019,
https://openreview.net/forum?id=r1lyTjAqYX.

One update:
1. `_collect` takes `steps` slots in each of N environment streams, epsilon-greedily, and adds them to the replay.
2. `_learn` makes `gradient_steps` gradient steps, each on freshly sampled tapes (see `memax_rl.rollout.replay`).

A sampled tape begins at an episode's start, so every transition has its whole history on it: no stored memories, no
burn-in, no padding. One unroll of the network over the tape gives Q at t and, one slot further, Q at t+1 with the
memory that has seen all that came before. A second unroll over the next observations would never see the first one.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import rlax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import Field, model_validator

from memax_rl import sharding
from memax_rl.agents.acting import acting_by_values
from memax_rl.agents.epsilon_greedy import epsilon_greedy, per_environment
from memax_rl.agents.optimizer import clip, make_optimizer, make_schedule
from memax_rl.agents.replay_settings import ReplaySettings, size_of
from memax_rl.networks import NetworkConfig, QNetwork, QValues, check_discrete
from memax_rl.rollout import replay as replays
from memax_rl.rollout.collect import collect_steps
from memax_rl.rollout.replay import Replay, Sample
from memax_rl.rollout.returns import lambda_returns, n_step_returns
from memax_rl.rollout.step_count import StepCount, check_counts
from memax_rl.rollout.streams import Act, RolloutState, as_metrics, slot_shapes, start_streams
from memax_rl.rollout.tape import Tape, learning_discount, learning_reward, next_slot, without_log_prob
from memax_rl.unused import refuse_unused


class DQNConfig(ReplaySettings):
    """Settings of DQN, with those of its replay and its optimizer."""

    sample_by: Literal["transition", "episode", "priority"] = "transition"
    """What is drawn evenly from the replay; or "priority": episodes in proportion to their errors."""
    priority_alpha: float = Field(default=0.6, ge=0)
    """Exponent of an episode's priority. For sample_by "priority"."""
    priority_beta: float = Field(default=0.6, ge=0, le=1)
    """Exponent of the importance weights; 1 undoes the bias entirely. For sample_by "priority"."""
    priority_eta: float = Field(default=0.9, ge=0, le=1)
    """Share of the greatest error in an episode's priority; the rest is the mean's. For sample_by "priority"."""
    epsilon_start: float = Field(default=1.0, ge=0, le=1)
    """Probability of a random action at the start."""
    epsilon_end: float = Field(default=0.05, ge=0, le=1)
    """Probability of a random action after `epsilon_decay_steps`."""
    epsilon_decay_steps: int | None = Field(default=None, ge=1, le=10**15)
    """Environment steps over which epsilon falls, linearly. None: a quarter of the run."""
    epsilon_per_env: bool = False
    """Give environment i of N the epsilon to the power of 1 + 7 i / (N - 1): some explore, others exploit."""
    gamma: float = Field(default=0.99, ge=0, le=1)
    """Discount factor."""
    n_step: int = Field(default=1, ge=1, le=10_000)
    """Rewards summed before the bootstrap, where q_lambda is null."""
    q_lambda: float | None = Field(default=0.9, ge=0, le=1)
    """Lambda of the lambda-returns that are the targets. None (null): n-step returns instead."""
    watkins: bool = False
    """Stop a lambda-return at the first action that is not the best one, as Watkins' Q(lambda) does; else Peng's."""
    double: bool = True
    """Choose the next action by the online network, and value it by the target network."""
    dueling: bool = True
    """Split action values into a state's value and the actions' advantages."""
    rescale_values: bool = False
    """Learn h(Q), where h(x) = sign(x) (sqrt(abs(x) + 1) - 1) + x / 1000 draws large values together, as R2D2 does."""
    target_update_period: int = Field(default=50, ge=1, lt=2**31)
    """Gradient steps between updates of the target network."""
    target_tau: float = Field(default=1.0, gt=0, le=1)
    """How far an update moves the target network to the online one. 1: a copy. Soft updates: below 1, period 1."""
    huber_delta: float = Field(default=1.0, gt=0)
    """Errors beyond this count linearly, not squared."""

    @model_validator(mode="after")
    def _check_target(self) -> "DQNConfig":
        if self.q_lambda is not None and self.n_step > 1:
            got = f"n_step={self.n_step} and q_lambda={self.q_lambda}"
            raise ValueError(f"set either n_step or q_lambda, got {got}; for n-step returns set dqn.q_lambda to null")
        if not self.q_lambda:
            refuse_unused(self, ("watkins",), "is about lambda-returns; set q_lambda above 0")
        if self.sample_by != "priority":
            names = ("priority_alpha", "priority_beta", "priority_eta")
            refuse_unused(self, names, "is for episodes drawn by priority; set sample_by to 'priority'")
        if self.epsilon_start == self.epsilon_end:
            refuse_unused(self, ("epsilon_decay_steps",), "is for an epsilon that falls; set epsilon_start higher")
        if self.num_envs == 1:
            refuse_unused(self, ("epsilon_per_env",), "is for several environments; set num_envs above 1")
        return self


class DQNState(eqx.Module):
    """All that changes while training."""

    network: QNetwork
    target: QNetwork
    optimizer: optax.OptState
    streams: RolloutState
    replay: Replay
    key: PRNGKeyArray
    env_steps: StepCount
    updates: Int[Array, ""]
    gradient_steps: Int[Array, ""]


def unroll(network: QNetwork, tape: Tape) -> QValues:
    """Return the action values of all slots, from one pass of the network over tapes that begin at a start."""
    rows = tape.start.shape[0]
    carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (rows, *leaf.shape)), network.initial_state())
    return network.scan(carry, replays.inputs_of(tape))[1]


class DQN:
    """Recurrent DQN behind the agent protocol (`memax_rl.agents.base.Agent`).

    Args:
        env, env_params: From `memax_rl.envs.make`.
        make_network: (observation space, action space, key) -> network.
        config: Settings; `tape_length` may be None.
        total_steps: Environment steps over which the schedules run.
        devices: How many share environments, replay and sampled tapes; if more than one, `update` runs inside
            `memax_rl.sharding.shard_map`.

    Raises:
        ValueError: For continuous actions, an episode longer than a tape, or sizes that do not fit each other.
    """

    name = "dqn"
    learned_fields: tuple[str, ...] = ("network", "target", "optimizer")
    size_hint = "lower dqn.buffer_size or num_seeds"
    evaluates_greedily = True
    sharded_fields: tuple[str, ...] = ("streams", "replay")
    transient_hint = replays.NOT_SAVED

    def __init__(
        self,
        env: Any,
        env_params: Any,
        make_network: Callable[[Any, Any, PRNGKeyArray], QNetwork],
        config: DQNConfig,
        total_steps: int,
        devices: int = 1,
    ):
        self.devices = devices
        self.env, self.env_params, self.make_network = env, env_params, make_network
        self.observation_space, self.action_space = env.observation_space(env_params), env.action_space(env_params)
        check_discrete(self.action_space, self.name)
        sizes = self.sizes = size_of(config, env, env_params, devices, self.name)
        self.overlong_hint = f"set dqn.tape_length, now {self.sizes.slots}, to more than the longest episode"
        self.config = config.model_copy(update={"tape_length": self.sizes.slots})
        self.transient_fields: tuple[str, ...] = () if config.save_replay else ("replay",)
        check_counts(total_steps, config.num_envs * sizes.steps, sizes.gradient_steps, "num_envs * steps collected")
        self.total_steps = total_steps
        self.epsilon_decay_steps = config.epsilon_decay_steps or max(total_steps // 4, 1)
        self.schedule = make_schedule(config.lr_schedule, config.learning_rate)
        self.epsilon_schedule = optax.linear_schedule(config.epsilon_start, config.epsilon_end, 1)
        self.optimizer = make_optimizer(config)
        # From returns to what the network says, and back.
        self.value_scale = rlax.SIGNED_HYPERBOLIC_PAIR if config.rescale_values else rlax.IDENTITY_PAIR

    def init(self, key: PRNGKeyArray) -> DQNState:
        """Return the state before training."""
        network_key, stream_key, key = jax.random.split(key, 3)
        network = self.make_network(self.observation_space, self.action_space, network_key)
        streams = start_streams(self.env, self.env_params, network, stream_key, self.config.num_envs)
        slot = without_log_prob(slot_shapes(self.env, self.env_params, self.act(network), streams))
        return DQNState(
            network=network,
            target=jax.tree.map(lambda leaf: leaf.copy() if eqx.is_array(leaf) else leaf, network),
            optimizer=self.optimizer.init(eqx.filter(network, eqx.is_inexact_array)),
            streams=streams,
            replay=replays.init(slot, self.config.num_envs, self.sizes.capacity),
            key=key,
            env_steps=StepCount.of(0),
            updates=jnp.zeros((), jnp.int32),
            gradient_steps=jnp.zeros((), jnp.int32),
        )

    def reset_environments(self, state: DQNState) -> DQNState:
        """Return the state with every environment at the start of a new episode.

        The replay keeps what it has of the open episodes, but for their last transitions: what followed is not known.
        """
        # A constant that no other use of this key has.
        key = jax.random.fold_in(state.key, 2**30)
        streams = start_streams(self.env, self.env_params, state.network, key, self.config.num_envs)
        return eqx.tree_at(lambda s: (s.streams, s.replay), state, (streams, replays.abandon(state.replay)))

    def update(self, state: DQNState) -> tuple[DQNState, dict[str, Float[Array, ""]]]:
        """Collect some steps and learn from the replay. Return the new state and the metrics of this update.

        The metrics of learning are nan while the replay holds fewer than `learning_starts` transitions.
        """
        key, collect_key, learn_key = jax.random.split(state.key, 3)
        streams, new, replay, collected = self._collect(state, collect_key)
        learning_rate = self.schedule(state.env_steps.fraction_of(self.total_steps))
        env_steps = state.env_steps.add(collected.pop("env_steps"))
        before = eqx.tree_at(
            lambda s: (s.streams, s.replay, s.key, s.env_steps, s.updates),
            state,
            (streams, replay, key, env_steps, state.updates + 1),
        )
        after, learned = self._learn(before, learning_rate, learn_key)
        # After the learning, so that acting and learning saw the observations alike.
        observed = sharding.all_gather((new.observation, new.valid), self.devices)
        seen = tuple(network.observe(*observed) for network in (after.network, after.target))
        after = eqx.tree_at(lambda s: (s.network, s.target), after, seen)
        metrics = {
            **collected,
            **learned,
            "replay/size": replays.size(replay, self.devices),
            "learning_rate": learning_rate,
            "gradient_steps": after.gradient_steps - state.gradient_steps,
            "env_steps": env_steps,
        }
        return after, as_metrics(metrics)

    def act(self, network: QNetwork, greedy: bool = False) -> Act:
        """Return how the network plays (see `Agent.act`): greedily, or with the epsilon of the schedule's end."""
        return epsilon_greedy(network, self.action_space, 0.0 if greedy else self.config.epsilon_end)

    def epsilons(self, env_steps: StepCount) -> Float[Array, " num_envs"]:
        """Return the probability of a random action for each environment."""
        epsilon = jnp.asarray(self.epsilon_schedule(env_steps.fraction_of(self.epsilon_decay_steps)), jnp.float32)
        epsilon = jnp.broadcast_to(epsilon, (self.config.num_envs,))
        return per_environment(epsilon) if self.config.epsilon_per_env else epsilon

    def _collect(self, state: DQNState, key: PRNGKeyArray) -> tuple[RolloutState, Tape, Replay, dict[str, Array]]:
        """Return the streams after some steps, these steps [streams, steps], the replay with them, and metrics.

        All but the metrics are of this device.
        """
        epsilon = self.epsilons(state.env_steps)
        keys = jax.random.split(key, (self.sizes.steps, self.config.num_envs, 2))
        streams, new, metrics = collect_steps(
            self.env,
            self.env_params,
            lambda epsilon: epsilon_greedy(state.network, self.action_space, epsilon),
            sharding.local_shard(epsilon, self.devices),
            state.streams,
            sharding.local_shard(keys, self.devices, axis=1),
            tape_length=self.sizes.slots,
            devices=self.devices,
        )
        new = without_log_prob(new)
        replay = replays.add(state.replay, new, streams.inputs, self.devices)
        return streams, new, replay, metrics | {"epsilon": jnp.mean(epsilon)}

    # Learning

    def _learn(self, state: DQNState, learning_rate, key: PRNGKeyArray) -> tuple[DQNState, dict[str, Array]]:
        """Return the state after all gradient steps, and their mean metrics; as it was, and nan, during warm-up."""
        params, static = eqx.partition((state.network, state.target), eqx.is_inexact_array)

        def gradient_step(carry, key):
            (online, target), optimizer, priority, count = carry
            replay = eqx.tree_at(lambda r: r.priority, state.replay, priority)
            sample = self.sample(replay, key)
            grads, (error, metrics) = jax.grad(self._loss, has_aux=True)(online, target, static, sample)
            grads, metrics = sharding.psum((grads, metrics), self.devices)
            metrics["grad_norm"] = norm = optax.tree.norm(grads)
            updates, optimizer = self.optimizer.update(clip(grads, norm, self.config.max_grad_norm), optimizer, online)
            online = optax.apply_updates(online, jax.tree.map(lambda u: -learning_rate * u, updates))
            count = count + 1
            target = self.follow(online, target, count)
            if self.config.sample_by == "priority":
                eta = self.config.priority_eta
                priority = replays.reprioritize(replay, sample, error, eta, self.devices).priority
            return ((online, target), optimizer, priority, count), metrics

        def learn(carry):
            carry, metrics = jax.lax.scan(gradient_step, carry, jax.random.split(key, self.sizes.gradient_steps))
            return carry, {name: jnp.mean(m) for name, m in metrics.items()}

        carry = (params, state.optimizer, state.replay.priority, state.gradient_steps)
        nothing = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), jax.eval_shape(learn, carry)[1])
        ready = replays.can_sample(state.replay, self.config.learning_starts, self.devices)
        carry, metrics = jax.lax.cond(ready, learn, lambda carry: (carry, nothing), carry)
        params, optimizer, priority, count = carry
        network, target = eqx.combine(params, static)
        after = eqx.tree_at(
            lambda s: (s.network, s.target, s.optimizer, s.replay.priority, s.gradient_steps),
            state,
            (network, target, optimizer, priority, count),
        )
        return after, metrics

    def sample(self, replay: Replay, key: PRNGKeyArray) -> Sample:
        """Return the tapes of one gradient step, of several devices this one's share of them."""
        config = self.config
        return replays.sample(
            replay,
            key,
            rows=config.batch_size,
            slots=self.sizes.slots,
            by=config.sample_by,
            alpha=config.priority_alpha,
            beta=config.priority_beta,
            devices=self.devices,
        )

    def unroll(self, network: QNetwork, sample: Sample) -> QValues:
        """Return the action values of all slots of a sample."""
        return unroll(network, sample.tape)

    def follow(self, online, target, gradient_steps: Int[Array, ""]):
        """Return the parameters of the `target` network, which follow the `online` ones, after so many gradient steps.

        Called after every one of them, so that no number of environments can step over the period.
        """
        tau = jnp.where(gradient_steps % self.config.target_update_period == 0, self.config.target_tau, 0.0)
        return optax.incremental_update(online, target, tau)

    def targets(self, q: QValues, target_q: QValues, tape: Tape) -> Float[Array, "rows slots"]:
        """Return targets of what the online (`q`) and the target network (`target_q`) say of the actions taken.

        Computed from what the networks say now, at every gradient step. Slots that are not valid hold no meaning.
        """
        config = self.config
        if config.double:
            value = _on_slots(lambda q, target_q: target_q.of(q.mode()), q, target_q)
        else:
            value = _on_slots(lambda target_q: target_q.max(), target_q)
        # One slot further on the same unroll. Where that belongs to another episode, the transition was terminated and
        # the value is not used: a truncated one is followed by the slot of its final observation.
        next_value = next_slot(self.value_scale.apply_inv(value))
        # Where the next slot holds no transition, or one that the tape cuts, the sum ends with that slot's value.
        cut = tape.truncated | ~next_slot(tape.valid)

        def row(reward, next_value, terminated, cut, discount, is_best):
            arguments = reward, next_value, terminated, cut, discount
            if config.q_lambda is None:
                return n_step_returns(*arguments, config.n_step)
            lambda_ = jnp.full_like(reward, config.q_lambda)
            return lambda_returns(*arguments, jnp.where(is_best, lambda_, 0) if config.watkins else lambda_)

        # Whether the next action is the best there, so that what follows it says what is to be learned.
        is_best = next_slot(_on_slots(lambda q, action: jnp.all(q.mode() == action), q, tape.action))
        discount = learning_discount(tape, config.gamma)
        returns = jax.vmap(row)(learning_reward(tape), next_value, tape.terminated, cut, discount, is_best)
        return self.value_scale.apply(returns)

    def _loss(self, online, target, static, sample: Sample) -> tuple[Float[Array, ""], tuple[Array, dict[str, Array]]]:
        """Return the weighted Huber loss of sampled tapes, the errors of all slots, and metrics.

        With several devices: this one's part of loss and metrics, which are sums over the devices.
        """
        tape = sample.tape
        network, target_network = eqx.combine((online, target), static)
        q = self.unroll(network, sample)
        targets = jax.lax.stop_gradient(self.targets(q, self.unroll(target_network, sample), tape))
        value = _on_slots(lambda q, action: q.of(action), q, tape.action)
        error = jnp.where(tape.valid, value - targets, 0)
        loss = jnp.sum(sample.weight * rlax.huber_loss(error, self.config.huber_delta))
        count = jnp.maximum(sharding.psum(jnp.sum(tape.valid), self.devices), 1)
        metrics = {
            "loss": loss,
            "td_error": jnp.sum(jnp.abs(error)) / count,
            "q_value": jnp.sum(jnp.where(tape.valid, self.value_scale.apply_inv(value), 0)) / count,
            "tape/utilization": jnp.mean(tape.valid) / self.devices,
        }
        return loss, jax.lax.stop_gradient((error, metrics))


def _on_slots(f: Callable[..., Array], *args: Any) -> Array:
    return jax.vmap(jax.vmap(f))(*args)


def make(settings: DQNConfig, network: NetworkConfig, env: Any, env_params: Any, total_steps: int, devices: int) -> DQN:
    """Return the agent of a configuration. Raises `ValueError` as `DQN` does."""
    return DQN(env, env_params, acting_by_values(settings, network).make_network, settings, total_steps, devices)
