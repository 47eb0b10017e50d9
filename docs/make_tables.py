"""Write the tables of settings in docs/ppo.md and docs/dqn.md from the fields' own defaults and docstrings.

    python docs/make_tables.py

Each stands between `<!-- settings: NAME -->` and `<!-- end -->`. A test compares them with the fields.
"""

import json
import re
import typing
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from memax_rl import agents
from memax_rl.runs.files import write_atomically

DOCS = Path(__file__).parent


def settings_table(model: type[BaseModel], prefix: str) -> str:
    """Return a Markdown table of the fields of a settings model: name, default and meaning."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        choices = ""
        if typing.get_origin(field.annotation) is Literal:
            choices = f" One of {', '.join(f'`{choice}`' for choice in typing.get_args(field.annotation))}."
        default = field.default if isinstance(field.default, str) else json.dumps(field.default)
        meaning = " ".join(str(field.description).split()).replace("|", r"\|").replace("None", "`null`")
        lines.append(f"| `{prefix}.{name}` | {default} | {meaning}{choices} |")
    return "\n".join(lines)


def fill(text: str) -> str:
    """Return a page with its tables of settings as the fields are now."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- settings: {name} -->\n{settings_table(agents.spec(name).settings, name)}\n<!-- end -->"

    return re.sub(r"<!-- settings: (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in sorted(DOCS.glob("*.md")):
        if (text := page.read_text()) != fill(text):
            write_atomically(page, fill(text))
            print(page.name)
