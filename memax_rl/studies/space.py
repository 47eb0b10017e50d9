"""What `memax-rl tune` searches: fields of the configuration with the values that each may take."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from memax_rl.runs.config import TrainConfig, find_shipped
from memax_rl.runs.yaml_text import parse_value, read_fields
from memax_rl.studies.grid import canonical, configure, flatten, in_one_line, once, with_modules
from memax_rl.unused import last_part, left_at_default

# Trials have these seeds, which no run has by default, so that what is reported was not tuned on.
FIRST_SEED = 1_000_000
_OWN = ("seed", "num_seeds", "on_divergence")
_Scalar = str | int | float | bool | None


class Range(BaseModel):
    """The values of one field: a range of numbers, or choices.

    Attributes:
        float, int: The ends of a range of real or whole numbers.
        choice: The choices.
        log: Whether a range is drawn from on a logarithmic scale.
        step: The distance of the values of a range; None: every value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    float: tuple[Any, Any] | None = None
    int: tuple[Any, Any] | None = None
    choice: tuple[Any, ...] | None = None
    log: bool = False
    step: Any = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        # YAML reads 1e-3 as text.
        if isinstance(value, list | tuple):
            value = {"choice": value}
        if not isinstance(value, Mapping):
            raise ValueError(
                f"expected a list of choices, {{float: [LOW, HIGH]}} or {{int: [LOW, HIGH]}}, got {value!r}"
            )
        return {key: _number(part) if key != "choice" else part for key, part in value.items()}

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if sum(part is not None for part in (self.float, self.int, self.choice)) != 1:
            raise ValueError("expected one of float, int and choice")
        if self.choice is not None:
            texts = [json.dumps(value, sort_keys=True, default=str) for value in self.choice]
            if len(set(texts)) < max(1, len(texts)):
                raise ValueError(f"expected different choices, one at least, got {list(self.choice)}")
            if self.log or self.step is not None:
                raise ValueError("choices have neither log nor step")
            return self
        kind = "float" if self.float is not None else "int"
        low, high = self.float or self.int or (0, 0)
        whole = all(isinstance(end, int) for end in (low, high))
        if not whole and (kind == "int" or not all(isinstance(end, int | float) for end in (low, high))):
            raise ValueError(f"expected two {'whole ' if kind == 'int' else ''}numbers, got {[low, high]}")
        if not low < high or (self.log and low <= 0):
            raise ValueError(f"expected {'0 < ' if self.log else ''}LOW < HIGH, got {[low, high]}")
        if self.step is not None and (self.log or not isinstance(self.step, int | float) or self.step <= 0):
            raise ValueError(f"step must be a number above 0, without log, got {self.step!r}")
        if kind == "int" and self.step is not None and not isinstance(self.step, int):
            raise ValueError(f"step of whole numbers must be whole, got {self.step!r}")
        return self

    def ends(self) -> tuple[Any, ...]:
        """Return the values at the ends of a range, or all choices."""
        return self.choice or self.float or self.int or ()

    def distribution(self) -> Any:
        """Return it as Optuna has it. A choice that is no plain value stands there as its JSON text."""
        from optuna import distributions  # pyright: ignore[reportMissingImports]

        if self.choice is not None:
            return distributions.CategoricalDistribution([_stored(value) for value in self.choice])
        if self.float is not None:
            return distributions.FloatDistribution(*map(float, self.float), log=self.log, step=self.step)
        assert self.int is not None
        return distributions.IntDistribution(*self.int, log=self.log, step=self.step or 1)

    def value(self, stored: Any) -> Any:
        """Return the value that Optuna stores as `stored`."""
        return next((v for v in self.choice if _stored(v) == stored), stored) if self.choice is not None else stored


