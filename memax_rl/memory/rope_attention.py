"""Softmax attention over a sliding window of the episode, with rotary position embedding.

Su et al. 2021, RoFormer, https://arxiv.org/abs/2104.09864, section 3.2.2.

    q, k, v = W_q x, W_k x, W_v x, split into heads
    p = softmax over the last `window` steps j of the episode of (R_t q_t) . (R_j k_j) / sqrt(head_size)
    y = W_o (sum_j p_j v_j)

R_t rotates the pair of features (i, i + head_size / 2) by the angle t 10000^(-2 i / head_size). The score depends on t
- j alone, so positions on the tape can replace those in the episode. Keys are stored before rotation. State: rings of
the last window - 1 keys and values, [window - 1, heads, head_size] each.
Reset: the rings are emptied.
"""

from typing import ClassVar

from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.rotary import turn
from memax_rl.memory.layers.weights import check_size
from memax_rl.memory.layers.window import Heads, Ring, attend_scan, attend_step, empty_rings

State = tuple[Ring, Ring]

_BASE = 10_000.0


def _turn(x: Float[Array, "T heads head_size"], first: int) -> Float[Array, "T heads head_size"]:
    return turn(x, first, _BASE)


class RopeAttention(Memory):
    """Multi-head softmax attention over a window, with rotary position embedding.

    For exact recall within the window, by content and by how many steps ago.

    Args:
        window: steps seen, the present one included.
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: features of a head.

    Raises:
        ValueError: If heads and sizes do not fit, or `head_size` is odd.
    """

    family: ClassVar[str] = "attention"
    paper: ClassVar[str] = "https://arxiv.org/abs/2104.09864"
    verified: ClassVar[str] = "torch's scaled_dot_product_attention with transformers' rotary embedding"

    in_size: int
    out_size: int
    window: int
    heads: Heads

    def __init__(
        self,
        *,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        window: int = 64,
        heads: int | None = None,
        head_size: int = 32,
    ):
        self.in_size, self.out_size = in_size, out_size
        self.window = check_size("window", window)
        self.heads = Heads(in_size, out_size, heads, head_size, key)
        if head_size % 2:
            raise ValueError(f"head_size must be even, because features turn in pairs, got {head_size}")

    def initial_state(self) -> State:
        return empty_rings(self.heads, self.window)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        return attend_step(self.heads, state, x, start, turn=_turn)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """All steps by `ops.window_attention`, one call a head."""
        return attend_scan(self.heads, state, xs, starts, self.window, turn=_turn)
