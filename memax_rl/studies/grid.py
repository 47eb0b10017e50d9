"""What a study is: a grid over fields of the configuration, and the cells that it makes.

A cell is one run: a configuration, a seed, and a name that is also the path of its run folder inside the study's.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from memax_rl.probes.config import ProbeConfig, make_probe_config, nested
from memax_rl.runs.config import TrainConfig, find_shipped, is_probe, load_config, make_config
from memax_rl.runs.overrides import SHORT, override
from memax_rl.runs.yaml_text import read_fields
from memax_rl.unused import last_part, left_at_default

# What the study itself says, in its own words.
_OWN = {"seed": "seeds", "num_seeds": "seeds"}
# Fields whose values are mappings; any other mapping holds fields.
_OPEN = ("env_options", "task_options", "network.memory_options")
_LONGEST_PART = 60
_MOST_CELLS = 100_000


class Study(BaseModel):
    """A grid over fields of the configuration. Fields have dotted names, such as `network.memory`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    base: dict[str, Any] = Field(default_factory=dict)
    """Fields that all cells share; where one has no effect beside those that vary, it has its default. `preset` names a
    shipped configuration, or a file, to begin with. With a field `task`, here or among those that vary, the cells are
    supervised probes."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Fields with the values that each takes; every combination is a cell."""
    zip: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Fields that change together: the first values of all, then the second ones, and so on."""
    cases: tuple[dict[str, Any], ...] = ()
    """Combinations that are written out, each with the fields that it needs, also in place of those of `base`."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Combinations to leave out: all cells that have every value that is named here."""
    seeds: tuple[int, ...] = (0,)
    """The seeds of each combination, or how many; each is a run of its own."""

    @field_validator("base", "grid", "zip", mode="before")
    @classmethod
    def _read_fields(cls, fields: Any) -> Any:
        return once(flatten(fields)) if isinstance(fields, Mapping) else fields

    @field_validator("exclude", "cases", mode="before")
    @classmethod
    def _read_combinations(cls, value: Any) -> Any:
        value = [value] if isinstance(value, Mapping) else value
        return [once(flatten(v)) if isinstance(v, Mapping) else v for v in value] if _is_list(value) else value

    @field_validator("grid", "zip", mode="after")
    @classmethod
    def _check_values(cls, fields: dict[str, tuple[Any, ...]], info: Any) -> dict[str, tuple[Any, ...]]:
        for name, values in fields.items():
            if not values:
                raise ValueError(f"{name} has no values; name one at least")
            if info.field_name == "zip":
                # Here a field may keep its value while others change.
                continue
            texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
            twice = [value for value, text in zip(values, texts, strict=True) if texts.count(text) > 1]
            if twice:
                raise ValueError(f"{name} has the value {twice[0]!r} twice")
        return fields

    @field_validator("seeds", mode="before")
    @classmethod
    def _read_seeds(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= _MOST_CELLS:
                raise ValueError(f"expected 1 to {_MOST_CELLS} seeds, got {value}")
            return tuple(range(value))
        return value

    @field_validator("seeds", mode="after")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"expected different seeds, one at least, got {list(seeds)}")
        return seeds

    @model_validator(mode="after")
    def _check(self) -> "Study":
        names = [*self.base, *self.grid, *self.zip]
        written = [name for case in self.cases for name in case]
        if twice := sorted({*self.grid, *self.zip} & set(written)):
            raise ValueError(f"{twice[0]} stands in cases and in grid or zip; leave it in one")
        for name in (*names, *written):
            if name in _OWN:
                raise ValueError(f"{name} is not a field of a study's grid; set {_OWN[name]}, each is a run of its own")
            if names.count(name) > 1:
                raise ValueError(f"{name} stands in two of base, grid and zip; leave it in one")
        if not self.grid and not self.zip and not self.cases:
            raise ValueError("the grid is empty; name a field with its values, such as network.memory: [gru, lru]")
        lengths = {name: len(values) for name, values in self.zip.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the fields of zip need equally many values, got {lengths}")
        unknown = [name for part in self.exclude for name in part if name not in (*self.grid, *self.zip, *written)]
        if unknown:
            raise ValueError(f"exclude names {unknown[0]}, which is in none of grid, zip and cases")
        if not all(self.exclude):
            raise ValueError("exclude holds an empty combination, which would leave out every cell")
        if not all(self.cases):
            raise ValueError("cases holds an empty combination; name a field with its value in each")
        return self

    def naming(self, imports: Sequence[str]) -> "Study":
        """Return the study whose runs name these modules too in their configuration, as those of `train` do."""
        varied = {*self.grid, *self.zip, *(name for case in self.cases for name in case)}
        return self.model_copy(update={"base": with_modules(self.base, varied, imports)})

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield the values of the varied fields, the first field slowest."""
        together = [dict(zip(self.zip, values, strict=True)) for values in zip(*self.zip.values(), strict=True)] or [{}]
        for values in itertools.product(*self.grid.values()):
            for more, case in itertools.product(together, self.cases or ({},)):
                chosen = dict(zip(self.grid, values, strict=True)) | more | case
                if not any(all(k in chosen and chosen[k] == v for k, v in part.items()) for part in self.exclude):
                    yield chosen

    def unmatched(self) -> list[dict[str, Any]]:
        """Return the combinations of `exclude` that leave nothing out, because no cell has these values."""
        every = list(self.model_copy(update={"exclude": ()}).combinations())
        return [part for part in self.exclude if not any(part.items() <= chosen.items() for chosen in every)]

    def cells(self) -> "tuple[Cell, ...]":
        """Return all cells, the seeds of a combination one after the other.

        Raises:
            ValueError: If a cell has a wrong configuration, a field of `base` has no effect in any, two cells are the
                same, or there is none.
        """
        cells: list[Cell] = []
        # Of the fields of `base`, those without an effect so far.
        unused, first = {*map(last_part, self.base)}, None
        for chosen in self.combinations():
            with left_at_default() as left:
                config = _configure(self.base | chosen)
            if left & {*map(last_part, chosen)}:
                # Then it is refused.
                _configure(self.base | chosen)
            unused &= left
            first = chosen if first is None else first
            group = "/".join(_parts(chosen, config))
            seeds = (config.model_copy(update={"seed": seed}) for seed in self.seeds)
            cells += [Cell(f"{group}/seed{own.seed}", group, own) for own in seeds]
            if len(cells) > _MOST_CELLS:
                raise ValueError(f"the grid has more than {_MOST_CELLS:,} cells")
        if first is None:
            raise ValueError("exclude leaves no cell of the grid")
        if unused:
            _configure(self.base | first)
        known: set[str] = set()
        for cell in cells:
            if cell.name in known:
                raise ValueError(f"two cells of the grid are the same: {cell.name}; name each value once")
            known.add(cell.name)
        return tuple(cells)


@dataclass(frozen=True)
class Cell:
    """A run of a study.

    Attributes:
        name: Where its run folder is inside the study's, such as popgym-RepeatFirstEasy/gru/seed0.
        group: The name without the seed.
        config: Its configuration, a `TrainConfig` or a `ProbeConfig`.
    """

    name: str
    group: str
    config: Any


def make_study(fields: Mapping[str, Any]) -> Study:
    """Return the study with the given fields. Raises `ValueError` with one line that names every field at fault."""
    try:
        return Study.model_validate(fields)
    except ValidationError as error:
        parts = ", ".join(Study.model_fields)
        raise ValueError(in_one_line(error, lambda _: f"a study has no such part; it has {parts}")) from None


def with_modules(base: Mapping[str, Any], varied: Iterable[str], imports: Sequence[str]) -> dict[str, Any]:
    """Return the fields that all runs share, `imports` among them with these modules too.

    Args:
        base: The fields. Those of probes stay as they are: their configuration names no modules.
        varied: The names of fields that differ between the runs. Where `imports` is one, the study itself says it all.
        imports: The modules; none: the fields stay as they are.
    """
    own = base.get("imports", ())
    # What is of another type is refused where a run is configured.
    if not imports or not _names_modules(own) or {"task", "imports"} & {*varied} or "task" in base:
        return dict(base)
    return {**base, "imports": list(dict.fromkeys([*own, *imports]))}


def in_one_line(error: ValidationError, unknown: Callable[[tuple[str | int, ...]], str]) -> str:
    """Return what is wrong with the parts of a file, the name of each before it.

    Args:
        error: What pydantic found.
        unknown: The place of a part that does not exist -> what to say of it.
    """
    lines = []
    for e in error.errors():
        name, message = ".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")
        if e["type"] == "extra_forbidden":
            message = unknown(e["loc"])
        lines.append(f"{name}: {message}" if name else message)
    return "; ".join(lines)


def load_study(path: Path) -> Study:
    """Return the study in a file, or the shipped one of that name.

    Raises:
        ValueError: If there is neither, or it holds no valid study; it names the file.
    """
    path = find_shipped("studies", path)
    fields = read_fields(path)
    try:
        return make_study(fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def dump_study(study: Study) -> str:
    """Return the study as YAML, all its parts included."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)


def canonical(name: str) -> str:
    """Return the full name of a field: `memory` is short for network.memory, and dashes are underscores."""
    head, _, tail = name.replace("_", "-").partition(".")
    return (SHORT.get(head, head) + (f".{tail}" if tail else "")).replace("-", "_")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _names_modules(value: Any) -> bool:
    return _is_list(value) and all(isinstance(name, str) for name in value)


def flatten(fields: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield names, dotted after a `prefix`, and values of nested fields."""
    for key, value in fields.items():
        name = canonical(f"{prefix}{key}")
        if isinstance(value, Mapping) and name not in _OPEN and not name.startswith(tuple(f"{o}." for o in _OPEN)):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def once(fields: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    """Return `fields`, names and values, as a dict.

    Raises:
        ValueError: Where a name comes twice, of two spellings of a field.
    """
    found: dict[str, Any] = {}
    for name, value in fields:
        if name in found:
            raise ValueError(f"{name} is given twice, in two spellings; leave one")
        found[name] = value
    return found


def read_config(fields: Mapping[str, Any]) -> TrainConfig | ProbeConfig:
    """Return the configuration of a cell from its fields, nested as in YAML. Raises `ValueError`."""
    return make_probe_config(fields) if is_probe(fields) else make_config(fields)


def _configure(fields: Mapping[str, Any]) -> TrainConfig | ProbeConfig:
    """Return the configuration with the given fields, of a probe where a task is among them."""
    return make_probe_config(nested(fields)) if is_probe(fields) else configure(fields)


def configure(fields: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with the given fields, beginning with its preset or the defaults.

    Raises:
        ValueError: If a field or its value is wrong.
    """
    preset = fields.get("preset")
    start = make_config({}) if preset is None else load_config(str(preset))
    start = start.model_copy(update={"num_seeds": 1, "seed": 0})
    # The agent first: setting it brings its settings, of which others may be among the fields.
    given = {name: value for name, value in fields.items() if name != "preset"}
    if _names_modules(given.get("imports")):
        # A preset's modules register what it names.
        given["imports"] = list(dict.fromkeys([*start.imports, *given["imports"]]))
    try:
        return override(start, [f"--{name}={json.dumps(value)}" for name, value in given.items()])
    except ValueError as error:
        # In a file, fields have no dashes in front; these two are options of the command.
        raise ValueError(re.sub(r"(?<![\w-])--(?!import\b|trust\b)(?=[a-z])", "", str(error))) from None


def _parts(chosen: Mapping[str, Any], config: TrainConfig | ProbeConfig) -> list[str]:
    """Return the parts of a cell's path: environment or task, memory, then the other fields as NAME=VALUE."""
    first = {"task": config.task} if isinstance(config, ProbeConfig) else {"env": config.env}
    first |= {"network.memory": config.network.memory}
    parts = [_readable(value, value) for name, value in first.items() if name in chosen]
    for name, value in chosen.items():
        if name not in first:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            parts.append(_readable(f"{name}={text}", f"{name}={json.dumps(value, sort_keys=True)}"))
    return parts


def _readable(text: str, exact: str) -> str:
    """Return a text as the name of a folder. Where it loses anything but a slash, a hash of `exact` tells it apart."""
    name = re.sub(r"[^A-Za-z0-9._=+-]+", "-", text.replace("/", "-", 1)).strip(".-")
    if name == text.replace("/", "-", 1) and len(name) <= _LONGEST_PART:
        return name
    return f"{name[:_LONGEST_PART]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
    """Return the names, dotted after a `prefix`, of fields in which two configurations, `before` and `now`, differ."""
    names = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names += differing(old, new, f"{prefix}{key}.")
        elif old != new:
            names.append(prefix + str(key))
    return names
