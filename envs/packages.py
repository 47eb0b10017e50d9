"""The optional packages whose environments are suites by name. Plain tables: importing this imports none of them."""

import importlib.util
from typing import NamedTuple


class Package(NamedTuple):
    """An optional package.

    Attributes:
        module: What is imported.
        version: The version that this project was tried with.
        install: The command that installs it beside this package.
        modules: What else must be there and its own installation may lack.
    """

    module: str
    version: str
    install: str
    modules: tuple[str, ...] = ()


# By suite. docs/suites.md says what was tried, and why some are not installed by an extra.
PACKAGES = {
    "xminigrid": Package("xminigrid", "0.9.3", "pip install 'memax_rl[xminigrid]'"),
    "craftax": Package("craftax", "1.6.1", "pip install 'memax_rl[craftax]'"),
    "popgym_arcade": Package("popgym_arcade", "0.0.7", "pip install --no-deps popgym_arcade==0.0.7 dm_pix"),
    "brax": Package("brax", "0.14.2", "pip install 'memax_rl[brax]'"),
    "mujoco_playground": Package("mujoco_playground", "0.2.0", "pip install 'memax_rl[mujoco_playground]'"),
    "jumanji": Package("jumanji", "1.1.2", "pip install 'memax_rl[jumanji]'"),
    "navix": Package("navix", "0.7.4", "pip install 'memax_rl[navix]'"),
    "envpool": Package("envpool", "1.2.5", "pip install 'memax_rl[envpool]'"),
    "pobax": Package("pobax", "0.0.1", "pip install 'memax_rl[pobax]'", ("sympy",)),
}


def missing(suite: str) -> str | None:
    """The command that installs what the suite needs and is not installed, or None."""
    package = PACKAGES.get(suite)
    if package is None:
        return None
    absent = [name for name in (package.module, *package.modules) if importlib.util.find_spec(name) is None]
    return package.install if absent else None
