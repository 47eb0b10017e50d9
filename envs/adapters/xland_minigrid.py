"""The grid worlds of the package xminigrid with the interface of `memax_rl.envs.base`.

Nikulin et al. 2023, "XLand-MiniGrid: Scalable Meta-Reinforcement Learning Environments in JAX",
https://arxiv.org/abs/2312.12044. Source: https://github.com/dunnolab/xland-minigrid, version 0.9.3. The dynamics are
the package's to the bit. What changes: the view is shown flat, types are strong, and an XLand environment may draw the
ruleset of each episode from a benchmark.

The package is optional, so this module imports it where it is used.
"""

import bz2
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.adapters.xland_minigrid_options import XLandOptions
from memax_rl.envs.base import Environment, EnvironmentFailure, lenient, strong
from memax_rl.envs.meta.trials import FromReset


class XMiniGridAdapter(Environment):
    """One of the package's environments.

    Observation: the square in front of the agent as the package shows it, turned so that the agent looks up, row by
    row, of each cell its tile and its color. Walls hide nothing. What the agent carries and where it looks are not in
    it. Actions: forward, turn right, turn left, pick up, put down, toggle.

    Attributes:
        env_id: Its id in the package.
        inner: The environment as the package makes it.
        rulesets: What each episode draws its ruleset from, arrays whose first axis counts rulesets; or None. They
            are constants of the compiled program rather than parameters: agents close over the parameters, so they
            would be constants there too, and parameters would be large where every caller expects scalars.
    """

    def __init__(self, env_id: str, inner: Any, params: Any, rulesets: Any = None):
        from xminigrid.core.constants import NUM_COLORS, NUM_TILES  # pyright: ignore[reportMissingImports]

        self.env_id, self.inner, self.rulesets = env_id, inner, rulesets
        self._params = params
        self._cell = (NUM_TILES, NUM_COLORS)

    @property
    def default_params(self) -> Any:
        """The package's own parameters, with the time limit that was asked for."""
        return self._params

    def action_space(self, params: Any) -> spaces.Discrete:
        """The package's actions."""
        return spaces.Discrete(self.inner.num_actions(params))

    def observation_space(self, params: Any) -> spaces.MultiDiscrete:
        """Tile and color of every cell of the view."""
        return spaces.MultiDiscrete(self._cell * params.view_size**2)

    def max_episode_steps(self, params: Any) -> int | None:
        """The time limit."""
        return params.max_steps

    def fixed_length(self, params: Any) -> int | None:
        """None: a success ends an episode."""
        return None

    def is_truncated(self, state: Any, params: Any) -> Bool[Array, ""]:
        """Whether the time limit is reached."""
        return state.step_num >= params.max_steps

    def draw_ruleset(self, key: PRNGKeyArray) -> Int32[Array, ""]:
        """Draw the number of a ruleset."""
        return jax.random.randint(key, (), 0, len(self.rulesets.goal))

    def begin(self, key: PRNGKeyArray, ruleset: Int32[Array, ""] | None, params: Any) -> tuple[Array, Any]:
        """Begin an episode of the ruleset of this number; of the parameters' own if None."""
        if ruleset is not None:
            params = params.replace(ruleset=jax.tree.map(lambda x: jnp.asarray(x)[ruleset], self.rulesets))
        with lenient():
            return self._shown(self.inner.reset(params, key))

    def reset_env(self, key: PRNGKeyArray, params: Any) -> tuple[Array, Any]:
        """Begin an episode, of a drawn ruleset if there is a benchmark."""
        ruleset = None if self.rulesets is None else self.draw_ruleset(jax.random.fold_in(key, 1))
        return self.begin(key, ruleset, params)

    def step_env(
        self, key: PRNGKeyArray, state: Any, action: Any, params: Any
    ) -> tuple[Array, Any, Float32[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """One transition, which is never random."""
        from xminigrid.types import StepType, TimeStep  # pyright: ignore[reportMissingImports]

        with lenient():
            # Of the step before, the package's transitions look at the state alone.
            nothing = jnp.zeros(())
            before = TimeStep(
                state=state, step_type=StepType.MID, reward=nothing, discount=nothing, observation=nothing
            )
            after = self.inner.step(params, before, jnp.asarray(action, jnp.int32))
            obs, state = self._shown(after)
            return obs, state, jnp.asarray(after.reward, jnp.float32), strong(after.discount == 0), {}

    def _shown(self, timestep: Any) -> tuple[Array, Any]:
        """Observation and state. The state's key is left out: the package's own automatic reset alone reads it."""
        return timestep.observation.reshape(-1).astype(jnp.int32), strong(timestep.state.replace(key=None))


class RulesetTasks(FromReset):
    """Trials of XLand: the task is a ruleset of the benchmark, and every episode lays it out anew."""

    env: XMiniGridAdapter

    def draw_task(self, key: PRNGKeyArray) -> Int32[Array, ""]:
        """The number of a ruleset."""
        return self.env.draw_ruleset(key)

    def reset_episode(self, key: PRNGKeyArray, task: Int32[Array, ""]) -> tuple[Any, Any]:
        """New places for the ruleset's objects and for the agent."""
        return self.env.begin(key, task, self.params)

    def step_episode(
        self, key: PRNGKeyArray, task: Int32[Array, ""], state: Any, action: Any
    ) -> tuple[Any, Any, Float32[Array, ""], Bool[Array, ""]]:
        """The environment's transition, without its automatic reset; a trial keeps the time itself."""
        return self.env.step_env(key, state, action, self.params)[:4]


def make(env_id: str, options: Mapping[str, Any]) -> XMiniGridAdapter:
    """Make one of the package's environments.

    Args:
        env_id: An id of the package, for example `"MiniGrid-MemoryS8"`.
        options: Its options, all of them, see `memax_rl.envs.adapters.xland_minigrid_options`.

    Raises:
        ValueError: If the benchmark cannot be read, or other options need one.
        EnvironmentFailure: If the benchmark could not be downloaded.
    """
    with lenient():
        from xminigrid import registration  # pyright: ignore[reportMissingImports]

        inner, params = registration.make(env_id)
    if options["max_steps"] is not None:
        params = params.replace(max_steps=options["max_steps"])
    if options.get("benchmark") is not None:
        return XMiniGridAdapter(env_id, inner, params, _read_split(XLandOptions(**options)))
    for name in ("split", "split_seed", "test_fraction"):
        if name in options and options[name] != XLandOptions.model_fields[name].default:
            raise ValueError(f"env_options.{name}: {options[name]!r} is of a benchmark's rulesets; set benchmark too")
    return XMiniGridAdapter(env_id, inner, params)


def _read_split(options: XLandOptions) -> Any:
    """The rulesets of one split of the benchmark. Copies of a ruleset are all in the same split."""
    from xminigrid.types import RuleSet  # pyright: ignore[reportMissingImports]

    benchmark = _read_benchmark(str(options.benchmark))
    arrays: Any = RuleSet(goal=benchmark.goals, rules=benchmark.rules, init_tiles=benchmark.init_tiles)
    arrays = jax.tree.map(np.asarray, arrays)
    rows = np.concatenate([x.reshape(len(x), -1) for x in (arrays.goal, arrays.rules, arrays.init_tiles)], axis=1)
    kinds, kind = np.unique(_as_bytes(rows), return_inverse=True)
    if len(kinds) < 2:
        raise ValueError(f"env_options.benchmark: {options.benchmark!r} has one ruleset, which cannot be split")
    order = np.random.default_rng(options.split_seed).permutation(len(kinds))
    held_out = np.zeros(len(kinds), bool)
    held_out[order[: min(max(1, round(options.test_fraction * len(kinds))), len(kinds) - 1)]] = True
    chosen = held_out[kind] == (options.split == "test")
    return jax.tree.map(lambda x: x[chosen], arrays)


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """Each row as one value, which is faster to compare."""
    return np.ascontiguousarray(rows).view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays, and nothing that could run code: the file may be a stranger's."""

    _MODULES = ("numpy", "numpy._core.multiarray", "numpy.core.multiarray", "numpy._core.numeric", "numpy.core.numeric")

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name in self._MODULES and global_name in (
            "ndarray",
            "dtype",
            "_reconstruct",
            "_frombuffer",
            "scalar",
        ):
            return super().find_class(module_name, global_name)
        if (module_name, global_name) == ("jax._src.array", "_reconstruct_array"):
            # What jax.Array pickles as: (function, its arguments, their state, its abstract value's state).
            return _as_numpy
        raise pickle.UnpicklingError(f"it holds {module_name}.{global_name}, and only arrays are read")


def _as_numpy(function: Any, arguments: Any, state: Any, _: Any) -> np.ndarray:
    array = function(*arguments)
    array.__setstate__(state)
    return array


def _load_arrays(path: str) -> Any:
    from xminigrid.benchmarks import Benchmark  # pyright: ignore[reportMissingImports]

    with bz2.open(path, "rb") as file:
        arrays = _ArraysOnly(file).load()
    return Benchmark(**{name: jnp.asarray(arrays[name]) for name in ("goals", "rules", "init_tiles", "num_rules")})


def _read_benchmark(name: str) -> Any:
    from xminigrid import benchmarks  # pyright: ignore[reportMissingImports]

    known = benchmarks.registered_benchmarks()
    if name not in known and not Path(name).is_file():
        raise ValueError(
            f"env_options.benchmark: {name!r} is no file and no benchmark of xminigrid, which are {', '.join(known)}"
        )
    try:
        with lenient():
            return benchmarks.load_benchmark(name) if name in known else _load_arrays(name)
    except OSError as error:
        if name not in known:
            raise ValueError(f"env_options.benchmark: {name!r} cannot be read: {error}") from error
        raise EnvironmentFailure(
            f"benchmark {name} of xminigrid is downloaded when it is first used, and that failed: {error}. "
            "Check the network connection, or give the path of a file."
        ) from error
    except Exception as error:
        # What unpickling raises depends on what the file holds instead.
        raise ValueError(
            f"env_options.benchmark: {name!r} is no whole benchmark of xminigrid: {type(error).__name__}: {error}"
        ) from error
