"""The pixel games of POPGym Arcade with the interface of `memax_rl.envs.base`.

Wang et al. 2025, "POPGym Arcade: Parallel Pixelated POMDPs", https://arxiv.org/abs/2503.01450. Every game is there with
all of its state in the picture, or with a part of it.
"""

from collections.abc import Mapping
from typing import Any

import gymnax.environments.environment

from memax_rl.envs.adapters.legacy_gymnax import LegacyGymnaxAdapter

# What its games call their time limits. They are not in the parameters.
_LIMITS = ("max_steps_in_episode", "max_episode_length")


def make(env_id: str, options: Mapping[str, Any]) -> LegacyGymnaxAdapter:
    """Make one of the package's games; its options are `ArcadeOptions`."""
    import popgym_arcade  # pyright: ignore[reportMissingImports]

    inner, params = popgym_arcade.make(env_id, partial_obs=options["partial_obs"], obs_size=options["obs_size"])
    if type(inner).is_terminal is not gymnax.environments.environment.Environment.is_terminal:
        # gymnax's `discount`, which the games call, asks for this since version 1.0.
        inner.is_terminated = inner.is_terminal
    limit = next((int(getattr(inner, name)) for name in _LIMITS if hasattr(inner, name)), None)
    return LegacyGymnaxAdapter(f"popgym_arcade/{env_id}", inner, params, limit)
