"""Whole-episode tapes against the two usual ways to replay for a recurrent Q-network.

    python benchmarks/replay.py --out docs/replay

- tapes: `memax_rl.rollout.replay`, a tape begins at an episode's start and holds whole histories.
- segments: every episode is cut into segments of `--segment` steps, the last one is padded; the memory starts empty at
  each (Hausknecht and Stone 2015, "random updates"; the segment replay that Morad et al. 2024 compare with).
- stored: windows anywhere in a stream, from the memory that the agent had there when it acted, after `--burn-in` slots
  that only warm the memory up (R2D2, Kapturowski et al. 2019).

All three share the agent: acting, targets, loss, optimizer, and how often they learn. A gradient step of each learns
from the same number of transitions on average (`tapes` has 127 in a row of 128 slots, the others have more rows). What
differs is the history that a transition is seen with, and how many slots have to be computed for it. Both baselines are
given the slot behind the last one, so that they bootstrap rightly, and no window is clipped.

Three seeds; every seed is evaluated greedily on fresh episodes. Seconds are those of training alone, without
compilation and evaluation.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from memax_rl import envs
from memax_rl.agents.dqn import DQN, DQNConfig
from memax_rl.envs.popgym.repeat import RepeatPrevious
from memax_rl.evaluation.episodes import play
from memax_rl.evaluation.figures import look, make_figure
from memax_rl.networks import NetworkConfig, QValues, make_q_network
from memax_rl.networks.encoder import AgentInput
from memax_rl.rollout import replay as replays
from memax_rl.rollout.replay import Replay, Sample
from memax_rl.rollout.tape import previous
from memax_rl.studies.plots import short

ENVS = {
    "RepeatFirstEasy": lambda: envs.make("popgym/RepeatFirstEasy"),
    "RepeatPreviousEasy": lambda: envs.make("popgym/RepeatPreviousEasy"),
    "RepeatPrevious, k = 10": lambda: _with_defaults(RepeatPrevious(decks=1, k=10)),
    "CountRecallEasy": lambda: envs.make("popgym/CountRecallEasy"),
}
LEVEL = 0.9


def _with_defaults(env: Any) -> tuple[Any, Any]:
    return env, env.default_params


class MarkedReplay(Replay):
    """A replay that also knows each slot's step in its episode, and the agent's memory before each update's first slot.

    `memory` holds one for each update that fits into the ring, [streams, updates, ...].
    """

    position: jax.Array
    memory: Any


class MarkedDQN(DQN):
    """DQN whose replay is marked, so that a sample may begin where no episode does."""

    def init(self, key):
        state = super().init(key)
        assert self.sizes.capacity % self.sizes.steps == 0, "an update's slots must come to lie together"
        kept = self.sizes.capacity // self.sizes.steps
        memory = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], kept, axis=1), state.streams.carry)
        fields = vars(state.replay) | {"position": jnp.zeros_like(state.replay.length), "memory": memory}
        return eqx.tree_at(lambda s: s.replay, state, MarkedReplay(**fields))

    def _collect(self, state, key):
        old, steps = state.replay, self.sizes.steps
        streams, new, replay, metrics = super()._collect(state, key)
        at = (old.count + jnp.arange(steps)) % self.sizes.capacity
        start = replay.tape.start[:, at]
        since = jax.lax.cummax(jnp.where(start, jnp.arange(steps)[None], -1), axis=1)
        open_before = state.streams.episode_length[:, None]
        position = jnp.arange(steps)[None] - jnp.where(since >= 0, since, -open_before)
        kept = self.sizes.capacity // steps
        memory = jax.tree.map(
            lambda ring, now: ring.at[:, old.count // steps % kept].set(now), old.memory, state.streams.carry
        )
        fields = vars(replay) | {"position": old.position.at[:, at].set(position), "memory": memory}
        return streams, new, MarkedReplay(**fields), metrics

    def _gather(self, replay: MarkedReplay, stream, first, slots: int):
        """Return `slots` slots from place `first` on, and where they lie."""
        index = (first[:, None] + jnp.arange(slots)[None]) % self.sizes.capacity
        return jax.tree.map(lambda leaf: leaf[stream[:, None], index], replay.tape), index

    def _sample_of(self, tape, stream, index) -> Sample:
        """Return a sample in which all valid slots weigh the same, 1 in all."""
        weight = jnp.where(tape.valid, 1 / jnp.maximum(jnp.sum(tape.valid), 1), 0)
        return Sample(tape, weight, jnp.ones_like(weight), stream, index)


class Segments(MarkedDQN):
    """Segments of an episode, padded, each with an empty memory."""

    segment: int = 32

    def rows(self) -> int:
        """Return so many rows that as many transitions are learned from as on the tapes."""
        (episode, segment) = (envs.fixed_length(self.env, self.env_params), self.segment)
        a_row = episode / -(-episode // segment)
        return round(self.config.batch_size * (self.sizes.slots - 1) / a_row)

    def slots(self) -> int:
        """Return the slots computed for a row: the segment and the one behind it."""
        return self.segment + 1

    def sample(self, replay, key):
        begins = replay.tape.valid & (replay.position % self.segment == 0)
        upto = jnp.cumsum(begins.astype(jnp.float32), axis=1)
        stream, first = replays.draw(key, upto, self.rows())
        tape, index = self._gather(replay, stream, first, self.segment + 1)
        # Up to the next episode, or to the pending slot.
        left = (replay.count - first)[:, None] % self.sizes.capacity
        slot = jnp.broadcast_to(jnp.arange(self.segment + 1)[None], index.shape)
        other = jnp.cumsum(tape.start.at[:, 0].set(False), axis=1) > 0
        inside = ~other & (slot <= left)
        valid = tape.valid & inside & ((slot < self.segment) & (slot < left))
        tape = eqx.tree_at(lambda t: (t.start, t.valid), tape, ((slot == 0) | ~inside, valid))
        return self._sample_of(tape, stream, index)


class StoredSample(Sample):
    """A sample with the memory, action and reward before its first slot."""

    memory: Any
    before: Any


class Stored(MarkedDQN):
    """Windows from stored memories, after a burn-in."""

    segment: int = 32
    burn_in: int = 16

    def rows(self) -> int:
        """Return so many rows that as many transitions are learned from as on the tapes."""
        return round(self.config.batch_size * (self.sizes.slots - 1) / self.segment)

    def slots(self) -> int:
        """Return the slots computed for a row: burn-in, window, and the one behind it."""
        return self.burn_in + self.segment + 1

    def sample(self, replay, key):
        steps, capacity = self.sizes.steps, self.sizes.capacity
        stream_key, first_key = jax.random.split(key)
        stream = jax.random.randint(stream_key, (self.rows(),), 0, self.config.num_envs)
        # Windows begin where memories are stored. They end at the pending slot at the latest, and the oldest slot is
        # left out, because the action before it is gone.
        last = (replay.count - self.slots() + 1) // steps
        oldest = -(-jnp.maximum(replay.count - capacity + 2, 0) // steps)
        number = jax.random.randint(first_key, (self.rows(),), oldest, jnp.maximum(last, oldest) + 1)
        first = number * steps % capacity
        tape, index = self._gather(replay, stream, first, self.slots())
        slot = jnp.broadcast_to(jnp.arange(self.slots())[None], index.shape)
        valid = tape.valid & (slot >= self.burn_in) & (slot < self.slots() - 1)
        sample = self._sample_of(eqx.tree_at(lambda t: t.valid, tape, valid), stream, index)
        kept = capacity // steps
        memory = jax.tree.map(lambda leaf: leaf[stream, number % kept], replay.memory)
        place = (first - 1) % capacity
        before = replay.tape.action[stream, place], replay.tape.reward[stream, place]
        return StoredSample(**vars(sample), memory=memory, before=before)

    def unroll(self, network, sample):
        tape = sample.tape
        action, reward = jax.vmap(previous)((tape.action, tape.reward), tape.start, sample.before)
        inputs = AgentInput(tape.observation, action, reward, tape.start, tape.action_mask)
        first, rest = (jax.tree.map(lambda leaf, part=part: leaf[:, part], inputs) for part in self._parts())
        memory, q = network.scan(sample.memory, first)
        # The burn-in makes a memory and no gradient.
        memory = jax.lax.stop_gradient(memory)
        _, later = network.scan(memory, rest)
        return QValues(q.space, jnp.concatenate([jax.lax.stop_gradient(q.raw), later.raw], axis=1))

    def _parts(self) -> tuple[slice, slice]:
        return slice(0, self.burn_in), slice(self.burn_in, None)


METHODS = {"tapes": DQN, "segments": Segments, "stored": Stored}


def make_agent(method: str, env: Any, env_params: Any, arguments: argparse.Namespace) -> DQN:
    """Return the agent of a method on an environment."""
    config = DQNConfig(
        num_envs=16,
        batch_size=16,
        tape_length=128,
        samples_per_insert=4.0,
        buffer_size=16 * 32 * 128,
        gamma=0.5,
        q_lambda=None,
        target_update_period=100,
    )
    sizes = NetworkConfig(memory=arguments.memory)
    network = partial(_network, sizes)
    agent = METHODS[method](env, env_params, network, config, arguments.total_steps)
    if isinstance(agent, Segments | Stored):
        agent.segment = arguments.segment
    if isinstance(agent, Stored):
        agent.burn_in = arguments.burn_in
    return agent


def _network(sizes, observation_space, action_space, key):
    return make_q_network(sizes, observation_space, action_space, dueling=True, key=key)


def curve(agent: DQN, seed: int, total_steps: int, points: int, episodes: int) -> np.ndarray:
    """Train one seed; return [points, 3]: environment steps, seconds of training, greedy return on fresh episodes."""
    state = eqx.filter_jit(agent.init)(jax.random.key(seed))
    arrays, static = eqx.partition(state, eqx.is_array)
    updates = max(1, round(total_steps / points / (agent.sizes.steps * agent.config.num_envs)))

    @partial(jax.jit, donate_argnums=0)
    def many(arrays):
        def one(_, arrays):
            return eqx.filter(agent.update(eqx.combine(arrays, static))[0], eqx.is_array)

        return jax.lax.fori_loop(0, updates, one, arrays)

    @jax.jit
    def evaluate(arrays, key):
        network = eqx.combine(arrays, static).network
        act, carry = agent.act(network, greedy=True), network.initial_state()
        horizon = agent.env.max_episode_steps(agent.env_params) + 1
        return jnp.mean(play(agent.env, agent.env_params, act, carry, key, episodes=episodes, max_steps=horizon)[0])

    many = many.lower(arrays).compile()
    rows, seconds = [], 0.0
    for point in range(points):
        start = time.perf_counter()
        arrays = jax.block_until_ready(many(arrays))
        seconds += time.perf_counter() - start
        score = float(evaluate(arrays, jax.random.fold_in(jax.random.key(seed + 1000), point)))
        rows.append((float(arrays.env_steps.to_numpy()), seconds, score))
    return np.array(rows)


def reached(values: np.ndarray, scores: np.ndarray) -> str:
    """Return where each seed's score first passes the level."""
    passed = scores >= LEVEL
    return ", ".join(f"{v[p.argmax()]:,.0f}" if p.any() else "never" for v, p in zip(values, passed, strict=True))


