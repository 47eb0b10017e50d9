"""Proximal policy optimisation on tapes of whole episodes.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347.

One update:
1. `_collect` acts in N environment streams until each has filled a row of the tape.
2. `_scale` finds the unit of rewards, `_advantages` makes one forward pass over the tape: values, and from them
   advantages and returns, in that unit. A value network of its own is not needed for acting, and is not run there.
3. `_learn` makes `epochs` passes over minibatches of rows.

With several devices each does this for its share of the streams, and so of every minibatch (memax_rl/devices.py).

How a row is filled (`PPOConfig.fill`):
- "episodes": a row holds whole episodes. What is open when the row is full is not learnt from yet: it is carried over
  to the front of the stream's next row, where it is continued and learnt from when it is complete.
- "stream": a row goes on where the last one ended, with the memory as it was (truncated backpropagation through time).
  For episodes longer than any tape.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import rlax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree
from pydantic import BaseModel, ConfigDict, Field

from memax_rl import devices, envs
from memax_rl.encoder import Inputs
from memax_rl.envs.base import where
from memax_rl.moments import RunningMoments
from memax_rl.networks import ActionDistribution, ActorCritic
from memax_rl.optimizer import Schedule, clip, make_schedule
from memax_rl.returns import generalized_advantages
from memax_rl.step_count import StepCount, check_counts
from memax_rl.streams import Finished, Stream, as_metrics, count_unusable, episode_metrics, start_stream, step_stream
from memax_rl.tape import Tape, learning_reward, previous, value_ends


class PPOConfig(BaseModel):
    """Settings of PPO."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    num_envs: int | None = Field(default=None, ge=1, le=2**20)
    """Environments in parallel, one row of the tape each. None: so many that an update has about 8,192 slots."""
    slots: int | None = Field(default=None, ge=1, le=2**24)
    """Slots a row, that is steps an environment takes in an update. None: chosen from the episodes' length."""
    fill: Literal["episodes", "stream"] = "episodes"
    """What a row holds: whole episodes, or a stretch of a stream that goes on where the last one ended."""
    epochs: int = Field(default=4, ge=1, le=10_000)
    """Passes over the tape in an update."""
    minibatches: int = Field(default=8, ge=1, le=2**20)
    """Minibatches in a pass. Must divide num_envs, because a row is never cut."""
    learning_rate: float = Field(default=1.5e-3, gt=0)
    """Adam's step size at the start."""
    schedule: Schedule = "linear"
    """How the step size falls over the run, to zero at the end."""
    adam_eps: float = Field(default=1e-5, gt=0)
    """Adam's epsilon."""
    max_grad_norm: float = Field(default=0.5, gt=0)
    """The gradient is scaled down to this global norm."""
    discount: float = Field(default=0.99, ge=0, le=1)
    """Gamma."""
    gae_lambda: float = Field(default=0.9, ge=0, le=1)
    """Lambda of the generalised advantage estimate."""
    reward_scale: float | None = Field(default=None, gt=0)
    """What the learner, and it alone, multiplies rewards by. A value network learns returns of about 1 faster than
    those of .01. None: one over the standard deviation of all discounted returns so far (Engstrom et al. 2020,
    https://arxiv.org/abs/2005.12729, section 3). Values are in this unit."""
    clip: float = Field(default=0.2, gt=0)
    """The probability ratio counts between 1 - clip and 1 + clip."""
    value_clip: float | None = Field(default=None, gt=0)
    """If set, a value counts only as far as this from its value before the update."""
    value_coef: float = Field(default=1.0, ge=0)
    """Weight of the value loss."""
    entropy_coef: float = Field(default=0.003, ge=0)
    """Weight of the entropy bonus."""
    normalize_advantages: bool = True
    """Scale the advantages of a minibatch to mean 0 and standard deviation 1, over the slots that count."""
    target_kl: float | None = Field(default=None, gt=0)
    """If set, an update stops at the first minibatch after the KL divergence has passed this."""


