"""Craftax and Craftax-Classic with the interface of `memax_rl.envs.base`.

Matthews et al. 2024, "Craftax: A Lightning-Fast Benchmark for Open-Ended Reinforcement Learning",
https://arxiv.org/abs/2402.16801. The dynamics are the package's. It shares resets among the streams of a batch because
generating a world is slow; here every episode has a world of its own, generated at the steps at which one ends.
"""

from collections.abc import Mapping
from typing import Any

from memax_rl.envs.adapters.legacy_gymnax import LegacyGymnaxAdapter


def make(env_id: str, options: Mapping[str, Any]) -> LegacyGymnaxAdapter:
    """Make one of the package's environments; its options are `CraftaxOptions`."""
    from craftax.craftax_env import make_craftax_env_from_name  # pyright: ignore[reportMissingImports]

    inner = make_craftax_env_from_name(env_id, auto_reset=False)
    params = inner.default_params
    if options["max_steps"] is not None:
        params = params.replace(max_timesteps=options["max_steps"])
    return LegacyGymnaxAdapter(f"craftax/{env_id}", inner, params)
