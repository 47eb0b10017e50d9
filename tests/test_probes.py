"""Supervised probes: packing, chunks, scores, run folders that go on to the bit, and the command line."""

import json
import math
import re
import shutil
import struct
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich

from memax_rl import memory, probes
from memax_rl.cli import main
from memax_rl.probes import Learner, make_probe_config, tasks
from memax_rl.probes.learner import Sums, add_up, sample_batch, score
from memax_rl.probes.lengths import make_test
from memax_rl.probes.tasks.digits import load_digits
from memax_rl.runs import Run, RunError
from memax_rl.studies import load_study, results
from memax_rl.studies.probes import finished_probes, score_table

SMALL = {"network": {"memory": "gru", "width": 8}, "learner": {"batch_size": 8}, "eval_sequences": 8}


# Learning


@pytest.mark.parametrize("name", ["gru", "lru", "gated_delta_net", "attention"])
def test_eight_sequences_in_a_row_give_losses_and_gradients_of_eight_rows(name):
    """Start flags tell them apart: nothing of one sequence reaches the next, forwards or backwards."""
    options = {"length": 12, "pairs": 3, "keys": 4, "values": 4}
    fields = {"task": "associative_recall", "task_options": options} | SMALL
    learner = Learner(make_probe_config(fields | {"network": {"memory": name, "width": 8}}))
    network = learner.init(jax.random.key(1)).network
    found = []
    for pack in (1, 8):
        batch = sample_batch(learner.task, jax.random.key(2), 8, pack, ())
        assert batch.start.shape == (8 // pack, 12 * pack)
        found.append(eqx.filter_jit(learner.gradient)(network, batch))
    (alone, sums), (packed, packed_sums) = found
    np.testing.assert_allclose(packed_sums.loss, sums.loss, rtol=1e-5)
    assert packed_sums.right == sums.right
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(packed), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "chunk"), [("gru", 5), ("lru", 4), ("mlstm", 5), ("attention", 5), ("gru", 100)])
def test_chunks_give_the_losses_and_gradients_of_the_whole(name, chunk):
    fields = {"task": "parity", "task_options": {"length": 12}} | SMALL | {"network": {"memory": name, "width": 8}}
    whole = Learner(make_probe_config(fields))
    parts = Learner(make_probe_config(fields | {"learner": {"batch_size": 8, "pack": 2, "chunk": chunk}}))
    network = whole.init(jax.random.key(1)).network
    batch = sample_batch(whole.task, jax.random.key(2), 8, 2, ())
    (a, sums), (b, chunked) = (eqx.filter_jit(learner.gradient)(network, batch) for learner in (whole, parts))
    np.testing.assert_allclose(chunked.loss, sums.loss, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6)


def test_truncation_cuts_the_gradient_between_chunks_and_no_value():
    fields = {"task": "first_symbol", "task_options": {"length": 8}} | SMALL
    learners = [
        Learner(make_probe_config(fields | {"learner": {"batch_size": 8, "chunk": 4, "truncate": truncate}}))
        for truncate in (False, True)
    ]
    network = learners[0].init(jax.random.key(1)).network
    batch = sample_batch(learners[0].task, jax.random.key(2), 8, 1, ())
    changed = batch._replace(inputs=batch.inputs.at[:, 0].set((batch.inputs[:, 0] + 1) % 4))
    for learner, reaches in zip(learners, (True, False), strict=True):
        # Two targets with the same loss gradient at the end, and other first inputs.
        (g, sums), (h, _) = (eqx.filter_jit(learner.gradient)(network, b) for b in (batch, changed))
        first = network.torso.encoder.project.weight
        difference = np.asarray(g.torso.encoder.project.weight - h.torso.encoder.project.weight)
        assert difference.shape == first.shape
        # Column of the start flag: it is set at the first slot only.
        assert (np.abs(np.asarray(g.torso.encoder.project.weight)[:, -1]).max() > 0) == reaches
        assert np.isfinite(sums.loss)


def test_slots_without_a_mark_change_nothing():
    task = tasks.make("first_symbol", {"length": 6})
    batch = sample_batch(task, jax.random.key(0), 4, 1, ())
    outputs = jax.random.normal(jax.random.key(1), (4, 6, 4))
    scrambled = jnp.where(batch.where[..., None], outputs, jnp.nan)
    other = batch._replace(targets=jnp.where(batch.where, batch.targets, 99))

    def loss(outputs, batch):
        return add_up(task, outputs, batch).loss

    (a, ga), (b, gb) = (jax.value_and_grad(loss)(*pair) for pair in ((outputs, batch), (scrambled, other)))
    assert a == b
    np.testing.assert_array_equal(ga, gb)
    assert not np.asarray(ga)[~np.asarray(batch.where)].any()