class Space(BaseModel):
    """A search space and how it is searched."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    base: dict[str, Any] = Field(default_factory=dict)
    """Fields that all trials share. `preset` names a shipped configuration, or a file, to begin with."""
    space: dict[str, Range]
    """Fields with what each may be."""
    trials: int = Field(default=50, ge=1, le=1_000_000)
    """How many trials there are to be, those that were pruned or failed included."""
    seeds: int = Field(default=2, ge=1, le=4096)
    """How many seeds a trial has; they begin at 1,000,000."""
    metric: str = "episode/return"
    """A column of metrics.csv. The score of a trial is its mean over the last tenth of training and the seeds."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """What is sought."""
    sampler: Literal["tpe", "random"] = "tpe"
    """How values are drawn: by a tree-structured Parzen estimator, or at random."""
    pruner: Literal["median", "hyperband", "nop"] = "median"
    """Which trials are ended early: those below the median of others at the same step, by hyperband, or none."""
    sampler_seed: int = Field(default=0, ge=0, lt=2**31)
    """What the draws begin with."""

    @field_validator("base", mode="before")
    @classmethod
    def _read_base(cls, fields: Any) -> Any:
        return once(flatten(fields)) if isinstance(fields, Mapping) else fields

    @field_validator("space", mode="before")
    @classmethod
    def _read_space(cls, fields: Any) -> Any:
        return once(_ranges(fields)) if isinstance(fields, Mapping) else fields

    @model_validator(mode="after")
    def _check(self) -> "Space":
        if not self.space:
            raise ValueError("the space is empty; name a field, such as ppo.gamma: {float: [0.9, 1.0]}")
        for name in (*self.base, *self.space):
            if name in _OWN:
                raise ValueError(f"{name} is set by tune itself; leave it out, and say by seeds how many a trial has")
        if twice := sorted(self.base.keys() & self.space.keys()):
            raise ValueError(f"{twice[0]} stands in base and in space; leave it in one")
        return self

    def naming(self, imports: Sequence[str]) -> "Space":
        """Return the space whose trials name these modules too in their configuration, as the runs of `train` do."""
        return self.model_copy(update={"base": with_modules(self.base, self.space, imports)})

    def config(self, values: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration with these values of the varied fields, for reporting: of seed 0.

        A value that has no effect beside the others, as a trial draws all of them, is left at its default.

        Raises:
            ValueError: If it is wrong.
        """
        return self._configured(values)[0]

    def _configured(self, values: Mapping[str, Any]) -> tuple[TrainConfig, set[str]]:
        """Return the configuration, and the names of fields that were left at their default."""
        with left_at_default() as left:
            return configure(self.base | dict(values)), left

    def trial_config(self, values: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration of a trial with these `values`; evaluated only if `base` or a preset says so."""
        config = self.config(values)
        asked = "eval_episodes" in self.base or config.eval_interval is not None
        own = {"seed": FIRST_SEED, "num_seeds": self.seeds, "on_divergence": "stop"}
        return config.model_copy(update=own | ({} if asked else {"eval_episodes": 0}))

    def check(self) -> None:
        """Raise `ValueError` unless every field is known and may have the values at the ends of its range.

        Each must have an effect, beside some ends of the others.
        """
        ends = [{name: value} for name, part in self.space.items() for value in part.ends()]
        first, last = ({name: part.ends()[i] for name, part in self.space.items()} for i in (0, -1))
        unused = {*map(last_part, self.base)}
        for end in ends:
            left = self._configured(first | end)[1]
            for values in (start | other | end for start in (first, last) for other in ends if left):
                with suppress(ValueError):
                    left = left & self._configured(values)[1]
            if left & {*map(last_part, end)}:
                # Then it is refused.
                configure(self.base | first | end)
            unused &= left
        if unused:
            configure(self.base | first)


def make_space(fields: Mapping[str, Any]) -> Space:
    """Return the space with the given fields. Raises `ValueError` with one line that names every field at fault."""
    try:
        return Space.model_validate(fields)
    except ValidationError as error:

        def unknown(place: tuple[str | int, ...]) -> str:
            known = Range if place[0] == "space" else Space
            return f"there is no such part; there are {', '.join(known.model_fields)}"

        raise ValueError(in_one_line(error, unknown)) from None


def load_space(path: Path) -> Space:
    """Return the space in a file, or the shipped one of that name.

    Raises:
        ValueError: If there is neither, or it holds no valid space; it names the file.
    """
    path = find_shipped("tune", path)
    fields = read_fields(path)
    try:
        return make_space(fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def dump_space(space: Space) -> str:
    """Return the space as YAML."""
    fields = space.model_dump(mode="json")
    fields["space"] = {name: part.model_dump(mode="json", exclude_defaults=True) for name, part in space.space.items()}
    return yaml.safe_dump(fields, sort_keys=False)


def _ranges(fields: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields with their ranges; a mapping that is none holds fields."""
    for key, value in fields.items():
        if isinstance(value, Mapping) and not {"float", "int", "choice"} & value.keys():
            yield from _ranges(value, f"{prefix}{key}.")
        else:
            yield canonical(f"{prefix}{key}"), value


def _number(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_number(part) for part in value]
    return parse_value(value) if isinstance(value, str) else value


def _stored(value: Any) -> _Scalar:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)
