"""The environments by name. Plain tables of ids, so that listing them imports neither JAX nor gymnax."""

import difflib
import functools
import importlib.util
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

GYMNAX_IDS = (
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "MemoryChain-bsuite",
    "UmbrellaChain-bsuite",
    "DiscountingChain-bsuite",
    "MNISTBandit-bsuite",
    "SimpleBandit-bsuite",
    "FourRooms-misc",
    "MetaMaze-misc",
    "PointRobot-misc",
    "BernoulliBandit-misc",
    "GaussianBandit-misc",
    "Reacher-misc",
    "Swimmer-misc",
    "Pong-misc",
    "FrozenLake-misc",
)
POPGYM_FAMILIES = (
    "RepeatFirst",
    "RepeatPrevious",
    "Autoencode",
    "CountRecall",
    "HigherLower",
    "Concentration",
    "Battleship",
    "MineSweeper",
    "MultiarmedBandit",
    "PositionOnlyCartPole",
    "VelocityOnlyCartPole",
    "NoisyPositionOnlyCartPole",
    "PositionOnlyPendulum",
    "NoisyPositionOnlyPendulum",
)
# Making one of these fetches its data from the network.
DOWNLOADS = ("gymnax/MNISTBandit-bsuite",)
DIFFICULTIES = ("Easy", "Medium", "Hard")
META_FAMILIES = (
    "BernoulliBandit",
    "GaussianBandit",
    "DarkRoom",
    "KeyToDoor",
    "TabularMDP",
    "ProjectedCartPole",
    "PointMass",
    "EndlessTMaze",
    "Trials",
)
# In the order of the package, which is not asked: it need not be installed.
XMINIGRID_IDS = (
    "XLand-MiniGrid-R1-9x9",
    "XLand-MiniGrid-R1-11x11",
    "XLand-MiniGrid-R1-13x13",
    "XLand-MiniGrid-R1-15x15",
    "XLand-MiniGrid-R1-17x17",
    "XLand-MiniGrid-R2-9x9",
    "XLand-MiniGrid-R2-11x11",
    "XLand-MiniGrid-R2-13x13",
    "XLand-MiniGrid-R2-15x15",
    "XLand-MiniGrid-R2-17x17",
    "XLand-MiniGrid-R4-9x9",
    "XLand-MiniGrid-R4-11x11",
    "XLand-MiniGrid-R4-13x13",
    "XLand-MiniGrid-R4-15x15",
    "XLand-MiniGrid-R4-17x17",
    "XLand-MiniGrid-R6-13x13",
    "XLand-MiniGrid-R6-17x17",
    "XLand-MiniGrid-R6-19x19",
    "XLand-MiniGrid-R9-16x16",
    "XLand-MiniGrid-R9-19x19",
    "XLand-MiniGrid-R9-25x25",
    "MiniGrid-BlockedUnlockPickUp",
    "MiniGrid-DoorKey-5x5",
    "MiniGrid-DoorKey-6x6",
    "MiniGrid-DoorKey-8x8",
    "MiniGrid-DoorKey-16x16",
    "MiniGrid-Empty-5x5",
    "MiniGrid-Empty-6x6",
    "MiniGrid-Empty-8x8",
    "MiniGrid-Empty-16x16",
    "MiniGrid-EmptyRandom-5x5",
    "MiniGrid-EmptyRandom-6x6",
    "MiniGrid-EmptyRandom-8x8",
    "MiniGrid-EmptyRandom-16x16",
    "MiniGrid-FourRooms",
    "MiniGrid-LockedRoom",
    "MiniGrid-MemoryS8",
    "MiniGrid-MemoryS16",
    "MiniGrid-MemoryS32",
    "MiniGrid-MemoryS64",
    "MiniGrid-MemoryS128",
    "MiniGrid-Playground",
    "MiniGrid-Unlock",
    "MiniGrid-UnlockPickUp",
)
SUITES = ("gymnax", "popgym", "meta", "xminigrid", "gym")


