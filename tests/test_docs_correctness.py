"""docs/correctness.md names tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_test_that_is_named_exists():
    text = (ROOT / "docs" / "correctness.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| mistake")]
    assert rows
    for row in rows:
        named = re.findall(r"`(tests/\w+\.py)::(\w+)`", row.rsplit("|", 2)[1])
        assert named, f"no test in {row}"
        for file, name in named:
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {name}"
