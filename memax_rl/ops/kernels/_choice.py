"""Whether a kernel or the plain form runs."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, cast, get_args

import jax
from jax.extend import backend
from jax.extend.core import ClosedJaxpr, Jaxpr

Mode = Literal["auto", "0", "1", "interpret"]
# How a kernel runs: compiled where the program is lowered for CUDA, or by Pallas' interpreter.
Launch = Literal["cuda", "interpret"]

MODES: tuple[Mode, ...] = get_args(Mode)
VARIABLE = "MEMAX_RL_KERNELS"

_override: ContextVar[Mode | None] = ContextVar("kernels", default=None)


@contextmanager
def use(mode: Mode) -> Iterator[None]:
    """Trace ops with this choice of kernels inside, whatever the environment variable says.

    A program that `jax.jit` has traced before keeps the choice that it was traced with.

    Raises:
        ValueError: If `mode` is none of `MODES`.
    """
    token = _override.set(_known("mode", mode))
    try:
        yield
    finally:
        _override.reset(token)


def mode() -> Mode:
    """Return the choice that holds: that of `use`, else that of the environment variable, else `auto`.

    Raises:
        ValueError: If the environment variable is set to none of `MODES`.
    """
    return _override.get() or _known(VARIABLE, os.environ.get(VARIABLE) or "auto")


def chosen(*, tf32: bool = False) -> Launch | None:
    """Return how kernels run in what is traced now, None for the plain form.

    Args:
        tf32: Whether it is one for GPUs that multiply TF32 numbers. By default others do not run it.
    """
    choice = mode()
    if choice == "interpret":
        return "interpret"
    on_gpu = choice == "auto" and _on_nvidia() and (not tf32 or _capability() >= 8)
    return "cuda" if choice == "1" or on_gpu else None


def _on_nvidia() -> bool:
    # The backend "gpu" is also AMD's.
    return jax.default_backend() == "gpu" and "cuda" in backend.get_backend().platform_version


def _capability() -> float:
    return float(jax.local_devices()[0].compute_capability)


def launch(how: Launch, kernel: Callable[..., Any], plain: Callable[..., Any], *args: Any) -> Any:
    """Return `kernel(*args, interpret=...)`, or `plain(*args)` where the program is lowered for no NVIDIA GPU.

    So a program traced once may be lowered for one platform and for another. Not for both at once: there JAX lowers a
    kernel for each of them.
    """
    if how == "interpret":
        return kernel(*args, interpret=True)
    return jax.lax.platform_dependent(*args, cuda=functools.partial(kernel, interpret=False), default=plain)


def _known(name: str, value: str) -> Mode:
    if value not in MODES:
        raise ValueError(f"{name} must be one of {', '.join(MODES)}, got {value!r}")
    return cast(Mode, value)


def names(program: ClosedJaxpr) -> list[str]:
    """Return the names of all kernels in a traced program, sorted."""
    return sorted(set(_names(program.jaxpr)))


def _names(jaxpr: Jaxpr) -> Iterator[str]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation.params["name"]
        for leaf in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
            if isinstance(leaf, Jaxpr | ClosedJaxpr):
                yield from _names(leaf if isinstance(leaf, Jaxpr) else leaf.jaxpr)