# Ids and makers of the user's own environments.
_OWN: dict[str, Callable[[], Any]] = {}


def names() -> tuple[str, ...]:
    """The ids of the built-in environments and of the registered ones, each `suite/Name`.

    `make` also takes `gym/ID` with any ID of Gymnasium. Those of `xminigrid/` need a package, see `missing_package`.
    """
    gymnax = tuple(f"gymnax/{env_id}" for env_id in GYMNAX_IDS)
    popgym = tuple(f"popgym/{family}{level}" for family in POPGYM_FAMILIES for level in DIFFICULTIES)
    meta = tuple(f"meta/{family}" for family in META_FAMILIES)
    xminigrid = tuple(f"xminigrid/{env_id}" for env_id in XMINIGRID_IDS)
    return gymnax + popgym + meta + xminigrid + tuple(_OWN)


def missing_package(env_id: str) -> str | None:
    """The command that installs what an environment needs and is not installed, or None."""
    if env_id.startswith("xminigrid/") and importlib.util.find_spec("xminigrid") is None:
        return "pip install 'memax_rl[xminigrid]'"
    return None


def register(name: str, make: Callable[[], Any]) -> None:
    """Make an environment of one's own known by a name, for configurations and `make`.

    The name is known in this process only: whoever resumes or evaluates a run of it registers it first.

    Args:
        name: `suite/Name`, in no suite of this package, for example `"own/TMaze"`.
        make: Returns the environment: one with gymnax's API, or a `memax_rl.envs.base.Environment`. Called once.

    Raises:
        ValueError: If the name is not of that form.
    """
    suite, slash, rest = name.partition("/")
    if not (suite and slash and rest) or suite in SUITES:
        raise ValueError(f"name: expected suite/Name in a suite of your own, for example 'own/TMaze', got {name!r}")
    _OWN[name] = make
    _make.cache_clear()


def check(env_id: str) -> None:
    """Raise `ValueError` with close matches, in one line, unless `make` knows the id."""
    if env_id.startswith("gym/"):
        from memax_rl.envs import gymnasium_adapter

        gymnasium_adapter.find_spec(env_id.removeprefix("gym/"))
    elif env_id not in names():
        close = difflib.get_close_matches(env_id, names(), n=5, cutoff=0.4)
        hint = f"close matches: {', '.join(close)}" if close else "see memax_rl.envs.names()"
        raise ValueError(f"env_id: there is no environment {env_id!r}; {hint}")


def options(env_id: str) -> dict[str, tuple[Any, str]]:
    """The options of an environment: name, default, meaning. Only the suites meta, xminigrid and gym have any."""
    suite, name = env_id.split("/", maxsplit=1)
    if suite == "meta":
        from memax_rl.envs import meta

        return {option: (d.default, d.meaning) for option, d in meta.FAMILIES[name].options.items()}
    model = _options_model(env_id)
    fields = {} if model is None else model.model_fields
    return {
        option: (field.get_default(call_default_factory=True), str(field.description))
        for option, field in fields.items()
    }


def _options_model(env_id: str) -> "type[BaseModel] | None":
    """What the options of a suite must be, where it says so in one place."""
    if env_id.startswith("gym/"):
        from memax_rl.envs.host_options import HostOptions

        return HostOptions
    if env_id.startswith("xminigrid/"):
        from memax_rl.envs.xminigrid_options import GridOptions, XLandOptions

        return XLandOptions if env_id.startswith("xminigrid/XLand") else GridOptions
    return None


