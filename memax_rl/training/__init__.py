"""Training runs: configuration, run folders, and the loop."""

from memax_rl.training.config import TrainConfig as TrainConfig
from memax_rl.training.config import load_config as load_config
from memax_rl.training.config import make_config as make_config
from memax_rl.training.config import override as override
from memax_rl.training.config import presets as presets
from memax_rl.training.loop import TrainingError as TrainingError
from memax_rl.training.loop import make_agent as make_agent
from memax_rl.training.loop import train as train
from memax_rl.training.run import Run as Run
from memax_rl.training.run import RunError as RunError
