"""The README's Python blocks run as they stand, and the commands it names exist."""

import re
from pathlib import Path

import pytest

from memax_rl import memory
from memax_rl.memory import registry
from memax_rl.runs import presets

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("block", [b for b in BLOCKS if "memax_rl.train(" not in b])
def test_python_blocks_run(block):
    known = set(memory.names())
    try:
        exec(compile(block, "README.md", "exec"), {})
    finally:
        for name in set(memory.names()) - known:
            registry._ENTRIES.pop(name)


def test_presets_named_in_the_readme_exist():
    named = set(re.findall(r"\b(?:ppo|dqn)/\w+", README))
    assert named
    assert named <= set(presets())
