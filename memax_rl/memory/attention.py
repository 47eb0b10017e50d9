"""Softmax attention over a sliding window of the episode, without position encoding.

Vaswani et al. 2017, Attention Is All You Need, https://arxiv.org/abs/1706.03762, section 3.2, over the last
`window` steps as in Beltagy et al. 2020, Longformer, https://arxiv.org/abs/2004.05150, section 3.1.

    q, k, v = W_q x, W_k x, W_v x, split into heads
    p = softmax over the last `window` steps j of the episode of q . k_j / sqrt(head_size)
    y = W_o (sum_j p_j v_j)

State: rings of the last window - 1 keys and values, [window - 1, heads, head_size] each. Reset: the rings are
emptied.
"""

from typing import ClassVar

from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import check_size
from memax_rl.memory.layers.window import Heads, Ring, attend_scan, attend_step, empty_rings

State = tuple[Ring, Ring]


class Attention(Memory):
    """Multi-head softmax attention over a window, without position encoding.

    For exact recall of single steps within the window. Sees a set: the order of the steps in the window is lost.

    Args:
        window: steps seen, the present one included.
        heads: number of heads. None: out_size // head_size, at least 1.
        head_size: features of a head.
    """

    family: ClassVar[str] = "attention"
    paper: ClassVar[str] = "https://arxiv.org/abs/1706.03762"
    verified: ClassVar[str] = "torch's scaled_dot_product_attention"

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

    def initial_state(self) -> State:
        return empty_rings(self.heads, self.window)

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        return attend_step(self.heads, state, x, start)

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """All steps by `ops.window_attention`, one call a head."""
        return attend_scan(self.heads, state, xs, starts, self.window)
