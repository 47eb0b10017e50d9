"""Episodes in files, and behavior cloning from them: each mistake that imitation with a memory must not make."""

import json
import os
import shutil
import zipfile
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memax_rl
from memax_rl import envs
from memax_rl.cli import main
from memax_rl.envs import registry, spaces
from memax_rl.envs.base import Environment
from memax_rl.networks.encoder import AgentInput
from memax_rl.rollout.episodes_file import dump_episodes, read_episodes
from memax_rl.rollout.tape import unpack
from memax_rl.runs import Run, RunError, build, make_config
from memax_rl.training.loop import init_state
from memax_rl.training.updates import make_many_updates, place

SMALL: dict[str, Any] = {
    "agent": "bc",
    "network": {"memory": "min_gru", "width": 16},
    "eval_episodes": 8,
    "total_steps": 20_000,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("episodes")


@pytest.fixture(scope="module")
def repeat(folder):
    """The perfect player of RepeatFirst, whose episodes terminate."""
    memax_rl.collect(env="popgym/RepeatFirstEasy", episodes=20, out=folder / "repeat.npz")
    return folder / "repeat.npz"


@pytest.fixture(scope="module")
def changing(folder):
    """The perfect player of RepeatPrevious, whose action changes from step to step."""
    memax_rl.collect(env="popgym/RepeatPreviousEasy", episodes=4, out=folder / "changing.npz")
    return folder / "changing.npz"


@pytest.fixture(scope="module")
def pendulum(folder):
    """A strong player with a Box of actions, whose episodes are truncated."""
    memax_rl.collect(env="gymnax/Pendulum-v1", strategy="random", episodes=3, out=folder / "pendulum.npz")
    return folder / "pendulum.npz"


def _config(data, env="popgym/RepeatFirstEasy", bc=None, **fields):
    return make_config(SMALL | {"env": env} | fields | {"bc": {"data": str(data), "gradient_steps": 4} | (bc or {})})


def _make(config) -> Any:
    return build.make_agent(config)


def test_a_file_is_read_by_numpy_alone(repeat):
    with np.load(repeat, allow_pickle=False) as data:
        about, columns = json.loads(str(data["about"])), {name: data[name] for name in data.files}
    assert about["env"] == "popgym/RepeatFirstEasy"
    assert about["source"] == "strategy best"
    assert about["episodes"] == columns["start"].sum() == columns["terminated"].sum() == 20
    assert about["mean_return"] == pytest.approx(1)
    assert columns["reward"].sum() == pytest.approx(20, rel=1e-5)
    # The first card of each episode is the answer of all its steps.
    first = columns["observation"][np.flatnonzero(columns["start"])]
    episode = np.cumsum(columns["start"]) - 1
    assert (columns["action"] == first[episode]).mean() > 0.9


def test_episodes_are_whole_and_differ(repeat, pendulum):
    for path, ended in ((repeat, "terminated"), (pendulum, "truncated")):
        tape = read_episodes(path).episodes.tape
        episodes = unpack(tape)
        assert sum(len(e.start) for e in episodes) == len(tape.start)
        assert not any(np.array_equal(episodes[0].observation, e.observation) for e in episodes[1:])
        assert all(getattr(e, ended)[-1 if ended == "terminated" else -2] for e in episodes)
    assert all(len(e.start) == 201 and not e.valid[-1] and e.valid[:-1].all() for e in episodes)


def test_more_episodes_than_play_at_once_go_on_with_others(folder, monkeypatch):
    from memax_rl.evaluation import collecting

    monkeypatch.setattr(collecting, "_MOST_AT_ONCE", 4)
    monkeypatch.setattr(collecting, "_STEPS_A_CALL", 7)
    about = memax_rl.collect(env="popgym/RepeatFirstEasy", episodes=10, out=folder / "ten.npz", seed=3)
    assert about.episodes == 10
    assert about.mean_return == pytest.approx(1)
    shown = [e.observation.tobytes() for e in unpack(read_episodes(folder / "ten.npz").episodes.tape)]
    assert len(set(shown)) == 10


def test_actions_are_written_in_the_units_of_the_environment(pendulum, key):
    """And learned from as the network makes them: in [-1, 1] where the box is [-2, 2]."""
    tape = read_episodes(pendulum).episodes.tape
    assert float(jnp.abs(tape.action).max()) > 1.5
    agent = _make(_config(pendulum, env="gymnax/Pendulum-v1", bc={"validation_fraction": 0}))
    rows = agent.init(key).data.train
    np.testing.assert_allclose(
        np.asarray(rows.action)[np.asarray(rows.valid)],
        (tape.action / 2)[np.asarray(tape.valid)],
        rtol=1e-6,
    )
    assert float(jnp.abs(rows.action).max()) <= 1
    _, metrics = eqx.filter_jit(agent.update)(eqx.filter_jit(agent.init)(key))
    assert 0 < float(metrics["action_error"]) < 2


def test_the_loss_is_that_of_acting_as_the_teacher_did(changing, key):
    """One pass over packed rows says of every action what acting through each episode alone says."""
    agent = _make(_config(changing, env="popgym/RepeatPreviousEasy", bc={"validation_fraction": 0}))
    state = eqx.filter_jit(agent.init)(key)
    network, losses = state.network, []
    act = eqx.filter_jit(network.act)
    for episode in unpack(read_episodes(changing).episodes.tape)[:3]:
        carry, action, reward = network.initial_state(), jnp.zeros((), jnp.int32), jnp.zeros(())
        for t in range(len(episode.start)):
            shown = AgentInput(episode.observation[t], action, reward, episode.start[t], None)
            carry, distribution = act(carry, shown)
            action, reward = jnp.asarray(episode.action[t]), jnp.asarray(episode.reward[t])
            losses.append(-float(distribution.log_prob(action)))
    rows = jax.tree.map(lambda leaf: leaf[:1], state.data.train)
    count = len(losses)
    kept = jnp.arange(rows.valid.shape[1])[None] < count
    rows = eqx.tree_at(lambda t: t.valid, rows, rows.valid & kept)
    assert int(rows.valid.sum()) == count, "the three episodes stand in the first row"
    np.testing.assert_allclose(agent._imitation(network, rows, count)["loss"], np.mean(losses), rtol=1e-5)


def test_the_final_observation_of_a_truncated_episode_is_not_imitated(pendulum, key):
    agent = _make(_config(pendulum, env="gymnax/Pendulum-v1", bc={"validation_fraction": 0}))
    state = eqx.filter_jit(agent.init)(key)
    rows = state.data.train
    other = eqx.tree_at(lambda t: t.action, rows, jnp.where(rows.valid[..., None], rows.action, 1e3))
    losses = [agent._imitation(state.network, r, jnp.sum(r.valid))["loss"] for r in (rows, other)]
    np.testing.assert_array_equal(*losses)


def test_every_row_is_learned_from_once_before_any_comes_again(repeat, key):
    agent = _make(_config(repeat, bc={"tape_length": 60, "batch_size": 3, "gradient_steps": 12}))
    rows = agent.init(key).data.train
    count = len(rows.start)
    order = np.asarray(agent._order(rows, key)).reshape(-1)
    assert len(order) == 36
    assert sorted(order[:count]) == list(range(count))


def test_held_out_episodes_are_the_last_ones_and_not_learned_from(repeat, key):
    agent = _make(_config(repeat, bc={"validation_fraction": 0.25}))
    data = agent.init(key).data
    every = unpack(read_episodes(repeat).episodes.tape)
    train, held_out = (unpack(jax.tree.map(np.asarray, rows)) for rows in data)
    assert (len(train), len(held_out)) == (15, 5)
    for got, want in zip([*train, *held_out], every, strict=True):
        np.testing.assert_array_equal(got.observation, want.observation)


@pytest.mark.slow
def test_it_learns_what_the_teacher_does_and_needs_no_file_to_play(repeat, folder, tmp_path):
    data = tmp_path / "data.npz"
    shutil.copy(repeat, data)
    bc = {"learning_rate": 1e-2, "validation_fraction": 0.2, "gradient_steps": 2}
    run = memax_rl.train(_config(data, total_steps=60_000, bc=bc), out=tmp_path / "run")
    rows = run.metrics()
    assert rows[0]["accuracy"] < 0.8
    assert rows[-1]["validation/accuracy"] > 0.95
    assert rows[-1]["env_steps"] >= 60_000
    assert json.loads(run.summary_path.read_text())["evaluation"]["return"]["mean"]["value"] > 0.9
    data.unlink()
    assert memax_rl.evaluate(run.folder, episodes=8)["return"]["mean"]["value"] > 0.9
    with pytest.raises(ValueError, match="cannot be read"):
        memax_rl.train(resume=run.folder, total_steps=80_000)


@pytest.mark.slow
def test_a_resumed_run_learns_as_one_left_alone_and_from_no_other_file(repeat, tmp_path):
    data = tmp_path / "data.npz"
    shutil.copy(repeat, data)
    fields: dict[str, Any] = {"eval_episodes": 0, "bc": {"lr_schedule": "constant"}}
    whole = memax_rl.train(_config(data, total_steps=20_000, **fields), out=tmp_path / "whole")
    half = memax_rl.train(_config(data, total_steps=10_000, **fields), out=tmp_path / "half")
    memax_rl.train(resume=half.folder, total_steps=20_000)
    for one, other in zip(whole.metrics(), half.metrics(), strict=True):
        assert one["loss"] == other["loss"]
    about = memax_rl.collect(env="popgym/RepeatFirstEasy", episodes=20, out=data, seed=1)
    assert about.episodes == 20
    with pytest.raises(ValueError, match="not the file that the run was configured with"):
        memax_rl.train(resume=half.folder, total_steps=30_000)


@pytest.mark.slow
def test_a_teacher_in_another_environment_is_told(repeat, changing, tmp_path, capsys):
    """It may be meant, where the spaces are the same; a wrong name of a file is not."""
    told = "were played in popgym/RepeatPreviousEasy, and this run is of popgym/RepeatFirstEasy"
    command = ["train", "--agent", "bc", "--env", "popgym/RepeatFirstEasy", "--bc.tape-length", "60", "--memory", "mlp"]
    assert main([*command, "--bc.data", str(changing), "--check"]) == 0
    assert told in capsys.readouterr().out
    short: dict[str, Any] = {"total_steps": 100, "eval_episodes": 0}
    memax_rl.train(_config(changing, **short), out=tmp_path / "other")
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    memax_rl.train(_config(repeat, **short), out=tmp_path / "same")
    assert "played" not in capsys.readouterr().err


def test_one_row_is_enough_for_two_devices(changing):
    """What has no episode in it is learned from by none."""
    fields: dict[str, Any] = {"env": "popgym/RepeatPreviousEasy", "bc": {"validation_fraction": 0}}
    (one, one_metrics), (two, two_metrics) = (_after_updates(changing, on, **fields) for on in (1, 2))
    assert one_metrics["env_steps"].tolist() == two_metrics["env_steps"].tolist() == [4 * 4 * 51 * n for n in (1, 2, 3)]
    _assert_same_update(one, one_metrics, two, two_metrics)


def test_a_mistake_of_sizes_is_told_alone(repeat, tmp_path, capsys):
    command = ["train", "--agent", "bc", "--env", "popgym/RepeatFirstEasy", "--bc.data", str(repeat)]
    assert main([*command, "--bc.batch-size", "3", "--devices", "2", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "set bc.batch_size to at most the rows, and to a multiple of the devices" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_progress_tells_of_imitation_what_there_is(repeat, pendulum, tmp_path, capsys):
    """No episode is played, so there is no return."""
    for data, env, error in (
        (repeat, "popgym/RepeatFirstEasy", "accuracy"),
        (pendulum, "gymnax/Pendulum-v1", "action_error"),
    ):
        config = _config(data, env=env, total_steps=100, eval_episodes=0, num_seeds=2, bc={"validation_fraction": 0})
        rows = memax_rl.train(config, out=tmp_path / error, progress=True).metrics()
        loss, shown = (sum(row[name] for row in rows) / 2 for name in ("loss", error))
        line = next(line for line in capsys.readouterr().err.splitlines() if " steps  " in line)
        assert f"steps  loss {loss:.3f}  {error} {shown:.3f}" in line


def _after_updates(data, on, **fields: Any):
    """Return the network and the metrics after three updates on so many devices, from the same start."""
    config = _config(data, **fields | {"devices": on, "total_steps": 10**6})
    agent = _make(config)
    # The keys are of the kind that two devices can use.
    start, static = init_state(config.model_copy(update={"devices": 2}), agent)
    many = make_many_updates(agent, static, config.total_steps)
    arrays, _, metrics = many(place(agent, start), 3, jnp.ones(1, bool))
    kept = {name: np.asarray(metrics[name])[:3] for name in ("loss", "accuracy", "grad_norm")}
    return arrays.network, kept | {"env_steps": metrics["env_steps"].to_numpy()[:3, 0]}


def _assert_same_update(one, one_metrics, two, two_metrics):
    for name, value in one_metrics.items():
        np.testing.assert_allclose(two_metrics[name], value, rtol=1e-3, err_msg=name)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)


def test_two_devices_make_the_update_of_one(repeat):
    bc = {"batch_size": 2, "tape_length": 60}
    _assert_same_update(*_after_updates(repeat, 1, bc=bc), *_after_updates(repeat, 2, bc=bc))


def test_a_trained_agent_is_a_teacher_too(repeat, tmp_path, capsys):
    run = memax_rl.train(_config(repeat, eval_episodes=0), out=tmp_path / "run")
    out = str(tmp_path / "more.npz")
    assert main(["collect", str(run.folder), "--episodes", "5", "--out", out]) == 0
    assert "5 episodes of popgym/RepeatFirstEasy by bc with min_gru, seed 0" in capsys.readouterr().out
    assert read_episodes(tmp_path / "more.npz").episodes.about.episodes == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "5"], "give either the folder of a run"),
        (["--episodes", "0", "--env", "popgym/RepeatFirstEasy"], "episodes must be at least 1"),
        (["--episodes", "5", "--env", "popgym/RepeatFirstEasy", "--strategy", "perfect"], "known: best, random"),
        (["--episodes", "5", "--env", "gymnax/CartPole-v1", "--strategy", "best"], "known: random"),
        (["nowhere", "--episodes", "5", "--strategy", "best"], "plays instead of a run"),
        (["nowhere", "--episodes", "5"], "nowhere"),
        (["nowhere", "--episodes", "5", "--env-options.size", "3"], "only with --env"),
        (["--episodes", "5", "--env", "popgym/RepeatFirstEasy", "--seed", "9" * 20], "seed: expected a whole number"),
        (["--episodes", "5", "--env", "popgym/RepeatFirstEasy", "--greedy"], "greedy says how a run plays"),
        (["--episodes", "5", "--env", "popgym/RepeatFirstEasy", "--trained-seed", "1"], "trained_seed says how"),
        (["--episodes", "5", "--env", "popgym/RepeatFirstEasy", "--checkpoint", "best"], "checkpoint says how"),
        (["--episodes", "5", "--env", "popgym/RepeatFirstEasy", "--env-options.k", "3"], "has no option"),
        (["--episodes", "5", "--env", "popgym/RepeatFirstEasy", "--agent", "bc"], "unrecognized argument --agent"),
    ],
)
def test_wrong_collecting_is_one_line(arguments, message, tmp_path, capsys):
    out = tmp_path / "data.npz"
    assert main(["collect", *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_where_nothing_can_be_written_nothing_is_played(tmp_path, capsys, monkeypatch):
    from memax_rl.evaluation import collecting

    monkeypatch.setattr(collecting, "play_episodes", lambda *_: pytest.fail("it played"))
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "data.npz")
    assert main(["collect", "--env", "popgym/RepeatFirstEasy", "--episodes", "2", "--out", out]) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err


def test_options_of_the_environment_come_before_or_after(tmp_path, capsys):
    command = ["collect", "--env-options.size", "4", "--env", "meta/DarkRoom", "--episodes", "1"]
    assert main([*command, "--strategy", "random", "--out", str(tmp_path / "b.npz")]) == 0, capsys.readouterr().err
    shown: Any = read_episodes(tmp_path / "b.npz").episodes.about.observation
    assert shown.spaces["observation"].nvec == (4, 4)


class _Faulty(Environment):
    """Pays what is no number in its fifth step."""

    @property
    def default_params(self):
        return None

    def action_space(self, params):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Discrete(2)

    def max_episode_steps(self, params):
        return 5

    def fixed_length(self, params):
        return 5

    def truncates(self, params):
        return False

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    def reset_env(self, key, params):
        return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

    def step_env(self, key, state, action, params):
        return state % 2, state + 1, jnp.where(state == 4, jnp.nan, 1.0), state == 4, {}


def test_what_nobody_can_learn_from_is_not_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(registry, "_OWN", {})
    envs.register("own/FaultyCollected", _Faulty)
    command = ["collect", "--env", "own/FaultyCollected", "--episodes", "2", "--out", str(tmp_path / "x.npz")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "env: nobody can learn from what own/FaultyCollected gave: reward holds nan" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bc", "env", "message"),
    [
        ({"data": None}, "popgym/RepeatFirstEasy", "names no file of episodes"),
        ({"data": "/nowhere.npz"}, "popgym/RepeatFirstEasy", "/nowhere.npz cannot be read"),
        ({}, "popgym/PositionOnlyCartPoleEasy", "was played in popgym/RepeatFirstEasy with the observation space"),
        ({"tape_length": 20}, "popgym/RepeatFirstEasy", "set bc.tape_length to that or more"),
        ({"validation_fraction": 0.99}, "popgym/RepeatFirstEasy", "leaves none to learn from"),
        ({"batch_size": 500}, "popgym/RepeatFirstEasy", "set bc.batch_size to at most the rows"),
    ],
)
def test_wrong_settings_are_one_line_and_make_nothing(bc, env, message, repeat, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        memax_rl.train(_config(repeat, env=env, bc=bc), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def _broken(change, path, out):
    """Write the file with a change to its columns."""
    with np.load(path) as data:
        columns = {name: data[name] for name in data.files}
    change(columns)
    np.savez(out, **columns)


def _other_about(columns, **fields):
    return np.array(json.dumps(json.loads(str(columns["about"])) | fields))


def _other_action(columns, **space):
    return _other_about(columns, action={"dtype": "int32"} | space)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("reward"), "has no column 'reward'"),
        (lambda c: c.update(reward=c["reward"][1:]), "reward is float32"),
        (lambda c: c.update(action=c["action"] + 9), "action holds values that are not in Discrete"),
        (lambda c: c.update(reward=c["reward"] * np.nan), "nan or infinite"),
        (lambda c: c.update(start=np.roll(c["start"], 1)), "start flags"),
        (lambda c: c.update(terminated=np.roll(c["terminated"], 1)), "every episode must end"),
        (lambda c: c.update(valid=~c["valid"]), "must be one slot that is not valid"),
        (lambda c: c.update(about=np.array("{}")), "the column about, env: Field required"),
        (lambda c: c.update(about=np.array("{")), "the column about: Invalid JSON"),
        (
            lambda c: c.update(about=_other_about(c, **{"\x1b[31m\n": 1})),
            r"the column about: unknown key '\\x1b\[31m\\n'",
        ),
        (lambda c: c.update(about=_other_about(c, env="popgym/\x1b[31mRed\n")), "about, env: String should match"),
        (lambda c: c.update(about=_other_about(c, episodes=10**400)), "about, episodes: Input should be less than"),
        (lambda c: c.update(about=_other_action(c, kind="Discrete", n=-3)), "not hold a space as its action: Input sh"),
        (
            lambda c: c.update(about=_other_about(c, observation={"kind": "Dict", "spaces": {"a": 3}})),
            "its observation",
        ),
        (lambda c: c.update(more=c["reward"]), "unknown columns more"),
        (lambda c: c.update(action_mask=np.ones((len(c["start"]), 3), bool)), "action_mask is bool"),
        (lambda c: c.update(action_mask=np.ones((len(c["start"]), 4))), "action_mask is float64"),
        (lambda c: c.update(action_mask=np.arange(4) != c["action"][:, None]), "action_mask says are not legal"),
        (lambda c: c.update(about=_other_action(c, kind="MultiBinary", shape=[])), "is no space of a network"),
    ],
)
def test_damaged_files_are_told_in_one_line(change, message, repeat, tmp_path):
    out = tmp_path / "damaged.npz"
    _broken(change, repeat, out)
    with pytest.raises(ValueError, match=message) as caught:
        read_episodes(out)
    assert str(out) in str(caught.value)
    assert str(caught.value).isprintable()
    # Names of the models that read it are no user's.
    assert "Plain" not in str(caught.value)
    assert "function-" not in str(caught.value)


