"""Behavior cloning: a memory and a policy fitted to the episodes of a teacher, by supervised learning on tapes.

Pomerleau 1991, "Efficient training of artificial neural networks for autonomous navigation",
https://doi.org/10.1162/neco.1991.3.1.88; with memory, because the teacher may have one.

The episodes come from a file (`memax-rl collect`, memax_rl/rollout/episodes_file.py). They are packed end to end into
rows once, none cut. One update makes `gradient_steps` gradient steps, each on `batch_size` rows, all rows once before
any comes again. The network sees what the teacher saw, with the teacher's actions and rewards as its previous ones, and
is asked for the action that the teacher takes next. The environment is for evaluation alone.

What a memory cannot hold when it is told, reinforcement learning cannot find either.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import Field, field_validator

from memax_rl import sharding
from memax_rl.agents.acting import acting_by_policy, follow_policy
from memax_rl.agents.optimizer import OptimizerSettings, clip, make_optimizer, make_schedule
from memax_rl.envs import spaces
from memax_rl.envs.plain_spaces import to_plain
from memax_rl.networks import ActorCritic, NetworkConfig, from_environment
from memax_rl.paths import expanded
from memax_rl.rollout.episodes_file import Episodes, read_episodes
from memax_rl.rollout.replay import inputs_of
from memax_rl.rollout.step_count import StepCount, check_counts
from memax_rl.rollout.streams import Act, as_metrics
from memax_rl.rollout.tape import Tape, pack, unpack

# Slots of a gradient step, where batch_size is None, and the fewest of a row.
_SLOTS_A_STEP = 4_096
_FEWEST_SLOTS = 256


class BCConfig(OptimizerSettings):
    """Settings of behavior cloning, with those of its optimizer."""

    data: str | None = None
    """The file of episodes to learn from, NAME.npz, as `memax-rl collect` writes it. It must be given."""
    data_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Checksum of that file. None: that of the file as it is, and a resumed run learns from no other."""
    batch_size: int | None = Field(default=None, ge=1, le=2**20)
    """Rows in a gradient step. None: so many that they have about 4,096 slots, and no more than there are."""
    tape_length: int | None = Field(default=None, ge=2, le=2**24)
    """Slots a row, at least as many as the longest episode has. None: 256 or more, chosen from the episodes' length."""
    gradient_steps: int = Field(default=16, ge=1, le=2**16)
    """Gradient steps in an update, that is in a row of metrics."""
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the episodes, the last ones of the file, that is not learned from but measured on."""

    @field_validator("data")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        # So that the run can be continued from another folder.
        return None if path is None else str(expanded(path).absolute())


class Rows(NamedTuple):
    """Rows [rows, slots], with actions as the network makes them.

    Attributes:
        train: To learn from.
        validation: To measure on, or None.
    """

    train: Tape
    validation: Tape | None


class BCState(eqx.Module):
    """All that changes while training, and the data, which checkpoints leave out."""

    network: ActorCritic
    optimizer: optax.OptState
    data: Rows
    key: PRNGKeyArray
    env_steps: StepCount
    updates: Int[Array, ""]


class BC:
    """Behavior cloning behind the agent protocol (`memax_rl.agents.base.Agent`).

    Its `env_steps` are the transitions learned from, counting every time one is learned from.

    Args:
        env, env_params: From `memax_rl.envs.make`; for evaluation.
        make_network: (observation space, action space, key) -> network.
        config: Settings; `batch_size` and `tape_length` may be None.
        total_steps: Transitions over which the learning-rate schedule runs.
        devices: How many share the rows of a gradient step; if more than one, `update` runs inside
            `memax_rl.sharding.shard_map`.

    Raises:
        ValueError: If no data is named. The file is read by `init`, which raises `ValueError` if it cannot be read, was
            not played in an environment with these spaces, or does not fit the sizes.
    """

    name = "bc"
    size_hint = "lower bc.batch_size or num_seeds, or collect fewer episodes: every seed holds all of them"
    overlong_hint = "set bc.tape_length to at least the longest episode"
    evaluates_greedily = True
    transient_fields: tuple[str, ...] = ("data",)
    # It is read again from the file, whose checksum is compared.
    transient_hint = ""
    learned_fields: tuple[str, ...] = ("network", "optimizer")
    sharded_fields: tuple[str, ...] = ()

    def __init__(
        self,
        env: Any,
        env_params: Any,
        make_network: Callable[[Any, Any, PRNGKeyArray], ActorCritic],
        config: BCConfig,
        total_steps: int,
        devices: int = 1,
    ):
        if config.data is None:
            raise ValueError(
                "bc.data names no file of episodes to learn from; make one, for example by memax-rl collect --env "
                "popgym/RepeatPreviousEasy --episodes 500 --out data.npz, and set --bc.data data.npz"
            )
        self.devices, self.total_steps, self.config = devices, total_steps, config
        self.env, self.env_params, self.make_network = env, env_params, make_network
        self.observation_space, self.action_space = env.observation_space(env_params), env.action_space(env_params)
        self.schedule = make_schedule(config.lr_schedule, config.learning_rate)
        self.optimizer = make_optimizer(config)
        self._rows: Rows | None = None
        self.played_in: str | None = None

    def init(self, key: PRNGKeyArray) -> BCState:
        """Return the state before training. Reads the data, at the first call."""
        with jax.ensure_compile_time_eval():
            # Also where the state is only traced, for its shapes.
            rows = self._read()
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rows)
        network_key, key = jax.random.split(key)
        network = self.make_network(self.observation_space, self.action_space, network_key)
        return BCState(
            network=network,
            optimizer=self.optimizer.init(eqx.filter(network, eqx.is_inexact_array)),
            # Handed over as the program runs: as constants of it the data would have to be compiled.
            data=jax.pure_callback(lambda key: rows, shapes, jax.random.key_data(key), vmap_method="sequential"),
            key=key,
            env_steps=StepCount.of(0),
            updates=jnp.zeros((), jnp.int32),
        )

    def _read(self) -> Rows:
        """Return the packed rows of the file. Settings that were left open are chosen here."""
        if self._rows is not None:
            return self._rows
        config, path = self.config, Path(str(self.config.data))
        episodes, sha256 = read_episodes(path)
        if config.data_sha256 not in (None, sha256):
            raise ValueError(
                f"bc.data: {path} is not the file that the run was configured with: its checksum is {sha256}, expected "
                f"{config.data_sha256}"
            )
        self._check(episodes, path)
        rows = _pack(config, unpack(_as_learner(self.action_space, episodes.tape)), self.devices)
        self.played_in = episodes.about.env
        count, slots = rows.train.start.shape
        batch_size = config.batch_size or _batch_size(count, slots, self.devices)
        if batch_size > count or batch_size % self.devices:
            raise ValueError(
                f"batch_size={batch_size}, but there are {count} rows of {slots} slots to learn from on {self.devices} "
                "devices; set bc.batch_size to at most the rows, and to a multiple of the devices"
            )
        steps = config.gradient_steps
        check_counts(self.total_steps, slots * batch_size * steps, steps, "batch_size * tape_length * gradient_steps")
        sizes = {"batch_size": batch_size, "tape_length": slots, "data_sha256": sha256}
        self.config = config.model_copy(update=sizes)
        self._rows = rows
        return rows

    def _check(self, episodes: Episodes, path: Path) -> None:
        """Raise `ValueError` unless the episodes were played in an environment with the spaces of this one."""
        about = episodes.about
        given = {"observation": about.observation, "action": about.action}
        for name, space in (("observation", self.observation_space), ("action", self.action_space)):
            if given[name] != to_plain(space):
                raise ValueError(
                    f"bc.data: {path} was played in {about.env} with the {name} space {given[name]}, and this "
                    f"environment has {to_plain(space)}"
                )

    def reset_environments(self, state: BCState) -> BCState:
        """Return the state as it is: no environment is stepped while training."""
        return state

    def act(self, network: ActorCritic, greedy: bool = False) -> Act:
        """Return how the network plays: (carry, inputs, key) -> (carry, action, log-probability)."""
        return follow_policy(network, greedy)

    def update(self, state: BCState) -> tuple[BCState, dict[str, Any]]:
        """Make the gradient steps of an update. Return the new state and its metrics."""
        key, order_key = jax.random.split(state.key)
        learning_rate = self.schedule(state.env_steps.fraction_of(self.total_steps))
        rows, order = state.data.train, self._order(state.data.train, order_key)
        network, optimizer, learned = self._learn(state.network, state.optimizer, rows, order, learning_rate)
        # After the learning, so that the whole update sees the observations alike.
        seen = jax.tree.map(lambda leaf: leaf[order[0]], (rows.observation, rows.valid))
        network = network.observe(*seen)
        env_steps = state.env_steps.add(learned.pop("env_steps"))
        metrics = {
            **learned,
            **self._measure(network, state.data.validation),
            "learning_rate": learning_rate,
            "env_steps": env_steps,
            # There are no environments that could fail, or end an episode.
            "episode/count": 0.0,
            "episode/return": jnp.nan,
            "episode/length": jnp.nan,
            "env/unusable": 0.0,
            "tape/overlong": 0.0,
        }
        return BCState(network, optimizer, state.data, key, env_steps, state.updates + 1), as_metrics(metrics)

    def _order(self, rows: Tape, key: PRNGKeyArray) -> Int[Array, "steps rows"]:
        """Return which rows each gradient step learns from: all of them once before any comes again."""
        count, batch = len(rows.start), int(self.config.batch_size or 0)
        passes = -(-self.config.gradient_steps * batch // count)
        order = jax.vmap(lambda k: jax.random.permutation(k, count))(jax.random.split(key, passes))
        return order.reshape(-1)[: self.config.gradient_steps * batch].reshape(-1, batch)

    def _learn(self, network: ActorCritic, optimizer, rows: Tape, order, learning_rate):
        """Return network and optimizer after the gradient steps, and mean metrics of these."""
        params, static = eqx.partition(network, eqx.is_inexact_array)
        gradients = jax.grad(self._loss, has_aux=True)

        def gradient_step(carry, indices):
            params, optimizer = carry
            # Every device holds all rows, and learns from its share of the batch.
            batch = jax.tree.map(lambda leaf: leaf[sharding.local_shard(indices, self.devices)], rows)
            count = jnp.maximum(jnp.sum(rows.valid[indices]), 1)
            grads, metrics = sharding.psum(gradients(params, static, batch, count), self.devices)
            metrics |= {"env_steps": count, "grad_norm": (norm := optax.tree.norm(grads))}
            updates, optimizer = self.optimizer.update(clip(grads, norm, self.config.max_grad_norm), optimizer, params)
            new: Any = optax.apply_updates(params, jax.tree.map(lambda u: -learning_rate * u, updates))
            return (new, optimizer), metrics

        (params, optimizer), metrics = jax.lax.scan(gradient_step, (params, optimizer), order)
        steps = jnp.sum(metrics.pop("env_steps"))
        means = {name: jnp.mean(m) for name, m in metrics.items()}
        return eqx.combine(params, static), optimizer, means | {"env_steps": steps}

    def _loss(self, params, static, rows: Tape, count) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Return the mean negative log-probability of the teacher's actions, `count` on all devices, and metrics."""
        metrics = self._imitation(eqx.combine(params, static), rows, count)
        return metrics["loss"], jax.lax.stop_gradient(metrics)

    def _imitation(self, network: ActorCritic, rows: Tape, count) -> dict[str, Array]:
        """Return how well the network says the teacher's actions, as means over `count` valid slots."""
        initial = network.initial_state()
        carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(rows.start), *leaf.shape)), initial)
        distribution = network.scan(carry, inputs_of(rows)).distribution

        def of_slot(distribution, action):
            difference = jnp.abs(distribution.mode() - action)
            continuous = isinstance(self.action_space, spaces.Box)
            return -distribution.log_prob(action), jnp.mean(difference) if continuous else jnp.all(difference == 0)

        loss, agreement = jax.vmap(jax.vmap(of_slot))(distribution, rows.action)
        name = "action_error" if isinstance(self.action_space, spaces.Box) else "accuracy"
        return {
            "loss": jnp.sum(jnp.where(rows.valid, loss, 0)) / count,
            name: jnp.sum(jnp.where(rows.valid, agreement, 0)) / count,
        }

    def _measure(self, network: ActorCritic, held_out: Tape | None) -> dict[str, Array]:
        """Return the same of the first held-out rows, as many as a batch; nothing where none are held out."""
        if held_out is None:
            return {}
        rows: Tape = jax.tree.map(lambda leaf: leaf[: self.config.batch_size], held_out)
        measured = self._imitation(network, rows, jnp.maximum(jnp.sum(rows.valid), 1))
        return {f"validation/{name}": value for name, value in measured.items()}


