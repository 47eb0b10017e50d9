"""Every mistake of tests/mutants.py is still in the form of today's code; `python tests/mutants.py` makes them all."""

from pathlib import Path

import pytest
from mutants import MISTAKES, ROOT


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what.replace(" ", "_"))
def test_the_place_of_the_mistake_is_there_once(mistake):
    assert (ROOT / mistake.file).read_text().count(mistake.right) == 1
    for test in mistake.tests:
        path, _, name = test.partition("::")
        assert f"def {name.split('[')[0]}(" in Path(ROOT / path).read_text() or not name
