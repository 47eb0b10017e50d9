"""The notebooks run as they stand, with few steps; what is stored with them is whole, small, and names no folder."""

import json
import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="pip install -e '.[dev,docs]'")
pytest.importorskip("ipykernel", reason="pip install -e '.[dev,docs]'")

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
# Of each notebook: what its cell "parameters" assigns, smaller.
SMALL = {
    "in_context": {"TOTAL_STEPS": 2_000, "TASKS": 16},
    "own_loop": {"UPDATES": 2, "SEEDS": 1},
    "own_memory": {"TOTAL_STEPS": 2_000},
    "study_with_pandas": {"TOTAL_STEPS": 2_000, "SEEDS": 1, "MEMORIES": ["lru", "mlp"]},
    "tour": {"TOTAL_STEPS": 2_000, "SEEDS": 1},
}


def _program():
    return runpy.run_path(str(DOCS / "run_notebooks.py"))


def _outputs(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", ())]


def test_every_notebook_is_run_and_shown():
    assert {path.stem for path in NOTEBOOKS} == set(SMALL)
    site = (DOCS.parent / "mkdocs.yml").read_text()
    assert all(f"notebooks/{name}.md" in site for name in SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_notebook_runs(name, tmp_path):
    notebook = _program()["run"](DOCS / "notebooks" / f"{name}.ipynb", tmp_path, SMALL[name])
    texts = [output["text"] for output in _outputs(notebook) if output.get("name") == "stderr"]
    assert not re.findall(r"^.*Warning: .*$", "".join(texts), re.MULTILINE)
    assert any("image/png" in output.get("data", ()) for output in _outputs(notebook)) or name == "own_memory"


def test_parameters_that_a_notebook_does_not_have_are_refused():
    replaced = _program()["replaced"]
    assert (
        replaced("STEPS = 1_000  # of each run\nSEEDS = 2", {"SEEDS": 1}) == "STEPS = 1_000  # of each run\nSEEDS = 1"
    )
    with pytest.raises(ValueError, match="no parameter 'SEED'; it has STEPS, SEEDS"):
        replaced("STEPS = 1\nSEEDS = 2", {"SEED": 1})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_whole_and_small(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1)), "run python docs/run_notebooks.py"
    assert not [output for output in _outputs(notebook) if output["output_type"] == "error"]
    assert len(path.read_bytes()) < 100_000
    assert not re.findall(r"/(?:tmp|home|root|work|Users)\b", path.read_text())
