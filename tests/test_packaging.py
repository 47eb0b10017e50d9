"""The layout: packages listed, one name each, imports in one direction."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Each part may import those before it, and itself.
ORDER = ["ops", "memory", "moments", "encoder", "networks", "streams", "agents", "training", "evaluation", "cli"]


def test_every_folder_with_code_is_packaged():
    # The symbolic links memax_rl/agents and so on are not followed: their targets are looked at by themselves.
    found = set()
    for name in ("memax_rl", "agents", "envs", "configs"):
        prefix = "memax_rl" if name == "memax_rl" else f"memax_rl.{name}"
        for path in (ROOT / name).rglob("__init__.py"):
            inside = path.parent.relative_to(ROOT / name).parts
            if not any((ROOT / name / part).is_symlink() for part in inside[:1]):
                found.add(".".join((prefix, *inside)))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("name", ["agents", "envs"])
def test_top_level_names_are_not_ours(name):
    result = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert f"memax_rl.{name}, not" in result.stderr


def _imports(path: Path) -> set[str]:
    """Return the parts of memax_rl that a file imports when it is imported itself."""
    tree = ast.parse(path.read_text())
    modules = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "memax_rl":
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("memax_rl."):
            modules.add(str(node.module).split(".")[1])
    return modules


def test_imports_point_one_way():
    for i, part in enumerate(ORDER):
        base = ROOT / part if part == "agents" else ROOT / "memax_rl" / part
        files = base.rglob("*.py") if base.is_dir() else [base.with_suffix(".py")]
        for file in files:
            later = _imports(file) & set(ORDER[i + 1 :])
            # The evaluation at a run's end is imported inside a function; at the top of a file nothing points back.
            assert not later, f"{file} imports {later}"
    for file in (ROOT / "envs").rglob("*.py"):
        assert not _imports(file) & set(ORDER), f"{file} knows of agents"
