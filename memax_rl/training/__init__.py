"""Training: the loop of updates, and what is written meanwhile."""

from memax_rl.training.callbacks import Callback as Callback
from memax_rl.training.callbacks import EarlyStopping as EarlyStopping
from memax_rl.training.callbacks import TrainingProgress as TrainingProgress
from memax_rl.training.loop import check as check
from memax_rl.training.loop import train as train
from memax_rl.training.session import TrainingError as TrainingError