def main() -> None:
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=list(ENVS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--memory", default="lru")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--total-steps", type=int, default=300_000)
    parser.add_argument("--points", type=int, default=20, help="evaluations along a run")
    parser.add_argument("--episodes", type=int, default=64, help="fresh episodes an evaluation")
    parser.add_argument("--segment", type=int, default=32, help="steps of a segment, and of a window after its burn-in")
    parser.add_argument("--burn-in", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the picture to this path, with .png added")
    arguments = parser.parse_args()
    curves = {}
    to = f"steps to {LEVEL} | seconds to {LEVEL}"
    print(f"| environment | replay | slots computed | last return, each seed | {to} | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.envs:
        env, env_params = ENVS[name]()
        for method in arguments.methods:
            agent = make_agent(method, env, env_params, arguments)
            slots = agent.rows() * agent.slots() if isinstance(agent, Segments | Stored) else 16 * 128
            all_seeds = np.stack(
                [
                    curve(agent, seed, arguments.total_steps, arguments.points, arguments.episodes)
                    for seed in range(arguments.seeds)
                ]
            )
            steps, seconds, scores = np.moveaxis(all_seeds, 2, 0)
            last = ", ".join(f"{s:.3f}" for s in scores[:, -1])
            when = f"{reached(steps, scores)} | {reached(seconds, scores)} | {seconds[:, -1].mean():.0f}"
            print(f"| {name} | {method} | {slots:,} | {last} | {when} |", flush=True)
            curves[name, method] = steps.mean(axis=0), seconds.mean(axis=0), scores
    if arguments.out:
        draw(curves, arguments)


def draw(curves: dict, arguments: argparse.Namespace) -> None:
    """Draw return against steps, a panel for each environment."""
    from matplotlib.lines import Line2D

    styles = {}
    for place, method in enumerate(arguments.methods):
        color, _, marker = look(place)
        styles[method] = {"color": color, "linestyle": ("-", "--", ":")[place % 3], "marker": marker, "markersize": 3}
    legend = [Line2D([], [], label=method, **style) for method, style in styles.items()]
    caption = (
        f"Greedy return on {arguments.episodes} fresh episodes: mean over {arguments.seeds} seeds, and their range. "
        f"Memory: {arguments.memory}."
    )
    figure, axes = make_figure(len(arguments.envs), "Three ways to replay", legend, caption)
    for axis, env in zip(axes, arguments.envs, strict=True):
        for method, style in styles.items():
            steps, _, scores = curves[env, method]
            axis.plot(steps, scores.mean(axis=0), markevery=4, **style)
            low, high = scores.min(axis=0), scores.max(axis=0)
            axis.fill_between(steps, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axis.set_title(env, fontsize=8, loc="left")
        axis.set_xlabel("environment steps")
        axis.xaxis.set_major_formatter(lambda value, _: short(value))
        axis.locator_params(axis="x", nbins=3)
    axes[0].set_ylabel("greedy return")
    figure.savefig(arguments.out.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
