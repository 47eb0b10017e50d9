"""Any Gymnasium environment, run on the host, with the interface of `memax_rl.envs.base`.

A vmapped step is a single host callback for all streams, however many vmaps surround it. The state in JAX is a handle:
the index of a copy on the host, and the number of commands it has executed. Each state can be stepped only once.

Every episode begins with a seed of its own, drawn from the key given to `reset` or `step`: the same keys and actions
give the same episodes, however many copies or processes there are.
"""

import difflib
import math
import re
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.registration import EnvSpec
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Int32, PRNGKeyArray

from memax_rl.envs import ids, spaces
from memax_rl.envs.adapters.gymnasium_copy import RESET, STEP, WAIT, Maker
from memax_rl.envs.adapters.gymnasium_host import Host
from memax_rl.envs.adapters.gymnasium_options import HostOptions
from memax_rl.envs.adapters.gymnasium_spaces import encoded
from memax_rl.envs.base import Environment, EnvParams, Step
from memax_rl.envs.batching import one_call
from memax_rl.envs.popgym import suite
from memax_rl.envs.trust import import_package


class HostState(eqx.Module):
    """A handle on a copy: the pool of copies it belongs to, its index there, and the commands carried out so far.

    And which actions are legal in it now, where the environment says so.
    """

    pool: Int32[Array, ""]
    copy: Int32[Array, ""]
    count: Int32[Array, ""]
    action_mask: Bool[Array, " actions"] | None = None


class HostAdapter(Environment):
    """An environment that runs on the host.

    Args:
        env_id: Its id in its package.
        host: What runs it.
    """

    def __init__(self, env_id: str, host: Host):
        self.env_id, self._host = env_id, host
        self._observation_space = _narrow_codes(env_id, to_learner_space(host.observation_space))
        self._action_space = to_learner_space(host.action_space)
        self._tree = jax.tree.structure(_shapes(self._observation_space))
        self._begin, self._run = one_call(self._call_begin), one_call(self._call_run)

    @property
    def host(self) -> Host:
        """The copies on the host."""
        return self._host

    @property
    def default_params(self) -> EnvParams:
        """Unused: an environment on the host takes its parameters at construction."""
        return EnvParams()

    def action_space(self, params: Any) -> Any:
        """The learner's form of the action space; discrete values count from 0."""
        return self._action_space

    def observation_space(self, params: Any) -> Any:
        """The learner's form of the observation space; discrete values count from 0."""
        return self._observation_space

    def reset(self, key: PRNGKeyArray, params: Any = None) -> tuple[Any, HostState]:
        """Make a copy and begin an episode in it. All copies of one vmapped reset are made together."""
        pool, copy, count, *leaves = self._begin(_seed(key))
        observation, mask = self._observation(leaves)
        return observation, HostState(pool, copy, count, mask)

    def step(self, key: PRNGKeyArray, state: HostState, action: Any, params: Any = None) -> Step:
        """One transition, followed by a new episode where it ended one (see the base class)."""
        return self.step_if(jnp.ones((), bool), key, state, action, params)

    def step_if(self, active: Bool[Array, ""], key: PRNGKeyArray, state: HostState, action: Any, params: Any) -> Step:
        """A step where `active`; elsewhere the copy on the host is not stepped."""
        return self._command(jnp.where(active, STEP, WAIT), key, state, action)

    def reset_if(
        self, active: Bool[Array, ""], key: PRNGKeyArray, obs: Any, state: HostState, params: Any
    ) -> tuple[Any, HostState]:
        """A new episode in the same copy where `active`."""
        action = jnp.zeros(self._action_space.shape, self._action_space.dtype)
        first, state, *_ = self._command(jnp.where(active, RESET, WAIT), key, state, action)
        return jax.tree.map(lambda a, b: jnp.where(active, a, b), first, obs), state

    def _command(self, command: Array, key: PRNGKeyArray, state: HostState, action: Any) -> Step:
        action = jnp.asarray(action, self._action_space.dtype)
        count, *leaves, reward, terminated, truncated = self._run(
            command.astype(jnp.int32), _seed(key), state.pool, state.copy, state.count, action
        )
        half = len(leaves) // 2
        observation, mask = self._observation(leaves[:half])
        final_observation, final_mask = self._observation(leaves[half:])
        info = {"final_observation": final_observation}
        if mask is not None and state.action_mask is not None:
            # A copy that waits shows nothing, and its mask is what it was.
            mask = jnp.where(command == WAIT, state.action_mask, mask)
            info["final_action_mask"] = final_mask
        after = HostState(state.pool, state.copy, count, mask)
        return observation, after, reward, terminated, truncated, info

    def action_mask(self, state: HostState, params: Any) -> Bool[Array, " actions"] | None:
        """What `info["action_mask"]` of the last reset or step said."""
        return state.action_mask

    def _observation(self, leaves: list[Array]) -> tuple[Any, Bool[Array, " actions"] | None]:
        mask = leaves[0].astype(bool) if self._host.has_masks else None
        return jax.tree.unflatten(self._tree, leaves[self._host.has_masks :]), mask

    # Both get and give arrays with a leading axis of copies.

    def _call_begin(self, seeds: Array) -> Any:
        n = len(seeds)
        handle = [jax.ShapeDtypeStruct((n,), jnp.int32)] * 3
        return io_callback(lambda x: self._host.begin(np.asarray(x)), (*handle, *self._leaf_shapes(n)), seeds)

    def _call_run(self, *args: Array) -> Any:
        n = len(args[0])
        flags = [jax.ShapeDtypeStruct((n,), dtype) for dtype in (jnp.float32, jnp.bool, jnp.bool)]
        shapes = (jax.ShapeDtypeStruct((n,), jnp.int32), *self._leaf_shapes(n), *self._leaf_shapes(n), *flags)
        # numpy only in there: JAX called from inside a callback can wait for itself for ever.
        return io_callback(lambda *xs: self._host.run(*map(np.asarray, xs)), shapes, *args)

    def _leaf_shapes(self, n: int) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct((n, *shape), dtype) for shape, dtype in self._host.leaves]


