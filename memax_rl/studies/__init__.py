"""Studies: many runs and their comparison."""

from memax_rl.studies.results import curves as curves
from memax_rl.studies.results import results as results
