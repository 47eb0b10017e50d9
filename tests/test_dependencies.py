"""pyproject.toml declares what the package imports, and nothing else."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Imported under another name than that of the distribution, or a part of one (pydantic documents pydantic_core so).
DISTRIBUTIONS = {
    **{"yaml": "pyyaml", "pydantic_core": "pydantic", "PIL": "pillow", "mujoco_playground": "playground"},
    "sklearn": "scikit-learn",
}
# docs/dependencies.md and docs/suites.md say why each is declared.
NOT_IMPORTED = {"chex", "popgym", "flatbuffers", "sympy", "minigrid", "ale_py", "opencv-python-headless"}
# What it needs would overwrite gymnax, see docs/suites.md.
NOT_DECLARED = {"popgym_arcade"}


def imported(source: str) -> set[str]:
    """Return the distributions that a source text imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    names -= sys.stdlib_module_names | {"memax_rl"}
    return {DISTRIBUTIONS.get(name, name.lower()) for name in names}


def declared(requirements: list[str]) -> set[str]:
    found = set()
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        assert name
        found.add(name[0].lower())
    return found


def test_what_is_imported_is_declared_and_the_other_way_round():
    used = set()
    for folder in ("memax_rl", "agents", "envs"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= imported(path.read_text())
    extras = PROJECT["optional-dependencies"]
    optional = {name for extra, items in extras.items() if extra not in ("dev", "docs") for name in declared(items)}
    assert used - NOT_DECLARED == (declared(PROJECT["dependencies"]) | optional) - NOT_IMPORTED


def test_imports_inside_functions_and_of_parts_count():
    assert imported("def f():\n    import yaml.nodes\n    from pydantic_core import x\n    import os\n") == {
        "pyyaml",
        "pydantic",
    }


def test_the_page_on_dependencies_lists_each():
    rows = (ROOT / "docs/dependencies.md").read_text().lower()
    for name in declared(PROJECT["dependencies"]):
        assert f"\n| {name} |" in rows, name
