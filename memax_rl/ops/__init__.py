"""Reset-aware recurrences over one sequence of arrays.

Pure functions, unbatched (use `jax.vmap`), that know nothing of reinforcement learning. `starts[t]` is true where step
t begins a new sequence: the state is reset before step t is computed, so neither a value nor a gradient crosses it.
"""

from memax_rl.ops._complex_diagonal_recurrence import complex_diagonal_recurrence as complex_diagonal_recurrence
from memax_rl.ops._delta_rule import delta_rule as delta_rule
from memax_rl.ops._delta_rule import generalized_delta_rule as generalized_delta_rule
from memax_rl.ops._elementwise_recurrence import Maps as Maps
from memax_rl.ops._elementwise_recurrence import elementwise_recurrence as elementwise_recurrence
from memax_rl.ops._linear import linear as linear
from memax_rl.ops._linear import plain_products as plain_products
from memax_rl.ops._linear_attention import linear_attention as linear_attention
from memax_rl.ops._linear_recurrence import linear_recurrence as linear_recurrence
from memax_rl.ops._nonlinear_recurrence import nonlinear_recurrence as nonlinear_recurrence
from memax_rl.ops._nonlinear_recurrence import nonlinear_step as nonlinear_step
from memax_rl.ops._regularized_solve import conjugate_gradients as conjugate_gradients
from memax_rl.ops._regularized_solve import regularized_solve as regularized_solve
from memax_rl.ops._selective_scan import selective_scan as selective_scan
from memax_rl.ops._window_attention import window_attention as window_attention
