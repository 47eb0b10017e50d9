"""Small environments with the interfaces of brax, of Jumanji, and of gymnax before its version 1.0.

Each shows the steps of the episode so far and a number that its reset draws; each step pays 1.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct

RESETS: list[int] = []


def _count_reset(key):
    """Draw the number of an episode, and note on the host that a reset was computed."""
    jax.debug.callback(lambda: RESETS.append(1))
    return jax.random.uniform(jax.random.wrap_key_data(key), (), minval=1.0, maxval=2.0)


# brax


@struct.dataclass
class BraxState:
    pipeline_state: Any
    obs: Any
    reward: jax.Array
    done: jax.Array
    metrics: dict[str, jax.Array]
    info: dict[str, Any]


class Brax:
    """Falls over after `falls` steps; the time limit is `episode_length`."""

    def __init__(self, falls: int = 3, episode_length: int = 1000, dict_observation: bool = False):
        self.falls, self.episode_length, self.dict_observation = falls, episode_length, dict_observation

    @property
    def observation_size(self):
        return 2

    @property
    def action_size(self):
        return 1

    def _show(self, number, time):
        obs = jnp.stack([number, time])
        return {"state": obs, "flag": time > 1} if self.dict_observation else obs

    def reset(self, rng):
        number, zero = _count_reset(rng), jnp.zeros(())
        return BraxState((number, zero), self._show(number, zero), zero, zero, {"pushed": zero}, {"rng": rng})

    def step(self, state, action):
        number, time = state.pipeline_state
        # brax's environments write into the dicts of the state that they are given.
        state.metrics.update(pushed=action[0])
        state.info["rng"] = jax.random.split(state.info["rng"])[0]
        time = time + 1
        done = jnp.where(time >= self.falls, 1.0, 0.0)
        # An int where the reset has a float, as some have.
        return state.replace(pipeline_state=(number, time), obs=self._show(number, time), reward=1, done=done)


# Jumanji


class Spec:
    """A simple spec, with the attributes of Jumanji's."""

    def __init__(self, shape, dtype, **attributes):
        self.shape, self.dtype = shape, jnp.dtype(dtype)
        self.__dict__.update(attributes)

    def generate_value(self):
        return jnp.zeros(self.shape, self.dtype)


class Nested:
    """A spec of several parts."""

    def __init__(self, constructor, **parts):
        self.constructor, self.parts = constructor, parts
        self.__dict__.update(parts)

    def generate_value(self):
        return self.constructor(**{name: part.generate_value() for name, part in self.parts.items()})


class Place(NamedTuple):
    row: jax.Array
    col: jax.Array


@chex.dataclass
class Seen:
    number: jax.Array
    place: Place
    step_count: jax.Array


class DmTimeStep(NamedTuple):
    step_type: jax.Array
    reward: jax.Array
    discount: jax.Array
    observation: Any


class Jumanji:
    """Ends after `length` steps, with this discount; its action is two choices of a grid of 2 x 1."""

    def __init__(self, length: int = 3, discount: float = 0.0, rewards: int = 0):
        self.length, self.discount, self.time_limit = length, discount, 5
        self.shape = (rewards,) if rewards else ()

    @property
    def observation_spec(self):
        cell = Spec((), jnp.int32, minimum=0, maximum=4)
        return Nested(
            Seen,
            number=Spec((), jnp.float32),
            place=Nested(Place, row=cell, col=cell),
            step_count=Spec((), jnp.int32),
        )

    @property
    def action_spec(self):
        return Spec((2, 1), jnp.int32, num_values=jnp.array([[3], [4]]), minimum=0, maximum=jnp.array([[2], [3]]))

    def _show(self, step_type, discount, state):
        number, time, row = state
        seen = Seen(number=number, place=Place(row=row, col=jnp.int32(0)), step_count=time)
        return state, DmTimeStep(jnp.int8(step_type), jnp.ones(self.shape), jnp.asarray(discount, jnp.float32), seen)

    def reset(self, key):
        return self._show(0, 1.0, (_count_reset(key), jnp.int32(0), jnp.int32(0)))

    def step(self, state, action):
        assert action.shape == (2, 1)
        number, time, _ = state
        last = time + 1 >= self.length
        return self._show(
            jnp.where(last, 2, 1), jnp.where(last, self.discount, 1.0), (number, time + 1, action[0, 0] + action[1, 0])
        )