def _as_learner(space: Any, tape: Tape) -> Tape:
    """Return the tape with actions as the network makes them."""
    action = jax.vmap(lambda a: from_environment(space, a))(jnp.asarray(tape.action))
    return eqx.tree_at(lambda t: t.action, tape, np.asarray(action))


def _pack(config: BCConfig, episodes: list[Tape], devices: int) -> Rows:
    """Return the episodes in rows, the last ones held out. Raises `ValueError` if they do not fit the settings.

    Where the batch size is open, there is a row at least for each of the devices, if need be one without an episode.
    """
    lengths = [len(episode.start) for episode in episodes]
    slots = config.tape_length or _row_length(lengths)
    if slots < max(lengths):
        raise ValueError(
            f"tape_length={slots}, but the longest episode has {max(lengths)} slots; set bc.tape_length to that or more"
        )
    learned = len(episodes) - math.ceil(config.validation_fraction * len(episodes))
    if not learned:
        raise ValueError(
            f"validation_fraction={config.validation_fraction} of {len(episodes)} episodes leaves none to learn from; "
            "collect more, or set bc.validation_fraction to 0"
        )
    validation = pack(episodes[learned:], slots) if learned < len(episodes) else None
    train = pack(episodes[:learned], slots)
    if config.batch_size is None:
        train = _with_rows(train, devices)
    return jax.tree.map(np.asarray, Rows(train, validation))


