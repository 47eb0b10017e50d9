"""An exported policy, in a process where memax_rl cannot be imported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _fresh_runs import fresh_run

import memax_rl
from memax_rl.cli import main
from memax_rl.evaluation import export as exports
from memax_rl.runs import Run

pytest.importorskip("flatbuffers", reason="jax.export writes and reads by flatbuffers")

STEPS = 1_000
RUNS: dict[str, dict[str, Any]] = {
    "gru": {
        "env": "gymnax/Pendulum-v1",
        "env_wrappers": [
            {"name": "time_limit", "steps": 40},
            "position_only",
            {"name": "reward_scaling", "scale": 0.1},
        ],
        "network": {"memory": "gru", "width": 8, "normalize_observation": True},
    },
    "dqn": {
        "agent": "dqn",
        "network": {"memory": "gated_delta_net", "width": 8},
    },
}
# Only jax, numpy and what jax needs to read: an import of memax_rl fails.
READER = """
import json, sys
sys.modules["memax_rl"] = None
import jax, numpy as np
from pathlib import Path
folder, given = Path(sys.argv[1]), np.load(sys.argv[2])
step = jax.jit(jax.export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes())).call)
metadata = json.loads((folder / "metadata.json").read_text())
first = np.load(folder / "carry.npz")
carry = [first[array["name"]] for array in metadata["arguments"]["carry"]]
actions, carries = [], []
for t in range(len(given["reward"])):
    key = [given["key"][t]] if "key" in metadata["arguments"] else []
    carry, action = step(carry, [given["observation"][t]], given["reward"][t], given["start"][t], *key)
    actions.append(action), carries.append(np.concatenate([np.ravel(x).astype(np.float32) for x in carry]))
assert not any(name.startswith("memax_rl.") for name in sys.modules)
np.savez(sys.argv[3], action=np.stack(actions), carry=np.stack(carries))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: fresh_run(folder / name, **fields) for name, fields in RUNS.items()}


