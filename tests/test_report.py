"""`memax-rl compare --out`: what the report says, and that nothing in a run's files breaks it."""

import html.parser
import itertools
import json
import math
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from test_figures import check
from test_results import write

from memax_rl.cli import main
from memax_rl.evaluation.figures import look, shorten
from memax_rl.memory import registry
from memax_rl.studies.analysis import compare, with_scores
from memax_rl.studies.charts import ticks
from memax_rl.studies.heat import heat_chart, heat_map
from memax_rl.studies.plots import draw, learning_curves
from memax_rl.studies.report import write as write_report
from memax_rl.studies.results import COLUMNS
from memax_rl.studies.sections import sections
from memax_rl.studies.tables import Cell, Table, to_latex, to_markdown

NASTY = "a<b>&\"'$x_1$ | {c}%\\#^~ `d` *e* é"


def frames(scores, tasks=("env/A",), updates=12, nan=False, chance=0.0, best=1.0):
    """Tables as `results_and_curves` makes them: `scores` holds the final returns of each memory's seeds."""
    rows, drawn = [], []
    for task, (memory, values) in itertools.product(tasks, scores.items()):
        for seed, value in enumerate(values):
            run = f"/runs/{task}/{memory}/{seed}"
            about = {"run": run, "env": task, "memory": memory, "agent": "ppo", "seed": seed}
            rows.append(dict.fromkeys(COLUMNS, math.nan) | about | {
                "status": "finished", "final_return": value, "steps": 100 * updates, "wall_clock": 5.0, "episodes": 8,
                "chance": chance, "best_known": best, "parameters": 10, "update_bytes": 2**20, "device": "cpu:0",
            })  # fmt: skip
            for t in range(1, updates + 1):
                reached = math.nan if nan or t == 1 else value * min(1, 2 * t / updates)
                drawn.append(about | {"update": t, "env_steps": 100 * t, "episode/return": reached})
    return pd.DataFrame(rows), pd.DataFrame(drawn)


