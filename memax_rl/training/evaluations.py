"""Evaluations while a run trains: their rows, and each seed's best networks by them.

They read the networks and draw from keys of their own, so that a run with them is the same to the bit as one without.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from memax_rl import sharding
from memax_rl.agents import Agent
from memax_rl.evaluation import make_player
from memax_rl.rollout.step_count import StepCount
from memax_rl.rollout.streams import seed_key
from memax_rl.runs.build import seeds_of
from memax_rl.runs.config import TrainConfig
from memax_rl.runs.run import Run

Rows = list[dict[str, float]]
# No other key of a seed is folded with this number; that of the evaluation at the end is with the one before.
_KEY = 2**31 + 1


class Best(NamedTuple):
    """The networks with which each seed was evaluated best so far. All arrays have a leading axis of seeds.

    Attributes:
        network: The arrays of the networks.
        update: After which update each was evaluated; 0 where a seed was not yet.
        mean_return: What it reached; -inf where a seed was not evaluated yet.
    """

    network: PyTree
    update: Int[np.ndarray, " seeds"]
    mean_return: Float[np.ndarray, " seeds"]

    @classmethod
    def none(cls, network: PyTree, seeds: int) -> "Best":
        """Return that of seeds which were not evaluated yet. `network` holds arrays or their shapes."""
        empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network)
        return cls(empty, np.zeros(seeds, np.int32), np.full(seeds, -np.inf, np.float32))

    def improved(self, network: PyTree, update: int, mean_return: Float[np.ndarray, " seeds"]) -> "Best":
        """Return the best after an evaluation; of equal returns the earlier one stays. nan is no improvement."""
        better = mean_return > self.mean_return
        if not better.any():
            return self

        def choose(new: Any, old: Any) -> np.ndarray:
            # `where` copies: the state's own arrays are donated to the next update.
            new = np.asarray(new)
            return np.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, np.asarray(old))

        return Best(
            jax.tree.map(choose, network, self.network),
            np.where(better, np.int32(update), self.update),
            np.where(better, mean_return, self.mean_return).astype(np.float32),
        )


class Goals(NamedTuple):
    """How many environment steps the slowest sound seed makes before the loop has something to do again.

    Attributes:
        until: The first of the other two and the total.
        evaluation, checkpoint: When to evaluate, and when to save a checkpoint that is kept; None for never.
    """

    until: int
    evaluation: int | None
    checkpoint: int | None

    @classmethod
    def after(cls, config: TrainConfig, steps: int) -> "Goals":
        """Return the goals of a run whose slowest sound seed has made so many steps."""

        def following(interval: int | None) -> int | None:
            return None if interval is None else (steps // interval + 1) * interval

        evaluation, checkpoint = following(config.eval_interval), following(config.keep_every_n_steps)
        return cls(
            min(goal for goal in (config.total_steps, evaluation, checkpoint) if goal is not None),
            evaluation,
            checkpoint,
        )

    def are_reached(self, goal: int | None, arrays: PyTree, sound: Bool[np.ndarray, " seeds"]) -> bool:
        """Return whether every sound seed, of one or more, has made so many steps."""
        return goal is not None and slowest(arrays.env_steps, sound) >= goal


def slowest(env_steps: StepCount, sound: Bool[np.ndarray | Array, " seeds"]) -> int:
    """Return the steps of the slowest sound seed, or -1 if there is none."""
    steps = env_steps.to_numpy()[np.asarray(sound)]
    return int(steps.min()) if steps.size else -1


def evaluation_keys(config: TrainConfig, update: int) -> jax.Array:
    """Return one key a seed; it depends on the seed and the update alone, not on how many seeds train together."""
    keys = [jax.random.fold_in(seed_key(seed), _KEY) for seed in seeds_of(config)]
    return jnp.stack([jax.random.fold_in(key, update) for key in keys])


# (arrays of the state, which seeds are sound, update) -> rows of the sound seeds, and the mean return of all seeds.
Evaluate = Callable[[Any, Bool[np.ndarray, " seeds"], int], tuple[Rows, Float[np.ndarray, " seeds"]]]


def make_evaluation(config: TrainConfig, agent: Agent[Any], static: Any) -> Evaluate:
    """Return how the seeds of a state are evaluated; it is compiled once, at its first call.

    All seeds play, so that one that diverges changes no shape; the mean return of one that has is nan, and it has no
    row. Raises `EnvironmentFailure` if an environment on the host fails.
    """
    episodes = config.eval_episodes
    player = make_player(agent, agent.env, agent.env_params, episodes, agent.evaluates_greedily)

    def evaluate(arrays: Any, sound: Bool[np.ndarray, " seeds"], update: int) -> tuple[Rows, np.ndarray]:
        network = sharding.on_one(arrays.network) if config.devices > 1 else arrays.network
        returns, lengths, ended = player(eqx.combine(network, static.network), evaluation_keys(config, update))
        mean = np.where(sound, returns.mean(axis=1), np.nan).astype(np.float32)
        steps = arrays.env_steps.to_numpy()
        rows = [
            {
                "update": float(update),
                "seed": float(seed),
                "env_steps": float(steps[i]),
                "mean_return": float(mean[i]),
                "std_return": float(returns[i].std()),
                "mean_length": float(lengths[i].mean()),
                "episodes": float(episodes),
                "unfinished_episodes": float(np.sum(~ended[i])),
            }
            for i, seed in enumerate(seeds_of(config))
            if sound[i]
        ]
        return rows, mean

    return evaluate


def restore_best(run: Run, network: PyTree, seeds: int) -> Best:
    """Return the best in the newest checkpoint of a run, or that of seeds which were not evaluated yet.

    Args:
        network: The arrays of the networks, or their shapes.

    Raises:
        RunError: If the checkpoint cannot be read.
    """
    none = Best.none(network, seeds)
    if not run.has_best():
        return none
    return Best(**jax.tree.map(np.asarray, run.restore(none._asdict(), checkpoint="best")[0]))
