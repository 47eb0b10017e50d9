"""Endless T-maze: a cue must be remembered to the end of a corridor, and then be replaced by the next one.

After the memory-rewriting tasks of the same name: the T-maze of Bakker 2001, "Reinforcement Learning with Long
Short-Term Memory", corridor after corridor. It tests that a memory can be rewritten; it has no hidden task to adapt to.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.base import Environment, EnvParams

FORWARD, LEFT, RIGHT = 0, 1, 2


class EndlessTMazeState(eqx.Module):
    """Steps taken, corridors passed; place in this corridor, its length, and whether its cue says right."""

    time: Int32[Array, ""]
    passed: Int32[Array, ""]
    place: Int32[Array, ""]
    length: Int32[Array, ""]
    right: Bool[Array, ""]


class EndlessTMaze(Environment):
    """Walk down a corridor, turn as its cue said, and begin the next.

    Observation: Box(3), `[place / length, cue is left, cue is right]`, the cue at place 0 only. Actions: forward, left,
    right; a turn before the junction and a step forward at it do nothing. Reward: -0.01 a step, and 1 for the turn that
    the cue said; the other turn ends the episode, and so does the last of `corridors`. Truncated after
    6 (length + 1) corridors steps. With `random_length` each corridor has a length drawn from 1 to `length`.
    """

    def __init__(self, corridors: int, length: int, random_length: bool):
        for name, value in (("corridors", corridors), ("length", length)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.corridors, self.length, self.random_length = corridors, length, random_length

    @property
    def default_params(self) -> EnvParams:
        """The time limit."""
        return EnvParams(max_steps_in_episode=6 * (self.length + 1) * self.corridors)

    def max_episode_steps(self, params: EnvParams) -> int | None:
        """The time limit."""
        return int(params.max_steps_in_episode)

    def fixed_length(self, params: EnvParams) -> int | None:
        """None: a wrong turn ends the episode."""
        return None

    def action_space(self, params: EnvParams) -> spaces.Discrete:
        """Forward, left, right."""
        return spaces.Discrete(3)

    def observation_space(self, params: EnvParams) -> spaces.Box:
        """Place and cue."""
        return spaces.Box(0.0, 1.0, (3,), jnp.float32)

    def _corridor(self, key: PRNGKeyArray) -> tuple[Int32[Array, ""], Bool[Array, ""]]:
        """The length and cue of a new corridor, from one draw."""
        bits = jax.random.bits(key)
        longest = jnp.int32(self.length)
        length = 1 + (bits // 2 % jnp.uint32(self.length)).astype(jnp.int32) if self.random_length else longest
        return length, bits % 2 == 1

    def _observe(self, state: EndlessTMazeState) -> Float32[Array, "3"]:
        cued = state.place == 0
        parts = [state.place / state.length, cued & ~state.right, cued & state.right]
        return jnp.stack([jnp.asarray(part, jnp.float32) for part in parts])

    def reset_env(self, key: PRNGKeyArray, params: EnvParams) -> tuple[Float32[Array, "3"], EndlessTMazeState]:
        """Enter the first corridor."""
        zero = jnp.zeros((), jnp.int32)
        state = EndlessTMazeState(zero, zero, zero, *self._corridor(key))
        return self._observe(state), state

    def step_env(
        self, key: PRNGKeyArray, state: EndlessTMazeState, action: Int32[Array, ""], params: EnvParams
    ) -> tuple[Float32[Array, "3"], EndlessTMazeState, Float32[Array, ""], Bool[Array, ""], dict]:
        """Walk or turn."""
        at_junction = state.place == state.length
        turned = at_junction & (action != FORWARD)
        correct = turned & ((action == RIGHT) == state.right)
        passed = state.passed + correct
        length, right = self._corridor(key)
        place = jnp.minimum(state.place + (action == FORWARD), state.length)
        after = EndlessTMazeState(
            time=state.time + 1,
            passed=passed,
            place=jnp.where(correct, 0, place),
            length=jnp.where(correct, length, state.length),
            right=jnp.where(correct, right, state.right),
        )
        reward = correct.astype(jnp.float32) - jnp.float32(0.01)
        terminated = (turned & ~correct) | (passed >= self.corridors)
        return self._observe(after), after, reward, terminated, {}
