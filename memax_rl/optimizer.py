"""What the agents share of optax: Adam after a clipped gradient, and how its step size falls."""

from typing import Literal

import optax

Schedule = Literal["constant", "linear", "cosine"]


def make_optimizer(max_grad_norm: float, adam_eps: float) -> optax.GradientTransformation:
    """Return Adam on the gradient scaled down to a global norm. Its updates still lack the factor -(step size)."""
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.scale_by_adam(eps=adam_eps))


def make_schedule(kind: Schedule, learning_rate: float, total_steps: int) -> optax.Schedule:
    """Return environment steps -> step size; "linear" and "cosine" end at zero."""
    schedules = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, total_steps),
        "cosine": optax.cosine_decay_schedule(learning_rate, total_steps),
    }
    return schedules[kind]