class Page(html.parser.HTMLParser):
    """Elements that are open, their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], []
        self.feed(text)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "path") or (tag == "path" and not (self.get_starttag_text() or "").endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def report(folder, out, *options):
    assert main(["compare", str(folder), "--out", str(out), *options]) == 0
    return (out / "report.html").read_text()


def test_the_report_holds_everything_and_loads_nothing(tmp_path):
    # A name that is not UTF-8.
    folder = tmp_path / "runs\udcff"
    for seed in range(3):
        for memory, value in (("gru", 0.1), ("lru", 0.9)):
            write(folder / f"{memory}{seed}", memory, seed, value + 0.01 * seed)
    text = report(folder, tmp_path / "out")
    page = Page(text)
    assert "lru is better than gru with 3 seeds" in text
    assert not re.findall(r"https?://|url\(|@import|<link|<img|<iframe", text)
    assert "default-src 'none'" in text
    assert {tag for tag, attributes in page.seen if "src" in attributes or "href" in attributes} == {"a"}
    assert all(a["href"].startswith("#") for _, a in page.seen if "href" in a)
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {"report.html", "results.csv", "curves.csv", "tables.md", "tables.tex"} <= files
    assert {f"figures/curves-popgym-RepeatPreviousEasy.{end}" for end in ("png", "pdf")} <= files
    assert not list(tmp_path.glob(".*"))
    for name in ("png", "pdf"):
        begin = (tmp_path / f"out/figures/curves-popgym-RepeatPreviousEasy.{name}").read_bytes()[:5]
        assert begin == {"png": b"\x89PNG\r", "pdf": b"%PDF-"}[name]


def test_tasks_without_chance_and_best_known_are_told_apart():
    scores = {"gru": [0.1, 0.2], "lru": [0.3, 0.4]}
    results, curves = frames(scores, ["A", "B, x=1", "C, x=2"])
    results.loc[results["env"] != "A", "best_known"] = math.nan
    said = "Normalized scores leave out, because chance or best known are not known: B, x=1; C, x=2."
    assert sections(compare(results, curves))[0].paragraphs == [said]
    said = "There are no normalized scores, for which chance and best known are needed: --scores gives them."
    assert sections(compare(*frames(scores, ["B", "C"], best=math.nan)))[0].paragraphs == [said]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_of_a_report(tmp_path):
    for i, env in enumerate(("popgym/RepeatPreviousEasy", "popgym/RepeatFirstEasy")):
        for seed in range(3):
            write(tmp_path / f"runs/{i}{seed}", "gru", seed, 0.1, env=env)
    out = tmp_path / "made/out"
    command = [sys.executable, "-m", "memax_rl", "compare", str(tmp_path / "runs"), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".out.*.tmp/tables.md")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert process.communicate()[1].strip() == "stopped"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_tables_alone_have_no_part_for_the_heat_map(tmp_path):
    results, curves = frames({"gru": [0.1], "lru": [0.2]}, ["env/A", "env/B"])
    write_report(tmp_path / "out", compare(results, curves), [], {}, figures=False)
    assert "<h2>Memories by task</h2>" in (tmp_path / "out/report.html").read_text()
    told = (tmp_path / "out/tables.md").read_text()
    assert re.findall(r"^## .*$", told, re.M) == ["## Over all tasks", "## env/A", "## env/B"]


def test_a_folder_that_holds_files_is_left_alone(tmp_path, capsys):
    write(tmp_path / "runs/x", "gru", 0, 0.5)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    arguments = ["compare", str(tmp_path / "runs"), "--out", str(out), "--no-figures"]
    assert main(arguments) == 2
    assert "holds files; choose another folder, or add --overwrite" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    assert main([*arguments, "--overwrite"]) == 0
    assert (out / "mine.txt").read_text() == "kept"
    assert not (out / "figures").exists()
    assert main(["compare", str(tmp_path / "runs"), "--out", str(out / "mine.txt")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "runs"), "--out", str(out / "mine.txt/below")]) == 2
    assert f"{out / 'mine.txt'} is a file, expected a folder; choose another place" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "runs"), "--overwrite"]) == 2
    assert "add --out DIR" in capsys.readouterr().err


def test_names_are_text_everywhere(tmp_path):
    results, curves = frames({NASTY: [0.1, 0.2], "</script><script>alert(1)": [0.5, 0.6]}, tasks=(NASTY, "_b"))
    found = sections(compare(results, curves))
    from memax_rl.studies.html import page

    text = page(NASTY, NASTY, found)
    parsed = Page(text)
    assert [tag for tag, _ in parsed.seen].count("script") == 1
    assert NASTY in parsed.text
    assert any(a.get("data-s") == NASTY for _, a in parsed.seen), "attributes are quoted"
    for plot in (plot for section in found for plot in section.plots):
        figure = draw(plot)
        check(figure)
        texts = [text.get_text() for text in figure.findobj(Text)]
        assert any(r"\$x_1\$" in text for text in texts)
        assert not any("$x_1$" in text for text in texts), "no part of a name is a formula"


def test_returns_have_about_four_digits():
    for value, shown in (
        (0.5, "0.500"),
        (52.75, "52.75"),
        (-123.4, "-123.4"),
        (98765.4, "98765"),
        (0.0, "0.000"),
        (-1e-5, "0.000"),
    ):
        found = sections(compare(*frames({"gru": [value]})))
        assert next(t for s in found for t in s.tables if t.name == "scores-env-A").rows[0][2].text == shown


def test_tasks_whose_file_names_would_be_the_same_have_files_of_their_own():
    found = sections(compare(*frames({"gru": [0.1]}, tasks=("a/b", "a.b"))))
    assert [p.name for s in found for p in s.plots][-2:] == ["curves-a-b", "curves-a-b-2"]
    assert [t.name for s in found for t in s.tables] == [
        "aggregate", "scores-a-b", "cost-a-b", "scores-a-b-2", "cost-a-b-2"
    ]  # fmt: skip


def test_tables_in_latex_and_markdown():
    table = Table("x", "A & B_1", "5 % of $", ["a_b", "c|d"], [[Cell("x_<y>"), Cell("-0.5 [-1, 2]", strong=True)]])
    latex = to_latex(table)
    assert r"\toprule" in latex
    assert r"\caption{A \& B\_1. 5 \% of \$}" in latex
    assert r"x\_\textless{}y\textgreater{} & \textbf{$-$0.5 [$-$1, 2]} \\" in latex
    markdown = to_markdown(table)
    assert r"| a\_b | c\|d |" in markdown
    assert r"| x\_&lt;y&gt; | **-0.5 [-1, 2]** |" in markdown


def test_levels_count_the_runs_that_never_reach_them():
    results, curves = frames({"gru": [0.2, 1.0, 1.0], "lru": [0.2, 0.2, 1.0]})
    (task,) = compare(results, curves, levels=(0.5,)).tasks
    (level,) = task.levels
    assert level.value == 0.5
    # Returns rise to 1 at update 6, and the mean of 5 of them is half of that at update 6: (2 + 3 + 4 + 5 + 6) / 6 / 5.
    assert list(level.steps["gru"]) == [math.inf, 600, 600]
    (section,) = [s for s in sections(compare(results, curves, (0.5,))) if s.title == "env/A"]
    cost = {row[0].text: row[1].text for row in section.tables[1].rows}
    assert cost == {"gru": "600 (2 of 3)", "lru": "not reached (1 of 3)"}


def test_curves_go_as_far_as_all_seeds_do():
    results, curves = frames({"gru": [1.0, 1.0]}, updates=10)
    curves = curves[(curves["seed"] == 0) | (curves["env_steps"] <= 500)]
    (task,) = compare(results, curves).tasks
    curve = task.curves["gru"]
    assert (curve.steps[0], curve.steps[-1], curve.runs) == (200, 500, 2), "the first update has no return"
    np.testing.assert_allclose(curve.value, [0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(curve.low, curve.value)


def test_one_seed_has_no_bands_and_no_interval():
    results, curves = frames({"gru": [0.4], "lru": [0.6]})
    comparison = compare(results, curves)
    plot = learning_curves(comparison, comparison.tasks[0])
    assert not plot.has_bands
    assert "no bands" in plot.caption
    ranking = next(t for s in sections(comparison) for t in s.tables if t.name == "ranking")
    assert [[c.text for c in row] for row in ranking.rows] == [["lru", "1.00", "–"], ["gru", "2.00", "–"]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "unfinished"}, "No seed is finished and evaluated."),
        ({"final_return": math.nan}, "No seed is finished and evaluated."),
        ({"final_return": math.inf}, "No seed is finished and evaluated."),
        ({"chance": 1.0, "best_known": 1.0}, "no two of the 3 memories can be told apart with 2 seeds."),
    ],
)
def test_runs_that_say_little_have_a_report(change, said):
    results, curves = frames({"gru": [0.1, 0.1], "lru": [0.1, 0.1], "s5": [0.1, 0.1]}, nan=True)
    found = sections(compare(results.assign(**change), curves))
    assert any(said in s.paragraphs for s in found)
    assert not [p for s in found for p in s.plots if p.name.startswith(("curves", "aggregate"))]


def test_a_memory_without_a_score_on_a_task_is_left_out_of_the_aggregates():
    results, curves = frames({"gru": [0.1, 0.2], "lru": [0.5, 0.6]}, tasks=("a", "b"))
    results = results[(results["env"] != "b") | (results["memory"] != "lru")]
    comparison = compare(results, curves)
    assert comparison.complete == ["lru", "gru"]
    assert [task.name for task in comparison.compared] == ["a"], "b has one memory alone"
    assert "Left out, because one memory alone has scores there: b." in sections(comparison)[0].paragraphs
    results, curves = frames({"gru": [0.1, 0.2], "lru": [0.5, 0.6], "s5": [0.5, 0.5]}, tasks=("a", "b"))
    results = results[(results["env"] != "b") | (results["memory"] != "lru")]
    comparison = compare(results, curves)
    assert comparison.complete == ["s5", "gru"]
    assert "Left out of what follows, for want of a score on b: lru." in sections(comparison)[0].paragraphs


def test_settings_make_labels_and_options_make_tasks():
    results, curves = frames({"gru": [0.1, 0.2], "lru": [0.3, 0.4]})
    results["network.depth"] = [1, 1, 3, 3]
    assert set(compare(results, curves).labels) == {"gru", "lru"}, "a memory has its own depth"
    results["network.depth"] = [1, 1, 1, 3]
    assert set(compare(results, curves).labels) == {
        "gru (network.depth=1)", "lru (network.depth=1)", "lru (network.depth=3)"
    }  # fmt: skip
    # A setting that is not set is another than one that is, also an option of the one memory alone.
    results["network.depth"], results["ppo.reward_scale"] = 1, [1.0, None, 1.0, 1.0]
    results["network.memory_options.gated"] = [None, None, None, True]
    assert set(compare(results, curves).labels) == {
        "gru (ppo.reward_scale=1)",
        "gru (ppo.reward_scale=none)",
        "lru (ppo.reward_scale=1, network.memory_options.gated=none)",
        "lru (ppo.reward_scale=1, network.memory_options.gated=True)",
    }
    results = results.drop(columns=["ppo.reward_scale", "network.memory_options.gated"])
    results["env_options.size"] = [1, None, 1, None]
    assert [task.name for task in compare(results, curves).tasks] == ["env/A, size=1", "env/A, size=none"]
    results["env_options.size"] = [1, 2, 1, 2]
    results["eval_episodes"] = [1, 2, 3, 4]
    results["network.depth"] = 1
    comparison = compare(results, curves)
    assert [task.name for task in comparison.tasks] == ["env/A, size=1", "env/A, size=2"]
    assert set(comparison.labels) == {"gru", "lru"}


def test_scores_of_ones_own_normalize(tmp_path, capsys):
    results, curves = frames({"gru": [0.1, 0.2], "lru": [-0.3, 0.4]}, tasks=("own/Maze", "env/B"), best=math.nan)
    results.loc[results["env"] == "own/Maze", "env_options.length"] = [5, 9, 5, 9]
    given = {"own/Maze": (-1.0, 1.0), "own/Maze, length=9": (0.0, 2.0)}
    short, long, other = compare(with_scores(results, given), curves).tasks
    assert (short.name, short.chance, short.best) == ("own/Maze, length=5", -1.0, 1.0)
    assert (long.name, long.chance, long.best) == ("own/Maze, length=9", 0.0, 2.0)
    assert {name: list(values) for name, values in long.normalized_scores.items()} == {"lru": [0.2], "gru": [0.1]}
    assert not other.is_normalized
    assert np.isnan(results["best_known"].to_numpy(float)).all(), "the table that was given is left alone"
    for wrong in ((1.0, 1.0), (math.nan, 1.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match=r"scores of env/B: expected .* a greater one, the best known, got"):
            with_scores(results, {"env/B": wrong})

    write(tmp_path / "runs/x", "gru", 0, 0.5)
    arguments = ["compare", str(tmp_path / "runs"), "--no-figures", "--scores"]
    assert main([*arguments, "popgym/RepeatPreviousEasy", "-1.5", "2.5", "--out", str(tmp_path / "out")]) == 0
    assert "Normalized: 0 is chance (-1.5), 1 the best known (2.5)" in " ".join(capsys.readouterr().out.split())
    written = pd.read_csv(tmp_path / "out/results.csv")
    assert written[["chance", "best_known"]].values.tolist() == [[-1.5, 2.5]]
    assert main([*arguments, "own/Maze", "-1", "2"]) == 2
    assert "no run here is of 'own/Maze'; there are popgym/RepeatPreviousEasy\n" in capsys.readouterr().err
    assert main([*arguments, "own/Maze", "-1", "2", "--scores", "own/Maze", "-1", "3"]) == 2
    assert "--scores own/Maze is given twice" in capsys.readouterr().err


def test_levels_are_shares_of_the_way_that_is_known_before_a_run_is_evaluated(tmp_path, capsys):
    results, curves = frames({"gru": [0.1]}, tasks=("own/Maze",), best=math.nan)
    results[["status", "final_return"]] = "unfinished", math.nan
    (task,) = compare(with_scores(results, {"own/Maze": (-1.0, 3.0)}), curves, [0.25]).tasks
    assert [(level.name, level.value) for level in task.levels] == [("25 % of the way from chance to best known", 0.0)]
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"^levels: expected shares .*, 0 to 1, got {wrong}$"):
            compare(results, curves, [0.5, wrong])
    write(tmp_path / "runs/x", "gru", 0, 0.5)
    arguments = ["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--level", "0.5", "--level"]
    for again, says in (("0.5", "--level 0.5 is given twice"), ("nan", "levels: expected shares")):
        assert main([*arguments, again]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_forty_memories_in_a_figure_can_be_told_apart():
    places = [look(i) for i in range(280)]
    assert len(set(places)) == 280
    results, curves = frames({f"a memory of some renown, number {i}": [0.1, 0.2] for i in range(40)}, updates=30)
    found = sections(compare(results, curves))
    for plot in (p for s in found for p in s.plots):
        check(draw(plot))
    assert "improvement" not in [t.name for s in found for t in s.tables]


def test_the_heat_map_holds_the_normalized_means():
    results, curves = frames({"gru": [0.1, 0.3], "lru": [0.8, 1.0], NASTY: [-0.2, -0.2]}, tasks=("a", "b"), best=2.0)
    results.loc[(results["env"] == "b") & (results["memory"] == "gru"), "final_return"] = 4.0
    results = results[(results["env"] != "b") | (results["memory"] != "lru")]
    heat = heat_map(compare(results, curves))
    assert heat is not None
    assert (heat.tasks, heat.memories) == (["a", "b"], ["gru", "lru", NASTY]), "the best mean first"
    np.testing.assert_allclose(heat.values, [[0.1, 0.45, -0.1], [2.0, np.nan, -0.1]])
    cells = [attributes["fill"] for tag, attributes in Page(heat_chart(heat)).seen if tag == "rect"]
    assert cells[1] not in cells[:1] + cells[2:]
    assert cells[2] == cells[5] == "#f4f7fa", "as chance, below it"
    assert (cells[3], cells[4]) == ("#00548c", "#d9d9d9"), "as the best known, above it; none"
    figure = draw(heat)
    check(figure)
    shown = [text.get_text() for text in figure.findobj(Text)]
    assert [t for t in shown if re.fullmatch(r"-?\d\.\d\d", t)] == ["0.10", "0.45", "-0.10", "2.00", "-0.10"]


def test_a_heat_map_is_of_several_memories_on_several_tasks_that_are_normalized():
    for scores, tasks, best in (({"gru": [0.1], "lru": [0.1]}, "a", 1.0), ({"gru": [0.1]}, "ab", 1.0),
                                ({"gru": [0.1], "lru": [0.1]}, "ab", math.nan)):  # fmt: skip
        assert heat_map(compare(*frames(scores, tasks, best=best))) is None
    many = heat_map(compare(*frames({f"m{i}": [0.1 * i] for i in range(15)}, [f"env/{i}" for i in range(42)])))
    assert many is not None
    check(draw(many))
    assert not re.search(r">0\.\d\d<", heat_chart(many)), "no room for numbers"
    assert ">3, m2: 0.200<" in heat_chart(many), "without the suite, which all have"
    mixed = heat_map(compare(*frames({"gru": [0.1], "lru": [0.2]}, ["x/a", "y/a"])))
    assert mixed is not None
    assert mixed.tasks == ["x/a", "y/a"]


@pytest.mark.parametrize(
    ("memories", "tasks"),
    [
        (["gru", "mlp"], ["a", "b"]),
        ([NASTY, "M" * 70, "<script>" * 9, "i" * 70], [f"own/{NASTY}", "W" * 99]),
        (registry.names(), ["env/NoisyPositionOnlyPendulumMedium", "env/b"]),
        ([f"gru (ppo.learning_rate={rate:g})" for rate in np.logspace(-6, 0, 80)], ["env/RepeatFirstEasy", "env/b"]),
    ],
    ids=["two", "strange", "all memories", "80 settings"],
)
def test_a_heat_map_has_room_for_its_names(memories, tasks):
    heat = heat_map(compare(*frames({memory: [0.1 * i] for i, memory in enumerate(memories)}, tasks)))
    assert heat is not None
    figure = draw(heat)
    check(figure)
    shown = len(figure.findobj(Axes)[0].get_xticks())
    assert shown == min(len(memories), 49)
    assert ("The first 49 of 80." in figure.subfigs[1].texts[0].get_text().replace("\n", " ")) == (len(memories) == 80)
    page = Page(heat_chart(heat))
    assert set(memories) | set(heat.tasks) <= set(page.text), "the whole names are the titles"
    (svg,) = (attributes for tag, attributes in page.seen if tag == "svg")
    across, down = map(float, svg["viewbox"].split()[2:])
    cells = [attributes for tag, attributes in page.seen if tag == "rect"]
    left, top = (min(float(cell[side]) for cell in cells) for side in "xy")
    for room, names, most in ((left, heat.tasks, 36), (top, heat.memories, 28)):
        assert room - 6 >= max(11.5 * _ems(shorten(name, most)) for name in names), "no name is cut"
    assert all(float(cell["width"]) >= 14 for cell in cells), "names side by side"
    assert f"max-width:{across:.0f}px" in svg["style"], "type is not blown up"
    assert down == pytest.approx(top + 20 * len(tasks) + 4, abs=1)


def _ems(text):
    """The width of a text in DejaVu Sans, in widths of an em."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=10), ismath=False)[0] / 10


