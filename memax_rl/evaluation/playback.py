"""Episodes of a trained agent to look at: every step as a line of JSON, and a video where the environment renders."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import gymnasium
import jax
import numpy as np

from memax_rl.agents.acting import plays_greedily
from memax_rl.envs.adapters.gymnasium import GymnasiumAdapter
from memax_rl.envs.base import EnvironmentFailure, close, failure
from memax_rl.envs.wrappers import layers
from memax_rl.networks import to_environment
from memax_rl.precision import products_in
from memax_rl.rollout.streams import RolloutState, seed_key, start_stream, step_stream
from memax_rl.runs.build import load_agent, make_environment
from memax_rl.runs.config import TrainConfig
from memax_rl.runs.files import json_text, write_atomically
from memax_rl.runs.run import Checkpoint, Run

# Where no time limit is known, as in evaluation.
_LONGEST = 10_000
# Larger arrays of an observation are written as their shape.
_MOST_NUMBERS = 256
_FRAMES_A_SECOND = 30
# What a program makes and keeps: more frames would fill the memory.
_MOST_FRAMES = 20_000


class Frames(gymnasium.Wrapper):
    """Keeps what an environment renders, after every reset and step.

    Attributes:
        frames: The pictures so far, [height, width, 3] each.
        problem: Why it does not render, or None.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.frames: list[np.ndarray] = []
        self.problem: str | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, and keep its first picture."""
        result = self.env.reset(seed=seed, options=options)
        self._keep()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step, and keep the picture after it."""
        result = self.env.step(action)
        self._keep()
        return result

    def _keep(self) -> None:
        if self.problem is not None or len(self.frames) >= _MOST_FRAMES:
            return
        try:
            frame = np.asarray(self.env.render())
        except Exception as error:
            # An environment that cannot be looked at can be played all the same.
            self.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return
        if frame.ndim == 3 and frame.shape[2] == 3:
            self.frames.append(frame.astype(np.uint8))
        else:
            self.problem = f"it rendered an array of shape {list(frame.shape)}, expected [height, width, 3]"


