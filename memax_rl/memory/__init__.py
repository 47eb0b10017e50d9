"""Memory models behind one contract, by name.

    memory = memax_rl.memory.make("lru", in_size=8, out_size=64, key=key)
    state = memory.initial_state()
    state, y = memory.step(state, x, start)      # acting: x [in_size], start bool[]
    state, ys = memory.scan(state, xs, starts)   # learning: xs [T, in_size], starts bool[T]
"""

from memax_rl.memory._contract import Memory as Memory
from memax_rl.memory._registry import Entry as Entry
from memax_rl.memory._registry import check_options as check_options
from memax_rl.memory._registry import entry as entry
from memax_rl.memory._registry import make as make
from memax_rl.memory._registry import names as names
from memax_rl.memory._registry import register as register
from memax_rl.memory.gru import GRU as GRU
from memax_rl.memory.linear_transformer import LinearTransformer as LinearTransformer
from memax_rl.memory.lru import LRU as LRU
from memax_rl.memory.lstm import LSTM as LSTM
from memax_rl.memory.memoroid import Memoroid as Memoroid
from memax_rl.memory.min_gru import MinGRU as MinGRU
from memax_rl.memory.mlp import MLP as MLP
