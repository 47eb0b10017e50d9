"""Small environments with known answers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from memax_rl.envs import spaces


class ProbeState(eqx.Module):
    time: jax.Array
    length: jax.Array


class Probe:
    """Shows the step count and nothing else; reward 1 a step; episodes of a fixed or random length.

    `ending` says whether the last step terminates or truncates. After a truncation the first observation of the next
    episode differs from the final one, as it should in any test of bootstrapping.
    """

    def __init__(self, longest: int = 5, ending: str = "truncated", random: bool = False, constant: bool = False):
        self.longest, self.ending, self.random, self.constant = longest, ending, random, constant
        self.default_params = None

    def max_episode_steps(self, params: Any) -> int:
        return self.longest

    def fixed_length(self, params: Any) -> int | None:
        return None if self.random or self.ending == "truncated" else self.longest

    def truncates(self, params: Any) -> bool:
        return self.ending == "truncated"

    def observation_space(self, params: Any) -> spaces.Box:
        return spaces.Box(0.0, 100.0, (1,))

    def action_space(self, params: Any) -> spaces.Discrete:
        return spaces.Discrete(3)

    def _show(self, state: ProbeState) -> jax.Array:
        return jnp.ones(1) if self.constant else state.time[None].astype(jnp.float32)

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, ProbeState]:
        length = jax.random.randint(key, (), 1, self.longest + 1) if self.random else jnp.array(self.longest)
        state = ProbeState(jnp.array(0), length.astype(jnp.int32))
        return self._show(state), state

    def step(self, key, state, action, params=None):
        following = ProbeState(state.time + 1, state.length)
        done = following.time >= state.length
        obs, first = self.reset(key)
        final = self._show(following)
        after = jax.tree.map(lambda a, b: jnp.where(done, a, b), first, following)
        ended = done & (self.ending == "terminated"), done & (self.ending == "truncated")
        return jnp.where(done, obs, final), after, jnp.ones(()), *ended, {"final_observation": final}


class Recall(Probe):
    """Four steps; the first shows one of three cues, the action of the last must name it."""

    def __init__(self):
        super().__init__(longest=4, ending="terminated")

    def observation_space(self, params: Any) -> spaces.Discrete:
        return spaces.Discrete(4)

    def _show(self, state: ProbeState) -> jax.Array:
        return jnp.where(state.time == 0, state.length % 3, 3)

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, ProbeState]:
        state = ProbeState(jnp.array(0), jax.random.randint(key, (), 0, 3))
        return self._show(state), state

    def step(self, key, state, action, params=None):
        following = ProbeState(state.time + 1, state.length)
        done = following.time >= 4
        obs, first = self.reset(key)
        final = self._show(following)
        after = jax.tree.map(lambda a, b: jnp.where(done, a, b), first, following)
        reward = jnp.where(done & (action == state.length), 1.0, 0.0)
        return jnp.where(done, obs, final), after, reward, done, jnp.array(False), {"final_observation": final}


def run_updates(agent: Any, state: Any, n: int) -> tuple[Any, dict[str, jax.Array]]:
    """Return the state after n updates of an agent, and their metrics [n]."""
    arrays, static = eqx.partition(state, eqx.is_array)

    @jax.jit
    def many(arrays):
        def one(arrays, _):
            new, metrics = agent.update(eqx.combine(arrays, static))
            return eqx.filter(new, eqx.is_array), metrics

        return jax.lax.scan(one, arrays, None, n)

    arrays, metrics = many(arrays)
    return eqx.combine(arrays, static), metrics
