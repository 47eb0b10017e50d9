"""Supervised learning on sequences: one network, the loss of the marked slots, and an update.

The network is the torso of the agents with one layer behind it, and a batch is rows of slots with start flags as their
tapes are: several sequences lie end to end in a row.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from memax_rl.agents.optimizer import clip, make_optimizer, make_schedule
from memax_rl.envs import spaces
from memax_rl.networks import NetworkConfig, Torso, make_torso
from memax_rl.networks.encoder import AgentInput, Dense
from memax_rl.networks.torso import on_slots
from memax_rl.probes.config import ProbeConfig
from memax_rl.probes.tasks import Task
from memax_rl.rollout.step_count import StepCount, check_counts

# Nothing of it is encoded. One object, as spaces compare by identity.
_NO_ACTION = spaces.Discrete(1)


class Batch(NamedTuple):
    """Sequences in rows.

    Attributes:
        inputs, targets, where: As of `memax_rl.probes.tasks.Sequence`, [rows, slots, ...].
        start: True at the first slot of each sequence.
    """

    inputs: Shaped[Array, "rows slots *features"]
    targets: Shaped[Array, "rows slots *outputs"]
    where: Bool[Array, "rows slots"]
    start: Bool[Array, "rows slots"]


class Sums(NamedTuple):
    """What scores and losses are made of, added up over marked slots.

    Attributes:
        count: Marked slots.
        loss: Cross-entropy, or half the squared error of all outputs together.
        right: Slots whose largest logit is the target's; zero for numbers.
        error, target, square: Of each output the squared error, the target and its square; zero for classes.
    """

    count: Float[Array, ""]
    loss: Float[Array, ""]
    right: Float[Array, ""]
    error: Float[Array, " outputs"]
    target: Float[Array, " outputs"]
    square: Float[Array, " outputs"]

    @classmethod
    def none(cls, outputs: int) -> "Sums":
        """Return the sums of no slots."""
        one, each = jnp.zeros(()), jnp.zeros(outputs)
        return cls(one, one, one, each, each, each)


class ProbeNetwork(eqx.Module):
    """A torso and a linear layer to the outputs.

    Attributes:
        torso: Encoder and memory blocks.
        head: The linear layer.
    """

    torso: Torso
    head: Dense

    def initial_state(self) -> Any:
        """Return the initial states of all blocks."""
        return self.torso.initial_state()

    def scan(
        self, state: Any, inputs: Shaped[Array, "rows slots *features"], start: Bool[Array, "rows slots"]
    ) -> tuple[Any, Float[Array, "rows slots outputs"]]:
        """Return the last states and the outputs of all slots of a batch of rows."""
        # Previous action and reward are not encoded.
        nothing = jnp.zeros(start.shape)
        state, features = self.torso.scan(state, AgentInput(inputs, nothing, nothing, start))
        return state, on_slots(self.head, features)


class LearnerState(eqx.Module):
    """Everything that changes while a probe trains."""

    network: ProbeNetwork
    optimizer: Any
    key: PRNGKeyArray
    env_steps: StepCount
    updates: Int[Array, ""]


class Learner:
    """Supervised learning of a task: pure functions of its state, as an agent has them.

    Args:
        config: The configuration.

    Raises:
        ValueError: If the task's data are not there, or an update has more slots than can be counted.
    """

    learned_fields: tuple[str, ...] = ("network", "optimizer")
    sharded_fields: tuple[str, ...] = ()
    devices = 1

    def __init__(self, config: ProbeConfig):
        self.config, self.task = config, config.make_task()
        settings = config.learner
        self.steps = settings.batch_size * self.task.length
        check_counts(config.total_steps, self.steps, 1, "learner.batch_size * task_options.length")
        # Spaces compare by identity, and networks hold them.
        self.input_space = self.task.input_space
        self.optimizer = make_optimizer(settings)
        self.schedule = make_schedule(settings.lr_schedule, settings.learning_rate)
        self.data, self.test_data = self.task.data("train"), self.task.data("test")

    def init(self, key: PRNGKeyArray) -> LearnerState:
        """Return the state before training."""
        network_key, key = jax.random.split(key)
        network = make_network(self.config.network, self.input_space, self.task.outputs, network_key)
        return LearnerState(
            network=network,
            optimizer=self.optimizer.init(eqx.filter(network, eqx.is_inexact_array)),
            key=key,
            env_steps=StepCount.of(0),
            updates=jnp.zeros((), jnp.int32),
        )

    def update(self, state: LearnerState) -> tuple[LearnerState, dict[str, Any]]:
        """Learn from one batch. Return the new state, and the metrics of the network before."""
        key, sample_key = jax.random.split(state.key)
        batch = sample_batch(self.task, sample_key, self.config.learner.batch_size, self.config.learner.pack, self.data)
        gradient, sums = self.gradient(state.network, batch)
        params, static = eqx.partition(state.network, eqx.is_inexact_array)
        norm = optax.tree.norm(gradient)
        learning_rate = jnp.asarray(self.schedule(state.updates / self.config.total_updates), jnp.float32)
        gradient = clip(gradient, norm, self.config.learner.max_grad_norm)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, params)
        new: Any = optax.apply_updates(params, jax.tree.map(lambda u: -learning_rate * u, updates))
        env_steps = state.env_steps.add(jnp.asarray(self.steps, jnp.int32))
        metrics = {
            "loss": sums.loss / jnp.maximum(sums.count, 1),
            # A sequence is an episode here, and its return the score.
            "episode/return": score(self.task, sums),
            "grad_norm": norm,
            "learning_rate": learning_rate,
            "env_steps": env_steps,
        }
        network = eqx.combine(new, static)
        return LearnerState(network, optimizer, key, env_steps, state.updates + 1), metrics

    def gradient(self, network: ProbeNetwork, batch: Batch) -> tuple[PyTree, Sums]:
        """Return the gradient of the mean loss of a batch's marked slots, and its sums."""
        params, static = eqx.partition(network, eqx.is_inexact_array)
        settings = self.config.learner

        def mean_loss(params):
            network = eqx.combine(params, static)
            state = first_states(network, len(batch.start))
            _, sums = run_through(self.task, network, state, batch, settings.chunk, truncate=settings.truncate)
            return sums.loss / jnp.maximum(sums.count, 1), sums

        return jax.grad(mean_loss, has_aux=True)(params)


