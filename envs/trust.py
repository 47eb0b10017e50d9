"""Which packages may be imported on behalf of a configuration.

A name such as `gym/PACKAGE:ID` imports PACKAGE, and importing runs its code. What a user types, or writes in a program,
may do that. A run folder or a configuration file may come from a stranger: while it is used, only packages that the
user names, or that are imported already, count.
"""

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

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
        ValueError: If one may not be imported now, see `only_imports`, cannot be found, or raises something. One line.
    """
    for module in modules:
        if module in sys.modules:
            continue
        try:
            import_package(module)
        except ModuleNotFoundError as error:
            if error.name and module.split(".")[0] != error.name.split(".")[0]:
                raise ValueError(f"the module {module} needs {error.name}, which is not installed") from error
            where = "it is looked for in the current folder, beside the configuration file, and where Python looks"
            if module.endswith(".py") or "/" in module:
                where = f"a module is named without folder and ending: {Path(module).stem[:100]}; {where}"
            raise ValueError(f"there is no module {module[:100]}; {where}") from None
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"the module {module} cannot be imported: {reason}{place(error)}") from error


def import_package(package: str) -> None:
    """Import a package by name.

    Args:
        package: The name, as in an import statement.

    Raises:
        ValueError: If it may not be imported now, see `only_imports`, is no name of a package, or raises something.
        ImportError: If it cannot be imported.
    """
    if not may_import(package):
        raise ValueError(
            f"the configuration asks for the package {package!r} to be imported, which runs its code; if you trust it, "
            f"add --import {package} or --trust (from Python: imports=({package!r},) or trust=True)"
        )
    if not all(part.isidentifier() for part in package.split(".")):
        raise ValueError(f"{package[:100]!r} is no name of a package")
    try:
        importlib.import_module(package)
    except ImportError:
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"importing the module {package} raised {type(error).__name__}: {reason}{place(error)}"
        ) from error


# What is not the user's own. Not all of an environment's folder ("data"): it may be that of the user's project.
_INSTALLED = {
    *(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")),
    Path(__file__).resolve().parent,
}


def is_installed(file: str) -> bool:
    """Whether a file of Python code is of Python, of an installed package or of this one, and not the user's own."""
    return any(Path(file).resolve().is_relative_to(path) for path in _INSTALLED)


def place(error: BaseException) -> str:
    """Return file and line of the user's code that raised, or nothing where none of it did."""
    frames = traceback.extract_tb(error.__traceback__)
    # Python's own importer has no file.
    frames = [f for f in frames if not f.filename.startswith("<")]
    own = [f for f in frames if not is_installed(f.filename)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
