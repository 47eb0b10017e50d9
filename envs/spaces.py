"""Action and observation spaces: gymnax's own, and MultiDiscrete, which gymnax lacks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from gymnax.environments.spaces import Box as Box
from gymnax.environments.spaces import Dict as Dict
from gymnax.environments.spaces import Discrete as Discrete
from gymnax.environments.spaces import Space as Space
from gymnax.environments.spaces import Tuple as Tuple
from jaxtyping import Array, Bool, Int, Int32, PRNGKeyArray


class MultiDiscrete(Space):
    """A vector of integers, component i in [0, nvec[i]).

    Attributes:
        nvec: The number of values of each component.
        shape: `(len(nvec),)`.
        dtype: int32.
    """

    def __init__(self, nvec: Sequence[int]):
        """Make the space.

        Args:
            nvec: The number of values of each component.

        Raises:
            ValueError: If `nvec` is empty or holds a number below 1.
        """
        if len(nvec) == 0 or min(nvec) < 1:
            raise ValueError(f"nvec: expected at least one number, each 1 or more, got {tuple(nvec)}")
        self.nvec = tuple(nvec)
        self.shape = (len(self.nvec),)
        self.dtype = jnp.dtype(jnp.int32)

    def __repr__(self) -> str:
        return f"MultiDiscrete({self.nvec})"

    def sample(self, key: PRNGKeyArray) -> Int32[Array, " components"]:
        """Draw every component uniformly and independently."""
        return jax.random.randint(key, self.shape, 0, jnp.array(self.nvec), self.dtype)

    def contains(self, x: Int[Array, " components"]) -> Bool[Array, ""]:
        """Whether every component is within its range."""
        return jnp.all((x >= 0) & (x < jnp.array(self.nvec)))


class NormalizedBox(Box):
    """A Box of real numbers that the network is to normalise by running statistics before it sees them.

    Attributes:
        clip: Normalised components are clipped to plus and minus this.
    """

    def __init__(self, box: Box, clip: float):
        """Mark a box."""
        super().__init__(box.low, box.high, box.shape, box.dtype)
        self.clip = clip


def describe(space: Space) -> str:
    """A space in a few words: `Discrete(4)`, `MultiDiscrete(3 x 104)`, `Box(2)`, `Tuple(Discrete(2), Discrete(4))`."""
    if isinstance(space, Tuple):
        return f"Tuple({', '.join(describe(part) for part in space.spaces)})"
    if isinstance(space, Dict):
        return f"Dict({', '.join(f'{name}: {describe(part)}' for name, part in space.spaces.items())})"
    if isinstance(space, Discrete):
        return f"Discrete({space.n})"
    if isinstance(space, MultiDiscrete):
        nvec = list(space.nvec)
        # The shortest part that the rest repeats, as the tile and the colour of every cell of a grid.
        period = next(n for n in range(1, len(nvec) + 1) if nvec == nvec[:n] * (len(nvec) // n))
        values = ", ".join(map(str, nvec if len(nvec) <= 2 else nvec[:period]))
        if len(nvec) > 2 and period < len(nvec):
            values = f"{values if period == 1 else f'({values})'} x {len(nvec) // period}"
        return f"MultiDiscrete({values})"
    if isinstance(space, Box):
        return f"Box({', '.join(map(str, space.shape))})"
    return repr(space)