def test_scores_are_the_share_of_right_classes_and_of_explained_variance():
    classes, numbers = tasks.make("parity"), tasks.make("adding")
    none = Sums.none(2)._replace(count=jnp.array(4.0), right=jnp.array(3.0))
    assert score(classes, none) == 0.75
    # Targets 0 and 2 twice: variance 1; an error of 1 in all is a quarter of it.
    sums = Sums.none(1)._replace(
        count=jnp.array(4.0), error=jnp.array([1.0]), target=jnp.array([4.0]), square=jnp.array([8.0])
    )
    assert score(numbers, sums) == 0.75


def test_a_loss_is_the_mean_over_marked_slots():
    task = tasks.make("parity", {"length": 3, "every": False})
    batch = sample_batch(task, jax.random.key(0), 5, 1, ())
    sums = add_up(task, jnp.zeros((5, 3, 2)), batch)
    assert sums.count == 5
    np.testing.assert_allclose(sums.loss / sums.count, math.log(2), rtol=1e-6)


@pytest.mark.parametrize("name", memory.names())
def test_every_memory_runs_through_chunks_with_a_finite_norm(name):
    config = make_probe_config(
        {"task": "parity", "task_options": {"length": 6}} | SMALL | {"network": {"memory": name, "width": 8}}
    )
    learner = Learner(config)
    network = learner.init(jax.random.key(0)).network
    sums, norms = make_test(learner, 2, norms=True)(network, jax.random.key(1))
    # 12 slots by chunks of 6, eight sequences.
    assert sums.count == 96
    assert norms.shape == (2, 1)
    assert np.isfinite(norms).all()
    assert 0 <= sums.right <= 96


def test_a_network_learns():
    """The first of five symbols, by a GRU, in a few seconds."""
    fields = {"task": "first_symbol", "task_options": {"length": 5}, "network": {"memory": "gru", "width": 16}}
    learner = Learner(make_probe_config(fields | {"learner": {"learning_rate": 1e-2}, "total_updates": 150}))
    state = learner.init(jax.random.key(0))
    arrays, static = eqx.partition(state, eqx.is_array)

    @jax.jit
    def many(arrays):
        def body(arrays, _):
            state, metrics = learner.update(eqx.combine(arrays, static))
            return eqx.filter(state, eqx.is_array), metrics["episode/return"]

        return jax.lax.scan(body, arrays, None, 150)

    arrays, scores = many(arrays)
    assert scores[:3].mean() < 0.6
    assert scores[-10:].mean() > 0.98
    assert arrays.env_steps.to_numpy() == 150 * 32 * 5


# Run folders


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit(tmp_path, monkeypatch):
    """Killed after an update and resumed, it ends with the parameters and rows of one that was left alone."""
    fields = {"task": "parity", "task_options": {"length": 6}, "total_updates": 5, "eval_interval": 2} | SMALL
    fields |= {"num_seeds": 2, "checkpoint_interval": 0.0}
    whole = probes.train(**fields, out=tmp_path / "whole")
    from memax_rl.probes import training

    made = []

    def interrupt(self, arrays):
        saved(self, arrays)
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt

    saved = training._Session._save
    monkeypatch.setattr(training._Session, "_save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        probes.train(**fields, out=tmp_path / "cut")
    monkeypatch.undo()
    cut = Run.open(tmp_path / "cut")
    assert 0 < cut.saved_updates()[-1] < 5
    assert not cut.summary_path.exists()
    cut = probes.train(resume=tmp_path / "cut")
    arrays = [np.load(run.checkpoint_path(5)) for run in (whole, cut)]
    assert arrays[0].files == arrays[1].files
    names = [name for name in arrays[0].files if name != "about"]
    assert len(names) > 10
    for name in names:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name], err_msg=name)
    for rows in ("metrics", "evaluations"):
        a, b = ([row | {"seconds": 0} for row in getattr(run, rows)()] for run in (whole, cut))
        assert a == b
    assert [row["update"] for row in whole.evaluations()] == [2, 2, 4, 4]
    a, b = (json.loads(run.summary_path.read_text())["evaluation"] for run in (whole, cut))
    assert a == b


