"""The results page of the probes says what its file of runs says."""

import csv
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "results"


def test_the_page_says_what_the_file_says():
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
