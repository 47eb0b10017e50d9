"""Environments with Jumanji's interface: those of Jumanji itself, and one's own.

Bonnet et al. 2023, "Jumanji: a Diverse Suite of Scalable Reinforcement Learning Environments in JAX",
https://arxiv.org/abs/2306.09884. `reset(key)` and `step(state, action)` return a state and a time step as in dm_env:
an episode whose last step has a discount of 0 has ended by itself, with another discount it was cut.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, UInt32

from memax_rl.envs import spaces
from memax_rl.envs.adapters.package import Outcome, PackageEnvironment

# dm_env's number for the last step of an episode.
LAST = 2


class JumanjiAdapter(PackageEnvironment):
    """An environment with Jumanji's interface; an observation of several parts is a Dict.

    A part `action_mask` also says which actions are legal, but for masks of the combinations of several choices.
    """

    def __init__(self, env_id: str, inner: Any):
        super().__init__(env_id, inner)
        self._action_spec = _read(inner.action_spec)
        self._observation_space = to_space(_read(inner.observation_spec))
        self._action_space = _action_space(self._action_spec)

    def action_space(self, params: Any) -> Any:
        """The action spec as a space; an array of choices is flat."""
        return self._action_space

    def observation_space(self, params: Any) -> Any:
        """The observation spec as a space."""
        return self._observation_space

    def max_episode_steps(self, params: Any) -> int | None:
        """The attribute `time_limit`, where the environment has one."""
        limit = getattr(self.inner, "time_limit", None)
        return None if limit is None else int(limit)

    def legal_actions(self, observation: Any) -> Bool[Array, " actions"] | None:
        """The part `action_mask`, where it has an entry for each value of each choice."""
        mask = observation.get("action_mask") if isinstance(observation, Mapping) else None
        if mask is None or not isinstance(self._action_space, spaces.Discrete | spaces.MultiDiscrete):
            return None
        counts = spaces.value_counts(self._action_space)
        one_choice = len(counts) == 1 and mask.shape == counts
        # As many rows as choices. A mask of combinations has an axis for each choice instead.
        each_choice = mask.shape == (len(counts), counts[0]) != counts and len(set(counts)) == 1
        return jnp.asarray(mask, bool).reshape(-1) if one_choice or each_choice else None

    def begin(self, key: UInt32[Array, " 2"], params: Any) -> tuple[Any, Any]:
        """The environment's reset."""
        state, timestep = self.inner.reset(key)
        return as_dict(timestep.observation), state

    def advance(
        self, key: UInt32[Array, " 2"], state: Any, action: Any, time: Int32[Array, ""], params: Any
    ) -> Outcome:
        """The environment's transition; anything random is in its state."""
        after, timestep = self.inner.step(state, action.reshape(self._action_spec.shape))
        last, ends = timestep.step_type == LAST, timestep.discount == 0
        return Outcome(as_dict(timestep.observation), after, timestep.reward, last & ends, last & ~ends)


def _read(spec: Any) -> Any:
    """A spec, which is a property in newer versions and a method in older ones."""
    return spec() if callable(spec) else spec


def _action_space(spec: Any) -> Any:
    space = spaces.recognize(spec)
    values = getattr(spec, "num_values", None)
    if values is not None and jnp.ndim(values) > 0:
        return spaces.MultiDiscrete([int(n) for n in jnp.asarray(values).reshape(-1)])
    if isinstance(space, spaces.Box) and len(space.shape) > 1:
        raise ValueError(f"cannot act in {spec!r}; expected a Box of one axis")
    return space


def to_space(spec: Any) -> Any:
    """A spec as a space; one of several parts as a Dict, by the names of what it generates."""
    parts = _parts(spec.generate_value()) if hasattr(spec, "generate_value") else None
    if parts is None:
        return spaces.recognize(spec)
    return spaces.Dict({name: to_space(getattr(spec, name)) for name in sorted(parts)})


def as_dict(value: Any) -> Any:
    """Named tuples and dataclasses, to any depth, as dicts."""
    parts = _parts(value)
    return value if parts is None else {name: as_dict(part) for name, part in parts.items()}


def _parts(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    names = getattr(value, "_fields", None)
    if isinstance(value, tuple) and names is not None:
        return dict(zip(names, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def make(env_id: str, options: Mapping[str, Any]) -> JumanjiAdapter:
    """Make one of Jumanji's environments; its options are `JumanjiOptions`."""
    import jumanji  # pyright: ignore[reportMissingImports]

    return JumanjiAdapter(f"jumanji/{env_id}", jumanji.make(env_id, **options["arguments"]))
