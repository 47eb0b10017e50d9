"""The POPGym suite in JAX: a builder for each id.

Source: Morad et al., "POPGym: Benchmarking Partially Observable Reinforcement Learning", ICLR 2023,
https://arxiv.org/abs/2303.01859, and the `popgym` package 1.0.7, which is the ground truth for every detail.
Its two Labyrinths are missing: their authors deprecated them.
"""

from collections.abc import Callable

from memax_rl.envs import (
    popgym_bandit,
    popgym_cartpole,
    popgym_concentration,
    popgym_grids,
    popgym_pendulum,
    popgym_recall,
    popgym_repeat,
)
from memax_rl.envs.base import Environment

BUILDERS: dict[str, Callable[[], Environment]] = {
    **popgym_repeat.BUILDERS,
    **popgym_recall.BUILDERS,
    **popgym_concentration.BUILDERS,
    **popgym_grids.BUILDERS,
    **popgym_bandit.BUILDERS,
    **popgym_cartpole.BUILDERS,
    **popgym_pendulum.BUILDERS,
}
