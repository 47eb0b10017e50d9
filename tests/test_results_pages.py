"""The pages of results say what the files of runs beside them say."""

import csv
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "results"


@pytest.mark.parametrize(("script", "name"), [("popgym_results", "popgym"), ("in_context", "in_context")])
def test_a_page_is_made_from_the_file(script, name, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    results, page = importlib.import_module(script), (FOLDER / f"{name}.md").read_text()
    with (FOLDER / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert results.fill(page, results.tables(rows)) == page


def test_the_page_of_probes_says_what_the_file_says():
    with (FOLDER / "probes.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = (FOLDER / "probes.md").read_text().splitlines()
    tables = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    heads = [place for place, cells in enumerate(tables) if cells[0] == "memory"]
    scores, lengths = tables[heads[0] : heads[1]], tables[heads[1] :]
    known = {(row["memory"], row["task"], row["times_trained_length"]): row for row in rows}
    assert len(known) == len(rows) == 39 * (4 + 5)
    for memory, *cells in scores[2:-1]:
        for task, cell in zip(scores[0][1:], cells, strict=True):
            assert abs(float(known[memory, task, "1"]["score"]) - float(cell)) < 6e-4, (memory, task)
    for memory, *cells in lengths[2:]:
        for times, cell in zip(lengths[0][1:], cells, strict=True):
            row, (score, growth) = known[memory, "copying 40", times.split()[1]], cell.split(" / ")
            assert abs(float(row["score"]) - float(score)) < 6e-4, (memory, times)
            assert float(growth) == pytest.approx(float(row["state_growth"]), rel=0.06), (memory, times)
