"""Environments: `make("suite/Name") -> (env, params)` with gymnax's six-value step.

Importing this package is light: JAX and gymnax are imported by the first `make`, not by `names`.
"""

# Other distributions own the top-level name `envs`, so this folder must only ever be memax_rl.envs.
if __name__ != "memax_rl.envs":
    raise ImportError(f"import this package as memax_rl.envs, not as {__name__}")

from types import ModuleType

from memax_rl.envs.registry import DOWNLOADS as DOWNLOADS
from memax_rl.envs.registry import check as check
from memax_rl.envs.registry import complete_options as complete_options
from memax_rl.envs.registry import fixed_length as fixed_length
from memax_rl.envs.registry import make as make
from memax_rl.envs.registry import max_episode_steps as max_episode_steps
from memax_rl.envs.registry import missing_package as missing_package
from memax_rl.envs.registry import names as names
from memax_rl.envs.registry import options as options
from memax_rl.envs.registry import package_of as package_of
from memax_rl.envs.registry import register as register
from memax_rl.envs.registry import register_tasks as register_tasks
from memax_rl.envs.registry import truncates as truncates


def __getattr__(name: str) -> ModuleType:
    """Import `memax_rl.envs.spaces` on first use, because it costs the import of gymnax."""
    if name == "spaces":
        import memax_rl.envs.spaces

        return memax_rl.envs.spaces
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