def test_numbers_of_a_heat_map_fit_into_its_cells():
    values = [0.004, -0.004, 9.994, 9.996, -9.996, -9999.4, 9999.6, 1e99, -1e18, 0.5, 0.6, 0.7, 0.8, 0.9]
    scores = {f"m{i}": [value] for i, value in enumerate(values)}
    heat = heat_map(compare(*frames(scores, ["env/RepeatFirstMedium", "env/b"])))
    assert heat is not None
    figure = draw(heat)
    check(figure)
    shown = {text.get_text() for text in figure.findobj(Text)}
    assert {"0.00", "9.99", "10", "-10", "-9999", "1e4", "1e99", "-1e18"} <= shown
    assert "RepeatFirstMedium, m5: -9999.400" in Page(heat_chart(heat)).text, "as the table has it"


def test_adaptation_of_several_memories_in_one_figure(tmp_path):
    def summary(values):
        entries = [{"value": v, "low": v - 0.1, "high": v + 0.1} for v in values]
        return {"return_by_episode": entries, "gain": entries[-1], "area": entries[0], "regret": None}

    for i, memory in enumerate(("gru", "gru", "lru")):
        run = write(tmp_path / f"runs/{i}", memory, i, 0.5)
        result = {
            "policy": "sampled", "tasks": 16, "seeds": [i], "episodes": 3, "has_boundaries": True,
            "test": {"agent": summary([0, 1, 2 + i]), "wiped": summary([0, 0, 0])},
            "strategies": {"best": summary([3, 4, 5])},
        }  # fmt: skip
        (run.folder / "icl.json").write_text(json.dumps(result))
    text = report(tmp_path / "runs", tmp_path / "out", "--no-figures")
    assert "Dashed: what the best known strategy gets at the end of the trial." in text
    table = pd.read_csv(tmp_path / "out/adaptation.csv")
    assert len(table) == 3 * 3 * 3
    assert max(table["value"][(table["who"] == "agent") & (table["label"] == "lru")]) == 4
    # Of the two runs of gru: the mean over runs.
    assert "2.50 [-3.85, 8.85]" in text
    (tmp_path / "runs/2/icl.json").write_text('{"policy": 1}')
    assert main(["compare", str(tmp_path / "runs")]) == 2


