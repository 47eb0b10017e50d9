"""The tape, under the short name `memax_rl.tape`; it is `memax_rl.rollout.tape`."""

from memax_rl.rollout.tape import Tape as Tape
from memax_rl.rollout.tape import positions as positions
from memax_rl.rollout.tape import segment_ids as segment_ids
