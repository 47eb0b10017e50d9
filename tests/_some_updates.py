"""Makes some updates, alone or as one of several processes, and writes down the parameters that it holds then.

python tests/_some_updates.py WHERE UPDATES FOLDER AGENTS_AND_FIELDS_AS_JSON
"""

import json
import sys

import numpy as np

from memax_rl.distributed import taking_part


def main(where: str, updates: str, folder: str, fields: str) -> None:
    """Take part where `where` says, or alone if it is empty; write FOLDER/AGENT-PROCESS.npz for each agent."""
    with taking_part(where or None):
        for agent, own in json.loads(fields).items():
            make(int(updates), folder, agent, own)


def make(updates: int, folder: str, name: str, fields: dict) -> None:
    """Make the updates of one agent."""
    import jax
    import jax.numpy as jnp

    from memax_rl import sharding
    from memax_rl.runs import make_config
    from memax_rl.runs.build import make_agent
    from memax_rl.runs.plain_arrays import to_plain
    from memax_rl.training.loop import init_state
    from memax_rl.training.updates import make_many_updates, place

    config = make_config(fields)
    agent = make_agent(config)
    start, static = init_state(config, agent)
    many = make_many_updates(agent, static, config.total_steps)
    sound = sharding.replicate(jnp.ones(config.num_seeds, bool), config.devices)
    arrays, _, metrics = many(place(agent, start), updates, sound)
    learned = {"network": sharding.on_one(arrays.network), "returns": metrics["episode/return"]}
    which = f"{jax.process_index()}-of-{jax.process_count()}"
    np.savez(f"{folder}/{name}-{which}.npz", env_steps=arrays.env_steps.to_numpy(), **to_plain(learned))


if __name__ == "__main__":
    main(*sys.argv[1:])