def _with_rows(tape: Tape, count: int) -> Tape:
    """Return the rows and, where they are fewer than `count`, as many without an episode: no slot of these is valid."""
    missing = max(count - len(tape.start), 0)
    more = jax.tree.map(lambda leaf: np.concatenate([leaf, np.zeros((missing, *leaf.shape[1:]), leaf.dtype)]), tape)
    # An empty slot is a start, so that nothing is carried into it, as behind the last episode of a row.
    return eqx.tree_at(lambda t: t.start, more, more.start | (np.arange(len(more.start)) >= len(tape.start))[:, None])


def _row_length(lengths: list[int]) -> int:
    """Return the slots of a row for episodes of these lengths, so that little of it stays empty."""
    longest = max(lengths)
    if min(lengths) == longest:
        return longest * math.ceil(_FEWEST_SLOTS / longest)
    return max(4 * longest, _FEWEST_SLOTS)


def _batch_size(rows: int, slots: int, devices: int) -> int:
    """Return the rows of a gradient step: about `_SLOTS_A_STEP` slots, a multiple of the devices."""
    most = max(min(_SLOTS_A_STEP // slots, rows), 1)
    return max(most // devices, 1) * devices


def make(settings: BCConfig, network: NetworkConfig, env: Any, env_params: Any, total_steps: int, devices: int) -> BC:
    """Return the agent of a configuration. Raises `ValueError` as `BC` does, and for a setting of values."""
    if network.separate_value:
        raise ValueError("network.separate_value is for ppo, which learns values; with agent 'bc' set it to false")
    return BC(env, env_params, acting_by_policy(settings, network).make_network, settings, total_steps, devices)
