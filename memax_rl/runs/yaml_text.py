"""YAML that a person or a stranger wrote: read as plain values, within bounds, every fault told in one line."""

import re
from pathlib import Path
from typing import Any

import yaml

# What is more than this is no configuration.
_LARGEST_FILE = 1_000_000
_DEEPEST = 20


# Whole numbers in the notations that mean the same everywhere. YAML 1.1, which PyYAML reads, also has 010 for 8 and
# 1:30 for 90; those are text here, as are dates.
_WHOLE = re.compile(r"[-+]?(?:0b_*[01][01_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|0|[1-9][0-9_]*)$")
_REAL = re.compile(
    r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_TAG = "tag:yaml.org,2002:"
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    """YAML of plain values: no aliases, which can stand for more than any memory holds, no key twice, no dates.

    Nor what is nested deeply, merge keys (<<), sets, bytes and other types that only a tag (!!type) asks for.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"it is nested deeper than {_DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)
        seen = set()
        for key, _ in node.value:
            if key.tag == f"{_TAG}merge":
                raise yaml.YAMLError("merge keys (<<) are not read; write the values out")
            if not isinstance(key, yaml.ScalarNode):
                continue
            # As it is read: yes and true are one key.
            name = self.construct_object(key)
            if name in seen:
                raise yaml.YAMLError(f"{key.value!r} is there twice in one place; write it once")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _resolver(tag: str, pattern: Any) -> Any:
    return tag, {f"{_TAG}int": _WHOLE, f"{_TAG}float": _REAL}.get(tag, pattern)


_Loader.yaml_implicit_resolvers = {
    letter: [_resolver(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for letter, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in _Loader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in _PLAIN
}


def _checked(tag: str, pattern: re.Pattern[str]) -> None:
    """Have a number that its tag (!!int, !!float) asks for read in those notations too, and refuse any other."""
    construct = _Loader.yaml_constructors[tag]

    def checked(loader: _Loader, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.value and not pattern.match(node.value):
            kind = tag.removeprefix(_TAG)
            raise yaml.YAMLError(f"!!{kind} {node.value}: no number of that type in this notation; leave the tag out")
        return construct(loader, node)

    _Loader.yaml_constructors[tag] = checked


_checked(f"{_TAG}int", _WHOLE)
_checked(f"{_TAG}float", re.compile("[^:]*$"))


def parse_yaml(text: str) -> Any:
    """Return the values of a YAML text. Raises `ValueError` with one line of why not."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(_cut(" ".join(str(error).split()))) from None
    except (ValueError, TypeError, AttributeError, LookupError):
        # PyYAML's constructors raise these, in no words for a person, for a tag that its value does not fit.
        raise ValueError(
            "a value is not of the type that its tag (!!type) says, or has more digits than any number here; leave the "
            "tag out"
        ) from None


def _cut(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else text[:longest] + "..."


def read_fields(path: Path) -> dict[str, Any]:
    """Return the fields in a YAML file. Raises `ValueError` that names the file if it holds anything else."""
    try:
        # Not by its size: a pipe, such as a shell's <(...), has none.
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise ValueError(f"{path} is larger than {_LARGEST_FILE} bytes, and no configuration")
        fields = parse_yaml(content.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path} is not valid YAML: {error}") from None
    if fields is not None and not isinstance(fields, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(fields).__name__}")
    return fields or {}


def parse_value(text: str) -> Any:
    """Return a number where the text is one (YAML reads 1e-3 as a string), else what YAML makes of it."""
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        # 1e3 is a whole number, 1000.0 is not.
        whole = isinstance(value, float) and value.is_integer() and "." not in text
        return int(value) if whole else value
    try:
        return parse_yaml(text)
    except ValueError:
        return text
