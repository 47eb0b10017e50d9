"""Settings that would be parsed and then ignored are refused, so that nobody believes that they matter."""

from collections.abc import Iterable

from pydantic import BaseModel


def refuse_unused(settings: BaseModel, names: Iterable[str], why: str) -> None:
    """Raise `ValueError` if one of some fields, which have no effect beside the others, was chosen.

    What differs from the default was chosen: a written configuration holds every field.

    Args:
        settings: The settings.
        names: The fields without an effect.
        why: What they are for, and what to set so that they have one. It follows their name and value.
    """
    for name in names:
        value, default = getattr(settings, name), type(settings).model_fields[name].default
        if value != default:
            raise ValueError(f"{name}={value} {why}, or {name} to its default, {default}")
