"""The description of a memory model, taken from its class."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping

from memax_rl.memory.base import Memory


@dataclasses.dataclass(frozen=True)
class MemorySpec:
    """What the registry knows of a memory model.

    Attributes:
        build: the class, or a function of (in_size, out_size, key, **options).
        family: how it computes: "none", "diagonal", "matrix", "delta", "attention", "nonlinear" or "own".
        paper: a link, or "no paper".
        options: what each keyword option means, with its default in parentheses.
        verified: against which code or equation its values, steps and gradients were compared; "read against" where the
            code was read and not run.
    """

    build: Callable[..., Memory]
    family: str = "own"
    paper: str = ""
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    verified: str = ""


def spec_of(model: type[Memory]) -> MemorySpec:
    """Return what a class states of itself: class variables, keyword options, and their meaning in its docstring."""
    meanings = documented_options(model)
    parameters = inspect.signature(model).parameters.values()
    options = {
        p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("in_size", "out_size", "key")
    }
    described = {name: _with_default(meanings.get(name, ""), p.default) for name, p in options.items()}
    return MemorySpec(model, model.family, model.paper, described, model.verified)


def documented_options(model: type[Memory]) -> dict[str, str]:
    """Return the lines of the section `Args:` of a class's docstring, by option."""
    _, _, section = (inspect.getdoc(model) or "").partition("\nArgs:\n")
    # The section ends with its indentation. A line that is indented more than an option continues it.
    section = re.split(r"\n(?=\S)", section)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).removesuffix(".") for name, text in entries}


def _with_default(meaning: str, default: object) -> str:
    """Return the meaning and the default of an option; what None stands for is said by the meaning itself."""
    if default is None:
        meaning, _, stands_for = meaning.partition(". None: ")
        shown = stands_for or "None"
    elif default is inspect.Parameter.empty:
        shown = "required"
    else:
        shown = f"{default:g}" if isinstance(default, float) else str(default)
    return f"{meaning} ({shown})".strip()