class PPOState(eqx.Module):
    """All that changes while training. Saved and restored whole."""

    network: ActorCritic
    optimizer: optax.OptState
    streams: Stream
    carried: Tape
    used: Int[Array, " num_envs"]
    returns: RunningMoments
    key: PRNGKeyArray
    env_steps: StepCount
    updates: Int[Array, ""]


class Rows(NamedTuple):
    """A tape, and what stands before and after each of its rows, which counts in "stream" mode only.

    **Arguments:**

    - `tape`: [rows, slots].
    - `memory`, `before`: memory and (action, reward) before the first slot.
    - `after`: what is shown after the last slot.
    """

    tape: Tape
    memory: PyTree[Array]
    before: tuple[Array, Array]
    after: Inputs


class Batch(NamedTuple):
    """Rows with what the loss needs; every leaf has a leading row axis."""

    rows: Rows
    advantage: Float[Array, "rows slots"]
    returns: Float[Array, "rows slots"]
    value: Float[Array, "rows slots"]


class Moments(NamedTuple):
    """How many slots of a minibatch count, and mean and standard deviation of their advantages."""

    count: Float[Array, "*minibatches"]
    mean: Float[Array, "*minibatches"]
    deviation: Float[Array, "*minibatches"]


def evaluate_rows(
    network: ActorCritic, rows: Rows
) -> tuple[PyTree[Array], ActionDistribution, Float[Array, "rows slots"]]:
    """Return the memory after the rows and the distributions and values of all slots, from one pass over them."""
    tape = rows.tape
    action, reward = jax.vmap(previous)((tape.action, tape.reward), tape.start, rows.before)
    return network.scan(rows.memory, Inputs(tape.observation, action, reward, tape.start))