def complete_options(env_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an environment, with defaults where nothing is given.

    Raises:
        ValueError: If an option does not exist, the message lists those that do; or if one of a gym/ or xminigrid/
            environment has a wrong value. Values of other suites are looked at by `make`.
    """
    known = options(env_id)
    for name in given:
        if name not in known:
            hint = f"its options are {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"env_options: {env_id} has no option {name!r}; {hint}")
    model = _options_model(env_id)
    if model is not None:
        return _check_options(model, given).model_dump()
    return {name: given.get(name, default) for name, (default, _) in known.items()}


def _check_options(model: "type[BaseModel]", given: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return model.model_validate(dict(given), strict=True)
    except ValidationError as error:
        mistakes = (
            f"env_options.{'.'.join(map(str, e['loc']))}: {e['msg'][0].lower()}{e['msg'][1:]}, got {e['input']!r}"
            for e in error.errors()
        )
        raise ValueError("; ".join(mistakes)) from None


def make(env_id: str, **options: Any) -> tuple[Any, Any]:
    """Make an environment and its default parameters.

    The same id and options give the same instance, but for `gym/`: an environment is a static argument of its jitted
    methods, so a new instance would compile everything again. One on the host has copies and processes of its own.

    Args:
        env_id: One of `names()`, for example `"popgym/RepeatPreviousEasy"`, or `gym/ID` with an ID of Gymnasium.
        options: Options of the environment, see `options`. For `gym/`: processes, time limit of a step, arguments of
            `gymnasium.make`.

    Returns:
        The environment, a `memax_rl.envs.base.Environment`, and its parameters, a pytree of scalars (XLand's
        hold a ruleset too).

    Raises:
        ValueError: If there is no such id, the message lists close matches; or if an option does not exist or has
            a wrong value; or if a package that it needs is not installed.
        EnvironmentFailure: If its data could not be downloaded (`gymnax/MNISTBandit-bsuite` and benchmarks of XLand).
    """
    check(env_id)
    checked = complete_options(env_id, options)
    if env_id.startswith("gym/"):
        from memax_rl.envs import gymnasium_adapter
        from memax_rl.envs.host_options import HostOptions

        env: Any = gymnasium_adapter.GymnasiumAdapter(env_id.removeprefix("gym/"), _check_options(HostOptions, checked))
        return env, env.default_params
    return _make(env_id, json.dumps(checked, sort_keys=True))


@functools.cache
def _make(env_id: str, options: str) -> tuple[Any, Any]:
    """Make an environment; the options as JSON, which can be hashed."""
    suite, name = env_id.split("/", maxsplit=1)
    if env_id in _OWN:
        from memax_rl.envs import gymnax_adapter
        from memax_rl.envs.checking import check_environment

        env = gymnax_adapter.adapt(env_id, _OWN[env_id]())
        check_environment(env_id, env, env.default_params)
    elif suite == "gymnax":
        from memax_rl.envs import gymnax_adapter

        env = gymnax_adapter.make(name)
    elif suite == "meta":
        from memax_rl.envs import meta

        env = meta.make(name, json.loads(options))
    elif suite == "xminigrid":
        from memax_rl.envs import xminigrid_adapter

        if install := missing_package(env_id):
            raise ValueError(f"env: {env_id} needs the package xminigrid; {install}")
        env = xminigrid_adapter.make(name, json.loads(options))
    else:
        from memax_rl.envs import popgym

        env = popgym.BUILDERS[name]()
    return env, env.default_params


def horizon(env: Any, params: Any) -> int | None:
    """The largest number of steps an episode can have, or None if no bound is known.

    Args:
        env: An environment from `make`.
        params: Its parameters, with concrete (not traced) values.
    """
    return env.horizon(params)


def fixed_length(env: Any, params: Any) -> int | None:
    """The number of steps of every episode, or None if episodes differ in length.

    Args:
        env: An environment from `make`.
        params: Its parameters, with concrete (not traced) values.
    """
    return env.fixed_length(params)


def is_cut(env: Any, params: Any) -> bool:
    """Whether an episode of the fixed length may be cut there by a time limit.

    Args:
        env: An environment from `make`.
        params: Its parameters, with concrete (not traced) values.
    """
    return env.is_cut(params)
