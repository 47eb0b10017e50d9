"""Fields of a configuration replaced from the command line."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from memax_rl import agents, envs
from memax_rl.agents.base import AgentSettings
from memax_rl.runs.config import TrainConfig, close_to, make_config, short
from memax_rl.runs.yaml_text import parse_value
from memax_rl.unused import are_left, last_part, left_at_default

# Names that are typed often, and what they are short for.
SHORT = {"memory": "network.memory", "memory-options": "network.memory-options", "width": "network.width"}


def override(config: TrainConfig, arguments: Sequence[str]) -> TrainConfig:
    """Return the configuration with fields replaced by command-line arguments.

    `--a.b-c VALUE` or `--a.b-c=VALUE` sets field b_c of part a; a switch is also set by `--a.b` and cleared by
    `--no-a.b`. A field of the configuration that has no effect beside those that were typed gets its default.

    Raises:
        ValueError: That names the argument, for an unknown field, a value of the wrong type or range, or one that would
            be ignored.
    """
    fields, pairs = config.model_dump(), list(_pairs(arguments))
    for name, value in pairs:
        if value is _NO_VALUE and name in ("agent", "env"):
            raise ValueError(f"--{name} needs a value")
    asked = [str(value).lower() for name, value in pairs if name == "agent"]
    if asked and asked[-1] != config.agent:
        # The settings of the agent of before are of no use to another.
        fields.pop(config.agent)
        fields |= {"agent": asked[-1], asked[-1]: agents.spec(asked[-1]).settings().model_dump()}
    if any(name == "env" and value != config.env for name, value in pairs):
        # What nobody chose for the old environment is not asked of the new one.
        defaults = envs.complete_options(config.env, {})
        fields["env_options"] = {name: x for name, x in config.env_options.items() if x != defaults[name]}
    _choose_stack(fields, [name.replace("-", "_") for name, _ in pairs])
    for name, value in pairs:
        _set(fields, name, value)
    if are_left():
        # Who reads many configurations looks at what is left himself.
        return make_config(fields)
    with left_at_default() as left:
        changed = make_config(fields)
    typed = {last_part(part) for name, value in pairs for part in (name, *(value if isinstance(value, dict) else ()))}
    # A field that was typed is refused.
    return make_config(fields) if left & typed else changed


def _choose_stack(fields: dict[str, Any], typed: list[str]) -> None:
    """Forget a memory where blocks are typed, and blocks where a memory is: a network is made of either."""
    network = fields["network"]
    if "network.blocks" in typed and not {"memory", "network.memory"} & set(typed):
        network |= {"memory": "", "memory_options": {}, "depth": 1}
    elif {"memory", "network.memory"} & set(typed) and "network.blocks" not in typed:
        network["blocks"] = []


def override_env_options(config: TrainConfig, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the environment's options with those in command-line arguments such as `--env-options.length 10`.

    Raises:
        ValueError: For any other argument, and for a wrong option.
    """
    for name, _ in _pairs(arguments):
        if name.partition(".")[0] != "env-options":
            raise ValueError(f"unrecognized argument --{name}; only options of the environment may be changed here")
    return override(config, arguments).env_options


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) for each argument."""
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            raise ValueError(f"expected a field such as --seed, got {argument!r}")
        name, equals, value = argument[2:].partition("=")
        if equals:
            yield name, parse_value(value)
        elif rest and not rest[0].startswith("--"):
            yield name, parse_value(rest.pop(0))
        elif name.startswith("no-"):
            yield name.removeprefix("no-"), False
        else:
            yield name, _NO_VALUE


# What stands for the value of a field that was typed without one.
_NO_VALUE = object()


def _set(fields: dict[str, Any], name: str, value: Any) -> None:
    head, _, tail = name.partition(".")
    full = (SHORT.get(head, head) + (f".{tail}" if tail else "")).replace("-", "_")
    *path, last = full.split(".")
    part: Any = fields
    in_env_options = path[:1] == ["env_options"]
    for key in path:
        if isinstance(part, list | tuple):
            # An item of a list, such as --env-wrappers.0.probability.
            part = part[int(key)] if key.isdigit() and int(key) < len(part) else None
        else:
            if in_env_options and part.get(key) is None:
                # An option that holds options, such as --env-options.arguments.length, and was not given yet.
                part[key] = {}
            part = part.get(key)
        if not isinstance(part, dict | list | tuple):
            raise _unknown(name, fields)
    if not isinstance(part, dict):
        raise _unknown(name, fields)
    if last in ("memory_options", "env_options") and not path[1:] and not isinstance(value, dict):
        raise ValueError(f"--{name} needs the name of an option, as --{name}.NAME VALUE, got {short(value)}")
    is_option = in_env_options or path[-1:] == ["memory_options"]
    is_mapping = last in ("memory_options", "env_options") and isinstance(value, dict)
    if not is_option and not is_mapping and (last not in part or isinstance(part[last], dict)):
        raise _unknown(name, fields)
    if not is_option and not isinstance(part[last], bool) and (value is _NO_VALUE or isinstance(value, bool)):
        got = "" if value is _NO_VALUE else f", got {str(value).lower()}"
        raise ValueError(f"--{name} needs a value{got}")
    part[last] = True if value is _NO_VALUE else value


def _unknown(name: str, fields: Mapping[str, Any]) -> ValueError:
    head, agent = name.partition(".")[0], fields.get("agent")
    if head in agents.names() and head != agent:
        return ValueError(
            f"--{name} is a field of agent {head!r}, and the agent is {agent!r}; leave one of the two out"
        )
    return ValueError(f"unknown field --{name}; {close_to(name, _field_names())}")


def _walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the command-line name and the description of every field."""
    for key, field in model.model_fields.items():
        kind: Any = field.annotation
        name = prefix + key.replace("_", "-")
        if kind is AgentSettings:
            for agent in agents.names():
                yield from _walk(agents.spec(agent).settings, f"{agent}.")
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _walk(kind, f"{name}.")
        else:
            yield name, field


def _field_names() -> list[str]:
    return [*SHORT, *(name for name, _ in _walk(TrainConfig))]
