"""The POPGym suite in JAX: a builder for each id.

Source: Morad et al., "POPGym: Benchmarking Partially Observable Reinforcement Learning", ICLR 2023,
https://arxiv.org/abs/2303.01859, and the `popgym` package 1.0.7, which is the ground truth for every detail.
Its two Labyrinths are missing: their authors deprecated them.
"""

from collections.abc import Callable

from memax_rl.envs.base import Environment
from memax_rl.envs.popgym import bandit, cartpole, concentration, grids, pendulum, recall, repeat

BUILDERS: dict[str, Callable[[], Environment]] = {
    **repeat.BUILDERS,
    **recall.BUILDERS,
    **concentration.BUILDERS,
    **grids.BUILDERS,
    **bandit.BUILDERS,
    **cartpole.BUILDERS,
    **pendulum.BUILDERS,
}
