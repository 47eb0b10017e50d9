"""The base of POPGym's environments whose episodes a time limit truncates."""

from memax_rl.envs.base import Environment, EnvParams


class TimedEnvironment(Environment):
    """An environment with a time limit, `max_steps` by default, that may end an episode before it."""

    max_steps: int

    @property
    def default_params(self) -> EnvParams:
        """The time limit of the difficulty."""
        return EnvParams(max_steps_in_episode=self.max_steps)

    def max_episode_steps(self, params: EnvParams) -> int | None:
        """The time limit."""
        return int(params.max_steps_in_episode)
