"""Memory models behind one contract, by name.

memory = memax_rl.memory.make("lru", in_size=8, out_size=64, key=key)
state = memory.initial_state()
state, y = memory.step(state, x, start)      # acting: x [in_size], start bool[]
state, ys = memory.scan(state, xs, starts)   # learning: xs [T, in_size], starts bool[T]
"""

from memax_rl.memory import testing as testing
from memax_rl.memory.aaren import Aaren as Aaren
from memax_rl.memory.alibi_attention import AlibiAttention as AlibiAttention
from memax_rl.memory.attention import Attention as Attention
from memax_rl.memory.base import Memory as Memory
from memax_rl.memory.bmru import BMRU as BMRU
from memax_rl.memory.cost import gpu_kernels as gpu_kernels
from memax_rl.memory.cost import state_size as state_size
from memax_rl.memory.cost import training_flops as training_flops
from memax_rl.memory.delta_net import DeltaNet as DeltaNet
from memax_rl.memory.delta_product import DeltaProduct as DeltaProduct
from memax_rl.memory.dlse import DLSE as DLSE
from memax_rl.memory.elman import Elman as Elman
from memax_rl.memory.ffm import FFM as FFM
from memax_rl.memory.frame_stack import FrameStack as FrameStack
from memax_rl.memory.fwp import FWP as FWP
from memax_rl.memory.gated_delta_net import GatedDeltaNet as GatedDeltaNet
from memax_rl.memory.gla import GLA as GLA
from memax_rl.memory.gru import GRU as GRU
from memax_rl.memory.ind_rnn import IndRNN as IndRNN
from memax_rl.memory.linear_transformer import LinearTransformer as LinearTransformer
from memax_rl.memory.lrnn import LRNN as LRNN
from memax_rl.memory.lru import LRU as LRU
from memax_rl.memory.lstm import LSTM as LSTM
from memax_rl.memory.m2rnn import M2RNN as M2RNN
from memax_rl.memory.mamba2 import Mamba2 as Mamba2
from memax_rl.memory.memoroid import Memoroid as Memoroid
from memax_rl.memory.memory_caching import MemoryCaching as MemoryCaching
from memax_rl.memory.mesa_net import MesaNet as MesaNet
from memax_rl.memory.mgu import MGU as MGU
from memax_rl.memory.min_gru import MinGRU as MinGRU
from memax_rl.memory.min_lstm import MinLSTM as MinLSTM
from memax_rl.memory.mlp import MLP as MLP
from memax_rl.memory.mlstm import MLSTM as MLSTM
from memax_rl.memory.nmax import NMax as NMax
from memax_rl.memory.para_gru import ParaGRU as ParaGRU
from memax_rl.memory.para_lstm import ParaLSTM as ParaLSTM
from memax_rl.memory.reference import Reference as Reference
from memax_rl.memory.registry import MemorySpec as MemorySpec
from memax_rl.memory.registry import check_options as check_options
from memax_rl.memory.registry import make as make
from memax_rl.memory.registry import names as names
from memax_rl.memory.registry import register as register
from memax_rl.memory.registry import spec as spec
from memax_rl.memory.rope_attention import RopeAttention as RopeAttention
from memax_rl.memory.rot_rnn import RotRNN as RotRNN
from memax_rl.memory.rwkv7 import RWKV7 as RWKV7
from memax_rl.memory.s5 import S5 as S5
from memax_rl.memory.s6 import S6 as S6
from memax_rl.memory.slstm import SLSTM as SLSTM
from memax_rl.memory.spherical import Spherical as Spherical
from memax_rl.memory.ttt_linear import TTTLinear as TTTLinear