def given(name: str, batch: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng, shape = np.random.default_rng(0), (STEPS, *batch)
    observation = rng.normal(size=(*shape, 3)).astype(np.float32) if name == "gru" else rng.integers(0, 4, shape)
    start = rng.uniform(size=shape) < 0.02
    start[0] = True
    key = jax.random.split(jax.random.key(1, impl="philox4x32"), shape)
    return {
        "observation": observation.astype(np.float32 if name == "gru" else np.int32),
        "reward": rng.normal(size=shape).astype(np.float32),
        "start": start,
        "key": np.asarray(jax.random.key_data(key)),
    }


def read(folder: Path, inputs: dict[str, np.ndarray], tmp_path: Path) -> dict[str, np.ndarray]:
    np.savez(tmp_path / "given.npz", allow_pickle=False, **inputs)
    command = [sys.executable, "-c", READER, *map(str, (folder, tmp_path / "given.npz", tmp_path / "got.npz"))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(np.load(tmp_path / "got.npz"))


@pytest.mark.parametrize(
    ("name", "greedy", "batch_size"), [("gru", False, None), ("gru", True, 3), ("dqn", True, None)]
)
def test_a_thousand_steps_where_memax_rl_cannot_be_imported(name, greedy, batch_size, runs, tmp_path):
    made = exports.export(runs[name].folder, tmp_path / "out", greedy=greedy, batch_size=batch_size)
    inputs = given(name, () if batch_size is None else (batch_size,))
    got = read(made, inputs, tmp_path)
    policy = memax_rl.load(runs[name].folder, greedy=greedy, batch_size=batch_size)
    keys = jax.random.wrap_key_data(jnp.asarray(inputs["key"]), impl="philox4x32")
    for t in range(STEPS):
        seen, reward, start = (inputs[part][t] for part in ("observation", "reward", "start"))
        wanted = policy.step(seen, reward, start=start, key=keys[t])
        if name == "gru":
            assert np.allclose(got["action"][t], wanted, rtol=1e-5, atol=1e-5), t
        else:
            assert (got["action"][t] == wanted).all(), t
        state = np.concatenate([np.ravel(x).astype(np.float32) for x in jax.tree.leaves(policy._state)])
        assert np.allclose(got["carry"][t], state, rtol=1e-5, atol=1e-5), t
    assert len(np.unique(got["action"])) > 1


def test_what_the_folder_says_of_itself(runs, tmp_path):
    made = exports.export(runs["gru"].folder, tmp_path / "new" / "out")
    assert sorted(path.name for path in made.iterdir()) == ["carry.npz", "metadata.json", "policy.stablehlo"]
    assert sorted(path.name for path in made.parent.iterdir()) == ["out"]
    exported = jax.export.deserialize(bytearray((made / "policy.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda")
    metadata = json.loads((made / "metadata.json").read_text())
    arguments = metadata["arguments"]
    listed = [x for part in arguments.values() for x in (part if isinstance(part, list) else [part])]
    assert [(tuple(x["shape"]), x["dtype"]) for x in listed] == [(x.shape, x.dtype.name) for x in exported.in_avals]
    assert [*arguments] == ["carry", "observation", "reward", "start", "key"]
    assert metadata["spaces"]["action"]["high"] == 2.0
    assert (metadata["memory"], metadata["greedy"], metadata["seed"]) == ("gru", False, 0)
    greedy = exports.export(runs["gru"].folder, tmp_path / "greedy", greedy=True)
    assert "key" not in json.loads((greedy / "metadata.json").read_text())["arguments"]


def test_mistakes_are_one_line_and_leave_nothing(runs, tmp_path, capsys, monkeypatch):
    def fails(*arguments: Any) -> str:
        assert main(["export", *map(str, arguments)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        return said.err

    run, out = runs["gru"].folder, tmp_path / "out"
    assert "is not a run folder" in fails(tmp_path, "--out", out)
    assert "seed=3" in fails(run, "--out", out, "--seed", 3)
    assert "batch_size" in fails(run, "--out", out, "--batch-size", 0)
    assert "missing option '--out'" in fails(run)
    assert "greedy policy, with --greedy" in fails(run, "--out", out, "--onnx")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert "pip install 'memax_rl[onnx]'" in fails(run, "--out", out, "--onnx", "--greedy")
    shutil.copytree(run, tmp_path / "bad")
    (tmp_path / "bad" / "spaces.json").write_text("{")
    assert "spaces.json is damaged" in fails(tmp_path / "bad", "--out", out)
    (tmp_path / "file").write_text("")
    assert "file exists" in fails(run, "--out", tmp_path / "file").lower()
    assert "is a file, expected a folder" in fails(run, "--out", tmp_path / "file" / "below")
    # A wrapper that only its environment can apply.
    monkeypatch.setattr("memax_rl.envs.wrappers.observations.MaskObservation.show", lambda self, obs, params: obs)
    assert "(TimeLimit, MaskObservation, RewardScaling) cannot be applied outside" in fails(run, "--out", out).replace(
        "GymnaxAdapter, ", ""
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "file"]


def test_it_says_where_it_wrote(runs, tmp_path, capsys):
    assert main(["export", str(runs["dqn"].folder), "--out", str(tmp_path / "out")]) == 0
    assert "policy.stablehlo" in capsys.readouterr().out


def test_onnx_is_the_same_policy(runs, tmp_path):
    """Runs where the extra onnx is installed. docs/policy.md says which memories it converts."""
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    made = exports.export(runs["dqn"].folder, tmp_path / "out", onnx=True)
    session = onnxruntime.InferenceSession(made / "policy.onnx", providers=["CPUExecutionProvider"])
    metadata, first = json.loads((made / "metadata.json").read_text()), np.load(made / "carry.npz")
    carry = [first[array["name"]] for array in metadata["arguments"]["carry"]]
    names, inputs = [x.name for x in session.get_inputs()], given("dqn", ())
    policy = memax_rl.load(runs["dqn"].folder)
    for t in range(STEPS):
        shown = [inputs[part][t] for part in ("observation", "reward", "start")]
        *carry, action = session.run(None, dict(zip(names, [*carry, *map(np.asarray, shown)], strict=True)))
        assert action == policy.step(shown[0], shown[1], start=shown[2]), t