def make_network(config: NetworkConfig, input_space: Any, outputs: int, key: PRNGKeyArray) -> ProbeNetwork:
    """Return a new network for inputs of a space.

    Args:
        input_space: The space.
        outputs: How many numbers it puts out for each slot.
    """
    torso_key, head_key = jax.random.split(key)
    torso = make_torso(config, input_space, _NO_ACTION, key=torso_key)
    return ProbeNetwork(torso, Dense(config.width, outputs, key=head_key))


def sample_batch(task: Task, key: PRNGKeyArray, sequences: int, pack: int, data: PyTree[Array]) -> Batch:
    """Return random sequences of a `task`, `pack` of them end to end in each row; they do not depend on `pack`.

    Args:
        sequences: How many.
        data: What they are made of, `task.data(split)`.
    """
    drawn = jax.vmap(lambda key: task.sample(key, data))(jax.random.split(key, sequences))
    start = jnp.zeros((sequences, task.length), bool).at[:, 0].set(True)
    rows, slots = sequences // pack, pack * task.length
    return Batch(*(leaf.reshape(rows, slots, *leaf.shape[2:]) for leaf in (*drawn, start)))


def run_through(
    task: Task, network: ProbeNetwork, state: Any, batch: Batch, chunk: int | None, *, truncate: bool = False
) -> tuple[Any, Sums]:
    """Return the states after the last slots of a batch, and its sums.

    With a chunk, the memory runs over so many slots at a time from the state that it had; the activations within a
    chunk are computed again for the gradient, so that those of one chunk are in memory at a time.

    Args:
        task: What is asked.
        network: The network.
        state: Its states before the batch, of each row, as `first_states` returns.
        batch: The sequences, or a part of them.
        chunk: Slots of a chunk; the last one has what is left. None: all at once.
        truncate: Whether the gradient is cut between chunks.
    """
    slots = batch.start.shape[1]
    arrays, static = eqx.partition(network, eqx.is_array)

    def through(arrays, state, part: Batch):
        state, outputs = eqx.combine(arrays, static).scan(state, part.inputs, part.start)
        return state, add_up(task, outputs, part)

    if chunk is None or chunk >= slots:
        return through(arrays, state, batch)
    through = jax.checkpoint(through)

    def body(carry, part: Batch):
        state, sums = carry
        if truncate:
            state = jax.lax.stop_gradient(state)
        state, more = through(arrays, state, part)
        return (state, jax.tree.map(jnp.add, sums, more)), None

    whole = slots // chunk * chunk
    carry, _ = jax.lax.scan(body, (state, Sums.none(task.outputs)), cut(Batch(*(x[:, :whole] for x in batch)), chunk))
    if whole < slots:
        # A part of its own, because what would fill a chunk up would change the state.
        carry, _ = body(carry, Batch(*(x[:, whole:] for x in batch)))
    return carry


