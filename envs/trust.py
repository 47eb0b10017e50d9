"""Which packages may be imported on behalf of a configuration.

A name such as `gym/PACKAGE:ID` imports PACKAGE, and importing runs its code. What a user types, or writes in a program,
may do that. A run folder or a configuration file may come from a stranger: while it is used, only packages that the
user names, or that are imported already, count.
"""

import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Packages that may be imported; None: all.
_allowed: ContextVar[frozenset[str] | None] = ContextVar("allowed", default=None)
# The environments of this package name these themselves.
_OURS = frozenset({"gymnasium", "popgym"})


@contextmanager
def only_imports(imports: Iterable[str] = (), *, trust: bool = False) -> Iterator[None]:
    """Allow only the named packages to be imported for an environment inside.

    Args:
        imports: Names of packages that the user allows.
        trust: Whether to allow all.
    """
    token = _allowed.set(None if trust else frozenset(imports))
    try:
        yield
    finally:
        _allowed.reset(token)


def may_import(package: str) -> bool:
    """Whether the package may be imported now, or is imported already."""
    allowed = _allowed.get()
    return allowed is None or package in allowed | _OURS or package in sys.modules


def import_modules(modules: Iterable[str]) -> None:
    """Import modules of one's own, which register environments, agents or memories, unless they are imported already.

    Args:
        modules: Their names.

    Raises:
        ValueError: If one may not be imported now, see `only_imports`, or cannot be found. What a module itself raises
            goes on.
    """
    for module in modules:
        if module in sys.modules:
            continue
        try:
            import_package(module)
        except ModuleNotFoundError as error:
            if error.name and module.split(".")[0] != error.name.split(".")[0]:
                raise ValueError(f"the module {module} needs {error.name}, which is not installed") from error
            raise ValueError(
                f"there is no module {module[:100]}; it is looked for in the current folder, beside the configuration "
                "file, and where Python looks"
            ) from None


def import_package(package: str) -> None:
    """Import a package by name.

    Args:
        package: The name, as in an import statement.

    Raises:
        ValueError: If it may not be imported now, see `only_imports`, or is no name of a package.
        ImportError: If it cannot be imported.
    """
    if not may_import(package):
        raise ValueError(
            f"the configuration asks for the package {package!r} to be imported, which runs its code; if you trust it, "
            f"add --import {package} or --trust (from Python: imports=({package!r},) or trust=True)"
        )
    if not all(part.isidentifier() for part in package.split(".")):
        raise ValueError(f"{package[:100]!r} is no name of a package")
    importlib.import_module(package)
