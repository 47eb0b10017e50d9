"""Runs: configuration, run folders, checkpoints, loggers, and what a configuration builds."""

from memax_rl.runs.build import load_agent as load_agent
from memax_rl.runs.build import make_agent as make_agent
from memax_rl.runs.build import make_environment as make_environment
from memax_rl.runs.config import EarlyStoppingConfig as EarlyStoppingConfig
from memax_rl.runs.config import TrainConfig as TrainConfig
from memax_rl.runs.config import load_config as load_config
from memax_rl.runs.config import make_config as make_config
from memax_rl.runs.config import presets as presets
from memax_rl.runs.overrides import override as override
from memax_rl.runs.run import Run as Run
from memax_rl.runs.run import RunError as RunError
