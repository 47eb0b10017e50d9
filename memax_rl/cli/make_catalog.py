"""Write catalog.json, after a change of a field of the configuration, an agent, a memory, a wrapper or a task.

python -m memax_rl.cli.make_catalog
"""

import json
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from memax_rl import agents, memory
from memax_rl.agents.base import AgentSettings
from memax_rl.cli.catalog import PATH, Field
from memax_rl.envs.wrappers import CONFIGS
from memax_rl.probes import tasks
from memax_rl.runs.config import TrainConfig


def build() -> dict[str, Any]:
    """Return the catalog of the models as they are, in plain values."""
    return {
        "fields": [field._asdict() for field in fields_of(TrainConfig)],
        "agents": {name: agents.spec(name).summary for name in agents.names()},
        "memories": list(memory.names()),
        "wrappers": {name: _describe_wrapper(model) for name, model in CONFIGS.items()},
        "probes": {name: _describe_task(tasks.spec(name)) for name in tasks.names()},
    }


def fields_of(model: Any, prefix: str = "", topic: str = "run") -> Iterator[Field]:
    """Yield the fields of a settings model, those of its parts and of all agents included."""
    for key, info in model.model_fields.items():
        if key == "imports":
            # That is --import.
            continue
        kind = info.annotation
        name = prefix + key.replace("_", "-")
        if kind is AgentSettings:
            for agent in agents.names():
                yield from fields_of(agents.spec(agent).settings, f"{agent}.", agent)
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields_of(kind, f"{name}.", key)
        else:
            kind, choices = _kind(kind)
            if name in ("agent", "network.memory"):
                kind, choices = "choice", agents.names() if name == "agent" else memory.names()
            default = info.get_default(call_default_factory=True)
            yield Field(name, topic, kind, choices, _plain(default), " ".join(str(info.description).split()))


def _kind(annotation: Any) -> tuple[str, tuple[str, ...]]:
    """Return the kind of a field's type, and its choices."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = [part for part in typing.get_args(annotation) if part is not type(None)]
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return "choice", tuple(map(str, typing.get_args(annotation)))
    names = {bool: "switch", int: "integer", float: "number", str: "text", dict: "options"}
    return names.get(origin or annotation, "list"), ()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda x: x.model_dump(mode="json")))


def _describe_wrapper(model: Any) -> dict[str, Any]:
    options = {
        option: f"{field.description} ({'required' if field.is_required() else f'default: {field.get_default()}'})"
        for option, field in model.model_fields.items()
        if option != "name"
    }
    return {"summary": (model.__doc__ or "").split("\n")[0], "options": options}


def _describe_task(model: type[tasks.Task]) -> dict[str, Any]:
    task = model()
    score = f"{task.chance:.3g} of {task.classes} classes" if task.classes else "0 of the variance of numbers"
    options = {
        option: f"{' '.join(str(field.description).split()).removesuffix('.')} (default: {field.get_default()})"
        for option, field in model.model_fields.items()
    }
    about = {"summary": (model.__doc__ or "").split("\n")[0], "chance": score}
    return about | {"known": model.known, "source": model.source, "options": options}


if __name__ == "__main__":
    PATH.write_text(json.dumps(build(), indent=1) + "\n")
