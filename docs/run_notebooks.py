"""Run the notebooks of docs/notebooks, each in a kernel of its own, and store what they print and draw.

    pip install -e '.[dev,docs]'
    python docs/run_notebooks.py                  all of them
    python docs/run_notebooks.py tour own_loop

A test runs them with other values in the cell that is tagged "parameters", and stores nothing.
"""

import argparse
import ast
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbclient
import nbformat

from memax_rl.runs.files import write_atomically

FOLDER = Path(__file__).parent / "notebooks"


def run(path: Path, folder: Path, parameters: Mapping[str, Any] | None = None) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of its cells.

    Args:
        path: The notebook.
        folder: Where its kernel runs.
        parameters: New values of names that its cell "parameters" assigns.

    Raises:
        ValueError: If that cell does not assign one of the names.
        nbclient.exceptions.CellExecutionError: If a cell raises.
    """
    notebook = nbformat.read(path, as_version=4)
    if parameters is not None:
        (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
        cell.source = replaced(cell.source, parameters)
    resources = {"metadata": {"path": str(folder)}}
    return nbclient.NotebookClient(notebook, timeout=600, coalesce_streams=True, resources=resources).execute()


def replaced(source: str, parameters: Mapping[str, Any]) -> str:
    """Return a cell of assignments with other values.

    Raises:
        ValueError: If it does not assign one of the names.
    """
    lines = source.splitlines()
    places = {ast.unparse(node.targets[0]): node.lineno - 1 for node in ast.parse(source).body}
    for name, value in parameters.items():
        if name not in places:
            raise ValueError(f"the notebook has no parameter {name!r}; it has {', '.join(places)}")
        lines[places[name]] = f"{name} = {value!r}"
    return "\n".join(lines)


def store(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook without what differs from run to run: times, version of Python, what was logged."""
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.validate(notebook)
    write_atomically(path, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    for name in parser.parse_args().names or names:
        with tempfile.TemporaryDirectory() as folder:
            store(run(FOLDER / f"{name}.ipynb", Path(folder)), FOLDER / f"{name}.ipynb")
        print(name)
