"""Evaluation: fresh episodes of a trained agent, and statistics over episodes and seeds."""

from memax_rl.evaluation.collecting import collect as collect
from memax_rl.evaluation.episodes import elsewhere as elsewhere
from memax_rl.evaluation.episodes import evaluate as evaluate
from memax_rl.evaluation.episodes import evaluate_state as evaluate_state
from memax_rl.evaluation.episodes import make_player as make_player
from memax_rl.evaluation.episodes import play as play
from memax_rl.evaluation.episodes import print_table as print_table
from memax_rl.evaluation.episodes import summary_line as summary_line
from memax_rl.evaluation.policy import LoadedPolicy as LoadedPolicy
from memax_rl.evaluation.policy import load as load
from memax_rl.evaluation.statistics import interquartile_mean as interquartile_mean
from memax_rl.evaluation.statistics import summarize as summarize
