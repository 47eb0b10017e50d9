"""Frame stacking: the last `window` inputs of the episode, concatenated.

Mnih et al. 2015, Human-level control through deep reinforcement learning, https://doi.org/10.1038/nature14236, with a
linear map before that makes frames small, and one after to `out_size`.

    u = W_u x
    y = W_y concat(u_{t - window + 1}, ..., u_t) + b,    u = 0 outside the episode

State: a ring of the last window - 1 frames u, [window - 1, frame_size]. Reset: the ring is emptied.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from memax_rl.memory.base import Memory
from memax_rl.memory.layers.weights import check_size, normal
from memax_rl.memory.layers.window import Ring, empty_ring
from memax_rl.ops import linear
from memax_rl.ops._checks import check_starts

State = Ring

# Columns of the matrix of frames in one product of `scan`: enough for it to be efficient. Frames larger than `_LARGE`
# are multiplied one by one, which takes less memory and time.
_COLUMNS, _LARGE = 512, 128


class FrameStack(Memory):
    """A linear map of the last few inputs, the classic of Atari.

    Exact within the window and blind beyond it: a baseline for tasks of short memory.

    Args:
        window: inputs seen, the present one included.
        frame_size: features kept of each input.
    """

    family: ClassVar[str] = "attention"
    paper: ClassVar[str] = "https://doi.org/10.1038/nature14236"
    verified: ClassVar[str] = "a stack of inputs and a linear layer by torch"

    in_size: int
    out_size: int
    window: int
    w_u: Float[Array, "in_size frame_size"]
    w_y: Float[Array, "window frame_size out_size"]
    b: Float[Array, " out_size"]

    def __init__(self, *, in_size: int, out_size: int, key: PRNGKeyArray, window: int = 16, frame_size: int = 16):
        self.in_size, self.out_size = in_size, out_size
        self.window = check_size("window", window)
        check_size("frame_size", frame_size)
        key_u, key_y = jax.random.split(key)
        self.w_u = normal(key_u, in_size, frame_size)
        self.w_y = normal(key_y, window * frame_size, out_size).reshape(window, frame_size, out_size)
        self.b = jnp.zeros(out_size)

    def initial_state(self) -> State:
        return empty_ring(self.w_u, self.window - 1, self.w_u.shape[1])

    def step(
        self, state: State, x: Float[Array, " in_size"], start: Bool[Array, ""]
    ) -> tuple[State, Float[Array, " out_size"]]:
        state, frames = state.reset(start).push(linear(x, self.w_u))
        return state, linear(frames.reshape(-1), self.w_y.reshape(-1, self.out_size)) + self.b

    def scan(
        self, state: State, xs: Float[Array, "T in_size"], starts: Bool[Array, " T"]
    ) -> tuple[State, Float[Array, "T out_size"]]:
        """One matrix product over all steps for each group of lags; the frames are rematerialized in the gradient."""
        length = xs.shape[0]
        check_starts(starts, length)
        us = linear(xs, self.w_u)
        size = us.shape[1]
        group = 1 if size >= _LARGE else min(self.window, max(1, _COLUMNS // size))
        count = -(-self.window // group)
        missing = count * group - self.window
        # Lags that complete the last group have weight zero.
        weights = jnp.pad(self.w_y, ((missing, 0), (0, 0), (0, 0))).reshape(count, group * size, self.out_size)
        history = jnp.concatenate([jnp.zeros((missing, size), us.dtype), state.clear().rows, us])
        steps = jnp.arange(length)
        since = jax.lax.cummax(jnp.where(starts, steps, -state.count))

        @jax.checkpoint
        def add(ys, now):
            first, weight = now
            seen = jax.lax.dynamic_slice_in_dim(history, first, length + group - 1)
            # Column j of the group holds the frame first + j - (window - 1 + missing) steps from now.
            age = count * group - 1 - first
            columns = [jnp.where((age - j <= steps - since)[:, None], seen[j : j + length], 0) for j in range(group)]
            return ys + linear(jnp.concatenate(columns, axis=1), weight), None

        ys = jnp.broadcast_to(self.b.astype(jnp.result_type(self.b, history)), (length, self.out_size))
        ys, _ = jax.lax.scan(add, ys, (group * jnp.arange(count), weights))
        return state.extend(us, starts), ys