def test_links_and_damage_are_named(tmp_path, capsys):
    run = write(tmp_path / "runs/x", "gru", 0, 0.5)
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (run.folder / "icl.json").symlink_to(secret)
    out = tmp_path / "out"
    assert main(["compare", str(tmp_path / "runs"), "--out", str(out)]) == 2
    assert "icl.json is a link" in capsys.readouterr().err
    (run.folder / "icl.json").unlink()
    run.metrics_path.write_text("update,seed\n1,x\n")
    assert main(["compare", str(tmp_path / "runs"), "--out", str(out)]) == 2
    assert "metrics.csv is damaged" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("metrics.csv", "\n2,0,2,20,1,0.2", "\n2,0,2,1e400,1,0.2"),
        ("metrics.csv", "\n2,0,2,20,1,0.2", "\n,0,2,20,1,0.2"),
        ("metrics.csv", "\n2,0,2,20,1,0.2", "\n2,0,2,20,1,1e308"),
        ("summary.json", "0.5", "1e308"),
        ("summary.json", "8", "{}"),
        ("config.yaml", "num_seeds: 1", "num_seeds: 1000000000"),
    ],
)
def test_what_no_run_writes_is_damage(file, old, new, tmp_path, capsys):
    run = write(tmp_path / "runs/x", "gru", 0, 0.5)
    text = (run.folder / file).read_text()
    assert text.count(old) == 1
    (run.folder / file).write_text(text.replace(old, new))
    assert main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    assert re.fullmatch("memax-rl: error: .*damaged.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_ticks_are_round_and_within():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(-0.53, 1.02) == pytest.approx([-0.5, 0, 0.5, 1])
    assert ticks(3, 3) == [3]
    for low, high in ((0, 1e9), (-1e-7, 2e-7), (5, 5.0001)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 8
        assert low - 1e-9 * high <= found[0]
        assert found[-1] <= high * (1 + 1e-9)
