"""Studies: many runs and their comparison."""

from memax_rl.studies.folder import Folder as Folder
from memax_rl.studies.grid import Cell as Cell
from memax_rl.studies.grid import Study as Study
from memax_rl.studies.grid import load_study as load_study
from memax_rl.studies.grid import make_study as make_study
from memax_rl.studies.on_ray import Ray as Ray
from memax_rl.studies.on_slurm import Slurm as Slurm
from memax_rl.studies.results import curves as curves
from memax_rl.studies.results import results as results
from memax_rl.studies.runner import Outcome as Outcome
from memax_rl.studies.runner import study as study
from memax_rl.studies.space import Space as Space
from memax_rl.studies.space import load_space as load_space
from memax_rl.studies.space import make_space as make_space
from memax_rl.studies.tuning import Tuned as Tuned
from memax_rl.studies.tuning import tune as tune
