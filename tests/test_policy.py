"""A loaded policy: the same actions as evaluation, without the environment, and what it says about wrong arguments."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _fresh_runs import fresh_run
from gymnasium import spaces as host_spaces

import memax_rl
from memax_rl import agents, envs
from memax_rl.agents import registry
from memax_rl.agents.bc import BC
from memax_rl.agents.dqn import DQN
from memax_rl.agents.ppo import PPO
from memax_rl.agents.pqn import PQN
from memax_rl.agents.sac import SAC
from memax_rl.cli import main
from memax_rl.envs import spaces
from memax_rl.envs.plain_spaces import from_plain
from memax_rl.envs.wrappers import Spaces, wrap
from memax_rl.evaluation import LoadedPolicy, evaluate
from memax_rl.memory import registry as memories
from memax_rl.networks import NetworkConfig
from memax_rl.rollout.streams import seed_key, start_stream, step_stream
from memax_rl.runs import Run, RunError, make_config
from memax_rl.runs.build import load_agent
from memax_rl.runs.spaces_file import read_spaces, spaces_of
from memax_rl.training import train

EPISODES, STEPS = 4, 250


class Recorder(gymnasium.Env):
    """Shows noise in every kind of space, pays noise, and writes down what it was asked to do."""

    record: ClassVar[list[Any]] = []
    actions: ClassVar[dict[str, Any]] = {
        "discrete": host_spaces.Discrete(5, start=2),
        "box": host_spaces.Box(np.array([-3.0, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
        "many": host_spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]), start=np.array([[1, 0], [0, -3]])),
    }

    def __init__(self, length: int = 25, acts: str = "discrete", truncates: bool = True):
        self.length, self.truncates = length, truncates
        self.action_space = self.actions[acts]
        self.observation_space = host_spaces.Dict(
            {
                "sensor": host_spaces.Box(-np.inf, np.inf, (3,), np.float64),
                "cue": host_spaces.Discrete(3, start=5),
                "bits": host_spaces.MultiBinary((2, 2)),
                "pair": host_spaces.Tuple((host_spaces.Box(0, 255, (2,), np.uint8), host_spaces.Discrete(2))),
            }
        )

    def _look(self):
        draw = self.np_random
        return {
            "sensor": draw.normal(size=3),
            "cue": draw.integers(5, 8),
            "bits": draw.integers(0, 2, (2, 2)).astype(np.int8),
            "pair": (draw.integers(0, 256, 2).astype(np.uint8), draw.integers(0, 2)),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, shown = 0, self._look()
        self.steps = [[shown, 0.0, None]]
        Recorder.record.append(self.steps)
        return shown, {}

    def step(self, action):
        self.steps[-1][2] = action
        self.time += 1
        shown, reward, done = self._look(), float(self.np_random.normal()), self.time >= self.length
        self.steps.append([shown, reward, None])
        return shown, reward, done and not self.truncates, done and self.truncates, {}


def make_recorder(**arguments: Any) -> gymnasium.Env:
    return Recorder(**arguments)


gymnasium.register("memax_policy/Recorder-v0", entry_point=make_recorder)
NAME = "gym/memax_policy/Recorder-v0"
PPO_SETTINGS = {"num_envs": 4, "rollout_length": 52, "update_epochs": 1, "num_minibatches": 2}
DQN_SETTINGS = {"tape_length": 52}
RUNS: dict[str, dict[str, Any]] = {
    "ppo": {
        "network": {"memory": "gru", "width": 8, "separate_value": True, "normalize_observation": True},
        "ppo": PPO_SETTINGS,
    },
    "box": {
        "network": {"memory": "lru", "width": 8},
        "ppo": PPO_SETTINGS,
        "env_wrappers": [
            {"name": "select_keys", "keep": ["sensor", "cue"]},
            {"name": "reward_scaling", "scale": 0.25},
        ],
    },
    "joint": {
        "network": {"memory": "gru", "width": 8},
        "ppo": PPO_SETTINGS,
        "env_wrappers": [{"name": "joint_action"}, {"name": "reward_scaling", "scale": 0.25}],
    },
    "dqn": {"agent": "dqn", "network": {"memory": "min_gru", "width": 8}, "dqn": DQN_SETTINGS},
    "cartpole": {
        "env": "gymnax/CartPole-v1",
        "env_wrappers": [{"name": "time_limit", "steps": 50}, "position_only", {"name": "reward_scaling", "scale": 3}],
        "network": {"memory": "gru", "width": 8},
        "num_seeds": 2,
        "seed": 7,
    },
}


def arguments(kind: str, **changes: Any) -> dict[str, Any]:
    return {"acts": {"box": "box", "dqn": "many", "joint": "many"}.get(kind, "discrete"), **changes}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    folder, made = tmp_path_factory.mktemp("runs"), {}
    for kind, fields in RUNS.items():
        host = {} if "env" in fields else {"env": NAME, "env_options": {"arguments": arguments(kind)}}
        made[kind] = fresh_run(folder / kind, checkpoints=1 + (kind == "cartpole"), **host | fields)
    return made


# The same actions as in evaluation


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("kind", ["ppo", "box", "dqn", "joint"])
def test_a_thousand_steps_are_those_of_evaluate(kind, greedy, runs):
    Recorder.record = []
    options = {"arguments": arguments(kind, length=STEPS)}
    evaluate(runs[kind].folder, episodes=EPISODES, greedy=greedy, env_options=options)
    # Each copy has a second episode, begun when the first ended.
    episodes = [steps[:-1] for steps in Recorder.record if len(steps) == STEPS + 1]
    assert len(episodes) == EPISODES
    policy = memax_rl.load(runs[kind].folder, greedy=greedy, batch_size=EPISODES)
    for t in range(STEPS):
        shown, rewards, wanted = zip(*(episode[t] for episode in episodes), strict=True)
        batch = jax.tree.map(lambda *xs: np.stack(xs), *shown)
        actions = policy.step(batch, np.array(rewards) if t else None)
        assert actions.dtype == wanted[0].dtype
        if kind == "box":
            assert np.allclose(actions, np.stack(wanted), rtol=1e-5, atol=1e-5), t
        else:
            assert (actions == np.stack(wanted)).all(), t
    assert len(np.unique(np.stack([step[2] for step in episodes[0]]), axis=0)) > 1


def test_many_episodes_of_one_environment_are_those_of_the_stream(runs):
    """The policy of one environment against the function by which training and evaluation act, over its ends."""
    agent, networks, seeds = load_agent(runs["cartpole"])
    assert seeds == [7, 8]
    network = jax.tree.map(lambda leaf: leaf[1] if isinstance(leaf, jax.Array) else leaf, networks)
    env, params = agent.env, agent.env_params
    stream = start_stream(env, params, network.initial_state(), seed_key(0))
    keys = jax.random.split(seed_key(1), (1_100, 2))
    _, tape = jax.lax.scan(lambda stream, k: step_stream(env, params, agent.act(network), stream, k)[:2], stream, keys)
    policy = memax_rl.load(runs["cartpole"].folder, seed=8, wrapped=True)
    whole = memax_rl.load(runs["cartpole"].folder, seed=8)
    start, valid = np.asarray(tape.start), np.asarray(tape.valid)
    assert start.sum() > 20
    assert valid.sum() > 1_000
    assert not valid.all(), "final observations of truncated episodes have slots, which a policy is not shown"
    reward = None
    for t in np.flatnonzero(valid):
        seen = np.asarray(tape.observation[t])
        # The environment shows velocities too; the wrapper takes them away, and multiplies rewards by 3.
        inner = np.array([seen[0], 99.0, seen[1], 99.0])
        if start[t]:
            policy.reset()
        action = policy.step(seen, reward, key=keys[t, 0])
        assert whole.step(inner, None if reward is None else reward / 3, start=start[t], key=keys[t, 0]) == action
        assert action == tape.action[t], t
        reward = float(tape.reward[t])


def test_one_environment_acts_as_a_batch_of_one_and_keys_follow_the_seed(runs):
    folder = runs["cartpole"].folder
    one, batch, other = memax_rl.load(folder), memax_rl.load(folder, batch_size=1), memax_rl.load(folder, seed=8)
    shown = np.random.default_rng(0).normal(size=(60, 4))

    def play(policy):
        policy.reset(seed=3)
        rows = shown[:, None] if policy is batch else shown
        return [np.asarray(policy.step(x, np.ones(x.shape[:-1]))).item() for x in rows]

    first = play(one)
    assert play(batch) == first == play(one)
    assert play(other) != first
    one.reset(seed=4)
    assert [int(one.step(x, 1.0)) for x in shown] != first


def test_it_compiles_once_and_forgets_at_a_start(runs):
    policy = memax_rl.load(runs["ppo"].folder, batch_size=2, greedy=True)
    env = Recorder()
    env.reset(seed=0)
    batch = jax.tree.map(lambda *xs: np.stack(xs), env._look(), env._look())
    first = policy.step(batch)
    states = []
    for start in ([False, True], [True, False], [False, False]):
        policy.step(batch, np.full(2, 50.0), start=np.array(start))
        states.append(jax.tree.map(np.asarray, policy._state))
    compiled: Any = policy._compiled
    assert compiled._cache_size() == 1
    policy.reset()
    assert (policy.step(batch, np.full(2, -9.0)) == first).all()
    fresh = jax.tree.map(np.asarray, policy._state)
    for a, b, c in zip(*map(jax.tree.leaves, (states[0], states[1], fresh)), strict=True):
        assert np.array_equal(a[1], c[1]), "the second environment began an episode"
        assert np.array_equal(b[0], c[0])
    assert not all(np.array_equal(a[0], c[0]) for a, c in zip(*map(jax.tree.leaves, (states[0], fresh)), strict=True))


def test_wrappers_of_time_are_put_around_spaces_alone():
    """They ask whether there are action masks, of what has no episodes."""
    parts = {
        "image": spaces.Box(0, 255, (4, 4), jnp.uint8),
        "place": spaces.Box(-jnp.inf, jnp.array([1.0, 2.0]), (2,)),
        "sign": spaces.Tuple([spaces.Discrete(3), spaces.MultiDiscrete([2, 3])]),
    }
    bare = Spaces(spaces.Dict(parts), spaces.Discrete(4))
    chosen = [{"name": "frame_skip", "frames": 2}, {"name": "sticky_actions"}, {"name": "time_limit", "steps": 5}]
    env, params = wrap(bare, None, "a/b", make_config({"env_wrappers": chosen}).env_wrappers)
    assert env.action_space(params) is bare.action_space(None)


def test_the_checkpoint_is_chosen(runs):
    run = runs["cartpole"]
    first, *_, last = run.saved_updates()
    assert first < last

    def weights(**which: Any) -> Any:
        return [np.asarray(x) for x in memax_rl.load(run.folder, **which)._leaves]

    old, new = weights(checkpoint=first), weights()
    assert all(map(np.array_equal, weights(checkpoint=last), new))
    assert not all(map(np.array_equal, old, new))


# Without the environment


_ALONE = """
import sys
import numpy as np
import memax_rl
policy = memax_rl.load(sys.argv[1], greedy=True)
print([int(policy.step({"sensor": np.full(3, t), "cue": 6, "bits": np.eye(2, dtype=int), "pair": ([1, 2], 1)}, 0.5))
       for t in range(9)])
