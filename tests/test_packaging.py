"""The layout: packages listed, one name each."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


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


def test_the_citation_names_the_version_and_license_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for field in ("version", "license", "keywords"):
        assert citation[field] == PROJECT["project"][field]
    assert citation["title"] == PROJECT["project"]["name"]
    assert citation["abstract"] == PROJECT["project"]["description"]


def test_the_workflow_runs_what_everybody_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["steps"][-1] == {"run": ".ci/run"}
    assert (ROOT / ".ci/run").stat().st_mode & 0o111, ".ci/run is executable"
