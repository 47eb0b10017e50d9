"""Run folders without training: fresh networks in the place of trained ones, for tests of what comes after."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from memax_rl import agents
from memax_rl.envs.base import close
from memax_rl.runs import Run, make_config
from memax_rl.runs.build import make_environment, seed_keys
from memax_rl.runs.spaces_file import spaces_of


def fresh_run(folder: Path, checkpoints: int = 1, **fields: Any) -> Run:
    """Return a run of a configuration with fresh networks, others in each checkpoint, all of which are kept.

    Their weights are three times as large as usual, so that actions differ, and they have seen noise, so that
    normalized observations differ from the plain ones.
    """
    config = make_config(fields)
    env, params = make_environment(config)
    run = Run.create(folder, config)
    run.write_spaces(spaces_of(env, params))
    make = agents.spec(config.agent).acting
    assert make is not None
    acting, spaces = make(config.settings, config.network), (env.observation_space(params), env.action_space(params))
    noise = np.random.default_rng(0)

    def seen(x: Any) -> Any:
        return jnp.asarray(noise.normal(2, 3, (1, 20, *x.shape)), x.dtype)

    shown = jax.tree.map(seen, jax.eval_shape(lambda: env.reset(jax.random.key(0), params)[0]))

    def network(key):
        larger = jax.tree.map(
            lambda x: 3 * x if eqx.is_inexact_array(x) and x.ndim > 1 else x, acting.make_network(*spaces, key)
        )
        return eqx.filter(larger.observe(shown, jnp.ones((1, 20), bool)), eqx.is_array)

    for update in range(1, checkpoints + 1):
        keys = jax.vmap(lambda key, n=update: jax.random.fold_in(key, n))(seed_keys(config))
        run.save(update, {"network": jax.jit(jax.vmap(network))(keys)}, 0.0, keep=True)
    close(env)
    return run