def first_states(network: ProbeNetwork, rows: int) -> Any:
    """Return the states before the first slot of each of so many `rows`."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape)), network.initial_state())


def cut(batch: Batch, slots: int) -> Batch:
    """Return a batch [rows, ...] as parts of so many slots, which divide its own: [parts, rows, slots, ...]."""
    return Batch(*(jnp.moveaxis(x.reshape(len(x), -1, slots, *x.shape[2:]), 1, 0) for x in batch))


def add_up(task: Task, outputs: Float[Array, "rows slots outputs"], batch: Batch) -> Sums:
    """Return the sums over the marked slots of a batch. What the other slots hold is not looked at.

    Args:
        task: The task, which says what is a sequence's score.
        outputs: Of the network.
        batch: The sequences.
    """
    where = batch.where

    def total(x: Array) -> Float[Array, "*outputs"]:
        marked = where.reshape(where.shape + (1,) * (x.ndim - 2))
        return jnp.sum(jnp.where(marked, x, 0), axis=(0, 1), dtype=jnp.float32)

    count, none = total(jnp.ones(where.shape)), Sums.none(task.outputs)
    # Before anything is computed from it, so that no gradient is multiplied by what an unmarked slot holds.
    outputs = jnp.where(where[..., None], outputs, 0)
    if task.classes:
        loss = total(optax.softmax_cross_entropy_with_integer_labels(outputs, batch.targets))
        right = total(jnp.argmax(outputs, axis=-1) == batch.targets)
        return none._replace(count=count, loss=loss, right=right)
    error = total((outputs - batch.targets) ** 2)
    target, square = total(batch.targets), total(batch.targets**2)
    return none._replace(count=count, loss=jnp.sum(error) / 2, error=error, target=target, square=square)


def score(task: Task, sums: Sums) -> Float[Array, ""]:
    """Return the share of right classes, or of explained variance in the mean over the outputs.

    Args:
        task: The task, which says which of the two.
        sums: Those of `add_up`, of all batches.
    """
    count = jnp.maximum(sums.count, 1)
    if task.classes:
        return sums.right / count
    variance = jnp.maximum(sums.square - sums.target**2 / count, 1e-12)
    return jnp.mean(1 - sums.error / variance)


def block_norms(states: tuple[Any, ...]) -> Float[Array, " blocks"]:
    """Return the Euclidean norm of the state of each block, `states`, in the mean over rows [rows, ...].

    Of its real and complex numbers; those that are infinite, as in the empty state of a maximum, are left out.
    """

    def norm(state: Any) -> Float[Array, ""]:
        leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
        squares = [jnp.where(jnp.isfinite(x), jnp.abs(x) ** 2, 0).reshape(len(x), -1).sum(axis=1) for x in leaves]
        return jnp.mean(jnp.sqrt(sum(squares))) if squares else jnp.zeros(())

    return jnp.stack([norm(state) for state in states])
