"""What the command line knows by name: fields of the configuration, agents, memories, wrappers, tasks of probes.

Their models live beside JAX code, and importing that takes seconds. So help and completion read catalog.json, which
`python -m memax_rl.cli.make_catalog` writes and a test compares with the models.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

PATH = Path(__file__).with_name("catalog.json")


class Field(NamedTuple):
    """A field of the configuration.

    Attributes:
        name: As on the command line, such as `ppo.update-epochs`.
        topic: What it belongs to: "run", "network" or the name of an agent.
        kind: "switch", "choice", "integer", "number", "text", "list" or "options" (names with values).
        choices: Of a choice.
        default: As in YAML.
        help: What it means.
    """

    name: str
    topic: str
    kind: str
    choices: tuple[str, ...]
    default: Any
    help: str


def load() -> dict[str, Any]:
    """Return the catalog: "fields", "agents", "memories", "wrappers" and "probes"."""
    catalog = json.loads(PATH.read_text())
    return catalog | {"fields": [Field(**field) for field in catalog["fields"]]}
