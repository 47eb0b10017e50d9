"""Makes the environments of optional packages by suite and name."""

from collections.abc import Callable, Mapping
from typing import Any

from memax_rl.envs.adapters import (
    arcade_games,
    brax_like,
    craftax_worlds,
    jumanji_like,
    navix_grids,
    pobax_problems,
)
from memax_rl.envs.base import Environment, EnvironmentFailure, lenient

MAKERS: dict[str, Callable[[str, Mapping[str, Any]], Environment]] = {
    "craftax": craftax_worlds.make,
    "popgym_arcade": arcade_games.make,
    "brax": brax_like.make,
    "mujoco_playground": brax_like.make_playground,
    "jumanji": jumanji_like.make,
    "navix": navix_grids.make,
    "pobax": pobax_problems.make,
}


def make(suite: str, name: str, options: Mapping[str, Any]) -> Environment:
    """Make an environment of a package that is installed.

    Args:
        suite: One of `MAKERS`.
        name: The environment's name in its package.
        options: Its options, all of them, see `memax_rl.envs.adapters.suite_options`.

    Raises:
        ValueError: If the package cannot be imported, or does not take the options.
        EnvironmentFailure: If data could not be downloaded.
    """
    try:
        with lenient():
            return MAKERS[suite](name, options)
    except ImportError as error:
        raise ValueError(f"env: {suite}/{name}: the package cannot be imported: {error}") from error
    except OSError as error:
        raise EnvironmentFailure(f"{suite}/{name} could not read or download its data: {error}") from error
    except TypeError as error:
        raise ValueError(f"env_options: {suite}/{name}: {error}") from error
