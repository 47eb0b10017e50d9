"""The environments by name. Plain tables of ids, so that listing them imports neither JAX nor gymnax."""

import difflib
import functools
import json
from collections.abc import Mapping
from typing import Any

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


def names() -> tuple[str, ...]:
    """All ids that `make` accepts, each `suite/Name`."""
    gymnax = tuple(f"gymnax/{env_id}" for env_id in GYMNAX_IDS)
    popgym = tuple(f"popgym/{family}{level}" for family in POPGYM_FAMILIES for level in DIFFICULTIES)
    meta = tuple(f"meta/{family}" for family in META_FAMILIES)
    return gymnax + popgym + meta


def options(env_id: str) -> dict[str, tuple[Any, str]]:
    """The options of an environment: name, default, meaning. Only the meta suite has any."""
    suite, name = env_id.split("/", maxsplit=1)
    if suite != "meta":
        return {}
    from memax_rl.envs import meta

    return {option: tuple(described) for option, described in meta.FAMILIES[name].options.items()}


def complete_options(env_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an environment, with defaults where nothing is given.

    Raises:
        ValueError: If an option does not exist; the message lists those that do.
    """
    known = options(env_id)
    for name in given:
        if name not in known:
            hint = f"its options are {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"env_options: {env_id} has no option {name!r}; {hint}")
    return {name: given.get(name, default) for name, (default, _) in known.items()}


def make(env_id: str, **options: Any) -> tuple[Any, Any]:
    """Make an environment and its default parameters.

    The same id and options give the same instance: an environment is a static argument of its jitted methods, so
    a new instance would compile everything again.

    Args:
        env_id: One of `names()`, for example `"popgym/RepeatPreviousEasy"`.
        options: Options of the environment, see `options`.

    Returns:
        The environment, a `memax_rl.envs.base.Environment`, and its parameters, a pytree of scalars.

    Raises:
        ValueError: If there is no such id, the message lists close matches; or if an option does not exist or has
            a wrong value.
        RuntimeError: If its data could not be downloaded (`gymnax/MNISTBandit-bsuite` only).
    """
    if env_id not in names():
        close = difflib.get_close_matches(env_id, names(), n=5, cutoff=0.4)
        hint = f"close matches: {', '.join(close)}" if close else "see memax_rl.envs.names()"
        raise ValueError(f"env_id: there is no environment {env_id!r}; {hint}")
    return _make(env_id, json.dumps(complete_options(env_id, options), sort_keys=True))


@functools.cache
def _make(env_id: str, options: str) -> tuple[Any, Any]:
    """Make an environment; the options as JSON, which can be hashed."""
    suite, name = env_id.split("/", maxsplit=1)
    if suite == "gymnax":
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
