"""The tasks of probes, by name: a plain dict from name to class."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from memax_rl.probes.tasks.base import Sequence as Sequence
from memax_rl.probes.tasks.base import Task as Task
from memax_rl.probes.tasks.digits import DigitMath, SequentialDigits
from memax_rl.probes.tasks.recall import (
    AssociativeRecall,
    Copying,
    FirstSymbol,
    InductionHeads,
    Needle,
    SelectiveCopying,
)
from memax_rl.probes.tasks.tracking import Adding, FlipFlop, Localization, ModularCounting, Parity, Permutations

_TASKS: dict[str, type[Task]] = {
    "adding": Adding,
    "associative_recall": AssociativeRecall,
    "copying": Copying,
    "digit_math": DigitMath,
    "first_symbol": FirstSymbol,
    "flip_flop": FlipFlop,
    "induction_heads": InductionHeads,
    "localization": Localization,
    "modular_counting": ModularCounting,
    "needle": Needle,
    "parity": Parity,
    "permutations": Permutations,
    "selective_copying": SelectiveCopying,
    "sequential_digits": SequentialDigits,
}


def names() -> tuple[str, ...]:
    """Return the names of all tasks, sorted."""
    return tuple(sorted(_TASKS))


def spec(name: str) -> type[Task]:
    """Return the class of a task. Raises `ValueError` with the close matches if the name is unknown."""
    if name not in _TASKS:
        close = difflib.get_close_matches(str(name), names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(names())}"
        raise ValueError(f"unknown task {name!r}; {hint}")
    return _TASKS[name]


def make(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Return a task with the given options.

    Raises:
        ValueError: For an unknown name or option, with the close matches, and for a wrong value.
    """
    kind = spec(name)
    try:
        return kind(**(options or {}))
    except ValidationError as error:
        raise ValueError("; ".join(_explain(name, kind, e) for e in error.errors())) from None


def _explain(name: str, kind: type[Task], error: Any) -> str:
    option = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(option, kind.model_fields, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        return f"task {name!r} has no option {option!r}; {hint}its options are {', '.join(kind.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    if not option:
        return f"task {name!r}: {message}"
    return f"task {name!r}: {option}: {message[0].lower() + message[1:]}, got {error['input']!r}"
