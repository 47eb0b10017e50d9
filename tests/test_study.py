"""Studies: what a grid makes, what is refused, and that cells are recorded, continued and shared."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import memax_rl
from memax_rl.cli import main
from memax_rl.runs import Run, make_config, presets
from memax_rl.runs.config import dump_config
from memax_rl.studies import Folder, Study, load_study, machine, make_study, runner, study
from memax_rl.studies.progress import Progress

ENV = "popgym/RepeatPreviousEasy"
SMALL = {
    "total_steps": 1_000,
    "eval_episodes": 0,
    "network": {"width": 8},
    "ppo": {"num_envs": 4, "rollout_length": 51, "num_minibatches": 2},
}


def _names(**parts) -> list[str]:
    return [cell.name for cell in make_study(parts).cells()]


def test_every_combination_is_a_cell_with_a_readable_name():
    names = _names(grid={"env": [ENV, "popgym/RepeatFirstEasy"], "memory": ["gru", "LRU"]}, seeds=2)
    first, second = "popgym-RepeatPreviousEasy", "popgym-RepeatFirstEasy"
    groups = [f"{first}/gru", f"{first}/lru", f"{second}/gru", f"{second}/lru"]
    assert names == [f"{group}/seed{seed}" for group in groups for seed in (0, 1)]


def test_cells_have_their_fields():
    fields = {"base": SMALL, "grid": {"network.memory": ["gru", "lru"], "ppo.gamma": [0.9, 1e-3]}, "seeds": [7]}
    configs = [cell.config for cell in make_study(fields).cells()]
    assert [(c.network.memory, c.model_dump()["ppo"]["gamma"]) for c in configs] == [
        ("gru", 0.9),
        ("gru", 1e-3),
        ("lru", 0.9),
        ("lru", 1e-3),
    ]
    assert {(c.seed, c.num_seeds, c.network.width, c.total_steps) for c in configs} == {(7, 1, 8, 1_000)}


def test_zip_moves_fields_together_and_exclude_leaves_out():
    parts = {
        "zip": {"env": [ENV, "popgym/RepeatFirstEasy"], "total_steps": ["1k", "2k"]},
        "grid": {"memory": ["gru", "lru"]},
        "exclude": [{"env": ENV, "memory": "lru"}],
    }
    found = [(c.config.env, c.config.network.memory, c.config.total_steps) for c in make_study(parts).cells()]
    assert found == [
        (ENV, "gru", 1000),
        ("popgym/RepeatFirstEasy", "gru", 2000),
        ("popgym/RepeatFirstEasy", "lru", 2000),
    ]


def test_cases_have_fields_of_their_own_also_in_place_of_the_base():
    parts = {
        "base": {"total_steps": "1k"},
        "grid": {"memory": ["gru", "lru"]},
        "cases": [{"width": 8}, {"width": 16, "total_steps": "2k"}],
        "exclude": [{"memory": "lru", "total_steps": "2k"}],
    }
    found = [(c.name, c.config.network.width, c.config.total_steps) for c in make_study(parts).cells()]
    assert found == [
        ("gru/network.width=8/seed0", 8, 1_000),
        ("gru/network.width=16/total_steps=2k/seed0", 16, 2_000),
        ("lru/network.width=8/seed0", 8, 1_000),
    ]
    zipped = make_study({"zip": {"memory": ["gru", "lru", "mgu"], "width": [8, 8, 16]}}).cells()
    assert [cell.config.network.width for cell in zipped] == [8, 8, 16], "a value may stand twice where others change"


SHIPPED = {"repeat_previous": 8, "popgym": 42, "dqn": 8, "in_context": 15, "endless_tmaze": 4, "fill": 4}
SHIPPED |= {"behavior_cloning": 7 * 39, "probes": 65, "popgym_memories": 420}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_studies_are_right(name, capsys):
    cells = load_study(Path(name)).cells()
    assert len(cells) == 3 * SHIPPED[name]
    assert main(["list", "studies"]) == 0
    assert sorted(SHIPPED) == capsys.readouterr().out.split()
    assert not any(preset.startswith("studies") for preset in presets())


def test_the_readmes_study_has_the_settings_of_its_table():
    configs = [cell.config for cell in load_study(Path("repeat_previous")).cells() if cell.config.seed == 2]
    rows = [(c.env[21:], c.network.memory, c.network.depth, c.total_steps, c.eval_episodes) for c in configs]
    assert rows == [
        ("Easy", "lru", 1, 120_000, 256),
        ("Easy", "gru", 1, 200_000, 256),
        ("Easy", "lstm", 1, 200_000, 256),
        ("Easy", "min_gru", 3, 900_000, 256),
        ("Easy", "linear_transformer", 1, 700_000, 256),
        ("Easy", "mlp", 1, 200_000, 256),
        ("Medium", "lru", 1, 500_000, 256),
        ("Hard", "lru", 1, 1_000_000, 256),
    ]
    (linear,) = [c for c in configs if c.network.memory == "linear_transformer"]
    assert linear.network.memory_options["rotary_base"] == 10.0
    assert linear.model_dump()["ppo"]["learning_rate"] == 3e-3


def test_a_preset_is_a_start_that_fields_change():
    (cell,) = make_study({"base": {"preset": "ppo/repeat_first_easy"}, "grid": {"memory": ["gru"]}}).cells()
    assert (cell.config.env, cell.config.network.memory) == ("popgym/RepeatFirstEasy", "gru")
    names = _names(grid={"preset": ["ppo/repeat_first_easy", "ppo/repeat_previous_easy"]})
    assert names == ["preset=ppo-repeat_first_easy/seed0", "preset=ppo-repeat_previous_easy/seed0"]


def test_names_of_values_that_no_path_can_hold_do_not_collide():
    blocks = [["gru", "lru"], ["gru-lru"[:3], {"memory": "lru", "repeat": 2}]]
    names = _names(grid={"network.blocks": blocks})
    assert len(set(names)) == 2
    assert all(len(part) < 80 and ".." not in part for name in names for part in name.split("/"))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({}, "the grid is empty"),
        ({"grid": {"memory": []}}, "network.memory has no values"),
        ({"grid": {"memory": ["gru", "gru"]}}, "network.memory has the value 'gru' twice"),
        ({"grid": {"memory": ["gru", "GRU"]}}, "two cells of the grid are the same: gru/seed0"),
        ({"grid": {"memory": ["gruu"]}}, "unknown memory 'gruu'; did you mean"),
        ({"grid": {"env": ["popgym/RepeatFrist"]}}, "unknown environment 'popgym/RepeatFrist'; did you mean"),
        ({"grid": {"network.memry": ["gru"]}}, "unknown field network.memry; did you mean 'network.memory'"),
        ({"grid": {"seed": [1, 2]}}, "set seeds"),
        ({"grid": {"memory": ["gru"]}, "base": {"memory": "lru"}}, "network.memory stands in two of"),
        ({"grid": {"memory": ["gru"], "network.memory": ["lru"]}}, "network.memory is given twice"),
        ({"grid": {"memory": ["gru"]}, "base": {"network": {"width": 8}, "width": 4}}, "network.width is given twice"),
        ({"cases": [{"memory": "gru", "network": {"memory": "lru"}}]}, "network.memory is given twice"),
        ({"zip": {"memory": ["gru", "lru"], "width": [8]}}, "equally many values"),
        ({"grid": {"memory": ["gru"]}, "exclude": [{"env": ENV}]}, "exclude names env"),
        ({"grid": {"memory": ["gru"]}, "exclude": [{"memory": "gru"}]}, "exclude leaves no cell"),
        ({"grid": {"memory": ["gru"]}, "seeds": 0}, "got 0"),
        ({"cases": [{"memory": "gru"}, {}]}, "cases holds an empty combination"),
        ({"cases": [{"memory": "gru"}], "grid": {"memory": ["lru"]}}, "network.memory stands in cases and in grid"),
        ({"cases": [{"memory": "gru", "seed": 3}]}, "set seeds"),
        ({"cases": [{"memory": "gru"}, {"memory": "gru"}]}, "two cells of the grid are the same"),
        ({"gird": {"memory": ["gru"]}}, "gird: a study has no such part"),
    ],
    ids=str,
)
def test_a_wrong_study_is_refused_in_one_line_before_anything_is_made(parts, says, tmp_path):
    with pytest.raises(ValueError, match=r"\w") as caught:
        study(parts, out=tmp_path / "study")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study").exists()


def _prepare(out: Path, **parts) -> None:
    runner.open_study(make_study(parts), out, (), False)


def test_a_folder_takes_more_values_and_seeds_and_no_other_study(tmp_path):
    out = tmp_path / "study"
    _prepare(out, base={"width": 8}, grid={"memory": ["gru"]}, seeds=1)
    _prepare(out, base={"width": 8}, grid={"memory": ["gru", "lru"]}, seeds=2)
    assert len(Folder(out).study().cells()) == 4
    before = (out / "study.yaml").read_text()
    for parts, says in [
        ({"base": {"width": 16}, "grid": {"memory": ["gru", "lru"]}, "seeds": 2}, "network.width differs"),
        ({"base": {"width": 8}, "grid": {"memory": ["gru"]}, "seeds": 2}, "has the cell lru/seed0"),
        ({"base": {"width": 8}, "grid": {"env": [ENV]}, "seeds": 2}, "does not vary env, and this one does"),
    ]:
        with pytest.raises(ValueError, match=says):
            _prepare(out, **parts)
    assert (out / "study.yaml").read_text() == before
    run = out / "gru" / "seed0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(make_config({"network": {"width": 4, "memory": "gru"}})))
    with pytest.raises(ValueError, match=r"network\.width of the run in .*gru/seed0 differs"):
        _prepare(out, base={"width": 8}, grid={"memory": ["gru", "lru"]}, seeds=2)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a study's folder"):
        _prepare(tmp_path, grid={"memory": ["gru"]})
    with pytest.raises(ValueError, match="is not a study's folder"):
        study({"grid": {"memory": ["gru"]}}, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match=r"has no study\.yaml"):
        study(tmp_path)
    with pytest.raises(ValueError, match="needs a folder"):
        study({"grid": {"memory": ["gru"]}})


def test_workers_share_the_cores_and_gpus():
    assert [machine.share_of(i, 2, [0, 1, 2, 3, 4]) for i in range(2)] == [[0, 2, 4], [1, 3]]
    assert [machine.share_of(i, 3, [0, 1]) for i in range(3)] == [[0], [1], [0]]
    assert machine.variables(0, 2, []) == {}
    assert machine.variables(1, 2, ["0", "3"]) == {"CUDA_VISIBLE_DEVICES": "3"}
    shared = machine.variables(3, 4, ["0", "3"])
    assert shared == {"CUDA_VISIBLE_DEVICES": "3", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"}
    assert machine.gpus({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0"}) == []


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    run = Run.open(folder)
    with np.load(run.checkpoint_path(run.saved_updates()[-1])) as archive:
        return {name: archive[name] for name in archive.files if name != "about"}


def _grid(*rates: float) -> Study:
    return make_study({"base": {**SMALL, "memory": "min_gru"}, "grid": {"ppo.learning_rate": rates}})


@pytest.mark.slow
def test_a_failing_cell_is_recorded_and_the_others_are_as_alone(tmp_path):
    out = tmp_path / "study"
    ended = memax_rl.study(_grid(1e-3, 1e30), out=out, workers=2)
    good, bad = (cell.name for cell in _grid(1e-3, 1e30).cells())
    assert ended.finished == (good,)
    assert list(ended.failed) == [bad]
    recorded = json.loads((out / "failures" / f"{bad}.json").read_text())
    assert recorded["cell"] == bad
    assert "at update" in recorded["message"] == ended.failed[bad]
    assert "TrainingError" in recorded["traceback"]
    alone = memax_rl.train(Run.open(out / good).config(), out=tmp_path / "alone")
    one, other = _arrays(out / good), _arrays(alone.folder)
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)

    written = (out / good / "summary.json").stat().st_mtime_ns
    more = memax_rl.study(_grid(1e-3, 1e30, 1e-4), out=out, workers=1)
    assert len(more.finished) == 2, "the new cell ran"
    assert list(more.failed) == [bad], "what failed was tried again"
    assert (out / good / "summary.json").stat().st_mtime_ns == written, "what is finished was left alone"


@pytest.mark.slow
def test_two_processes_share_a_study_and_a_stale_lock_is_none(tmp_path):
    out = tmp_path / "study"
    grid = _grid(1e-3, 1e-4)
    folder, cells = runner.open_study(grid, out, (), False)
    # Held by another process, which is then killed: what it held is free again.
    code = "import time\nfrom memax_rl.studies import Folder\n"
    code += f"with Folder({str(out)!r}).lock({cells[0].name!r}) as held:\n"
    other = subprocess.Popen([sys.executable, "-c", code + " print(held, flush=True); time.sleep(600)"], stdout=-1)
    assert other.stdout
    assert other.stdout.readline() == b"True\n"
    assert runner.run_one(folder, cells, 0, (), False) == {"outcome": "busy"}
    assert not (out / cells[0].name).exists()
    ended: list[runner.Outcome] = []
    thread = threading.Thread(target=lambda: ended.append(study(out, workers=1)))
    thread.start()
    assert runner.run_one(folder, cells, 1, (), False)["outcome"] in ("busy", "finished")
    other.kill()
    other.wait()
    other.stdout.close()
    thread.join()
    assert ended[0].finished == tuple(sorted(cell.name for cell in cells))
    assert [Run.open(out / cell.name).metrics()[-1]["update"] for cell in cells] == [5, 5]


def test_what_a_kill_left_of_a_folder_that_was_being_made_is_removed_and_nothing_else(tmp_path):
    folder, cells = runner.open_study(_grid(1e-3), tmp_path / "study", (), False)
    run = folder.path / cells[0].name
    (run / "checkpoints").mkdir(parents=True)
    (run / ".config.yaml.x.tmp").write_text("half")
    assert folder.begun(cells[0]) is None
    assert not run.exists()
    run.mkdir()
    (run / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        folder.begun(cells[0])
    assert (run / "thesis.tex").read_text() == "mine"


def test_fields_are_typed_with_all_their_values(capsys, tmp_path):
    typed = ["--env", ENV, "--memory", "gru", "lru", "--seeds", "2", "--total-steps", "2M", "--ppo.gamma=0.9", "1e-3"]
    assert main(["study", *typed, "--out", str(tmp_path / "x"), "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[3].split() == ["3", "popgym-RepeatPreviousEasy/gru/ppo.gamma=0.001/seed1"]
    assert not (tmp_path / "x").exists()


def test_a_file_is_read_and_changed_by_what_is_typed(capsys, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("base: {total_steps: 1k}\ngrid: {network: {memory: [gru, lru, mgu]}}\nseeds: 3\n")
    assert main(["study", str(file), "--memory", "gru", "--seeds", "1", "--check"]) == 0
    assert capsys.readouterr().out.split() == ["0", "gru/seed0"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--memroy", "gru", "lru"], "unknown field memroy; did you mean 'memory'"),
        (["--memory"], "--memory needs a value"),
        (["--memory", "gru", "--memory", "lru"], "--memory is given twice"),
        (["--memory", "gru", "lru", "--network.memory", "s5"], "--memory and --network.memory are the same field"),
        (["--memory", "gru,lru"], "--network.memory: several values stand one after the other, without commas"),
        (["--memory", "gru", "--env", "own/No"], "one of your own needs --import MODULE"),
        (["--memory", "gru", "--cell", "9"], "there is no cell 9; the study has cells 0 to 0"),
        (["nowhere.yaml"], "'nowhere.yaml' is no file, nor one that is shipped; known: behavior_cloning, dqn, "),
        ([], "the grid is empty"),
    ],
    ids=str,
)
def test_a_mistake_on_the_command_line_is_one_line_and_status_2(arguments, says, capsys, tmp_path):
    assert main(["study", *arguments, "--out", str(tmp_path / "x")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_the_line_about_a_finished_cell_has_the_return_of_its_evaluation(tmp_path):
    """And where it was not evaluated, that of the last update."""
    (cell,) = make_study({"grid": {"env": ["popgym/RepeatFirstEasy"]}, "seeds": 1}).cells()
    run = tmp_path / cell.name
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("env_steps,episode/return\n10,-0.5\n20,0.25\n")
    progress = Progress(Folder(tmp_path), [cell], set())
    progress.finish(cell, 3.0)
    assert progress.describe(cell, 3.0).endswith(f"{cell.name} in 3 s, return 0.25")
    (run / "summary.json").write_text('{"evaluation": {"mean_return_per_seed": [0.75]}}')
    assert progress.describe(cell, 3.0).endswith(", return 0.75")


@pytest.mark.slow
def test_runs_name_the_modules_and_probes_have_no_place_for_them(tmp_path):
    memory = {"grid": {"memory": ["gru"]}}
    assert make_study({"base": {"imports": ["a"]}, **memory}).naming(["b", "a"]).base == {"imports": ["a", "b"]}
    parity = {"task": "parity"}
    for probes in ({"base": parity, **memory}, {"grid": {"task": ["parity"]}}, {"cases": [parity]}):
        assert make_study(probes).naming(["a"]) == make_study(probes)
    for own in ({"grid": {"imports": [["a"], ["b"]]}}, {"cases": [{"imports": ["a"]}]}):
        assert make_study(own).naming(["c"]) == make_study(own), "it says itself which modules each of its runs names"
    for wrong in ("own_tasks", 5, [["a"]]):
        with pytest.raises(ValueError, match="imports"):
            make_study({"base": {"imports": wrong}, **memory}).naming(["json"]).cells()
    # `json` is imported already, and registers nothing.
    parts = {"base": {**SMALL, "env": ENV}, "grid": {"memory": ["mlp"]}}
    ended = study(make_study(parts), out=tmp_path / "study", workers=1, imports=["json"])
    assert Run.open(ended.folder / ended.finished[0]).fields()["imports"] == ["json"]
    # New values may need a module more.
    folder, now = Folder(tmp_path / "study"), make_study(parts | {"grid": {"memory": ["mlp", "gru"]}})
    now = now.naming(["json", "math"])
    folder.prepare(now, now.cells())
    assert folder.study().base["imports"] == ["json", "math"]


def test_modules_of_a_study_stand_beside_those_of_its_preset(tmp_path):
    preset = tmp_path / "own.yaml"
    preset.write_text("imports: [json]\n")
    (cell,) = make_study({"base": {"preset": str(preset)}, "grid": {"memory": ["gru"]}}).naming(["math"]).cells()
    assert cell.config.imports == ("json", "math")
