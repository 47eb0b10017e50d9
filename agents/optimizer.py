"""What the agents do with a gradient: it is clipped, an optimizer of optax turns it, and the step size falls."""

from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree
from pydantic import Field, model_validator

from memax_rl.agents.base import AgentSettings
from memax_rl.networks.normalization import RunningMeanStd
from memax_rl.unused import refuse_unused

T = TypeVar("T", bound=PyTree[Array])

Optimizer = Literal["adam", "adamw", "nadam", "radam", "rmsprop", "sgd", "lion"]
Schedule = Literal["constant", "linear", "cosine"]

# The options that each optimizer takes, in the names of `OptimizerSettings`.
OPTIONS: dict[str, tuple[str, ...]] = {
    "adam": ("beta1", "beta2", "optimizer_eps"),
    "adamw": ("beta1", "beta2", "optimizer_eps", "weight_decay"),
    "nadam": ("beta1", "beta2", "optimizer_eps"),
    "radam": ("beta1", "beta2", "optimizer_eps"),
    "rmsprop": ("beta2", "optimizer_eps", "momentum"),
    "sgd": ("momentum", "nesterov"),
    "lion": ("beta1", "beta2", "weight_decay"),
}
_DEFAULT_BETAS = {"rmsprop": (0.0, 0.9), "lion": (0.9, 0.99)}


class OptimizerSettings(AgentSettings):
    """Settings of the optimizer, one of optax's; the base of the settings of agents that learn by gradients."""

    optimizer: Optimizer = "adam"
    """What turns a gradient into an update of the network, by its name in optax."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size at the start."""
    lr_schedule: Schedule = "linear"
    """How the step size falls over the run, to zero at the end."""
    max_grad_norm: float = Field(default=0.5, gt=0)
    """The gradient is scaled down to this global norm."""
    beta1: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the mean of gradients. None: 0.9. For adam, adamw, nadam, radam, lion."""
    beta2: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the mean of squared gradients; for lion, of the gradients it remembers. None: 0.999, lion 0.99, rmsprop
    0.9. For all but sgd."""
    optimizer_eps: float = Field(default=1e-8, gt=0)
    """What is added to the root of the mean square of gradients. For adam, adamw, nadam, radam, rmsprop."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Share of each weight matrix, times the step size, that an update takes away. Biases, gains and other vectors do
    not decay. None: adamw 1e-4, lion 1e-3, as in optax. For adamw, lion."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Share of the last update that is made once more. For sgd, rmsprop."""
    nesterov: bool = False
    """Look ahead by the momentum (Nesterov). For sgd with momentum."""

    @model_validator(mode="after")
    def _check_optimizer(self) -> "OptimizerSettings":
        for name in ("beta1", "beta2", "optimizer_eps", "weight_decay", "momentum", "nesterov"):
            if name not in OPTIONS[self.optimizer]:
                takers = " or ".join(repr(known) for known, options in OPTIONS.items() if name in options)
                refuse_unused(self, (name,), f"is no option of optimizer {self.optimizer!r}; set optimizer to {takers}")
        if not self.momentum:
            refuse_unused(self, ("nesterov",), "looks ahead by the momentum, which is 0; set momentum")
        return self


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Return the optimizer of the settings, for a step size of -1: the caller scales its updates by the schedule."""
    default1, default2 = _DEFAULT_BETAS.get(settings.optimizer, (0.9, 0.999))
    b1 = default1 if settings.beta1 is None else settings.beta1
    b2 = default2 if settings.beta2 is None else settings.beta2
    eps = settings.optimizer_eps
    match settings.optimizer:
        case "adam":
            return optax.scale_by_adam(b1, b2, eps)
        case "adamw":
            return optax.chain(optax.scale_by_adam(b1, b2, eps), _decay(settings.weight_decay, 1e-4))
        case "nadam":
            return optax.scale_by_adam(b1, b2, eps, nesterov=True)
        case "radam":
            return optax.scale_by_radam(b1, b2, eps)
        case "rmsprop":
            return optax.chain(optax.scale_by_rms(b2, eps), _momentum(settings))
        case "sgd":
            return _momentum(settings)
        case "lion":
            return optax.chain(optax.scale_by_lion(b1, b2), _decay(settings.weight_decay, 1e-3))


def _momentum(settings: OptimizerSettings) -> optax.GradientTransformation:
    if not settings.momentum:
        return optax.identity()
    return optax.trace(settings.momentum, settings.nesterov)


def _decay(weight_decay: float | None, default: float) -> optax.GradientTransformation:
    return optax.add_decayed_weights(default if weight_decay is None else weight_decay, mask=_decays)


def _decays(params: PyTree[Array]) -> PyTree[bool]:
    """Return which parameters decay: matrices. Never running statistics, which are not learned by gradients."""

    def is_statistics(x: Any) -> bool:
        return isinstance(x, RunningMeanStd)

    def decays(x: Any) -> Any:
        return jax.tree.map(lambda _: False, x) if is_statistics(x) else x.ndim >= 2

    return jax.tree.map(decays, params, is_leaf=is_statistics)


def clip(gradient: T, norm: Float[Array, ""], max_norm: float) -> T:
    """Return the gradient, whose global norm is given, scaled down to `max_norm` if that is smaller.

    As `optax.clip_by_global_norm`, for a gradient of which other devices may hold a part.
    """
    factor = jnp.where(norm < max_norm, 1, max_norm / norm)
    return jax.tree.map(lambda g: factor * g, gradient)


def make_schedule(kind: Schedule, learning_rate: float) -> optax.Schedule:
    """Return fraction of the run's environment steps -> step size; "linear" and "cosine" end at zero.

    Args:
        kind: "constant", "linear" or "cosine".
        learning_rate: The step size at the start.
    """
    schedules = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, 1),
        "cosine": optax.cosine_decay_schedule(learning_rate, 1),
    }
    return schedules[kind]
