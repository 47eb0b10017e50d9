"""Returns, under the short name `memax_rl.returns`; they are in `memax_rl.rollout.returns`."""

from memax_rl.rollout.returns import discounted_returns as discounted_returns
from memax_rl.rollout.returns import generalized_advantages as generalized_advantages
