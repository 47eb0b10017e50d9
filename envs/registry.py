"""The environments by name. Plain tables of ids, so that listing them imports neither JAX nor gymnax."""

import difflib
import functools
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


def names() -> tuple[str, ...]:
    """All ids that `make` accepts, each `suite/Name`."""
    gymnax = tuple(f"gymnax/{env_id}" for env_id in GYMNAX_IDS)
    popgym = tuple(f"popgym/{family}{level}" for family in POPGYM_FAMILIES for level in DIFFICULTIES)
    return gymnax + popgym


@functools.cache
def make(env_id: str) -> tuple[Any, Any]:
    """Make an environment and its default parameters.

    The same id gives the same instance: an environment is a static argument of its jitted methods, so a new
    instance would compile everything again.

    Args:
        env_id: One of `names()`, for example `"popgym/RepeatPreviousEasy"`.

    Returns:
        The environment, a `memax_rl.envs.base.Environment`, and its parameters, a pytree of scalars.

    Raises:
        ValueError: If there is no such id; the message lists close matches.
        RuntimeError: If its data could not be downloaded (`gymnax/MNISTBandit-bsuite` only).
    """
    if env_id not in names():
        close = difflib.get_close_matches(env_id, names(), n=5, cutoff=0.4)
        hint = f"close matches: {', '.join(close)}" if close else "see memax_rl.envs.names()"
        raise ValueError(f"env_id: there is no environment {env_id!r}; {hint}")
    suite, name = env_id.split("/", maxsplit=1)
    if suite == "gymnax":
        from memax_rl.envs import gymnax_adapter

        env = gymnax_adapter.make(name)
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