class GymnasiumAdapter(HostAdapter):
    """A Gymnasium environment.

    Attributes:
        env_id: The id as in `gymnasium.make`.
    """

    def __init__(self, env_id: str, options: HostOptions, max_episode_steps: int | None = None):
        self.options = options
        self.spec = find_spec(env_id)
        arguments = dict(options.arguments)
        if max_episode_steps is not None:
            arguments["max_episode_steps"] = max_episode_steps
        self.limit = arguments.get("max_episode_steps", self.spec.max_episode_steps)
        self.is_original = not arguments and not options.wrappers
        try:
            keep = None if options.keep_keys is None else tuple(options.keep_keys)
            maker = Maker(self.spec, arguments, keep, tuple(options.drop_keys), tuple(options.wrappers))
            host = Host(f"gym/{env_id}", maker, options.processes, options.step_timeout, options.action_masks)
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"env: gym/{env_id} cannot be made: {type(error).__name__}: {reason}") from error
        super().__init__(env_id, host)

    def max_episode_steps(self, params: Any) -> int | None:
        """The time limit, where the environment's registration or the original of a POPGym id states one."""
        twin = self._twin()
        if twin is not None:
            return twin[0].max_episode_steps(twin[1])
        return _LABYRINTHS.get(self._family(), self.limit)

    def fixed_length(self, params: Any) -> int | None:
        """The number of steps of every episode; known for ids of the POPGym package."""
        twin = self._twin()
        return None if twin is None else twin[0].fixed_length(twin[1])

    def truncates(self, params: Any) -> bool:
        """Whether a time limit ends every episode; where nothing is known it may."""
        twin = self._twin()
        return True if twin is None else twin[0].truncates(twin[1])

    def _family(self) -> str | None:
        match = re.fullmatch(r"popgym-(\w+?)(Easy|Medium|Hard)?-v0", self.env_id)
        return match[1] if match and self.is_original else None

    def _twin(self) -> tuple[Any, Any] | None:
        """Return our own implementation of the same environment, where there is one."""
        twin = jax_twin(self.env_id) if self.is_original else None
        if twin is None:
            return None
        env = suite.BUILDERS[twin.removeprefix("popgym/")]()
        return env, env.default_params


# MiniGrid says 0 to 255 of its images of codes; these are its constants: things, colors, states or directions.
_MINIGRID_CODES = (10, 5, 3)
_LARGEST_GRID = 25


