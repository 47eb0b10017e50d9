"""The grid worlds of the package navix with the interface of `memax_rl.envs.base`.

Pignatelli et al. 2024, "NAVIX: Scaling MiniGrid Environments with JAX", https://arxiv.org/abs/2407.19396. The dynamics
are the package's. What changes: the bounds of symbolic views are those of MiniGrid's codes, where the package states 0
to 255 or to 8, so that they are read as things and not as brightness; the package's own automatic reset is left out.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt32

from memax_rl.envs import spaces
from memax_rl.envs.adapters.package import Outcome, PackageEnvironment

TRUNCATION, TERMINATION = 1, 2
# The largest code of a thing, a color, and a state or direction.
_CODES = (10, 5, 4)
# A locked door's state in some rooms: -2 in a byte. It is shown as the code that no other state has.
_WRAPPED, _LOCKED = 254, 4


class NavixAdapter(PackageEnvironment):
    """One of the package's environments.

    Attributes:
        view: The name of the package's observation function.
    """

    def __init__(self, env_id: str, inner: Any, view: str):
        super().__init__(env_id, inner)
        self.view = view

    def action_space(self, params: Any) -> Any:
        """The package's actions."""
        return spaces.recognize(self.inner.action_space)

    def observation_space(self, params: Any) -> Any:
        """The package's view, as codes or pixels."""
        space = self.inner.observation_space
        if self.view.startswith("symbolic"):
            high = jnp.broadcast_to(jnp.array(_CODES, space.dtype), space.shape)
            return spaces.Box(jnp.zeros_like(high), high, space.shape, space.dtype)
        return spaces.recognize(space)

    def max_episode_steps(self, params: Any) -> int:
        """The time limit."""
        return int(self.inner.max_steps)

    def begin(self, key: UInt32[Array, " 2"], params: Any) -> tuple[Any, Any]:
        """The package's reset."""
        timestep = self.inner.reset(key)
        return self._shown(timestep), self._kept(timestep)

    def advance(
        self, key: UInt32[Array, " 2"], state: Any, action: Any, time: Int32[Array, ""], params: Any
    ) -> Outcome:
        """The package's transition; its `step` would add its own automatic reset."""
        after = self.inner._step(state, action)
        ended = after.step_type == TERMINATION
        return Outcome(self._shown(after), self._kept(after), after.reward, ended, after.step_type == TRUNCATION)

    def _shown(self, timestep: Any) -> Array:
        """What the agent sees."""
        seen = timestep.observation
        return jnp.where(seen == _WRAPPED, _LOCKED, seen) if self.view.startswith("symbolic") else seen

    def _kept(self, timestep: Any) -> Any:
        """What the next transition reads: not the observation, and the images of the tiles only where they are seen."""
        state = timestep.state if self.view.startswith("rgb") else timestep.state.replace(cache=None)
        return timestep.replace(observation=jnp.zeros(()), state=state)


def make(env_id: str, options: Mapping[str, Any]) -> NavixAdapter:
    """Make one of the package's environments; its options are `NavixOptions`."""
    import navix  # pyright: ignore[reportMissingImports]

    arguments: dict[str, Any] = {"observation_fn": getattr(navix.observations, options["view"])}
    if options["max_steps"] is not None:
        arguments["max_steps"] = options["max_steps"]
    return NavixAdapter(f"navix/{env_id}", navix.make(env_id, **arguments), options["view"])