"""


@pytest.mark.slow
def test_it_acts_where_the_environment_is_not_known(runs):
    """In a process that never registered the environment; and an action in the environment's own count."""
    command = [sys.executable, "-c", _ALONE, str(runs["ppo"].folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    policy = memax_rl.load(runs["ppo"].folder, greedy=True)
    pair = (np.array([1, 2], np.uint8), 1)
    shown = {"cue": 6, "bits": np.eye(2, dtype=int), "pair": pair, "another": "is ignored"}
    wanted = [int(policy.step({**shown, "sensor": np.full(3, t)}, 0.5)) for t in range(9)]
    assert json.loads(done.stdout) == wanted
    assert set(wanted) <= {2, 3, 4, 5, 6}


def test_a_run_without_the_file_is_loaded_with_its_environment(runs, tmp_path):
    shutil.copytree(runs["cartpole"].folder, tmp_path / "run")
    (tmp_path / "run" / "spaces.json").unlink()
    policies = [memax_rl.load(folder, greedy=True) for folder in (runs["cartpole"].folder, tmp_path / "run")]
    for x in np.random.default_rng(0).normal(size=(20, 4)):
        a, b = (policy.step(x, 1.0) for policy in policies)
        assert a == b


@pytest.mark.slow
def test_training_writes_the_file_and_a_resumed_run_that_lacks_it_gets_it(tmp_path):
    fields: dict[str, Any] = {"total_steps": 100, "eval_episodes": 0, "ppo": PPO_SETTINGS, "network": {"width": 4}}
    run = train(out=tmp_path / "run", **fields)
    written = run.spaces_path.read_text()
    assert run.spaces() == spaces_of(*envs.make("popgym/RepeatPreviousEasy"))
    run.spaces_path.unlink()
    train(resume=run.folder)
    assert run.spaces_path.read_text() == written


def test_an_agent_of_ones_own_is_loaded_with_its_environment_unless_it_says_how_it_acts(runs, monkeypatch):
    looked = []
    monkeypatch.setattr("memax_rl.runs.build.make_environment", lambda config: looked.append(config) or 1 / 0)
    memax_rl.load(runs["ppo"].folder)
    spec = agents.spec("ppo")
    monkeypatch.setitem(registry._AGENTS, "ppo", spec._replace(acting=None))
    with pytest.raises(ZeroDivisionError):
        memax_rl.load(runs["ppo"].folder)
    assert len(looked) == 1


_OWN_MEMORY = """
from memax_rl import memory
from memax_rl.memory.gru import GRU
memory.register("own_gru", memory.MemorySpec(GRU))
"""


@pytest.mark.slow
def test_a_memory_of_ones_own_needs_its_module(tmp_path, monkeypatch):
    (tmp_path / "module_of_own_gru.py").write_text(_OWN_MEMORY)
    monkeypatch.syspath_prepend(tmp_path)
    common: dict[str, Any] = {"total_steps": 100, "eval_episodes": 0, "ppo": PPO_SETTINGS}
    network = {"memory": "own_gru", "width": 4}
    run = train(out=tmp_path / "run", imports=("module_of_own_gru",), network=network, **common)

    def forget():
        sys.modules.pop("module_of_own_gru")
        memories._ENTRIES.pop("own_gru")

    try:
        forget()
        with pytest.raises(RunError, match="was trained with module_of_own_gru, which is not imported"):
            memax_rl.load(run.folder)
        memax_rl.load(run.folder, imports=("module_of_own_gru",)).step(1)
    finally:
        forget()


def test_agents_act_as_they_say_they_do():
    """A loaded policy is greedy where `evaluate` is, whatever the agent."""
    known = {"ppo": PPO, "dqn": DQN, "pqn": PQN, "sac": SAC, "bc": BC}
    assert known.keys() == set(agents.names())
    for name, agent in known.items():
        spec = agents.spec(name)
        assert spec.acting is not None
        assert spec.acting(spec.settings(), NetworkConfig()).evaluates_greedily is agent.evaluates_greedily, name


PAGE = (Path(__file__).parent.parent / "docs" / "policy.md").read_text()


BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("block", [block for block in BLOCKS if "memax_rl.load" in block])
def test_the_loops_of_the_page_run_as_they_stand(block, runs, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    shutil.copytree(runs["cartpole"].folder, tmp_path / "runs" / "cartpole")
    monkeypatch.chdir(tmp_path)
    steps = []
    step = LoadedPolicy.step
    monkeypatch.setattr(LoadedPolicy, "step", lambda *args, **given: steps.append(1) or step(*args, **given))
    names: dict[str, Any] = {}
    exec(compile(block, "policy.md", "exec"), names)
    assert len(steps) > 20
    (names["env"] if "env" in names else names["envs"]).close()


def test_the_reader_of_the_page_runs_as_it_stands(runs, tmp_path, monkeypatch, capsys):
    pytest.importorskip("flatbuffers", reason="jax.export writes and reads by flatbuffers")
    (block,) = (block for block in BLOCKS if "jax.export" in block)
    assert "memax_rl" not in block
    assert main(["export", str(runs["cartpole"].folder), "--out", str(tmp_path / "cartpole")]) == 0
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block, "policy.md", "exec"), names)
    assert names["terminated"] or names["truncated"]
    names["env"].close()


# spaces.json


@pytest.mark.parametrize(
    "name",
    [
        *("popgym/RepeatPreviousEasy", "popgym/BattleshipEasy", "gymnax/Breakout-MinAtar", "gymnax/Pendulum-v1"),
        *("gymnax/CartPole-v1", "meta/DarkRoom", "gymnax/MNISTBandit-bsuite", "popgym/HigherLowerEasy"),
    ],
)
def test_spaces_are_read_back_as_they_were(name, tmp_path):
    if name in envs.DOWNLOADS:
        pytest.skip("needs a download")
    env, params = envs.make(name)
    path = tmp_path / "spaces.json"
    run = Run(tmp_path)
    run.write_spaces(spaces_of(env, params))
    plain = read_spaces(path)
    assert plain == spaces_of(env, params)
    pairs = [
        (from_plain(plain.network.observation), env.observation_space(params)),
        (from_plain(plain.network.action), env.action_space(params)),
    ]
    for read, space in pairs:
        for a, b in zip(spaces.leaves(read), spaces.leaves(space), strict=True):
            assert (type(a).__name__, tuple(a.shape), jnp.dtype(a.dtype)) == (
                type(b).__name__,
                tuple(b.shape),
                jnp.dtype(b.dtype),
            )
            for bound in ("n", "nvec", "low", "high"):
                assert np.array_equal(np.asarray(getattr(a, bound, 0)), np.asarray(getattr(b, bound, 0))), bound


def test_infinite_bounds_are_json(runs):
    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    text = runs["box"].spaces_path.read_text()
    file = json.loads(text, parse_constant=refuse)
    assert file["environment"]["action"]["high"] == [1.0, "inf"]
    assert file["environment"]["action"]["dtype"] == "float64"
    assert file["environment"]["observation"]["spaces"]["bits"] == {
        "shape": [2, 2],
        "dtype": "int8",
        "kind": "MultiBinary",
    }
    assert file["environment"]["observation"]["spaces"]["cue"]["start"] == 5
    assert sorted(file["learner"]["observation"]["spaces"]) == ["bits", "cue", "pair", "sensor"]
    assert sorted(file["network"]["observation"]["spaces"]) == ["cue", "sensor"]


def _set(path: str, value: Any):
    def damage(text: str) -> str:
        file = json.loads(text)
        *parents, last = path.split(".")
        part = file
        for name in parents:
            part = part[name]
        part[last] = value
        return json.dumps(file)

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[:100], "JSON"),
        (lambda text: "", "JSON"),
        (lambda text: "[]", "object"),
        (lambda text: "[" * 100_000, "recursion|JSON"),
        (_set("version", 2), "version"),
        (_set("more", 2), "more: extra"),
        (_set("network.action.n", 0), "network.action.*n: .*greater"),
        (_set("network.action.n", "4"), "network.action.*n: .*integer"),
        (_set("network.action.kind", "os.system"), "network.action"),
        (_set("network.observation", {"kind": "Dict"}), "spaces: field required"),
        (_set("learner.observation.dtype", "object"), "learner.observation.*dtype"),
        (_set("learner.observation.shape", [10**9, 10**9]), "learner.observation.*shape"),
        (_set("learner.observation.shape", [8000, 8000, 8000]), "elements"),
        (_set("learner.observation.shape", [3]), "the shape"),
        (_set("network.action", {"kind": "MultiBinary", "shape": [1], "dtype": "int8"}), "no space of a network"),
        (_set("environment.observation", {"kind": "Discrete", "n": 4, "dtype": "int32"}), "other parts"),
        (_set("network.action", {"kind": "MultiDiscrete", "nvec": [2, 2], "shape": [2], "dtype": "int32"}), "actions"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(damage, says, runs, tmp_path):
    shutil.copytree(runs["cartpole"].folder, tmp_path / "run")
    path = tmp_path / "run" / "spaces.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=f"(?i){says}") as raised:
        memax_rl.load(tmp_path / "run")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_spaces_of_another_run_do_not_fit_the_network(runs, tmp_path):
    shutil.copytree(runs["cartpole"].folder, tmp_path / "run")
    damage = _set("network.action.n", 3)(runs["cartpole"].spaces_path.read_text())
    (tmp_path / "run" / "spaces.json").write_text(damage)
    with pytest.raises(RunError, match=r"is from another configuration.*expected \[2, 8, 7"):
        memax_rl.load(tmp_path / "run")
    (tmp_path / "run" / "spaces.json").unlink()
    (tmp_path / "run" / "spaces.json").symlink_to(runs["cartpole"].spaces_path)
    with pytest.raises(RunError, match=r"spaces.json is a link"):
        memax_rl.load(tmp_path / "run")


# Wrong arguments


def test_wrong_arguments_of_load(runs):
    folder = runs["cartpole"].folder
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"seed": 9}, "seed=9.*trained 7, 8"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"checkpoint": 10**6}, "checkpoint: expected newest, best or the update"),
    )
    for arguments, says in cases:
        with pytest.raises(ValueError, match=says):
            memax_rl.load(folder, **arguments)


