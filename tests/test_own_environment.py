"""The Python blocks of docs/own_environment.md run as they stand, but for fewer steps."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from memax_rl import envs
from memax_rl.envs.registry import _OWN
from memax_rl.runs import Run

PAGE = (Path(__file__).parent.parent / "docs" / "own_environment.md").read_text()


@pytest.fixture(scope="module")
def page():
    """What the page's first block defines."""
    block, _ = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {}
    exec(compile(block, "own_environment.md", "exec"), names)
    yield names
    _OWN.pop("own/TMaze")


def test_the_maze_is_what_the_page_says(page):
    env, params = envs.make("own/TMaze")
    assert envs.max_episode_steps(env, params) == 50
    obs, state = env.reset(jax.random.key(3), params)
    sign = int(state.sign)
    assert obs.tolist() == [1 - sign, sign, 0]
    for step in range(10):
        obs, state, reward, terminated, _, _ = env.step(jax.random.key(step), state, jnp.int32(2), params)
        assert obs.tolist() == [0, 0, step == 9]
        assert (float(reward), bool(terminated)) == (0, False)
    for action, want in ((sign, 1.0), (1 - sign, -0.1)):
        _, _, reward, terminated, _, info = env.step(jax.random.key(0), state, jnp.int32(action), params)
        assert float(reward) == pytest.approx(want)
        assert bool(terminated)
        assert info["final_observation"].tolist() == [0, 0, 1]


def test_the_page_trains(page, tmp_path, monkeypatch):
    _, block = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    monkeypatch.chdir(tmp_path)
    fewer = 'total_steps=900, eval_episodes=0, ppo={"num_envs": 8}'
    for old, new in (("total_steps=200_000", fewer), ('("lru", "mlp")', '("mlp",)'), ("num_seeds=3", "num_seeds=1")):
        assert old in block
        block = block.replace(old, new)
    exec(compile(block, "own_environment.md", "exec"), dict(page))
    assert Run("runs/t-maze-mlp").metrics()[-1]["env_steps"] >= 900