def test_actions_outside_of_their_box_are_told(pendulum, tmp_path):
    _broken(lambda c: c.update(action=c["action"] * 2), pendulum, tmp_path / "wide.npz")
    with pytest.raises(ValueError, match=r"action holds values from .* that are not in Box"):
        read_episodes(tmp_path / "wide.npz")


def test_every_flipped_bit_is_noticed(repeat, tmp_path):
    """Also within a column that is compressed, which zlib tells."""
    content, told = repeat.read_bytes(), 0
    rng = np.random.default_rng(0)
    with np.load(repeat) as data:
        columns = {name: data[name] for name in data.files}
    for at in rng.integers(0, len(content), 60):
        path = tmp_path / "flipped.npz"
        path.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
        try:
            tape = read_episodes(path).episodes.tape
        except ValueError:
            told += 1
        else:
            # A byte of the zip's own, such as a date.
            np.testing.assert_array_equal(tape.action, columns["action"])
    assert told > 30


def test_a_pipe_and_a_part_that_is_no_array_are_told(repeat, tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match=r"pipe.npz cannot be read: it is no plain file"):
        read_episodes(tmp_path / "pipe.npz")
    shutil.copy(repeat, tmp_path / "text.npz")
    with zipfile.ZipFile(tmp_path / "text.npz", "a") as archive:
        archive.writestr("action_mask", b"text")
    with pytest.raises(ValueError, match="no file of episodes"):
        read_episodes(tmp_path / "text.npz")


def test_what_is_no_file_of_episodes_is_told_so(repeat, tmp_path):
    content = repeat.read_bytes()
    for i, bad in enumerate((b"", b"no zip at all", content[: len(content) // 2], content[:200] + b"x" * 50)):
        path = tmp_path / f"{i}.npz"
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="no file of episodes, or damaged"):
            read_episodes(path)
    tape, about = read_episodes(repeat).episodes
    assert dump_episodes(read_episodes(repeat).episodes)
    assert len(tape.start) > about.episodes


def test_a_run_of_it_has_no_returns_while_it_trains_and_still_compares(repeat, tmp_path):
    memax_rl.train(_config(repeat, total_steps=5_000), out=tmp_path / "study" / "run")
    assert np.isnan(Run.open(tmp_path / "study" / "run").metrics()[-1]["episode/return"])
    assert main(["compare", str(tmp_path / "study"), "--out", str(tmp_path / "report")]) == 0
    with pytest.raises(RunError, match="nowhere"):
        Run.open(tmp_path / "nowhere")
