"""What the scripts share that make the pages of docs/results, and the files of runs beside them."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from memax_rl.studies.comparison import mean_interval

FOLDER = Path(__file__).parents[1] / "docs" / "results"

Row = dict[str, Any]


def twice(cells: list[tuple[str, int, Path]]) -> str | None:
    """Return what is wrong where two folders hold the same task and seed, which would count as two seeds."""
    seen: dict[tuple[str, int], Path] = {}
    for env, seed, folder in cells:
        if (env, seed) in seen:
            return f"{seen[env, seed]} and {folder} are both {env} with seed {seed}; leave one out"
        seen[env, seed] = folder
    return None


def to_csv(rows: list[Row]) -> str:
    """Return the rows as a table of comma-separated values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def mean(values: list[float], digits: int = 3) -> str:
    """Return the mean of the seeds, and with two or more half of its 95 % interval."""
    middle, _, high = mean_interval(np.array(values)[:, None])
    return f"{middle[0]:.{digits}f}" + (f" ± {high[0] - middle[0]:.{digits}f}" if len(values) > 1 else "")


def fill(page: str, tables: str) -> str:
    """Return the page with these tables between its two marks."""
    before, after = page.split("<!-- results -->")[0], page.split("<!-- end -->")[1]
    return f"{before}<!-- results -->\n{tables}\n<!-- end -->{after}"
