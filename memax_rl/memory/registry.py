"""The registry of memory models: a plain dict from name to class, with what a person wants to know of each."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import PRNGKeyArray

from memax_rl.memory.aaren import Aaren
from memax_rl.memory.alibi_attention import AlibiAttention
from memax_rl.memory.attention import Attention
from memax_rl.memory.base import Memory
from memax_rl.memory.bmru import BMRU
from memax_rl.memory.delta_net import DeltaNet
from memax_rl.memory.delta_product import DeltaProduct
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


@dataclasses.dataclass(frozen=True)
class MemorySpec:
    """What the registry knows of a memory model.

    **Arguments:**

    - `build`: the class, or a function of (in_size, out_size, key, **options).
    - `family`: how it computes: "none", "diagonal", "matrix", "delta", "attention", "nonlinear" or "own".
    - `paper`: a link.
    - `options`: what each keyword option means, with its default.
    - `verified`: against which code or equation its values, steps and gradients were compared; "read against" where the
        code was read and not run.
    """

    build: Callable[..., Memory]
    family: str = "own"
    paper: str = ""
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    verified: str = ""


_HEADS = {
    "heads": "number of heads (out_size // head_size)",
    "head_size": "rows and columns of a head's state (32)",
}

_NEGATIVE = {"negative_eigenvalues": "let a step reflect the state, for parity and state tracking (False)"}

_WINDOW = {
    "window": "steps seen, the present one included (64)",
    "heads": "number of heads (out_size // head_size)",
    "head_size": "features of a head (32)",
}

_SIZE = {"state_size": "state variables (out_size)"}

_SOLVER = {"solver": "'sequential' or 'newton' (None: sequential on a CPU, Newton's method elsewhere)"}

_ENTRIES: dict[str, MemorySpec] = {
    "aaren": MemorySpec(
        Aaren,
        "attention",
        "https://arxiv.org/abs/2405.13956",
        {"heads": "number of heads (out_size // head_size)", "head_size": "features of a head (32)"},
        verified="attention with a constant query by torch's scaled_dot_product_attention",
    ),
    "alibi_attention": MemorySpec(
        AlibiAttention,
        "attention",
        "https://arxiv.org/abs/2108.12409",
        _WINDOW,
        verified="torch's scaled_dot_product_attention with Bloom's slopes; of other than 2^n heads: read against",
    ),
    "attention": MemorySpec(
        Attention,
        "attention",
        "https://arxiv.org/abs/1706.03762",
        _WINDOW,
        verified="torch's scaled_dot_product_attention",
    ),
    "bmru": MemorySpec(
        BMRU,
        "diagonal",
        "https://arxiv.org/abs/2601.09495",
        {
            **_SIZE,
            "eps": "share of the old value that a write keeps: 0 the unit proper, 1 its cumulative form (0)",
            "surrogate": "steepness of the derivative that stands for that of the step (1)",
        },
        verified="from the paper's text only",
    ),
    "delta_net": MemorySpec(
        DeltaNet,
        "delta",
        "https://arxiv.org/abs/2406.06484",
        _HEADS | _NEGATIVE,
        verified="fla (flash-linear-attention), delta rule",
    ),
    "delta_product": MemorySpec(
        DeltaProduct,
        "delta",
        "https://arxiv.org/abs/2502.10297",
        _HEADS
        | {
            "substeps": "keys and values an input (2)",
            "gated": "decay before each input (True)",
            "negative_eigenvalues": "let a sub-step reflect the state (True)",
        },
        verified="fla, gated delta product",
    ),
    "dlse": MemorySpec(
        DLSE,
        "diagonal",
        options=_SIZE,
        verified="torch.logcumsumexp (the recurrence; no paper is known to give the form)",
    ),
    "elman": MemorySpec(
        Elman,
        "nonlinear",
        "https://doi.org/10.1207/s15516709cog1402_1",
        verified="torch's rnn_tanh_cell",
    ),
    "ffm": MemorySpec(
        FFM,
        "diagonal",
        "https://arxiv.org/abs/2310.04128",
        {
            "trace_size": "traces, each with a rate of decay (32)",
            "context_size": "frequencies of each trace (4)",
            "max_period": "longest period at the start, steps (1024)",
        },
        verified="proroklab/ffm",
    ),
    "frame_stack": MemorySpec(
        FrameStack,
        "attention",
        "https://doi.org/10.1038/nature14236",
        {
            "window": "inputs seen, the present one included (16)",
            "frame_size": "features kept of each input (16)",
        },
        verified="a stack of inputs and a linear layer by torch",
    ),
    "fwp": MemorySpec(
        FWP,
        "matrix",
        "https://arxiv.org/abs/2102.11174",
        _HEADS,
        verified="fla, linear attention without normalization",
    ),
    "gated_delta_net": MemorySpec(
        GatedDeltaNet,
        "delta",
        "https://arxiv.org/abs/2412.06464",
        _HEADS | _NEGATIVE,
        verified="fla; transformers' Qwen3NextGatedDeltaNet, whole layer",
    ),
    "gla": MemorySpec(
        GLA,
        "matrix",
        "https://arxiv.org/abs/2312.06635",
        _HEADS,
        verified="fla, naive gated linear attention",
    ),
    "gru": MemorySpec(
        GRU,
        "nonlinear",
        "https://arxiv.org/abs/1406.1078",
        verified="torch.gru_cell",
    ),
    "ind_rnn": MemorySpec(
        IndRNN,
        "diagonal",
        "https://arxiv.org/abs/1803.04831",
        {"horizon": "steps over which a state may at most double: |u| <= 2^(1 / horizon) (1024)"},
        verified="Sunnydreamrain/IndRNN_pytorch",
    ),
    "linear_transformer": MemorySpec(
        LinearTransformer,
        "matrix",
        "https://arxiv.org/abs/2006.16236",
        _HEADS
        | {"rotary_base": "turn queries and keys by their distance, with this base, for instance 100 (0: do not)"},
        verified="fla, naive linear attention; transformers' rotary embedding",
    ),
    "lrnn": MemorySpec(
        LRNN,
        "diagonal",
        "https://arxiv.org/abs/1709.04057",
        verified="fla, naive HGRN (the recurrence)",
    ),
    "lru": MemorySpec(
        LRU,
        "diagonal",
        "https://arxiv.org/abs/2303.06349",
        {
            "state_size": "complex state variables (out_size)",
            "r_min": "smallest modulus of the decay at the start (0.9)",
            "r_max": "largest modulus of the decay at the start (0.999)",
            "max_phase": "largest phase of the decay at the start, radians (pi)",
        },
        verified="NicolasZucchet/minimal-LRU",
    ),
    "lstm": MemorySpec(
        LSTM,
        "nonlinear",
        "https://doi.org/10.1162/neco.1997.9.8.1735",
        verified="torch.lstm_cell",
    ),
    "m2rnn": MemorySpec(
        M2RNN,
        "nonlinear",
        "https://arxiv.org/abs/2603.14360",
        _HEADS,
        verified="open-lm-engine's _m2rnn_torch (the recurrence); the layer around it: read against theirs",
    ),
    "mamba2": MemorySpec(
        Mamba2,
        "matrix",
        "https://arxiv.org/abs/2405.21060",
        {
            "heads": "number of heads (out_size // head_size)",
            "head_size": "columns of a head's state (32)",
            "state_size": "rows of a head's state (64)",
        },
        verified="transformers' Mamba2Mixer, whole layer; the bias of the convolution: read against it",
    ),
    "memory_caching": MemorySpec(
        MemoryCaching,
        "matrix",
        "https://arxiv.org/abs/2602.24281",
        _HEADS | {"segment_size": "steps a segment (32)", "cached": "segments whose state is kept (8)"},
        verified="from the paper's text only, at second hand",
    ),
    "mesa_net": MemorySpec(
        MesaNet,
        "matrix",
        "https://arxiv.org/abs/2506.05233",
        _HEADS | {"iterations": "steps of conjugate gradients (30)"},
        verified="fla, naive_mesa_net_exact",
    ),
    "mgu": MemorySpec(
        MGU,
        "nonlinear",
        "https://arxiv.org/abs/1603.09420",
        verified="torch.gru_cell with tied gates, but for the deviation that its file states",
    ),
    "min_gru": MemorySpec(
        MinGRU,
        "diagonal",
        "https://arxiv.org/abs/2410.01201",
        verified="lucidrains/minGRU-pytorch, form in log space",
    ),
    "min_lstm": MemorySpec(
        MinLSTM,
        "diagonal",
        "https://arxiv.org/abs/2410.01201",
        verified="lucidrains' minLSTM, form in log space",
    ),
    "mlp": MemorySpec(
        MLP,
        "none",
        verified="a linear layer and its activation by torch",
    ),
    "mlstm": MemorySpec(
        MLSTM,
        "matrix",
        "https://arxiv.org/abs/2405.04517",
        _HEADS,
        verified="NX-AI's xlstm and xlstm-jax, cell and norm of each head; the gate: read against xlstm_large",
    ),
    "nmax": MemorySpec(
        NMax,
        "diagonal",
        options=_SIZE,
        verified="torch.cummax (the recurrence; no paper is known to give the form)",
    ),
    "para_gru": MemorySpec(
        ParaGRU,
        "nonlinear",
        "https://arxiv.org/abs/2510.21450",
        _SOLVER,
        verified="apple/ml-pararnn, recurrence_step, by both solvers",
    ),
    "para_lstm": MemorySpec(
        ParaLSTM,
        "nonlinear",
        "https://arxiv.org/abs/2510.21450",
        _SOLVER,
        verified="apple/ml-pararnn, recurrence_step, by both solvers",
    ),
    "rope_attention": MemorySpec(
        RopeAttention,
        "attention",
        "https://arxiv.org/abs/2104.09864",
        _WINDOW,
        verified="torch's scaled_dot_product_attention with transformers' rotary embedding",
    ),
    "rot_rnn": MemorySpec(
        RotRNN,
        "diagonal",
        "https://arxiv.org/abs/2407.07239",
        {
            "heads": "number of heads (out_size // head_size)",
            "head_size": "state variables of a head, even (32)",
            "gamma_min": "smallest decay of a head at the start (0.9)",
            "gamma_max": "largest decay of a head at the start (0.999)",
        },
        verified="the paper's equations with a dense matrix gamma P Theta P^T",
    ),
    "rwkv7": MemorySpec(
        RWKV7,
        "delta",
        "https://arxiv.org/abs/2503.14456",
        _HEADS,
        verified="fla, RWKV-7 recurrence",
    ),
    "s5": MemorySpec(
        S5,
        "diagonal",
        "https://arxiv.org/abs/2208.04933",
        {
            "state_size": "state variables, even: conjugate pairs (out_size, rounded up to even)",
            "dt_min": "smallest step size at the start (0.001)",
            "dt_max": "largest step size at the start (0.1)",
        },
        verified="lindermanlab/S5 (zero-order hold, clipped eigenvalues)",
    ),
    "s6": MemorySpec(
        S6,
        "diagonal",
        "https://arxiv.org/abs/2312.00752",
        {
            "state_size": "state variables of each channel (16)",
            "expand": "channels for each output (2)",
            "dt_min": "smallest step size at the start (0.001)",
            "dt_max": "largest step size at the start (0.1)",
        },
        verified="transformers' MambaMixer, whole layer",
    ),
    "slstm": MemorySpec(
        SLSTM,
        "nonlinear",
        "https://arxiv.org/abs/2405.04517",
        {"heads": "blocks of the recurrent matrices (out_size // 32 where that divides, else 1)"},
        verified="NX-AI/xlstm, pointwise cell; the norm behind it: read against blocks/slstm",
    ),
    "spherical": MemorySpec(
        Spherical,
        "delta",
        "https://arxiv.org/abs/1612.00188",
        {
            "heads": "number of heads (out_size // head_size)",
            "head_size": "size of a head's vector (32)",
            "reflections": "reflections an input; two are a rotation (2)",
        },
        verified="fla, delta rule with beta 2 and no values",
    ),
    "ttt_linear": MemorySpec(
        TTTLinear,
        "delta",
        "https://arxiv.org/abs/2407.04620",
        _HEADS
        | {
            "batch_size": "steps whose gradients share one base (16)",
            "rate": "learning rate of the inner model (1.0)",
        },
        verified="ttt-lm-jax, TTTLinearBase without rotary embedding, whole layer; fla's chunk_ttt_linear_ref",
    ),
}


def names() -> tuple[str, ...]:
    """Return the names of all registered memory models, sorted."""
    return tuple(sorted(_ENTRIES))


def spec(name: str) -> MemorySpec:
    """Return what is known of a model. Raises `ValueError` with the close matches if the name is unknown."""
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

    **Arguments:**

    - `name`: one of `names()`.
    - `in_size`, `out_size`: sizes of an input and of an output.
    - `key`: for the initial parameters.
    - `method`: `"reference"` for `scan` as a plain loop over `step`, see `Reference`; by default the fast `scan`.
    - `options`: the model's own options, see `spec(name).options`.

    **Raises:** `ValueError` for an unknown name (with the close matches), an unknown method, an option that
    the model lacks, or a size or option out of range.
    """
    build = spec(name).build
    check_options(name, options)
    check_size("in_size", in_size)
    check_size("out_size", out_size)
    memory = build(in_size=in_size, out_size=out_size, key=key, **options)
    return Reference(memory) if is_reference(method) else memory


def register(name: str, new: MemorySpec) -> None:
    """Add a memory model, so that `make` and the configuration know it by name.

    **Raises:** `ValueError` if the name is taken or is not lower_snake_case.
    """
    if name in _ENTRIES:
        raise ValueError(f"memory {name!r} is registered already; choose another name")
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"a memory's name must be lower_snake_case, got {name!r}")
    _ENTRIES[name] = new
