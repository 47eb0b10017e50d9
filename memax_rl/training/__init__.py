"""Training: the loop of updates, and what is written meanwhile."""

from memax_rl.training.loop import TrainingError as TrainingError
from memax_rl.training.loop import check as check
from memax_rl.training.loop import resume_with as resume_with
from memax_rl.training.loop import train as train
from memax_rl.training.loop import train_with as train_with
