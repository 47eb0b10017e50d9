"""Kernels for NVIDIA GPUs behind the recurrences, written in Pallas for its Triton backend.

Each stands beside a plain form that computes the same. Which of the two runs is decided where an op is traced, by
`use` or the environment variable MEMAX_RL_KERNELS:

- `auto`, the default: kernels where JAX's backend is a GPU, for shapes and dtypes that they know.
- `0`: none.
- `1`: kernels in every program that is lowered for CUDA, whatever machine lowers it; the same program lowered for
  another platform has the plain form.
- `interpret`: kernels everywhere, run by Pallas' interpreter, which is slow and needs no GPU: for tests.

The files of the kernels import Pallas, which takes a while; so they are imported by the ops that launch one.
"""

from memax_rl.ops.kernels._choice import MODES as MODES
from memax_rl.ops.kernels._choice import Launch as Launch
from memax_rl.ops.kernels._choice import Mode as Mode
from memax_rl.ops.kernels._choice import chosen as chosen
from memax_rl.ops.kernels._choice import launch as launch
from memax_rl.ops.kernels._choice import mode as mode
from memax_rl.ops.kernels._choice import names as names
from memax_rl.ops.kernels._choice import use as use
