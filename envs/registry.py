"""The environments by name. Plain tables of ids, so that listing them imports neither JAX nor gymnax."""

import difflib
import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memax_rl.envs.host_options import HostOptions

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


# Ids and makers of the user's own environments.
_OWN: dict[str, Callable[[], Any]] = {}


def names() -> tuple[str, ...]:
    """The ids of the built-in environments and of the registered ones, each `suite/Name`.

    `make` also takes `gym/ID` with any ID of Gymnasium.
    """
    gymnax = tuple(f"gymnax/{env_id}" for env_id in GYMNAX_IDS)
    popgym = tuple(f"popgym/{family}{level}" for family in POPGYM_FAMILIES for level in DIFFICULTIES)
    meta = tuple(f"meta/{family}" for family in META_FAMILIES)
    return gymnax + popgym + meta + tuple(_OWN)


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
    if not (suite and slash and rest) or suite in ("gymnax", "popgym", "meta", "gym"):
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
    """The options of an environment: name, default, meaning. Only the suites meta and gym have any."""
    suite, name = env_id.split("/", maxsplit=1)
    if suite == "meta":
        from memax_rl.envs import meta

        return {option: (d.default, d.meaning) for option, d in meta.FAMILIES[name].options.items()}
    if suite == "gym":
        from memax_rl.envs.host_options import HostOptions

        return {
            option: (field.get_default(call_default_factory=True), str(field.description))
            for option, field in HostOptions.model_fields.items()
        }
    return {}


def complete_options(env_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an environment, with defaults where nothing is given.

    Raises:
        ValueError: If an option does not exist, the message lists those that do; or if one of a gym/ environment has a
            wrong value. Values of other suites are looked at by `make`.
    """
    known = options(env_id)
    for name in given:
        if name not in known:
            hint = f"its options are {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"env_options: {env_id} has no option {name!r}; {hint}")
    if env_id.startswith("gym/"):
        return _check_host_options(given).model_dump()
    return {name: given.get(name, default) for name, (default, _) in known.items()}


def _check_host_options(given: Mapping[str, Any]) -> "HostOptions":
    from pydantic import ValidationError

    from memax_rl.envs.host_options import HostOptions

    try:
        return HostOptions.model_validate(dict(given), strict=True)
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
        The environment, a `memax_rl.envs.base.Environment`, and its parameters, a pytree of scalars.

    Raises:
        ValueError: If there is no such id, the message lists close matches; or if an option does not exist or has
            a wrong value.
        RuntimeError: If its data could not be downloaded (`gymnax/MNISTBandit-bsuite` only).
    """
    check(env_id)
    checked = complete_options(env_id, options)
    if env_id.startswith("gym/"):
        from memax_rl.envs import gymnasium_adapter

        env: Any = gymnasium_adapter.GymnasiumAdapter(env_id.removeprefix("gym/"), _check_host_options(checked))
        return env, env.default_params
    return _make(env_id, json.dumps(checked, sort_keys=True))


@functools.cache
def _make(env_id: str, options: str) -> tuple[Any, Any]:
    """Make an environment; the options as JSON, which can be hashed."""
    suite, name = env_id.split("/", maxsplit=1)
    if env_id in _OWN:
        from memax_rl.envs import gymnax_adapter

        env = gymnax_adapter.adapt(env_id, _OWN[env_id]())
    elif suite == "gymnax":
        from memax_rl.envs import gymnax_adapter

        env = gymnax_adapter.make(name)
    elif suite == "meta":
        from memax_rl.envs import meta

        env = meta.make(name, json.loads(options))
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
