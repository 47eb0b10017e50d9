"""The registry of memory models: a plain dict from name to class. A model is described on its class."""

import difflib
from collections.abc import Mapping
from typing import Any

from jaxtyping import PRNGKeyArray

from memax_rl.memory.aaren import Aaren
from memax_rl.memory.alibi_attention import AlibiAttention
from memax_rl.memory.attention import Attention
from memax_rl.memory.base import Memory
from memax_rl.memory.bmru import BMRU
from memax_rl.memory.delta_net import DeltaNet
from memax_rl.memory.delta_product import DeltaProduct
from memax_rl.memory.description import MemorySpec as MemorySpec
from memax_rl.memory.description import spec_of
from memax_rl.memory.dlse import DLSE
from memax_rl.memory.elman import Elman
from memax_rl.memory.ffm import FFM
from memax_rl.memory.frame_stack import FrameStack
from memax_rl.memory.fwp import FWP
from memax_rl.memory.gated_delta_net import GatedDeltaNet
from memax_rl.memory.gla import GLA
from memax_rl.memory.gru import GRU
from memax_rl.memory.ind_rnn import IndRNN
from memax_rl.memory.layers.weights import check_size
from memax_rl.memory.linear_transformer import LinearTransformer
from memax_rl.memory.lrnn import LRNN
from memax_rl.memory.lru import LRU
from memax_rl.memory.lstm import LSTM
from memax_rl.memory.m2rnn import M2RNN
from memax_rl.memory.mamba2 import Mamba2
from memax_rl.memory.memory_caching import MemoryCaching
from memax_rl.memory.mesa_net import MesaNet
from memax_rl.memory.mgu import MGU
from memax_rl.memory.min_gru import MinGRU
from memax_rl.memory.min_lstm import MinLSTM
from memax_rl.memory.mlp import MLP
from memax_rl.memory.mlstm import MLSTM
from memax_rl.memory.nmax import NMax
from memax_rl.memory.para_gru import ParaGRU
from memax_rl.memory.para_lstm import ParaLSTM
from memax_rl.memory.reference import Reference
from memax_rl.memory.rope_attention import RopeAttention
from memax_rl.memory.rot_rnn import RotRNN
from memax_rl.memory.rwkv7 import RWKV7
from memax_rl.memory.s5 import S5
from memax_rl.memory.s6 import S6
from memax_rl.memory.slstm import SLSTM
from memax_rl.memory.spherical import Spherical
from memax_rl.memory.ttt_linear import TTTLinear
from memax_rl.ops._checks import is_reference

_MODELS: dict[str, type[Memory]] = {
    "aaren": Aaren,
    "alibi_attention": AlibiAttention,
    "attention": Attention,
    "bmru": BMRU,
    "delta_net": DeltaNet,
    "delta_product": DeltaProduct,
    "dlse": DLSE,
    "elman": Elman,
    "ffm": FFM,
    "frame_stack": FrameStack,
    "fwp": FWP,
    "gated_delta_net": GatedDeltaNet,
    "gla": GLA,
    "gru": GRU,
    "ind_rnn": IndRNN,
    "linear_transformer": LinearTransformer,
    "lrnn": LRNN,
    "lru": LRU,
    "lstm": LSTM,
    "m2rnn": M2RNN,
    "mamba2": Mamba2,
    "memory_caching": MemoryCaching,
    "mesa_net": MesaNet,
    "mgu": MGU,
    "min_gru": MinGRU,
    "min_lstm": MinLSTM,
    "mlp": MLP,
    "mlstm": MLSTM,
    "nmax": NMax,
    "para_gru": ParaGRU,
    "para_lstm": ParaLSTM,
    "rope_attention": RopeAttention,
    "rot_rnn": RotRNN,
    "rwkv7": RWKV7,
    "s5": S5,
    "s6": S6,
    "slstm": SLSTM,
    "spherical": Spherical,
    "ttt_linear": TTTLinear,
}


_ENTRIES = {name: spec_of(model) for name, model in _MODELS.items()}


def names() -> tuple[str, ...]:
    """Return the names of all registered memory models, sorted."""
    return tuple(sorted(_ENTRIES))


def spec(name: str) -> MemorySpec:
    """Return the description of a model. Raises `ValueError` with the close matches if the name is unknown."""
    if name not in _ENTRIES:
        close = difflib.get_close_matches(str(name), names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(names())}"
        raise ValueError(f"unknown memory {name!r}; {hint}")
    return _ENTRIES[name]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise `ValueError` if the model `name` is unknown or lacks one of the options."""
    known = spec(name).options
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=3, cutoff=0.5)
            have = f"its options are {', '.join(known)}" if known else "it has no options"
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise ValueError(f"memory {name!r} has no option {option!r}; {hint}{have}")


def make(
    name: str,
    *,
    in_size: int,
    out_size: int,
    key: PRNGKeyArray,
    method: str | None = None,
    **options: Any,
) -> Memory:
    """Return a new memory model.

    Args:
        name: one of `names()`.
        in_size: size of an input.
        out_size: size of an output.
        key: for the initial parameters.
        method: `"reference"` for `scan` as a plain loop over `step`, see `Reference`; by default the fast `scan`.
        options: the model's own options, see `spec(name).options`.

    Raises:
        ValueError: for an unknown name (with the close matches), an unknown method, an option that the model lacks, or
            a size or option out of range.
    """
    build = spec(name).build
    check_options(name, options)
    check_size("in_size", in_size)
    check_size("out_size", out_size)
    memory = build(in_size=in_size, out_size=out_size, key=key, **options)
    return Reference(memory) if is_reference(method) else memory


def register(name: str, new: MemorySpec | type[Memory]) -> None:
    """Add a memory model, so that `make` and the configuration know it by name.

    Args:
        name: lower_snake_case, and not taken.
        new: a subclass of `Memory`, whose options are the keyword arguments of its constructor; or the `MemorySpec` of
            a function.

    Raises:
        ValueError: if the name is taken or is not lower_snake_case, or `new` is neither of the two.
    """
    if name in _ENTRIES:
        raise ValueError(f"memory {name!r} is registered already; choose another name")
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"a memory's name must be lower_snake_case, got {name!r}")
    if isinstance(new, type) and issubclass(new, Memory):
        new = spec_of(new)
    if not isinstance(new, MemorySpec):
        raise ValueError(f"new must be a subclass of Memory, or MemorySpec(function) for a function, got {new!r}")
    _ENTRIES[name] = new