class PPO:
    """The agent: `init` makes a state, `update` is one pure step of training, `act` is how it plays.

    `name` is that of its settings in a configuration, `longer` what to do about an episode longer than a row,
    `plays_greedily` whether it is evaluated with its best actions unless told otherwise, `unsaved` what of its state
    stays out of checkpoints, `learned` what of it must stay finite, `shared_out` what of it is shared out over devices.

    **Arguments:**

    - `env`, `env_params`: from `memax_rl.envs.make`.
    - `make_network`: (observation space, action space, key) -> network.
    - `config`: settings; `num_envs` and `slots` may be None.
    - `total_steps`: environment steps over which the learning-rate schedule runs.
    - `devices`: how many share the rows; if more than one, `update` runs inside `memax_rl.devices.over_devices`.

    **Raises:** `ValueError` if an episode cannot fit into a row, or the minibatches do not divide the rows.
    """

    name = "ppo"
    longer = "set ppo.slots to more than the longest episode, or ppo.fill to 'stream'"
    plays_greedily = False
    unsaved: tuple[str, ...] = ()
    learned = ("network", "optimizer", "returns")
    shared_out = ("streams", "carried", "used")

    def __init__(
        self,
        env: Any,
        env_params: Any,
        make_network: Callable[[Any, Any, PRNGKeyArray], ActorCritic],
        config: PPOConfig,
        total_steps: int,
        devices: int = 1,
    ):
        self.devices = devices
        self.env, self.env_params, self.make_network = env, env_params, make_network
        # Taken once: spaces compare by identity, and they are static parts of the network.
        self.observation_space, self.action_space = env.observation_space(env_params), env.action_space(env_params)
        self.config = resolve(config, env, env_params, devices)
        num_envs, slots = self._size
        check_counts(total_steps, num_envs * slots, config.epochs * config.minibatches, "num_envs * slots")
        self.total_steps = total_steps
        self.schedule = make_schedule(config.schedule, config.learning_rate)
        self.optimizer = optax.scale_by_adam(eps=config.adam_eps)

    @property
    def _size(self) -> tuple[int, int]:
        """Return num_envs and slots, which `resolve` has set."""
        num_envs, slots = self.config.num_envs, self.config.slots
        assert num_envs is not None
        assert slots is not None
        return num_envs, slots

    def _total(self, tree: Any) -> Any:
        return devices.total(tree, self.devices)

    def init(self, key: PRNGKeyArray) -> PPOState:
        """Return the state before training."""
        num_envs, slots = self._size
        network_key, stream_key, key = jax.random.split(key, 3)
        network = self.make_network(self.observation_space, self.action_space, network_key)
        memory = network.initial_state()
        streams = jax.vmap(lambda k: start_stream(self.env, self.env_params, memory, k))(
            jax.random.split(stream_key, num_envs)
        )
        one = jax.tree.map(lambda leaf: leaf[0], streams)
        _, slot, _ = jax.eval_shape(lambda: self._step(network, one, jax.random.split(key)))
        rows = (num_envs, slots)
        return PPOState(
            network=network,
            optimizer=self.optimizer.init(eqx.filter(network, eqx.is_inexact_array)),
            streams=streams,
            carried=jax.tree.map(lambda s: jnp.zeros(rows + s.shape, s.dtype), slot),
            used=jnp.zeros(num_envs, jnp.int32),
            returns=RunningMoments(),
            key=key,
            env_steps=StepCount.of(0),
            updates=jnp.zeros((), jnp.int32),
        )

    def reopen(self, state: PPOState) -> PPOState:
        """Return the state with every stream at the start of a new episode, for environments that cannot be restored.

        What was carried of open episodes is dropped, so that none is continued by another.
        """
        # A constant that no other use of this key has.
        keys = jax.random.split(jax.random.fold_in(state.key, 2**30), self._size[0])
        memory = state.network.initial_state()
        streams = jax.vmap(lambda k: start_stream(self.env, self.env_params, memory, k))(keys)
        return eqx.tree_at(lambda s: (s.streams, s.used), state, (streams, jnp.zeros_like(state.used)))

    def update(self, state: PPOState) -> tuple[PPOState, dict[str, Float[Array, ""]]]:
        """Collect a tape and learn from it. Return the new state and the metrics of this update."""
        key, collect_key, learn_key = jax.random.split(state.key, 3)
        streams, rows, carried, used, collected = self._collect(state, collect_key)
        returns, scale = self._scale(state.returns, rows.tape)
        batch, memory = self._advantages(state.network, rows, scale)
        if self.config.fill == "stream":
            # The next row begins with what acting left in the policy's memory, and this pass in that of the values.
            streams = eqx.tree_at(lambda s: s.memory, streams, (streams.memory[0], *memory[1:]))
        learning_rate = self.schedule(state.env_steps.fraction_of(self.total_steps))
        network, optimizer, learnt = self._learn(state.network, state.optimizer, batch, learning_rate, learn_key)
        # After the learning, so that it sees the observations as the acting did.
        network = network.observe(*devices.gather((rows.tape.observation, rows.tape.valid), self.devices))
        env_steps = state.env_steps.add(collected.pop("env_steps"))
        metrics = {**collected, **learnt, "reward_scale": scale, "learning_rate": learning_rate, "env_steps": env_steps}
        new = PPOState(network, optimizer, streams, carried, used, returns, key, env_steps, state.updates + 1)
        return new, as_metrics(metrics)

    def act(self, network: ActorCritic, greedy: bool = False) -> Callable[..., tuple[Any, Array, Array]]:
        """Return how the network plays: (memory, inputs, key) -> (memory, action, log-probability)."""

        def act(memory, inputs, key):
            memory, distribution = network.act(memory, inputs)
            if greedy:
                action = distribution.mode()
                return memory, action, distribution.log_prob(action)
            return memory, *distribution.sample(key)

        return act

    # Collecting

    def _step(
        self, network: ActorCritic, stream: Stream, keys: Key[Array, "2"], active: Bool[Array, ""] | bool = True
    ) -> tuple[Stream, Tape, Finished]:
        return step_stream(self.env, self.env_params, self.act(network), stream, keys, active)

    def _collect(self, state: PPOState, key: PRNGKeyArray):
        """Fill one row a stream. Return streams, rows, the open episodes to carry, their lengths, and metrics."""
        num_envs, slots = self._size
        rows = num_envs // self.devices

        def body(streams, now):
            slot_index, keys = now
            # A stream whose row is full waits for the others.
            active = state.used + slot_index < slots
            step = jax.vmap(self._step, in_axes=(None, 0, 0, 0))
            streams, slot, finished = step(state.network, streams, keys, active)
            return streams, (slot, finished)

        keys = devices.own(jax.random.split(key, (slots, num_envs, 2)), self.devices, axis=1)
        streams, (new, finished) = jax.lax.scan(body, state.streams, (jnp.arange(slots), keys))
        new = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), new)
        row = jax.vmap(_append)(state.carried, new, state.used)
        env_steps = jnp.sum(row.valid) - jnp.sum(state.carried.valid & _before(state.used, slots))
        before = (state.streams.inputs.previous_action, state.streams.inputs.previous_reward)

        if self.config.fill == "stream":
            complete = jnp.full(rows, slots)
            carried, used = state.carried, state.used
        else:
            complete = jax.vmap(_end_of_last_episode)(row)
            carried = jax.vmap(_shift)(row, complete)
            used = slots - complete
        learnt = row.valid & _before(complete, slots)
        row = eqx.tree_at(lambda t: t.valid, row, learnt)

        lagging = jnp.sum(learnt & _before(state.used, slots))
        counts = (env_steps, jnp.sum(learnt), lagging, jnp.sum(complete == 0), count_unusable(new))
        env_steps, used_slots, lagging, overlong, unusable = self._total(counts)
        metrics = {
            **episode_metrics(devices.gather(finished, self.devices, axis=1)),
            "env_steps": env_steps,
            "tape/utilization": used_slots / (num_envs * slots),
            "tape/lag": lagging / jnp.maximum(used_slots, 1),
            "tape/overlong": overlong,
            "env/unusable": unusable,
        }
        return streams, Rows(row, state.streams.memory, before, streams.inputs), carried, used, metrics

    # Learning

    def _scale(self, returns: RunningMoments, tape: Tape) -> tuple[RunningMoments, Float[Array, ""]]:
        """Return the moments of all discounted returns, those of the tape with them, and the scale of rewards."""
        if self.config.reward_scale is not None:
            return returns, jnp.asarray(self.config.reward_scale)
        none = jnp.zeros_like(tape.reward)
        of_tape = jax.vmap(generalized_advantages, in_axes=(0, 0, 0, 0, 0, None, None))(
            learning_reward(tape), none, none, value_ends(tape), tape.truncated, self.config.discount, 1.0
        )
        of_tape, valid = devices.gather((of_tape, tape.valid), self.devices)
        returns = returns.update(of_tape.reshape(-1), valid.reshape(-1))
        # Returns that differ by rounding alone are all the same.
        spread = returns.variance > 1e-8 * returns.mean**2
        return returns, jnp.where(spread, jax.lax.rsqrt(jnp.where(spread, returns.variance, 1)), 1)

    def _advantages(self, network: ActorCritic, rows: Rows, scale: Float[Array, ""]) -> tuple[Batch, PyTree[Array]]:
        """Return the rows with values, advantages and returns of scaled rewards, and the memory after them.

        All from one forward pass.
        """
        tape = rows.tape
        memory, _, value = evaluate_rows(network, rows)
        after = jnp.zeros_like(value[:, 0])
        if self.config.fill == "stream":
            # A row that ends within an episode is bootstrapped there, as at a time limit.
            after = jax.vmap(network.step)(memory, rows.after)[2]
        # The slot after a truncated transition holds the final observation, so the next slot's value is always right:
        # where it belongs to another episode, the transition was terminated and the value is not used.
        next_value = jnp.concatenate([value[:, 1:], after[:, None]], axis=1)
        advantage = jax.vmap(generalized_advantages, in_axes=(0, 0, 0, 0, 0, None, None))(
            scale * learning_reward(tape),
            value,
            next_value,
            value_ends(tape),
            tape.truncated,
            self.config.discount,
            self.config.gae_lambda,
        )
        return Batch(rows, advantage, advantage + value, value), memory

    def _learn(self, network, optimizer, batch: Batch, learning_rate, key):
        """Return network and optimiser after all epochs, and the mean metrics of their minibatches."""
        config = self.config
        pairs = self._in_pairs(network)
        if pairs:
            network, optimizer, batch = self._half(network, optimizer, batch)
        params, static = eqx.partition(network, eqx.is_inexact_array)
        gradients = jax.grad(functools.partial(self._loss, half=pairs), has_aux=True)
        total = self._total_of_halves if pairs else self._total_and_norm

        def minibatch_step(carry, now):
            params, optimizer, stopped = carry
            indices, moments = now
            minibatch = jax.tree.map(lambda leaf: leaf[indices], batch)
            grads, metrics, norm = total(*gradients(params, static, minibatch, moments))
            metrics["grad_norm"] = norm
            updates, new_optimizer = self.optimizer.update(clip(grads, norm, config.max_grad_norm), optimizer, params)
            new_params = optax.apply_updates(params, jax.tree.map(lambda u: -learning_rate * u, updates))
            if config.target_kl is not None:
                keep = (params, optimizer)
                new_params, new_optimizer = jax.tree.map(
                    lambda old, new: jnp.where(stopped, old, new), keep, (new_params, new_optimizer)
                )
                stopped = stopped | (metrics["kl"] > config.target_kl)
            metrics["stopped"] = jnp.asarray(stopped, jnp.float32)
            return (new_params, new_optimizer, stopped), metrics

        if self.devices > 1:
            key = jax.random.fold_in(key, devices.index(self.devices) // (2 if pairs else 1))
        keys = jax.random.split(key, config.epochs)
        order = jax.vmap(lambda k: jax.random.permutation(k, len(batch.value)))(keys)
        order = order.reshape(config.epochs * config.minibatches, -1)
        carry = (params, optimizer, jnp.zeros((), bool))
        now = (order, self._moments(batch, order, 2 if pairs else 1))
        (params, optimizer, _), metrics = jax.lax.scan(minibatch_step, carry, now)
        means = {name: jnp.mean(m) for name, m in metrics.items()}
        network = eqx.combine(params, static)
        if pairs:
            network, optimizer = self._join(network, optimizer)
        return network, optimizer, means

    def _total_and_norm(self, grads, metrics):
        """Return gradients and metrics, summed over the devices, and the gradients' norm."""
        grads, metrics = self._total((grads, metrics))
        return grads, metrics, optax.tree.norm(grads)

    # Two devices that learn from the same rows, one of them the policy and one the values. They can where the two
    # networks share nothing: a recurrence takes hardly longer for twice the rows, but twice as long for two networks.
    # Each has a network of one torso, and that torso's part of the optimiser. Of its two heads one gets no gradient.

    def _in_pairs(self, network: ActorCritic) -> bool:
        return network.value_torso is not None and self.devices % 2 == 0

    def _learns_values(self) -> Bool[Array, ""]:
        return jnp.asarray(devices.index(self.devices) % 2 == 1)

    def _half(self, network, optimizer, batch: Batch):
        """Return this device's network and its optimiser, and the rows of both devices of the pair."""
        values = self._learns_values()
        batch = devices.gather_pairs(batch, self.devices)
        mine = where(values, batch.rows.memory[1], batch.rows.memory[0])
        batch = eqx.tree_at(lambda b: b.rows.memory, batch, (mine,))
        network, optimizer = _map_networks(lambda n: n.half(values), (network, optimizer))
        return network, optimizer, batch

    def _total_of_halves(self, grads, metrics):
        """Return what `_total_and_norm` does, the gradients those of this device's network."""
        grads = devices.total_of_every_second(grads, self.devices)
        square = optax.tree.norm(grads, squared=True) / (self.devices // 2)
        metrics, square = self._total((metrics, square))
        return grads, metrics, jnp.sqrt(square)

    def _join(self, network, optimizer):
        """Return the network and the optimiser that the two devices of each pair have halves of."""
        arrays, static = eqx.partition((network, optimizer), eqx.is_array)
        policy, value = (eqx.combine(half, static) for half in devices.both_of_pair(arrays, self.devices))
        return _map_networks(lambda p, v: p.join(v), policy, value)

    def _moments(self, batch: Batch, order: Int[Array, "minibatches rows"], copies: int = 1) -> Moments:
        """Return the moments of each minibatch, over the rows of all devices, of which `copies` hold the same."""
        valid, advantage = batch.rows.tape.valid[order], batch.advantage[order]

        def sums(x):
            return jnp.sum(jnp.where(valid, x, 0), axis=(1, 2))

        count, advantages = self._total((sums(1.0), sums(advantage)))
        count = jnp.maximum(count, 1)
        mean = advantages / count
        variance = self._total(sums((advantage - mean[:, None, None]) ** 2)) / count
        return Moments(count / copies, mean, jnp.sqrt(variance))

    def _loss(
        self, params, static, batch: Batch, moments: Moments, half: bool = False
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Return the PPO loss of a minibatch of rows, a mean over the slots that count, and its parts.

        With several devices: this one's part of them, so that the sum over the devices is the mean. With `half` it
        learns the policy or the values alone, and the rest is zero.
        """
        config, tape = self.config, batch.rows.tape
        _, distribution, value = evaluate_rows(eqx.combine(params, static), batch.rows)
        on_slots = jax.vmap(jax.vmap(lambda d, a: (d.log_prob(a), d.entropy())))
        log_prob, entropy = on_slots(distribution, tape.action)
        valid, advantage = tape.valid, batch.advantage
        if config.normalize_advantages:
            advantage = (advantage - moments.mean) / (moments.deviation + 1e-8)

        def mean(x: Float[Array, "rows slots"]) -> Float[Array, ""]:
            return jnp.sum(jnp.where(valid, x, 0)) / moments.count

        # On a slot that does not count the ratio is set to 1, so that no overflow there can reach the gradient.
        log_ratio = jnp.where(valid, log_prob - tape.log_prob, 0)
        ratio = jnp.exp(log_ratio)
        per_slot = jax.vmap(jax.vmap(lambda r, a: rlax.clipped_surrogate_pg_loss(r[None], a[None], config.clip)))
        policy_loss = mean(jnp.asarray(per_slot(ratio, advantage)))
        value_loss = rlax.l2_loss(value, batch.returns)
        if config.value_clip is not None:
            clipped = batch.value + jnp.clip(value - batch.value, -config.value_clip, config.value_clip)
            value_loss = jnp.maximum(value_loss, rlax.l2_loss(clipped, batch.returns))
        value_loss = mean(jnp.asarray(value_loss))
        entropy = mean(entropy)
        of_policy = {
            "policy_loss": policy_loss,
            "entropy": entropy,
            "kl": mean(ratio - 1 - log_ratio),
            "clip_fraction": mean((jnp.abs(ratio - 1) > config.clip).astype(jnp.float32)),
        }
        of_value = {"value_loss": value_loss}
        if half:
            values = self._learns_values()
            of_policy = where(values, jax.tree.map(jnp.zeros_like, of_policy), of_policy)
            of_value = where(values, of_value, jax.tree.map(jnp.zeros_like, of_value))
        metrics = of_policy | of_value
        loss = (
            metrics["policy_loss"]
            + config.value_coef * metrics["value_loss"]
            - config.entropy_coef * metrics["entropy"]
        )
        return loss, jax.lax.stop_gradient({"loss": loss} | metrics)


def resolve(config: PPOConfig, env: Any, env_params: Any, devices: int = 1) -> PPOConfig:
    """Return the settings with `num_envs` and `slots` chosen where they were None.

    Where all episodes have one length, a row is a multiple of it, so that rows end where episodes end. Else a row holds
    at least four of the longest, so that little of it is taken by the open one.

    **Raises:** `ValueError` if an episode cannot fit into a row, or the minibatches do not divide the rows.
    """
    horizon, fixed = envs.horizon(env, env_params), envs.fixed_length(env, env_params)
    # An episode that a time limit cuts has its final observation on the tape too.
    whole = None if fixed is None else fixed + envs.is_cut(env, env_params)
    slots = config.slots
    if slots is None:
        if config.fill == "stream":
            slots = 128
        elif whole is not None:
            slots = whole * max(1, round(128 / whole))
        elif horizon is not None:
            slots = max(128, 4 * (horizon + 1))
        else:
            raise ValueError(
                "slots is not set and the environment states no longest episode; set ppo.slots to more than the "
                "longest episode, or ppo.fill to 'stream'"
            )
    num_envs = config.num_envs
    if num_envs is None:
        num_envs = max(8, 2 ** round(math.log2(8192 / slots)))
    if num_envs % devices != 0:
        raise ValueError(
            f"devices={devices} must divide num_envs={num_envs}, because each device has as many rows of the tape; set "
            f"devices to a divisor of {num_envs}"
        )
    rows = num_envs // devices
    if rows % config.minibatches != 0:
        whose = f"num_envs={num_envs}" if devices == 1 else f"the {rows} rows of each of {devices} devices"
        raise ValueError(
            f"minibatches={config.minibatches} must divide {whose}, because a row of the tape is never cut; set "
            f"ppo.minibatches to a divisor of {rows}"
        )
    longest = whole if whole is not None else horizon
    if config.fill != "stream" and longest is not None and slots < longest:
        raise ValueError(
            f"slots={slots} is shorter than the longest episode, {longest} slots; set ppo.slots to {longest + 1} or "
            "more, or ppo.fill to 'stream'"
        )
    return config.model_copy(update={"slots": slots, "num_envs": num_envs})


def _before(count: Int[Array, " rows"], slots: int) -> Bool[Array, "rows slots"]:
    """Return true at the first `count` slots of each row."""
    return jnp.arange(slots)[None, :] < count[:, None]


def _where_rows(condition: Bool[Array, " rows"], if_true: Array, if_false: Array) -> Array:
    return jnp.where(condition.reshape(condition.shape + (1,) * (if_true.ndim - 1)), if_true, if_false)


def _append(carried: Tape, new: Tape, used: Int[Array, ""]) -> Tape:
    """Return a row of the first `used` slots of `carried`, followed by `new` as far as it fits."""
    slots = carried.start.shape[0]
    index = jnp.arange(slots) - used
    return jax.tree.map(lambda old, fresh: _where_rows(index < 0, old, fresh[jnp.maximum(index, 0)]), carried, new)


def _shift(row: Tape, by: Int[Array, ""]) -> Tape:
    """Return the row moved `by` slots to the front; what is beyond its end is of no meaning."""
    index = jnp.minimum(jnp.arange(row.start.shape[0]) + by, row.start.shape[0] - 1)
    return jax.tree.map(lambda leaf: leaf[index], row)


def _end_of_last_episode(row: Tape) -> Int[Array, ""]:
    """Return the number of slots up to the end of the last complete episode, its final observation included."""
    slots = row.start.shape[0]
    final = jnp.concatenate([jnp.zeros((1,), bool), row.truncated[:-1]])
    return jnp.max(jnp.where(row.terminated | final, jnp.arange(1, slots + 1), 0))


def _map_networks(f: Callable[..., ActorCritic], *trees: Any) -> Any:
    """Return the first tree with `f` of each network in it; an optimiser's state has one for each moment."""

    def is_network(x: Any) -> bool:
        return isinstance(x, ActorCritic)

    return jax.tree.map(lambda *x: f(*x) if is_network(x[0]) else x[0], *trees, is_leaf=is_network)
