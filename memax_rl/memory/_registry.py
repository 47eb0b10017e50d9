"""The registry of memory models: a plain dict from name to class, with what a person wants to know of each."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import PRNGKeyArray

from memax_rl.memory._contract import Memory
from memax_rl.memory._layers import check_size
from memax_rl.memory.gru import GRU
from memax_rl.memory.linear_transformer import LinearTransformer
from memax_rl.memory.lru import LRU
from memax_rl.memory.lstm import LSTM
from memax_rl.memory.min_gru import MinGRU
from memax_rl.memory.mlp import MLP


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the registry knows of a memory model.

    **Arguments:**

    - `build`: the class, or a function of (in_size, out_size, key, **options).
    - `family`: how it computes: "none", "diagonal", "matrix", "delta", "attention", "nonlinear" or "own".
    - `paper`: a link.
    - `options`: what each keyword option means, with its default.
    """

    build: Callable[..., Memory]
    family: str = "own"
    paper: str = ""
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


_HEADS = {
    "heads": "number of heads (out_size // head_size)",
    "head_size": "rows and columns of a head's state (32)",
}

_ENTRIES: dict[str, Entry] = {
    "gru": Entry(GRU, "nonlinear", "https://arxiv.org/abs/1406.1078"),
    "linear_transformer": Entry(LinearTransformer, "matrix", "https://arxiv.org/abs/2006.16236", _HEADS),
    "lru": Entry(
        LRU,
        "diagonal",
        "https://arxiv.org/abs/2303.06349",
        {
            "state_size": "complex state variables (out_size)",
            "r_min": "smallest modulus of the decay at the start (0.5)",
            "r_max": "largest modulus of the decay at the start (0.999)",
            "max_phase": "largest phase of the decay at the start, radians (pi)",
        },
    ),
    "lstm": Entry(LSTM, "nonlinear", "https://doi.org/10.1162/neco.1997.9.8.1735"),
    "min_gru": Entry(MinGRU, "diagonal", "https://arxiv.org/abs/2410.01201"),
    "mlp": Entry(MLP, "none"),
}


def names() -> tuple[str, ...]:
    """Return the names of all registered memory models, sorted."""
    return tuple(sorted(_ENTRIES))


def entry(name: str) -> Entry:
    """Return what is known of a model. Raises `ValueError` with the close matches if the name is unknown."""
    if name not in _ENTRIES:
        close = difflib.get_close_matches(str(name), names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(names())}"
        raise ValueError(f"unknown memory {name!r}; {hint}")
    return _ENTRIES[name]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise `ValueError` if the model `name` is unknown or lacks one of the options."""
    known = entry(name).options
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=3, cutoff=0.5)
            have = f"its options are {', '.join(known)}" if known else "it has no options"
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise ValueError(f"memory {name!r} has no option {option!r}; {hint}{have}")


def make(name: str, *, in_size: int, out_size: int, key: PRNGKeyArray, **options: Any) -> Memory:
    """Return a new memory model.

    **Arguments:**

    - `name`: one of `names()`.
    - `in_size`, `out_size`: sizes of an input and of an output.
    - `key`: for the initial parameters.
    - `options`: the model's own options, see `entry(name).options`.

    **Raises:** `ValueError` for an unknown name (with the close matches), an option that the model lacks, or a size or
    option out of range.
    """
    build = entry(name).build
    check_options(name, options)
    check_size("in_size", in_size)
    check_size("out_size", out_size)
    return build(in_size=in_size, out_size=out_size, key=key, **options)


def register(name: str, new: Entry) -> None:
    """Add a memory model, so that `make` and the configuration know it by name.

    **Raises:** `ValueError` if the name is taken or is not lower_snake_case.
    """
    if name in _ENTRIES:
        raise ValueError(f"memory {name!r} is registered already; choose another name")
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"a memory's name must be lower_snake_case, got {name!r}")
    _ENTRIES[name] = new
