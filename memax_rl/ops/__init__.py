"""Reset-aware recurrences over one sequence of arrays.

Pure functions, unbatched (use `jax.vmap`), that know nothing of reinforcement learning. `starts[t]` is true where step t
begins a new sequence: the state is reset before step t is computed, so neither a value nor a gradient crosses it.
"""

from memax_rl.ops._linear_attention import linear_attention as linear_attention
from memax_rl.ops._linear_recurrence import linear_recurrence as linear_recurrence
from memax_rl.ops._nonlinear_recurrence import nonlinear_recurrence as nonlinear_recurrence
