"""The import graph, drawn from the code: no circle, and every part knows those below it only.

An import inside a function counts like one at the top of a file: it would hide a circle, not remove it.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "memax_rl"
# Each part may import those before it, and itself. `envs` knows none of them, and all but ops and memory may know it.
ORDER = [
    "ops",
    "memory",
    "networks",
    "distributed",
    "sharding",
    "rollout",
    "agents",
    "runs",
    "evaluation",
    "training",
    "probes",
    "studies",
    "cli",
]


def _modules() -> dict[str, Path]:
    """Return every module of the package by name; the symbolic links to top-level folders are followed."""
    modules = {}
    for path in _walk(ROOT):
        parts = ("memax_rl", *path.relative_to(ROOT).with_suffix("").parts)
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def _walk(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            found += _walk(path)
        elif path.suffix == ".py":
            found.append(path)
    return found


def imports(source: str, modules: set[str], itself: str) -> set[str]:
    """Return the modules that a source text imports, anywhere in it; not for types alone."""
    found: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in modules else node.module)
    return {name for name in found if name in modules and name != itself}


def _graph() -> dict[str, set[str]]:
    modules = _modules()
    return {name: imports(path.read_text(), set(modules), name) for name, path in modules.items()}


def test_there_is_no_circle():
    graph = _graph()
    assert len(graph) > 100, "the links to agents and envs were followed"
    assert sum(map(len, graph.values())) > 300
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def _part(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_imports_point_one_way():
    wrong = []
    for name, imported in _graph().items():
        part = _part(name)
        for other in sorted(map(_part, imported)):
            if part == "envs" and other in ORDER:
                wrong.append(f"{name} knows {other}")
            elif part in ORDER and other in ORDER and ORDER.index(other) > ORDER.index(part):
                wrong.append(f"{name} imports {other}, which stands above it")
            elif part in ("ops", "memory") and other == "envs":
                wrong.append(f"{name} knows of environments")
    assert not wrong, "\n".join(wrong)


def test_an_import_inside_a_function_counts():
    source = "def f():\n    from memax_rl.evaluation import play\n"
    assert imports(source, {"memax_rl.evaluation"}, "memax_rl.x") == {"memax_rl.evaluation"}


def test_functions_are_short():
    """60 lines, signature and docstring included, fit on a screen."""
    long = [
        f"{name}.{node.name}, line {node.lineno}"
        for name, path in _modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert not long, "\n".join(long)


def test_an_agent_fits_into_a_file_of_400_lines():
    long = [name for name, path in _modules().items() if ".agents." in name and path.read_text().count("\n") > 400]
    assert not long