def test_wrong_arguments_of_step(runs):
    policy = memax_rl.load(runs["cartpole"].folder)
    batch = memax_rl.load(runs["cartpole"].folder, batch_size=2)
    mixed = memax_rl.load(runs["ppo"].folder)
    good = {"sensor": np.zeros(3), "cue": 5, "bits": np.zeros((2, 2), int), "pair": ([0, 0], 0)}
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (policy, np.zeros(3), {}, r"observation: expected the shape \[4\], got \[3\]"),
        (policy, np.zeros((2, 4)), {}, r"\[4\], got \[2, 4\]; for a batch give load a batch_size"),
        (batch, np.zeros(4), {}, r"\[2, 4\], got \[4\], for a batch of 2"),
        (policy, np.full(4, np.nan), {}, "not finite"),
        (policy, np.full(4, 1e300), {}, "not finite as float32"),
        (policy, ["a"] * 4, {}, "expected float32, got <U1"),
        (policy, np.zeros(4), {"reward": [1.0]}, r"reward: expected the shape \[\]"),
        (policy, np.zeros(4), {"reward": np.inf}, "reward: .*not finite"),
        (batch, np.zeros((2, 4)), {"start": [1, 0]}, "start: expected bool"),
        (batch, np.zeros((2, 4)), {"key": seed_key(0)}, r"key: expected keys of shape \[2\]"),
        (policy, np.zeros(4), {"key": jax.random.key(0, impl="threefry2x32")}, "philox4x32"),
        (mixed, np.zeros(4), {}, "observation\\['bits'\\] is missing"),
        (mixed, good | {"cue": 4}, {}, "observation\\['cue'\\]: 4 is not in"),
        (mixed, good | {"bits": np.full((2, 2), 2)}, {}, "observation\\['bits'\\]"),
        (mixed, good | {"cue": 5.5}, {}, "expected int32, got float64"),
        (mixed, good | {"pair": ([256, 0], 0)}, {}, "observation\\['pair'\\]\\[0\\]: .* does not fit into uint8"),
        (mixed, good | {"pair": ([0, 0],)}, {}, "observation\\['pair'\\]\\[1\\] is missing"),
    ]
    for which, observation, more, says in cases:
        with pytest.raises(ValueError, match=says):
            which.step(observation, **more)
    policy.step(np.zeros(4))
    with pytest.raises(ValueError, match="reward: the policy sees"):
        policy.step(np.zeros(4))
