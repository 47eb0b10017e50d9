"""Options of environments as pydantic models: checked when registered, and strictly read from plain values."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def check_model(name: str, model: Any, taken: Sequence[str] = ()) -> None:
    """Raise `ValueError` unless the model's defaults can be written into a configuration and read again.

    Args:
        name: The environment's name, for messages.
        model: The model.
        taken: Names of options that it may not have.
    """
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ValueError(f"options of {name}: expected a class derived from pydantic.BaseModel, got {model!r}")
    required = [field for field, info in model.model_fields.items() if info.is_required()]
    if required:
        raise ValueError(f"options of {name}: {', '.join(required)} of {model.__name__} must have a default")
    clash = [field for field in model.model_fields if field in taken]
    if clash:
        raise ValueError(
            f"options of {name}: {', '.join(clash)} of {model.__name__} is an option of all trials; leave it out, the "
            "trials follow it, or choose another name"
        )
    for field, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True)
        reason = "it is read as another value"
        try:
            again = getattr(
                read_options(model, model().model_dump(mode="json", include={field}, warnings=False)), field
            )
        except (ValueError, TypeError) as error:
            again, reason = None, " ".join(str(error).split())
        if type(again) is not type(default) or again != default:
            raise ValueError(
                f"options of {name}: the default {default!r} of {field} cannot be kept in a file: {reason}"
            )


def read_options(model: type[Model], given: Mapping[str, Any]) -> Model:
    """Return the options in plain values, as YAML and the command line give them. Nothing is converted or ignored.

    Raises:
        ValueError: With one line that names every option at fault, what came and what was expected.
    """
    try:
        text = json.dumps(dict(given), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"env_options must be plain values, as JSON holds: {error}") from None
    try:
        return model.model_validate_json(text, strict=True, extra="forbid", by_alias=False, by_name=True)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(details) for details in error.errors())) from None


def read_values(model: type[Model], given: Mapping[str, Any]) -> Model:
    """Return the options of a suite of this package, which may hold values of Python, as `arguments` of gym/ does.

    Raises:
        ValueError: As `read_options`.
    """
    try:
        return model.model_validate(dict(given), strict=True)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(details) for details in error.errors())) from None


def _explain(details: Any) -> str:
    name = ".".join(["env_options", *map(str, details["loc"])])
    message = details["msg"].removeprefix("Value error, ")
    came = "" if details["type"] == "value_error" and not details["loc"] else f", got {_short(details['input'])}"
    return f"{name}: {message[0].lower()}{message[1:]}{came}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
