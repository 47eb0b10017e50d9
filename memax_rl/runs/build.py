"""From a configuration to its environment, agent and keys; from a run folder to its trained networks."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from memax_rl import agents, envs
from memax_rl.agents import Agent
from memax_rl.envs.base import host_of
from memax_rl.envs.wrappers import wrap
from memax_rl.rollout.streams import seed_key
from memax_rl.runs.config import TrainConfig, make_config
from memax_rl.runs.run import Checkpoint, Run, RunError


def make_environment(config: TrainConfig) -> tuple[Any, Any]:
    """Return the environment of a configuration in its wrappers, and its parameters. Raises `ValueError` as they do."""
    return wrap(*envs.make(config.env, **config.env_options), config.env, config.env_wrappers)


def make_agent(config: TrainConfig, sizes: Mapping[str, Any] | None = None) -> Agent[Any]:
    """Return the agent of a configuration, with its environment.

    Args:
        sizes: Settings to take where the configuration leaves them open; by default the agent chooses.

    Raises:
        ValueError: If agent and environment do not fit, or a size is none of the agent's settings.
    """
    env, env_params = make_environment(config)
    if config.devices > 1 and host_of(env) is not None:
        raise ValueError(f"devices={config.devices}, but {config.env} runs on the host; set devices to 1")
    if sizes:
        given = {name: value for name, value in config.settings.model_dump().items() if value is not None}
        config = make_config(config.model_dump() | {config.agent: dict(sizes) | given})
    return agents.make(
        config.agent, config.settings, config.network, env, env_params, config.total_steps, config.devices
    )


def chosen_sizes(config: TrainConfig, agent: Agent[Any]) -> dict[str, Any]:
    """Return the settings that the configuration leaves open and the agent has chosen, ready for JSON."""
    chosen = agent.config.model_dump(mode="json")
    return {
        name: chosen[name]
        for name, value in config.settings.model_dump().items()
        if value is None and chosen[name] is not None
    }


def seeds_of(config: TrainConfig) -> range:
    """Return the seeds of a run."""
    return range(config.seed, config.seed + config.num_seeds)


def seed_keys(config: TrainConfig) -> jax.Array:
    """Return one key a seed; it depends on the seed alone, not on how many train together."""
    # JAX 0.10 cannot compile Philox's high product for several devices ("failed to legalize mhlo.unknown").
    impl = "philox4x32" if config.devices == 1 else "threefry2x32"
    return jnp.stack([seed_key(config.seed + i, impl) for i in range(config.num_seeds)])


def is_shape(leaf: Any) -> bool:
    """Return whether a leaf is the shape and dtype of an array."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def load_agent(run: Run, checkpoint: Checkpoint = "newest") -> tuple[Agent[Any], Any, list[int]]:
    """Return the agent of a run, the networks of its sound seeds, stacked along an axis, and these seeds.

    They are of the checkpoint that `Run.restore` chooses. A seed that diverged is left out: what it had learned is of
    another update.

    Raises:
        RunError: If no seed is sound, and as `Run.restore` does.
    """
    config = run.config()
    with run.trusted():
        agent = make_agent(config)

    def network(key):
        return agent.make_network(agent.observation_space, agent.action_space, key)

    # Shapes alone: nothing of the training state is made.
    keys = seed_keys(config)
    static = eqx.filter(eqx.filter_eval_shape(network, keys[0]), is_shape, inverse=True)
    shapes = jax.eval_shape(jax.vmap(lambda key: eqx.filter(network(key), eqx.is_array)), keys)
    restored, _ = run.restore({"network": shapes}, whole=False, checkpoint=checkpoint)
    networks = eqx.combine(restored["network"], static)
    return agent, *sound_networks(run, config, networks)


def sound_networks(run: Run, config: TrainConfig, networks: Any) -> tuple[Any, list[int]]:
    """Return the networks of the seeds that did not diverge, and these seeds. Raises `RunError` if there are none."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(networks, eqx.is_inexact_array))]
    diverged = run.diverged_seeds()
    finite = np.all([np.isfinite(leaf).reshape(config.num_seeds, -1).all(axis=1) for leaf in leaves], axis=0)
    sound = [i for i, seed in enumerate(seeds_of(config)) if finite[i] and seed not in diverged]
    if not sound:
        raise RunError(f"every seed of the run {run.folder} diverged in training: there is no network to play with")
    if len(sound) < config.num_seeds:
        networks = jax.tree.map(lambda leaf: leaf[np.array(sound)] if eqx.is_array(leaf) else leaf, networks)
    return networks, [config.seed + i for i in sound]
