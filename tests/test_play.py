"""`memax-rl play`: every step as a line, and pictures where the environment renders."""

import json
from typing import Any, ClassVar

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as host_spaces
from PIL import Image, ImageSequence

from memax_rl import envs
from memax_rl.cli import main
from memax_rl.evaluation.playback import play_episodes
from memax_rl.runs import Run
from memax_rl.training import train


class Lamp(gymnasium.Env):
    """Shows the step count; its picture is as bright as that. `broken`: it cannot be rendered after all."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, length: int = 6, render_mode: str | None = None, broken: bool = False):
        self.length, self.render_mode, self.broken = length, render_mode, broken
        self.observation_space = host_spaces.Box(0, 100, (1,), np.float32)
        self.action_space = host_spaces.Discrete(2, start=3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert action in (3, 4)
        self.time += 1
        return np.full(1, self.time, np.float32), 0.5, False, self.time >= self.length, {}

    def render(self) -> Any:
        if self.broken:
            raise RuntimeError("there is no lamp")
        return np.full((15, 20, 3), 40 * self.time, np.uint8)


def make_lamp(**arguments: Any) -> gymnasium.Env:
    return Lamp(**arguments)


gymnasium.register("memax_play/Lamp-v0", entry_point=make_lamp)
COMMON: dict[str, Any] = {
    "total_steps": 100,
    "eval_episodes": 0,
    "network": {"memory": "min_gru", "width": 4},
    "ppo": {"num_envs": 2, "rollout_length": 60, "update_epochs": 1, "num_minibatches": 1},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    lamp: dict[str, Any] = {"env": "gym/memax_play/Lamp-v0"}
    return {
        "lamp": train(out=folder / "lamp", **COMMON | lamp),
        "cards": train(out=folder / "cards", **COMMON),
    }


def lines(path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pictures_of_every_episode_end_with_its_last(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imageio.v3", None)
    assert main(["play", str(runs["lamp"].folder), "--episodes", "2", "--out", str(tmp_path / "out")]) == 0
    assert "play.gif" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "play.gif") as video:
        assert video.size == (20, 14)
        bright = []
        for frame in ImageSequence.Iterator(video):
            bright.append(round(np.asarray(frame.convert("RGB")).mean() / 40))
    # The last one is of the episode that would follow.
    assert bright == [*range(7), *range(7), 0]
    steps = lines(tmp_path / "out" / "play.jsonl")
    assert [step["observation"] for step in steps] == [[float(t)] for t in range(6)] * 2
    assert [step["truncated"] for step in steps] == ([False] * 5 + [True]) * 2
    assert {step["reward"] for step in steps} == {0.5}


def test_a_jax_environment_is_a_log_of_what_it_showed(runs, tmp_path):
    result, steps, pictures = play_episodes(runs["cards"].folder, episodes=3, seed=5, greedy=True)
    assert (pictures, result["unfinished_episodes"], result["policy"]) == ([], 0, "greedy")
    assert "rgb_array" in result["rendering"]
    assert result["lengths"] == [51] * 3
    again = play_episodes(runs["cards"].folder, episodes=3, seed=5, greedy=True)
    assert again[1] == steps
    # The card of four steps before, in the count that the environment pays for.
    env, params = envs.make("popgym/RepeatPreviousEasy")
    assert env.action_space(params).n == 4
    for episode in range(3):
        shown = [step["observation"] for step in steps if step["episode"] == episode]
        acts = [step["action"] for step in steps if step["episode"] == episode]
        paid = [step["reward"] for step in steps if step["episode"] == episode]
        right = [acts[t] == shown[t - 3] for t in range(4, 51)]
        assert [reward > 0 for reward in paid[4:]] == right or len(set(paid)) > 1
        assert result["returns"][episode] == pytest.approx(sum(paid))
    assert jnp.isfinite(jnp.array([step["reward"] for step in steps])).all()


def test_an_environment_that_fails_to_render_is_played(runs, tmp_path, capsys):
    broken: dict[str, Any] = {"env": "gym/memax_play/Lamp-v0", "env_options": {"arguments": {"broken": True}}}
    run = train(out=tmp_path / "run", **COMMON | broken)
    assert main(["play", str(run.folder), "--episodes", "1"]) == 0
    assert "there is no lamp" in " ".join(capsys.readouterr().out.split())
    assert len(lines(run.folder / "play.jsonl")) == 6
    assert not (run.folder / "play.gif").exists()


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    run = str(runs["cards"].folder)
    for arguments, says in (
        ([run, "--episodes", "0"], "episodes must be at least 1"),
        ([run, "--trained-seed", "4"], "trained_seed=4"),
        ([str(tmp_path)], "is not a run folder"),
    ):
        assert main(["play", *arguments, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