def play_episodes(
    folder: str | Path,
    *,
    episodes: int = 3,
    greedy: bool | None = None,
    seed: int | None = None,
    trained_seed: int | None = None,
    checkpoint: Checkpoint = "newest",
    imports: Iterable[str] = (),
    trust: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[np.ndarray]]:
    """Play episodes one after the other.

    Args:
        folder, episodes, greedy, seed, checkpoint, imports, trust: As for `evaluate`.
        trained_seed: Which of the run's seeds plays; by default the first that did not diverge.

    Returns:
        What was played: returns, lengths, and in "rendering" why there are no pictures, or None; every step; and the
        pictures.

    Raises:
        RunError: If the folder is no run or has no sound checkpoint.
        ValueError: If an argument is wrong.
        EnvironmentFailure: If an environment on the host fails.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    run = Run.open(folder, imports, trust)
    agent, networks, seeds = load_agent(run, checkpoint)
    close(agent.env)
    chosen = seeds[0] if trained_seed is None else trained_seed
    if chosen not in seeds:
        raise ValueError(f"trained_seed={chosen}, but the run {folder} has trained {', '.join(map(str, seeds))}")
    config = run.config()
    network = jax.tree.map(lambda leaf: leaf[seeds.index(chosen)] if eqx.is_array(leaf) else leaf, networks)
    is_greedy = plays_greedily(agent, greedy)
    with run.trusted():
        env, params, shown = _make_to_look_at(config)
    try:
        act = agent.act(network, is_greedy)
        key = jax.random.fold_in(seed_key(config.seed if seed is None else seed), 2**31)
        with products_in(config.precision):
            steps, ended = _play(env, params, act, network.initial_state(), key, episodes)
        pictures = [frame for copy in shown for frame in copy.frames]
        # The last one is of the episode that would follow.
        pictures = pictures[:-1] if ended == episodes else pictures
        problem = next((copy.problem for copy in shown if copy.problem), None if shown else _NOT_ON_HOST)
    finally:
        close(env)
    result = {
        "env": config.env,
        "memory": config.network.memory,
        "policy": "greedy" if is_greedy else "sampled",
        "trained_seed": chosen,
        **_count(steps, episodes),
        "unfinished_episodes": episodes - ended,
        "rendering": None if pictures else problem,
    }
    return result, steps, pictures


def _count(steps: list[dict[str, Any]], episodes: int) -> dict[str, Any]:
    """Return return and length of each episode."""
    of_each = [[step["reward"] for step in steps if step["episode"] == i] for i in range(episodes)]
    return {"returns": [sum(rewards) for rewards in of_each], "lengths": [len(rewards) for rewards in of_each]}


_NOT_ON_HOST = "the environment has no render mode 'rgb_array'"


def _make_to_look_at(config: TrainConfig) -> tuple[Any, Any, list[Frames]]:
    """Return the environment in this process, its parameters, and its copies as they are made, where it renders."""
    env, params = make_environment(config)
    bare = layers(env)[0]
    if not isinstance(bare, GymnasiumAdapter):
        return env, params, []
    one = bare.host.maker()
    modes = one.metadata.get("render_modes") or ()
    one.close()
    close(env)
    arguments = dict(config.env_options["arguments"]) | ({"render_mode": "rgb_array"} if "rgb_array" in modes else {})
    options = config.env_options | {"processes": 0, "arguments": arguments}
    # For processes alone.
    options.pop("step_timeout")
    env, params = make_environment(config.model_copy(update={"env_options": options}))
    host, shown = layers(env)[0].host, []
    if "rgb_array" in modes:
        make = host.maker

        def make_and_look() -> Frames:
            shown.append(Frames(make()))
            return shown[-1]

        host.maker = make_and_look
    return env, params, shown


def _play(env: Any, params: Any, act: Any, carry: Any, key: Any, episodes: int) -> tuple[list[dict[str, Any]], int]:
    """Return every step of the episodes, and how many of them ended."""
    start_key, key = jax.random.split(key)
    space = env.action_space(params)

    @jax.jit
    def step(stream: RolloutState, key: Any) -> Any:
        stream, slot, _ = step_stream(env, params, act, stream, jax.random.split(key))
        return stream, slot, to_environment(space, slot.action)

    stream = jax.jit(lambda k: start_stream(env, params, carry, k))(start_key)
    steps: list[dict[str, Any]] = []
    ended, t = 0, 0
    longest = env.max_episode_steps(params)
    most = _LONGEST if longest is None else longest + 1
    while ended < episodes and t < most:
        key, step_key = jax.random.split(key)
        stream, slot, action = step(stream, step_key)
        if (failed := failure(env)) is not None:
            raise EnvironmentFailure(failed)
        if not slot.valid:
            # The final observation of a truncated episode, on which there is nothing to do.
            continue
        steps.append(
            {
                "episode": ended,
                "step": t,
                "observation": jax.tree.map(_plain, slot.observation),
                "action": _plain(action),
                "reward": float(slot.reward),
                "terminated": bool(slot.terminated),
                "truncated": bool(slot.truncated),
            }
        )
        t += 1
        if slot.terminated or slot.truncated:
            ended, t = ended + 1, 0
    return steps, ended


def _plain(x: Any) -> Any:
    array = np.asarray(x)
    if array.size > _MOST_NUMBERS:
        return {"shape": list(array.shape), "dtype": array.dtype.name}
    if array.dtype == np.float32:
        # The shortest decimals that are the same numbers in float32, instead of 17 digits.
        return np.array([float(str(x)) for x in array.reshape(-1)]).reshape(array.shape).tolist()
    return array.tolist()


def write_playback(
    result: dict[str, Any], steps: list[dict[str, Any]], pictures: list[np.ndarray], folder: Path
) -> list[Path]:
    """Write play.jsonl, a line a step, and where there are pictures play.mp4, or play.gif without imageio.

    Returns:
        The files.
    """
    log = folder / "play.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(log, "".join(json_text(step, indent=None) for step in steps))
    if not pictures:
        return [log]
    video, suffix = _encode(pictures)
    path = folder / f"play.{suffix}"
    write_atomically(path, video)
    return [log, path]


def _encode(pictures: list[np.ndarray]) -> tuple[bytes, str]:
    """Return a video, and the suffix of its kind."""
    # Encoders of video want even sides, and all pictures of one size.
    height, width = (n - n % 2 for n in pictures[0].shape[:2])
    frames = [frame[:height, :width] for frame in pictures if frame.shape == pictures[0].shape]
    try:
        import imageio.v3 as imageio  # pyright: ignore[reportMissingImports]

        return imageio.imwrite("<bytes>", np.stack(frames), extension=".mp4", fps=_FRAMES_A_SECOND, codec="h264"), "mp4"
    except (ImportError, OSError, ValueError):
        # Neither imageio nor a plugin of its that encodes.
        return _encode_gif(frames), "gif"


def _encode_gif(frames: list[np.ndarray]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    first, *others = (Image.fromarray(frame) for frame in frames)
    # A GIF counts hundredths of a second.
    first.save(buffer, "gif", save_all=True, append_images=others, duration=1000 // _FRAMES_A_SECOND, loop=0)
    return buffer.getvalue()


def print_playback(result: dict[str, Any]) -> None:
    """Print return and length of each episode."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{result['env']}, {result['memory']}, {result['policy']} actions, seed {result['trained_seed']}"
    )
    for column in ("episode", "return", "steps"):
        table.add_column(column, justify="right")
    for i, (total, length) in enumerate(zip(result["returns"], result["lengths"], strict=True)):
        table.add_row(str(i), f"{total:.3f}", str(length))
    notes = [f"no video: {result['rendering']}"] if result["rendering"] else []
    if result["unfinished_episodes"]:
        notes.append(f"{result['unfinished_episodes']} did not end")
    table.caption = "; ".join(notes) or None
    Console().print(table)
