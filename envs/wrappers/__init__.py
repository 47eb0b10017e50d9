"""Wrappers for any environment, in JAX or on the host. A configuration lists them, the innermost first.

Each has a settings model that documents its options and whose `wrap` applies it to an environment. All preserve
gymnax's six-value step, the automatic reset, the true last observation, and correct episode lengths.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from memax_rl.envs.base import Environment
from memax_rl.envs.wrappers.actions import JointActionConfig
from memax_rl.envs.wrappers.base import Wrapper as Wrapper
from memax_rl.envs.wrappers.base import WrapperConfig as WrapperConfig
from memax_rl.envs.wrappers.base import layers as layers
from memax_rl.envs.wrappers.observations import (
    MaskObservationConfig,
    ObservationNoiseConfig,
    PositionOnlyConfig,
    SelectKeysConfig,
    VelocityOnlyConfig,
)
from memax_rl.envs.wrappers.steps import FrameSkipConfig, RewardScalingConfig, StickyActionsConfig
from memax_rl.envs.wrappers.steps import TimeLimitConfig as TimeLimitConfig


class Spaces(Environment):
    """Stands for an environment of which only the spaces are known. It can be wrapped, but has no episodes."""

    def __init__(self, observation: Any, action: Any):
        self._observation, self._action = observation, action

    @property
    def default_params(self) -> None:
        """None."""
        return None

    def observation_space(self, params: Any) -> Any:
        """The observation space."""
        return self._observation

    def action_space(self, params: Any) -> Any:
        """The action space."""
        return self._action

    def reset_env(self, key: Any, params: Any) -> tuple[Any, tuple[()]]:
        """An observation of the space, for what looks at shapes, such as whether there is an action mask: none."""
        return self._observation.sample(key), ()


AnyWrapper = Annotated[
    TimeLimitConfig
    | FrameSkipConfig
    | StickyActionsConfig
    | RewardScalingConfig
    | JointActionConfig
    | ObservationNoiseConfig
    | MaskObservationConfig
    | SelectKeysConfig
    | PositionOnlyConfig
    | VelocityOnlyConfig,
    Field(discriminator="name"),
]

CONFIGS: dict[str, type[WrapperConfig]] = {
    "time_limit": TimeLimitConfig,
    "frame_skip": FrameSkipConfig,
    "sticky_actions": StickyActionsConfig,
    "reward_scaling": RewardScalingConfig,
    "joint_action": JointActionConfig,
    "observation_noise": ObservationNoiseConfig,
    "mask_observation": MaskObservationConfig,
    "select_keys": SelectKeysConfig,
    "position_only": PositionOnlyConfig,
    "velocity_only": VelocityOnlyConfig,
}


def wrap(env: Any, params: Any, env_id: str, wrappers: Sequence[WrapperConfig]) -> tuple[Any, Any]:
    """Return an environment with wrappers applied, the first of them innermost, and its parameters.

    Raises:
        ValueError: If a wrapper does not fit what it is put around.
    """
    for config in wrappers:
        env, params = config.wrap(env, params, env_id)
    return env, params
