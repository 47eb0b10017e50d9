"""The pictures of docs/concepts.md are those that docs/draw_concepts.py draws, and each is shown."""

import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PICTURES = runpy.run_path(str(DOCS / "draw_concepts.py"))["PICTURES"]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_as_drawn_and_shown(name):
    drawn = PICTURES[name]()
    text = (DOCS / "concepts" / f"{name}.svg").read_text()
    assert text == drawn.svg(), "run python docs/draw_concepts.py"
    assert f"(concepts/{name}.svg)" in (DOCS / "concepts.md").read_text()
    root = ElementTree.fromstring(text)
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(box.get("x", 0)) + float(box.get("width", 0)) <= drawn.width
        assert float(box.get("y", 0)) + float(box.get("height", 0)) <= drawn.height