@pytest.mark.slow
def test_a_seed_is_the_same_alone_and_among_others(tmp_path):
    fields = {"task": "copying", "task_options": {"length": 8, "symbols": 2}, "total_updates": 3} | SMALL
    together = probes.train(**fields, num_seeds=2, out=tmp_path / "both")
    alone = probes.train(**fields, seed=1, out=tmp_path / "one")
    rows = [row for row in together.metrics() if row["seed"] == 1]
    for a, b in zip(rows, alone.metrics(), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    first = [row["loss"] for row in together.metrics() if row["seed"] == 0]
    assert first[0] != rows[0]["loss"]


def test_a_run_says_what_it_is_and_is_no_agents(tmp_path):
    run = probes.train(task="parity", task_options={"length": 6}, total_updates=2, out=tmp_path / "run", **SMALL)
    assert "task='parity', memory='gru', seeds=0, updates=2 of 2, finished" in repr(run)
    summary = json.loads(run.summary_path.read_text())
    assert summary["evaluation"]["chance"] == 0.5
    assert summary["env_steps"] == [2 * 8 * 6]
    assert 0 <= summary["evaluation"]["mean_return_per_seed"][0] <= 1
    with pytest.raises(RunError, match="the run of a probe, which has no agent"):
        run.config()


@pytest.mark.parametrize("chunk", [4, 5, 10])
def test_norms_are_those_after_each_trained_length_whatever_the_chunk(chunk):
    """Neither a chunk that ends elsewhere nor one that does not divide the length changes which states are measured."""
    fields = {"task": "parity", "task_options": {"length": 10}} | SMALL
    whole, parts = (
        Learner(make_probe_config(fields | {"learner": {"batch_size": 8, "chunk": size}})) for size in (None, chunk)
    )
    network, key = whole.init(jax.random.key(0)).network, jax.random.key(1)
    sums, norms = make_test(whole, 3, norms=True)(network, key)
    chunked, found = make_test(parts, 3, norms=True)(network, key)
    assert found.shape == (3, 1)
    np.testing.assert_allclose(found, norms, rtol=1e-5)
    np.testing.assert_allclose(chunked.loss, sums.loss, rtol=1e-5)


def test_other_lengths_are_tested_with_the_norm_of_the_state(tmp_path):
    fields = {"task": "parity", "task_options": {"length": 6}, "total_updates": 1, "test_lengths": [1, 4]} | SMALL
    run = probes.train(**fields, out=tmp_path / "run")
    rows = json.loads(run.summary_path.read_text())["lengths"]
    assert [row["length"] for row in rows] == [6, 24]
    assert np.shape(rows[1]["state_norm_per_seed"]) == (1, 4, 1)
    assert np.all(np.array(rows[1]["state_norm_per_seed"]) > 0)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"task": "paritty"}, "unknown task 'paritty'; did you mean 'parity'"),
        ({"task_options": {"lenght": 3}}, "has no option 'lenght'; did you mean 'length'"),
        ({"network": {"previous_action": True}}, "network.previous_action is for agents"),
        ({"network": {"memory": "grru"}}, "unknown memory 'grru'"),
        ({"learner": {"pack": 3}}, "pack must divide batch_size=32, got 3"),
        ({"learner": {"truncate": True}}, "set chunk, or leave truncate out"),
        ({"learner": {"batchsize": 3}}, "unknown configuration key 'learner.batchsize' of a probe; did you mean"),
        ({"total_update": 3}, "unknown configuration key 'total_update' of a probe; did you mean 'total_updates'"),
        ({"total_updates": 0}, "total_updates: input should be greater than or equal to 1, got 0"),
        ({"test_lengths": [2, 2]}, "test_lengths must be different whole numbers"),
        ({"task": "digit_math", "task_options": {"length": 3}}, "length is 320 with these pictures, got 3"),
        ({"task": "permutations", "test_lengths": [10_000], "task_options": {"length": 10**6}}, "length"),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_told_in_one_line(fields, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        make_probe_config(fields)
    assert "\n" not in str(error.value)


# The command line and what reads the folders


@pytest.mark.slow
def test_several_memories_are_a_study_that_compare_reads(tmp_path, capsys, monkeypatch):
    out = tmp_path / "study"
    command = ["probe", "--task", "parity", "--memory", "gru", "lru", "--length", "6", "--total-updates", "2"]
    command += ["--network.width", "8", "--eval-sequences", "32", "--workers", "1", "--out", str(out)]
    assert main([*command, "--test-lengths", "1,2"]) == 0
    shown = capsys.readouterr().out
    assert "parity 6" in shown
    assert "chance" in shown
    assert "x 2" in shown
    table = results(out)
    assert list(table["memory"]) == ["gru", "lru"]
    assert list(table["status"]) == ["finished"] * 2
    assert set(table["env"]) == {"probe/parity"}
    assert list(table["chance"]) == [0.5] * 2
    before = (out / "parity/gru/seed0/metrics.csv").read_text()
    # The same command goes on with it, and the folder alone prints its table again.
    assert main(["probe", str(out)]) == 0
    assert "parity 6" in capsys.readouterr().out
    assert (out / "parity/gru/seed0/metrics.csv").read_text() == before
    assert main(["compare", str(out), "--out", str(tmp_path / "report"), "--no-figures"]) == 0
    assert "probe/parity" in (tmp_path / "report/tables.md").read_text()
    _check_that_settings_are_told_apart(out / "parity/gru/seed0", out / "wider", monkeypatch, capsys)


def _check_that_settings_are_told_apart(first, second, monkeypatch, capsys):
    """A mean over seeds is not one over settings, and says which seeds it leaves out."""
    shutil.copytree(first, second)
    config = second / "config.yaml"
    config.write_text(config.read_text().replace("width: 8", "width: 9").replace("num_seeds: 1", "num_seeds: 2"))
    found = {(probe.memory, probe.task, probe.seeds) for probe in finished_probes(first, second)}
    assert found == {("gru (network.width=8)", "parity 6", 1), ("gru (network.width=9)", "parity 6", 2)}
    monkeypatch.setenv("COLUMNS", "200")
    rich.print(score_table(first, second))
    assert "1 of 2 seeds" in capsys.readouterr().out
    config.write_text(config.read_text().replace("length: 6", "length: 7"))
    assert {probe.task for probe in finished_probes(first, second)} == {"parity 6", "parity 7"}
    summary = json.loads((second / "summary.json").read_text())
    (second / "summary.json").write_text(json.dumps(summary | {"lengths": [{"times": 1}]}))
    with pytest.raises(RunError, match="damaged"):
        finished_probes(first, second)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "which task? name one or several with --task"),
        (["--task", "paritty"], "unknown task 'paritty'; did you mean 'parity'"),
        (["--task", "parity", "--memory", "grru"], "unknown memory 'grru'"),
        (["--task", "parity", "--lenght", "3"], "unknown configuration key 'lenght' of a probe"),
        (["--task", "parity", "--learner.bath-size", "3"], "did you mean 'batch_size'?"),
        (["--task", "parity", "--test-lengths", "x"], "--test-lengths takes whole numbers with commas"),
        (["--task", "parity", "--memory", "gru"], "a new study needs a folder; name one with --out"),
        (["nowhere.yaml"], "'nowhere.yaml' is no file"),
        (["--task", "parity", "--length", "5", "--task-options.length", "7"], "--length and --task-options.length are"),
        (["--task", "parity", "--memory", "gru", "--network.memory", "lru"], "--memory and --network.memory are the"),
        (["--task", "parity", "--eval-interval", "2", "--eval_interval", "3"], "--eval-interval and --eval_interval"),
        (["--task", "sequential_digits", "--out", "x"], "scikit-learn, which is not installed"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_makes_nothing(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    load_digits.cache_clear()
    assert main(["probe", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_tests_have_no_pictures_makes_nothing(tmp_path, monkeypatch, capsys):
    """Pictures to train on alone are not enough."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 2, 28, 28) + bytes(2 * 784))
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 2) + bytes(2))
    monkeypatch.chdir(tmp_path)
    options = ["--task", "sequential_digits", "--task-options.pictures", "pictures", "--out", "out"]
    assert main(["probe", *options]) == 2
    assert "pictures has no file t10k-images-idx3-ubyte" in capsys.readouterr().err
    with pytest.raises(ValueError, match="has no file t10k-images-idx3-ubyte"):
        probes.train(task="sequential_digits", task_options={"pictures": "pictures"}, out="out", **SMALL)
    assert list(tmp_path.iterdir()) == [folder]


def test_the_cells_of_a_file_are_listed(tmp_path, capsys):
    file = tmp_path / "study.yaml"
    file.write_text(
        "base: {total_updates: 5}\ngrid: {memory: [gru, lru]}\n"
        "cases: [{task: parity, task_options.length: 9}, {task: copying, task_options: {symbols: 3}}]\nseeds: 2\n"
    )
    assert main(["probe", str(file), "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0] == "0  parity/gru/task_options.length=9/seed0"
    configs = [cell.config for cell in load_study(file).cells()]
    assert all(isinstance(config, probes.ProbeConfig) for config in configs)
    assert configs[2].model_dump()["task_options"]["symbols"] == 3
    assert configs[0].model_dump()["total_updates"] == 5


def test_tasks_are_listed_with_what_is_known_of_them(capsys):
    assert main(["list", "probes"]) == 0
    assert tuple(capsys.readouterr().out.split()) == tasks.names()
    assert main(["list", "probes", "-v"]) == 0
    shown = capsys.readouterr().out
    assert "chance: 0.125 of 8 classes" in shown
    assert "https://arxiv.org/abs/2411.12537" in shown


def test_a_probe_is_not_trained_as_an_agent(tmp_path, capsys):
    run = probes.train(task="parity", task_options={"length": 6}, total_updates=1, out=tmp_path / "run", **SMALL)
    for command in (["train", "--resume"], ["evaluate"]):
        assert main([*command, str(run.folder)]) == 2
        assert "is the run of a probe" in capsys.readouterr().err
