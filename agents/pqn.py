"""Parallelised Q-learning on tapes of whole episodes: no replay and no target network.

Gallici et al. 2024, "Simplifying deep temporal difference learning", https://arxiv.org/abs/2407.04811.

One update:
1. `collect` acts epsilon-greedily in N environments until each has filled a row (memax_rl/rollout/collect.py).
2. `_learn` makes `update_epochs` passes over minibatches of rows. One unroll over a row gives Q of its actions, and
   from the best action's values one slot further the lambda-returns that are its targets (Peng's Q(lambda)).

What keeps this stable without a target network is layer normalization (section 3 of the paper): every memory block
begins with one, and one stands between the last block and the head (`memax_rl.networks.Torso`).
With several devices each does this for its share of the rows, and so of every minibatch (memax_rl/sharding.py).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import rlax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import Field, model_validator

from memax_rl import sharding
from memax_rl.agents.acting import acting_by_values
from memax_rl.agents.epsilon_greedy import epsilon_greedy
from memax_rl.agents.optimizer import Optimizer, OptimizerSettings, clip, make_optimizer, make_schedule
from memax_rl.networks import NetworkConfig, QNetwork, QValues, check_discrete
from memax_rl.rollout.collect import Pending, Rollout, RolloutBatch, collect, inputs_of, rollout_size
from memax_rl.rollout.returns import lambda_returns
from memax_rl.rollout.step_count import StepCount, check_counts
from memax_rl.rollout.streams import Act, RolloutState, as_metrics, slot_shapes, start_streams
from memax_rl.rollout.tape import learning_discount, learning_reward
from memax_rl.unused import refuse_unused


class PQNConfig(OptimizerSettings):
    """Settings of PQN, with those of its optimizer."""

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
    optimizer: Optimizer = "radam"
    """What turns a gradient into an update of the network, by its name in optax."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Step size at the start."""
    epsilon_start: float = Field(default=1.0, ge=0, le=1)
    """Probability of a random action at the start."""
    epsilon_end: float = Field(default=0.05, ge=0, le=1)
    """Probability of a random action after `epsilon_decay_steps`."""
    epsilon_decay_steps: int | None = Field(default=None, ge=1, le=10**15)
    """Environment steps over which epsilon falls, linearly. None: a quarter of the run."""
    gamma: float = Field(default=0.99, ge=0, le=1)
    """Discount factor."""
    q_lambda: float = Field(default=0.9, ge=0, le=1)
    """Lambda of the lambda-returns that are the targets."""
    dueling: bool = True
    """Split action values into a state's value and the actions' advantages."""

    @model_validator(mode="after")
    def _check_used(self) -> "PQNConfig":
        if self.epsilon_start == self.epsilon_end:
            refuse_unused(self, ("epsilon_decay_steps",), "is for an epsilon that falls; set epsilon_start higher")
        return self


class PQNState(eqx.Module):
    """All that changes while training. Saved and restored whole."""

    network: QNetwork
    optimizer: optax.OptState
    streams: RolloutState
    pending: Pending
    key: PRNGKeyArray
    env_steps: StepCount
    updates: Int[Array, ""]


