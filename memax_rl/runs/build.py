"""From a configuration to its environment, agent and keys; from a run folder to its trained networks."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from memax_rl import agents, distributed, envs
from memax_rl.agents import Agent
from memax_rl.agents.acting import Acting
from memax_rl.envs.base import close, host_of
from memax_rl.envs.plain_spaces import from_plain
from memax_rl.envs.wrappers import wrap
from memax_rl.rollout.streams import seed_key
from memax_rl.runs.config import TrainConfig, make_config
from memax_rl.runs.run import Checkpoint, Run, RunError
from memax_rl.runs.spaces_file import SpacesFile, spaces_of


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
    rows = config.devices // seed_devices(config)
    return agents.make(config.agent, config.settings, config.network, env, env_params, config.total_steps, rows)


def seed_devices(config: TrainConfig) -> int:
    """Return how many devices share the seeds: all of a process where they divide them, because that costs nothing.

    Otherwise it is 1, and the devices share the rows of every seed.
    """
    return config.devices if config.num_seeds % config.devices == 0 and distributed.count() == 1 else 1


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
    """Return one key for each seed, [seeds]; it depends on the seed alone, not on how many train together."""
    return jnp.stack([seed_key(config.seed + i, key_impl(config.devices)) for i in range(config.num_seeds)])


def key_impl(devices: int) -> str:
    """Return the kind of a run's random keys."""
    # JAX 0.10 cannot compile Philox's high product for several devices ("failed to legalize mhlo.unknown").
    return "philox4x32" if devices == 1 else "threefry2x32"


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
    spaces = agent.observation_space, agent.action_space
    networks = _restore_networks(run, config, agent.make_network, spaces, checkpoint)
    return agent, *sound_networks(run, config, networks)


def _restore_networks(run: Run, config: TrainConfig, make: Any, spaces: tuple[Any, Any], checkpoint: Checkpoint) -> Any:
    """Return the networks of all seeds, made by `make` for the spaces of observation and action."""

    def network(key):
        return make(*spaces, key)

    # Shapes alone: nothing of the training state is made.
    keys = seed_keys(config)
    static = eqx.filter(eqx.filter_eval_shape(network, keys[0]), is_shape, inverse=True)
    shapes = jax.eval_shape(jax.vmap(lambda key: eqx.filter(network(key), eqx.is_array)), keys)
    restored, _ = run.restore({"network": shapes}, whole=False, checkpoint=checkpoint)
    return eqx.combine(restored["network"], static)


class Trained(NamedTuple):
    """What of a run is needed to act.

    Attributes:
        config: Its configuration; the environment's part may name one that is not installed.
        spaces: What the policy sees and does.
        acting: How the agent acts.
        networks: Of the sound seeds, stacked along an axis.
        seeds: These seeds.
    """

    config: TrainConfig
    spaces: SpacesFile
    acting: Acting
    networks: Any
    seeds: list[int]


def load_to_act(run: Run, checkpoint: Checkpoint = "newest") -> Trained:
    """Return what of a run is needed to act. Its environment is made only if the run does not say its spaces.

    The networks are of the checkpoint that `Run.restore` chooses.

    Raises:
        ValueError: If spaces.json is damaged.
        RunError: As `load_agent`.
    """
    spaces = run.spaces()
    if spaces is not None:
        config = run.config_to_act()
        make = agents.spec(config.agent).acting
        if make is not None:
            acting = make(config.settings, config.network)
            seen = from_plain(spaces.network.observation), from_plain(spaces.network.action)
            networks = _restore_networks(run, config, acting.make_network, seen, checkpoint)
            return Trained(config, spaces, acting, *sound_networks(run, config, networks))
    agent, networks, seeds = load_agent(run, checkpoint)
    try:
        spaces = spaces_of(agent.env, agent.env_params)
        acting = Acting(agent.make_network, agent.act, agent.evaluates_greedily)
        return Trained(run.config(), spaces, acting, networks, seeds)
    finally:
        close(agent.env)


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
