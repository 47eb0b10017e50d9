"""The partially observable problems of pobax with the interface of `memax_rl.envs.base`.

Tao et al. 2025, "Benchmarking Partial Observability in Reinforcement Learning with a Suite of Memory-Improvable
Domains", https://arxiv.org/abs/2508.00046. Only those that pobax itself implements, without its wrappers; its others
are brax's, navix's and craftax's, which are suites here.
"""

import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from memax_rl.envs.adapters.legacy_gymnax import LegacyGymnaxAdapter

# The map of rocks is part of the problem, and drawn once; pobax draws another one for every seed of an experiment.
_MAP_SEED = 0


def make(env_id: str, options: Mapping[str, Any]) -> LegacyGymnaxAdapter:
    """Make one of the package's environments; it has no options.

    Raises:
        ValueError: If there is no such environment.
    """
    with _definitions():
        inner = _make(env_id)
    return LegacyGymnaxAdapter(f"pobax/{env_id}", inner)


def _make(env_id: str) -> Any:
    from pobax.envs.jax import battleship, pocman, rocksample, tmaze  # pyright: ignore[reportMissingImports]

    configs = Path(rocksample.__file__).parent.parent / "configs"
    name, _, size = env_id.partition("_")
    if name == "tmaze":
        return tmaze.TMaze(hallway_length=int(size))
    if name == "battleship":
        ships = {"3": (2,), "5": (3, 2), "10": (5, 4, 3, 2)}[size]
        return battleship.Battleship(rows=int(size), cols=int(size), ship_lengths=ships)
    if name == "pocman":
        return pocman.PocMan()
    config = configs / f"{env_id if size else 'rocksample_7_8'}_config.json"
    return rocksample.RockSample(jax.random.PRNGKey(_MAP_SEED), config_path=config)


@contextmanager
def _definitions() -> Iterator[None]:
    """Stand in for the module `definitions`, with the folder that holds the package, which its wheel lacks."""
    import pobax  # pyright: ignore[reportMissingImports]

    if "definitions" in sys.modules:
        yield
        return
    module = types.ModuleType("definitions")
    module.ROOT_DIR = str(Path(next(iter(pobax.__path__))).parent)  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["definitions"] = module
    try:
        yield
    finally:
        del sys.modules["definitions"]