def _narrow_codes(env_id: str, space: Any) -> Any:
    """Return the space with the bounds of MiniGrid's codes, so that they are not read as pixels."""
    if not re.match(r"(MiniGrid|BabyAI)-", env_id.rpartition(":")[2]):
        return space
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: _narrow_codes(env_id, part) for name, part in space.spaces.items()})
    is_codes = (
        isinstance(space, spaces.Box)
        and jnp.issubdtype(space.dtype, jnp.integer)
        and len(space.shape) == 3
        and space.shape[2] == len(_MINIGRID_CODES)
        and max(space.shape) <= _LARGEST_GRID
    )
    if not is_codes:
        return space
    high = jnp.broadcast_to(jnp.array(_MINIGRID_CODES, space.dtype), space.shape)
    return spaces.Box(jnp.zeros_like(high), high, space.shape, space.dtype)


# Time limits that the package keeps to itself.
_LABYRINTHS: dict[str | None, int] = {"LabyrinthEscape": 1023, "LabyrinthExplore": 1023}


def jax_twin(env_id: str) -> str | None:
    """Return the id of our own implementation of an environment of the `popgym` package, or None."""
    match = re.fullmatch(r"popgym-(\w+)-v0", env_id)
    twins = {name.casefold(): name for name in ids.builtin_names() if name.startswith("popgym/")}
    return twins.get(f"popgym/{match[1]}".casefold()) if match else None


def _seed(key: PRNGKeyArray) -> Array:
    # Below 2^31, which every seeding function takes.
    return jax.random.bits(key) >> 1


def _shapes(space: Any) -> Any:
    if isinstance(space, spaces.Tuple):
        return tuple(_shapes(part) for part in space.spaces)
    if isinstance(space, spaces.Dict):
        return {name: _shapes(part) for name, part in space.spaces.items()}
    return 0


def to_learner_space(space: gymnasium.Space) -> Any:
    """Return the gymnax space that corresponds to a gymnasium space. Raises `ValueError` if there is none."""
    if isinstance(space, gymnasium.spaces.Tuple):
        return spaces.Tuple(tuple(to_learner_space(part) for part in space.spaces))
    if isinstance(space, gymnasium.spaces.Dict):
        return spaces.Dict({name: to_learner_space(part) for name, part in sorted(space.spaces.items())})
    shape, dtype = encoded(space)
    if isinstance(space, gymnasium.spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return spaces.MultiDiscrete([int(n) for n in space.nvec.reshape(-1)])
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return spaces.MultiDiscrete([2] * math.prod(shape))
    assert isinstance(space, gymnasium.spaces.Box)
    # Bounds beyond the range of float32 become infinite; those of integers fit.
    with np.errstate(over="ignore"):
        low, high = (bound.astype(dtype) for bound in (space.low, space.high))
    return spaces.Box(jnp.asarray(low), jnp.asarray(high), shape, jnp.dtype(dtype))


# Packages whose ids Gymnasium knows only once they are imported, by how the ids begin.
_REGISTERED_BY = {
    "ALE/": "ale_py",
    "MiniGrid-": "minigrid",
    "BabyAI-": "minigrid",
    "MiniWorld-": "miniworld",
    "dm_control/": "shimmy",
    "highway-": "highway_env",
    "procgen": "procgen",
    "crafter": "crafter",
    "Metaworld": "metaworld",
}


def find_spec(env_id: str) -> EnvSpec:
    """Return the registration of a Gymnasium id: `Name-v0`, `namespace/Name-v0` or `package:Name-v0`.

    A package named in front of a colon is imported first, and `popgym` for the ids of that package.

    Raises:
        ValueError: If nothing is registered under the id, or its package cannot be imported. One line.
    """
    package, _, name = env_id.rpartition(":")
    package = package or ("popgym" if env_id.startswith("popgym-") else "")
    try:
        if package:
            import_package(package)
        return gymnasium.spec(name)
    except ImportError as error:
        raise ValueError(f"env: gym/{env_id}: the package {package} cannot be imported: {error}") from None
    except gymnasium.error.Error:
        pass
    known = sorted(gymnasium.registry)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(f'gym/{x}' for x in close)}?" if close else "see gymnasium.registry"
    for start, owner in _REGISTERED_BY.items():
        if not package and name.startswith(start):
            hint = f"the package {owner} registers it: write gym/{owner}:{name}"
    if name.startswith("popgym-Labyrinth") and not any(x.startswith("popgym-Labyrinth") for x in known):
        hint = "the Labyrinths need mazelib; pip install 'popgym[navigation]'"
    raise ValueError(f"env: gymnasium has no environment {env_id!r}; {hint}")
