"""Settings that would be parsed and then ignored are refused, so that nobody believes that they matter."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pydantic import BaseModel

# The names of fields that were left at their default, where they are; None where they are refused.
_left: ContextVar[set[str] | None] = ContextVar("left", default=None)


def refuse_unused(settings: BaseModel, names: Iterable[str], why: str) -> None:
    """Raise `ValueError` if one of some fields, which have no effect beside the others, was chosen.

    What differs from the default was chosen: a written configuration holds every field. Within `left_at_default` the
    field gets its default instead.

    Args:
        settings: The settings.
        names: The fields without an effect.
        why: What they are for, and what to set so that they have one. It follows their name and value.
    """
    left = _left.get()
    for name in names:
        value, default = getattr(settings, name), type(settings).model_fields[name].default
        if value == default:
            continue
        if left is None:
            raise ValueError(f"{name}={value} {why}, or {name} to its default, {default}")
        left.add(name)
        object.__setattr__(settings, name, default)


@contextmanager
def left_at_default() -> Iterator[set[str]]:
    """Within this context a field that would have no effect has its default, and is not refused.

    For fields that nobody chose for these settings: those of a file beside others that were typed, or of many runs that
    differ. Yields the names of such fields, which grow as settings are read.
    """
    names: set[str] = set()
    token = _left.set(names)
    try:
        yield names
    finally:
        _left.reset(token)


def are_left() -> bool:
    """Return whether this is within `left_at_default`."""
    return _left.get() is not None


def last_part(name: str) -> str:
    """Return the name of a field within its settings, as auxiliary_coef of ppo.auxiliary-coef."""
    return name.rpartition(".")[2].replace("-", "_")