@chex.dataclass
class SeenWithMask:
    number: jax.Array
    step_count: jax.Array
    action_mask: jax.Array


class Masked(Jumanji):
    """Of `choices` choices of three, the one of the step's number is illegal. `joint`: a mask of combinations."""

    def __init__(self, choices: int = 1, joint: bool = False):
        super().__init__(length=4)
        self.choices = choices
        self.mask_shape = (3,) * choices if joint or choices == 1 else (choices, 3)

    @property
    def observation_spec(self):
        mask = Spec(self.mask_shape, bool, minimum=False, maximum=True)
        return Nested(
            SeenWithMask,
            number=Spec((), jnp.float32),
            step_count=Spec((), jnp.int32),
            action_mask=mask,
        )

    @property
    def action_spec(self):
        values = 3 if self.choices == 1 else jnp.full(self.choices, 3)
        return Spec(() if self.choices == 1 else (self.choices,), jnp.int32, num_values=values, minimum=0, maximum=2)

    def _show(self, step_type, discount, state):
        number, time = state
        seen = SeenWithMask(
            number=number,
            step_count=time,
            action_mask=jnp.broadcast_to(jnp.arange(3) != time % 3, self.mask_shape),
        )
        return state, DmTimeStep(jnp.int8(step_type), jnp.ones(()), jnp.asarray(discount, jnp.float32), seen)

    def reset(self, key):
        return self._show(0, 1.0, (_count_reset(key), jnp.int32(0)))

    def step(self, state, action):
        last = state[1] + 1 >= self.length
        return self._show(jnp.where(last, 2, 1), jnp.where(last, 0.0, 1.0), (state[0], state[1] + 1))


# gymnax before 1.0


class Box:
    """A space that only looks like one."""

    def __init__(self, shape):
        self.low, self.high, self.shape, self.dtype = 0.0, 100.0, shape, jnp.float32


class Discrete:
    def __init__(self, n):
        self.n = n

    def sample(self, key):
        return jax.random.randint(key, (), 0, self.n)


@struct.dataclass
class LegacyParams:
    max_steps_in_episode: int = 4
    goal: int = 100


class Legacy:
    """Ends at `goal` steps, and at the time limit: `done` does not tell which."""

    def __init__(self, goal: int = 100, says: bool = False):
        self.goal, self.says = goal, says

    @property
    def default_params(self):
        return LegacyParams(goal=self.goal)

    def observation_space(self, params):
        return Box((2,))

    def action_space(self, params):
        return Discrete(3)

    def reset_env(self, key, params):
        state = (_count_reset(key), jnp.int32(0))
        return jnp.stack([state[0], 0.0]), state

    def step_env(self, key, state, action, params):
        number, time = state[0], state[1] + 1
        info = {"truncated": time >= params.max_steps_in_episode} if self.says else {"discount": 0.0}
        state = (number, time)
        return jnp.stack([number, time]), state, 1, self.is_terminal(state, params), info

    def is_terminal(self, state, params):
        return (state[1] >= params.goal) | (state[1] >= params.max_steps_in_episode)

    def step(self, key, state, action, params):
        """As the package steps, with its own automatic reset."""
        obs, after, reward, done, info = self.step_env(key, state, action, params)
        first = self.reset_env(key, params)
        obs, after = jax.tree.map(lambda a, b: jnp.where(done, a, b), first, (obs, after))
        return obs, after, reward, done, info


class HidesItsEnds:
    """Only `reset` and `step`, which resets by itself, so that the last observation of an episode is lost."""

    def reset(self, key, params):
        return jnp.zeros(2), jnp.zeros(())

    def step(self, key, state, action, params):
        return jnp.zeros(2), state, 0.0, False, {}
