"""Supervised probes: what can a memory hold, at what length, at what cost, without the noise of reinforcement learning.

A probe is a task on sequences, and the stack of an agent with one layer behind it. Its run folder is that of an agent
but for the field `task` in config.yaml, which an agent's has not; a sequence counts as an episode there, and its score
as the return.
"""

from memax_rl.probes.config import LearnerSettings as LearnerSettings
from memax_rl.probes.config import ProbeConfig as ProbeConfig
from memax_rl.probes.config import make_probe_config as make_probe_config
from memax_rl.probes.learner import Learner as Learner
from memax_rl.probes.tasks import Task as Task
from memax_rl.probes.training import train as train
