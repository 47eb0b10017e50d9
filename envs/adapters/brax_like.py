"""Environments with brax's interface: those of brax itself, of MuJoCo Playground, and one's own.

Freeman et al. 2021, "Brax: A Differentiable Physics Engine for Large Scale Rigid Body Simulation",
https://arxiv.org/abs/2106.13281. `reset(rng)` and `step(state, action)` return a state that holds `obs`, `reward` and
`done`, a float. The environments know no time limit: brax adds it by a wrapper, which this replaces; a step at the
limit that is not `done` is a truncation.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt32

from memax_rl.envs import spaces
from memax_rl.envs.adapters.package import Outcome, PackageEnvironment


class BraxAdapter(PackageEnvironment):
    """An environment with brax's interface. Actions are a Box from -1 to 1, as brax's own agents draw them.

    Attributes:
        limit: Steps after which an episode is truncated.
    """

    def __init__(self, env_id: str, inner: Any, limit: int):
        super().__init__(env_id, inner)
        self.limit = limit

    def action_space(self, params: Any) -> spaces.Box:
        """A Box of `action_size` numbers."""
        return spaces.Box(-1.0, 1.0, (int(self.inner.action_size),), jnp.float32)

    def observation_space(self, params: Any) -> Any:
        """An unbounded Box, or a Dict of them, as `obs` of a reset."""
        return _unbounded(self.first_shapes[0])

    def max_episode_steps(self, params: Any) -> int:
        """The time limit."""
        return self.limit

    def begin(self, key: UInt32[Array, " 2"], params: Any) -> tuple[Any, Any]:
        """The environment's reset."""
        state = self.inner.reset(key)
        return state.obs, state

    def advance(
        self, key: UInt32[Array, " 2"], state: Any, action: Any, time: Int32[Array, ""], params: Any
    ) -> Outcome:
        """The environment's transition; anything random is in its state."""
        after = self.inner.step(state, action)
        return Outcome(after.obs, after, after.reward, after.done > 0.5, time >= self.limit)


def _unbounded(shapes: Any) -> Any:
    if isinstance(shapes, Mapping):
        return spaces.Dict({name: _unbounded(part) for name, part in sorted(shapes.items())})
    return spaces.unbounded(shapes.shape, shapes.dtype)


def make(env_id: str, options: Mapping[str, Any]) -> BraxAdapter:
    """Make one of brax's environments; its options are `BraxOptions`."""
    from brax import envs  # pyright: ignore[reportMissingImports]

    arguments = dict(options["arguments"])
    if options["backend"] is not None:
        arguments["backend"] = options["backend"]
    return BraxAdapter(f"brax/{env_id}", envs.get_environment(env_id, **arguments), options["max_steps"])


def make_playground(env_id: str, options: Mapping[str, Any]) -> BraxAdapter:
    """Make one of MuJoCo Playground's environments; its options are `PlaygroundOptions`."""
    from mujoco_playground import dm_control_suite  # pyright: ignore[reportMissingImports]

    config = dm_control_suite.get_default_config(env_id)
    overrides = dict(options["config"])
    unknown = [name for name in overrides if name.split(".")[0] not in config]
    if unknown:
        raise ValueError(f"env_options.config: {env_id} has no {unknown[0]!r}; it has {', '.join(sorted(config))}")
    if "impl" in config:
        # Its other engine, Warp, is made for GPUs, and its states cannot be chosen between element by element.
        overrides = {"impl": "jax", **overrides}
    inner = dm_control_suite.load(env_id, config_overrides=overrides)
    limit = options["max_steps"] or int(config.episode_length)
    return BraxAdapter(f"mujoco_playground/{env_id}", inner, limit)
