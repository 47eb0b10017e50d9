"""Environment steps per second under random actions.

    python benchmarks/envs.py                                        every environment
    python benchmarks/envs.py --envs popgym/RepeatPreviousEasy --copies 64
    python benchmarks/envs.py --no-python                            without the popgym package beside it

A measurement is one jitted `lax.scan` over steps of vmapped copies, each with its own key. Keys and actions
of the whole rollout are drawn inside the measured function, before the scan; observations and rewards are
summed, so that nothing the environment computes can be dropped. Times are the best of three, after
compilation.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from memax_rl import envs
from memax_rl.rollout.streams import seed_key

STEPS = 512
PYTHON_SECONDS = 0.5


def rollout_function(env: Any, params: Any, copies: int, steps: int) -> Callable:
    """A jitted rollout of `copies` environments for `steps` steps: key -> sums of everything seen."""
    action_space = env.action_space(params)

    def one_step(carry, inputs):
        state, total = carry
        keys, actions = inputs
        obs, state, reward, terminated, truncated, info = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            keys, state, actions, params
        )
        seen = [obs, info["final_observation"], reward, terminated, truncated]
        total = total + sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(seen))
        return (state, total), None

    def rollout(key):
        reset_key, step_key, action_key = jax.random.split(key, 3)
        _, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(reset_key, copies), params)
        keys = jax.random.split(step_key, (steps, copies))
        actions = jax.vmap(jax.vmap(action_space.sample))(jax.random.split(action_key, (steps, copies)))
        (state, total), _ = jax.lax.scan(one_step, (state, jnp.float32(0)), (keys, actions))
        return state, total

    return jax.jit(rollout)


def measure(env_id: str, copies: int, steps: int) -> float:
    """Steps per second of `copies` environments in JAX."""
    env, params = envs.make(env_id)
    rollout = rollout_function(env, params, copies, steps)
    jax.block_until_ready(rollout(seed_key(0)))
    best = float("inf")
    for seed in range(1, 4):
        begin = time.perf_counter()
        jax.block_until_ready(rollout(seed_key(seed)))
        best = min(best, time.perf_counter() - begin)
    return copies * steps / best


def measure_python(name: str) -> float:
    """Steps per second of one environment of the popgym package."""
    import popgym.envs

    env = getattr(popgym.envs, name)()
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(1000)]
    count = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < PYTHON_SECONDS:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        count += len(actions)
    return count / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description="Environment steps per second under random actions.")
    parser.add_argument("--envs", nargs="+", default=None, metavar="ID", help="ids; default all of them")
    parser.add_argument("--copies", nargs="+", type=int, default=[64, 1024], help="parallel environments")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each copy in a measurement")
    parser.add_argument("--no-python", action="store_true", help="leave out the popgym package")
    arguments = parser.parse_args()

    columns = [f"{copies} copies" for copies in arguments.copies]
    columns += [] if arguments.no_python else ["popgym package"]
    print(f"steps/s on {jax.devices()[0].device_kind}, {jax.device_count()} device(s)")
    print(f"{'environment':40s}" + "".join(f"{column:>16s}" for column in columns))
    for env_id in arguments.envs or envs.names():
        if install := envs.missing_package(env_id):
            print(f"{env_id:40s} needs {install}")
            continue
        try:
            cells = [f"{measure(env_id, copies, arguments.steps):,.0f}" for copies in arguments.copies]
        except RuntimeError as error:
            print(f"{env_id:40s} {error}")
            continue
        if env_id.startswith("popgym/") and not arguments.no_python:
            cells.append(f"{measure_python(env_id.removeprefix('popgym/')):,.0f}")
        print(f"{env_id:40s}" + "".join(f"{cell:>16s}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
