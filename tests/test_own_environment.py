"""The pages on environments of one's own: their Python blocks and commands run as they stand, but for fewer steps."""

import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import envs
from memax_rl.cli import main
from memax_rl.envs.registry import _OWN
from memax_rl.envs.spaces import describe
from memax_rl.runs import Run

DOCS = Path(__file__).parent.parent / "docs"
# The page, and the module that its first block is saved as.
PAGES = {"own_environment": "tmaze", "own_gymnasium_environment": "beacon", "own_task_family": "locks"}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the modules of all pages, from which they can be imported."""
    folder = tmp_path_factory.mktemp("own")
    for page, module in PAGES.items():
        text = (DOCS / f"{page}.md").read_text()
        assert f"`{module}.py`" in text
        (folder / f"{module}.py").write_text(blocks(page, "python")[0])
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in _OWN if name.startswith("own/")]:
        _OWN.pop(name)
    for module in PAGES.values():
        sys.modules.pop(module, None)


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """Work in a new folder with the modules."""
    for module in PAGES.values():
        (tmp_path / f"{module}.py").write_text((folder / f"{module}.py").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page_run(page, here, capsys):
    for command in "".join(blocks(page, "sh")).splitlines():
        program, *arguments = shlex.split(command)
        assert program == "memax-rl"
        if arguments[0] == "study":
            first, last = arguments.index("--memory") + 1, arguments.index("--seeds")
            arguments[first : last + 2] = ["mlp", "--workers", "1"]
        if arguments[0] == "export":
            arguments[1] = arguments[1].replace("/lru/", "/mlp/")
        if arguments[0] in ("train", "study"):
            at = arguments.index("--total-steps") + 1
            assert arguments[at] in ("200k", "500k")
            arguments[at] = "600"
            arguments += ["--eval-episodes", "0", "--width", "8", "--ppo.num-envs", "8"]
        if arguments[0] in ("evaluate", "icl"):
            arguments += ["--episodes", "4"]
        if arguments[0] == "icl":
            arguments += ["--tasks", "4"]
        assert main(arguments) == 0, (command, capsys.readouterr().err)
    runs = sorted(path.name for path in (here / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        module = PAGES[page]
        assert main(["train", "--resume", f"runs/{run}", "--import", module]) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_script_of_the_page_runs(page, here, capsys):
    script = next(block for block in blocks(page, "python") if "memax_rl.train(" in block)
    fewer = "total_steps=600, eval_episodes=0"
    changed, count = re.subn(r"total_steps=[25]00_000", fewer, script)
    assert count == 1
    changed = changed.replace('("lru", "mlp")', '("mlp",)').replace("num_seeds=3", "num_seeds=1")
    exec(compile(changed, f"{page}.md", "exec"), {})
    assert capsys.readouterr().out.strip()
    (run,) = (here / "runs").iterdir()
    assert Run(run).metrics()[-1]["env_steps"] >= 600


def test_the_maze_is_what_the_page_says(folder):
    import tmaze  # noqa: F401  # pyright: ignore[reportMissingImports]

    env, params = envs.make("own/TMaze")
    assert envs.max_episode_steps(env, params) == 50
    assert envs.max_episode_steps(*envs.make("own/TMaze", length=3)) == 15
    obs, state = env.reset(jax.random.key(3), params)
    sign = int(state.sign)
    assert (int(obs["sign"]), float(obs["at_junction"][0])) == (sign, 0)
    for step in range(10):
        obs, state, reward, terminated, _, _ = env.step(jax.random.key(step), state, jnp.int32(2), params)
        assert (int(obs["sign"]), float(obs["at_junction"][0])) == (0, step == 9)
        assert (float(reward), bool(terminated)) == (0, False)
    for action, want in ((sign - 1, 1.0), (2 - sign, -0.1)):
        _, _, reward, terminated, _, info = env.step(jax.random.key(0), state, jnp.int32(action), params)
        assert float(reward) == pytest.approx(want)
        assert bool(terminated)
        assert float(info["final_observation"]["at_junction"][0]) == 1


def test_the_masked_maze_of_the_page_allows_turns_at_the_junction_only(folder):
    import tmaze  # pyright: ignore[reportMissingImports]

    (block,) = [block for block in blocks("own_environment", "python") if "action_mask" in block]
    exec(compile(block, "own_environment.md", "exec"), dict(vars(tmaze)))
    env, params = envs.make("own/MaskedTMaze", length=2)
    _, state = env.reset(jax.random.key(3), params)
    for step in range(3):
        turn = step == 2
        assert env.action_mask(state, params).tolist() == [turn, turn, not turn]
        _, state, *_ = env.step(jax.random.key(step), state, jnp.int32(2), params)


def test_the_locks_are_what_the_page_says(folder):
    import locks  # pyright: ignore[reportMissingImports]

    train, params = envs.make("own/Locks")
    test, _ = envs.make("own/Locks", split="test")
    assert describe(train.observation_space(params)) == "Dict(episode_start: Box(1), observation: Discrete(5))"
    assert (train.max_episode_steps(params), train.fixed_length(params)) == (16, 16)
    codes = [{tuple(code) for code in np.asarray(env.table).tolist()} for env in (train, test)]
    assert [len(part) for part in codes] == [65, 16]
    assert not codes[0] & codes[1]
    strategies = locks.Locks(locks.LockOptions()).strategies(4)
    assert list(strategies) == ["elimination", "oracle"]