class PQN:
    """PQN behind the agent protocol (`memax_rl.agents.base.Agent`).

    Args:
        env, env_params: From `memax_rl.envs.make`.
        make_network: (observation space, action space, key) -> network.
        config: Settings; `num_envs` and `rollout_length` may be None.
        total_steps: Environment steps over which the schedules run.
        devices: How many share the rows; if more than one, `update` runs inside `memax_rl.sharding.shard_map`.

    Raises:
        ValueError: For continuous actions, an episode that cannot fit into a row, or minibatches that do not divide
            the rows.
    """

    name = "pqn"
    size_hint = "lower pqn.num_envs, pqn.rollout_length or num_seeds, or set pqn.rollout to 'truncated_bptt'"
    evaluates_greedily = True
    transient_fields: tuple[str, ...] = ()
    transient_hint = ""
    learned_fields: tuple[str, ...] = ("network", "optimizer")
    sharded_fields: tuple[str, ...] = ("streams", "pending")

    def __init__(
        self,
        env: Any,
        env_params: Any,
        make_network: Callable[[Any, Any, PRNGKeyArray], QNetwork],
        config: PQNConfig,
        total_steps: int,
        devices: int = 1,
    ):
        self.devices, self.total_steps = devices, total_steps
        self.env, self.env_params, self.make_network = env, env_params, make_network
        self.observation_space, self.action_space = env.observation_space(env_params), env.action_space(env_params)
        check_discrete(self.action_space, self.name)
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
        self.overlong_hint = (
            f"set pqn.rollout_length, now {self.slots}, to more than the longest episode, or pqn.rollout to "
            "'truncated_bptt'"
        )
        self.config = config.model_copy(update={"num_envs": self.num_envs, "rollout_length": self.slots})
        gradient_steps = config.update_epochs * config.num_minibatches
        check_counts(total_steps, self.num_envs * self.slots, gradient_steps, "num_envs * rollout_length")
        self.epsilon_decay_steps = config.epsilon_decay_steps or max(total_steps // 4, 1)
        self.epsilon_schedule = optax.linear_schedule(config.epsilon_start, config.epsilon_end, 1)
        self.schedule = make_schedule(config.lr_schedule, config.learning_rate)
        self.optimizer = make_optimizer(config)

    def init(self, key: PRNGKeyArray) -> PQNState:
        """Return the state before training."""
        network_key, stream_key, key = jax.random.split(key, 3)
        network = self.make_network(self.observation_space, self.action_space, network_key)
        streams = start_streams(self.env, self.env_params, network, stream_key, self.num_envs)
        slot = slot_shapes(self.env, self.env_params, self.act(network), streams)
        return PQNState(
            network=network,
            optimizer=self.optimizer.init(eqx.filter(network, eqx.is_inexact_array)),
            streams=streams,
            pending=Pending.none(slot, self.num_envs, self.slots),
            key=key,
            env_steps=StepCount.of(0),
            updates=jnp.zeros((), jnp.int32),
        )

    def reset_environments(self, state: PQNState) -> PQNState:
        """Return the state with every environment at the start of a new episode, and nothing pending."""
        # A constant that no other use of this key has.
        key = jax.random.fold_in(state.key, 2**30)
        streams = start_streams(self.env, self.env_params, state.network, key, self.num_envs)
        nothing = jnp.zeros_like(state.pending.length)
        return eqx.tree_at(lambda s: (s.streams, s.pending.length), state, (streams, nothing))

    def act(self, network: QNetwork, greedy: bool = False) -> Act:
        """Return how the network plays (see `Agent.act`): greedily, or with the epsilon of the schedule's end."""
        return epsilon_greedy(network, self.action_space, 0.0 if greedy else self.config.epsilon_end)

    def update(self, state: PQNState) -> tuple[PQNState, dict[str, Any]]:
        """Collect a tape and learn from it. Return the new state and the metrics of this update."""
        key, collect_key, learn_key = jax.random.split(state.key, 3)
        epsilon = jnp.asarray(self.epsilon_schedule(state.env_steps.fraction_of(self.epsilon_decay_steps)))
        keys = jax.random.split(collect_key, (self.slots, self.num_envs, 2))
        streams, pending, rows, collected = collect(
            self.env,
            self.env_params,
            epsilon_greedy(state.network, self.action_space, epsilon),
            state.streams,
            state.pending,
            sharding.local_shard(keys, self.devices, axis=1),
            mode=self.config.rollout,
            devices=self.devices,
        )
        learning_rate = self.schedule(state.env_steps.fraction_of(self.total_steps))
        network, optimizer, learned = self._learn(state.network, state.optimizer, rows, learning_rate, learn_key)
        # After the learning, so that it sees the observations as the acting did.
        network = network.observe(*sharding.all_gather((rows.tape.observation, rows.tape.valid), self.devices))
        env_steps = state.env_steps.add(collected.pop("env_steps"))
        metrics = {
            **collected,
            **learned,
            "epsilon": epsilon,
            "learning_rate": learning_rate,
            "env_steps": env_steps,
        }
        return PQNState(network, optimizer, streams, pending, key, env_steps, state.updates + 1), as_metrics(metrics)

    def _learn(self, network: QNetwork, optimizer, rows: RolloutBatch, learning_rate, key: PRNGKeyArray):
        """Return network and optimizer after all epochs, and mean metrics of the minibatches."""
        config, devices = self.config, self.devices
        params, static = eqx.partition(network, eqx.is_inexact_array)
        gradients = jax.grad(self._loss, has_aux=True)

        def minibatch_step(carry, minibatch):
            params, optimizer = carry
            indices, count = minibatch
            batch = jax.tree.map(lambda leaf: leaf[indices], rows)
            grads, metrics = sharding.psum(gradients(params, static, batch, count), devices)
            metrics["grad_norm"] = norm = optax.tree.norm(grads)
            updates, optimizer = self.optimizer.update(clip(grads, norm, config.max_grad_norm), optimizer, params)
            new: Any = optax.apply_updates(params, jax.tree.map(lambda u: -learning_rate * u, updates))
            return (new, optimizer), metrics

        if devices > 1:
            key = jax.random.fold_in(key, sharding.index(devices))
        valid = rows.tape.valid
        keys = jax.random.split(key, config.update_epochs)
        order = jax.vmap(lambda k: jax.random.permutation(k, len(valid)))(keys)
        order = order.reshape(config.update_epochs * config.num_minibatches, -1)
        counts = jnp.maximum(sharding.psum(jnp.sum(valid[order], axis=(1, 2), dtype=jnp.float32), devices), 1)
        (params, optimizer), metrics = jax.lax.scan(minibatch_step, (params, optimizer), (order, counts))
        return eqx.combine(params, static), optimizer, {name: jnp.mean(m) for name, m in metrics.items()}

    def _loss(
        self, params, static, rows: RolloutBatch, count: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Return half the mean squared error over the slots that count, `count` on all devices, and metrics."""
        network, tape = eqx.combine(params, static), rows.tape
        carry, q = network.scan(rows.carry, inputs_of(rows))
        targets = jax.lax.stop_gradient(self.targets(network, rows, carry, q))
        value = jax.vmap(jax.vmap(lambda q, action: q.of(action)))(q, tape.action)
        error = jnp.where(tape.valid, value - targets, 0)

        def mean(x: Float[Array, "rows slots"]) -> Float[Array, ""]:
            return jnp.sum(jnp.where(tape.valid, x, 0)) / count

        loss = mean(jnp.asarray(rlax.l2_loss(error)))
        metrics = {"loss": loss, "td_error": mean(jnp.abs(error)), "q_value": mean(value)}
        return loss, jax.lax.stop_gradient(metrics)

    def targets(self, network: QNetwork, rows: RolloutBatch, carry: Any, q: QValues) -> Float[Array, "rows slots"]:
        """Return the lambda-returns of all slots, from the action values q of one unroll and the carry after it.

        Slots that are not valid hold no meaning.
        """
        tape = rows.tape
        value = jax.vmap(jax.vmap(lambda q: q.max()))(q)
        after = jnp.zeros_like(value[:, 0])
        if self.config.rollout == "truncated_bptt":
            # A row that ends within an episode is bootstrapped there, as at a time limit.
            after = jax.vmap(lambda carry, inputs: network.step(carry, inputs)[1].max())(carry, rows.after)
        # The slot after a truncated transition holds the final observation, so the next slot's value is always right:
        # where it belongs to another episode, the transition was terminated and the value is not used.
        next_value = jnp.concatenate([value[:, 1:], after[:, None]], axis=1)
        return jax.vmap(lambda_returns, in_axes=(0, 0, 0, 0, 0, None))(
            learning_reward(tape),
            next_value,
            tape.terminated,
            tape.truncated,
            learning_discount(tape, self.config.gamma),
            self.config.q_lambda,
        )


def make(settings: PQNConfig, network: NetworkConfig, env: Any, env_params: Any, total_steps: int, devices: int) -> PQN:
    """Return the agent of a configuration. Raises `ValueError` as `PQN` does."""
    return PQN(env, env_params, acting_by_values(settings, network).make_network, settings, total_steps, devices)
