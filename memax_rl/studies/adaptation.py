"""How the agents of many runs adapt within a trial: what `memax-rl icl` left in their folders, side by side."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memax_rl.runs.run import RunError
from memax_rl.studies.analysis import Comparison, Frame, span
from memax_rl.studies.comparison import mean_interval
from memax_rl.studies.results import number, read_json

AGENT, WIPED = "agent", "memory wiped"
_MEASURES = ("gain", "area", "regret")


@dataclass(frozen=True)
class Adaptation:
    """The held-out trials of one task, of runs that were measured alike.

    `frame` has a row a label, who plays (the agent, the agent with its memory wiped, or a strategy) and episode, with
    value, low and high. `measures` has for each label gain, area and regret. With several runs of a label, intervals
    are Student's over runs; `over` says what they are over.
    """

    task: str
    unit: str
    caption: str
    frame: Frame
    measures: dict[str, dict[str, dict[str, float]]]


def adaptations(comparison: Comparison) -> tuple[Frame, list[Adaptation]]:
    """Return the rows of all icl.json of the compared runs, and what they say by task.

    The rows have run, task, label, policy, tasks, seeds, who, episode, value, low and high, of held-out tasks.

    Raises:
        RunError: If such a file is damaged.
    """
    rows: list[dict[str, Any]] = []
    groups: dict[tuple[Any, ...], list[tuple[str, dict[str, Any]]]] = {}
    for task in comparison.tasks:
        for run, label in task.rows.drop_duplicates("run")[["run", "label"]].itertuples(index=False):
            path = Path(str(run)) / "icl.json"
            if not (result := read_json(path)):
                continue
            try:
                about = {"run": run, "task": task.name, "label": label}
                about |= {"policy": str(result["policy"]), "tasks": int(result["tasks"]), "seeds": len(result["seeds"])}
                rows += [about | row for row in _rows(result)]
                key = (task.name, about["policy"], about["tasks"], int(result["episodes"]), _unit(result))
                groups.setdefault(key, []).append((str(label), result))
            except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
                raise RunError(f"{path} is damaged ({error}); restore it, or run `memax-rl icl` again") from None
    return pd.DataFrame(rows), [_adaptation(key, found) for key, found in groups.items()]


def _unit(result: dict[str, Any]) -> str:
    return "episode of the trial" if result["has_boundaries"] else f"block of {int(result['episode_length'])} pulls"


def _players(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {AGENT: result["test"]["agent"], WIPED: result["test"]["wiped"]} | result["strategies"]


def _rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for who, summary in _players(result).items():
        for measure in _MEASURES:
            _entry(summary[measure])
        for episode, entry in enumerate(summary["return_by_episode"], 1):
            yield {"who": str(who), "episode": episode} | _entry(entry)


def _entry(entry: Any) -> dict[str, float]:
    """Return value, low and high; nan for what is not known."""
    return {name: math.nan if entry is None else number(entry[name]) for name in ("value", "low", "high")}


def _adaptation(key: tuple[Any, ...], found: list[tuple[str, dict[str, Any]]]) -> Adaptation:
    task, policy, tasks, episodes, unit = key
    by_label: dict[str, list[dict[str, Any]]] = {}
    for label, result in found:
        by_label.setdefault(label, []).append(result)
    rows, measures = [], {}
    for label, results in by_label.items():
        for who in (AGENT, WIPED):
            rows += _combined(label, who, [_players(result)[who] for result in results])
        agents = [result["test"]["agent"] for result in results]
        measures[label] = {name: _combine([[agent[name]] for agent in agents])[0] for name in _MEASURES}
    for name in {name: None for _, result in found for name in result["strategies"]}:
        played = [result["strategies"][name] for _, result in found if name in result["strategies"]]
        rows += _combined(str(name), "strategy", played)
    seeds = [sum(len(result["seeds"]) for result in results) for results in by_label.values()]
    runs = {len(results) for results in by_label.values()}
    over = "runs (Student)" if min(runs) > 1 else "tasks and seeds (bootstrap)" if max(runs) == 1 else (
        "runs (Student), or over tasks where there is one run"
    )  # fmt: skip
    caption = (
        f"Mean return by {unit}, weights fixed, on held-out tasks; {span(seeds, 'seed')}, {tasks} trials, "
        f"trials of {episodes} {unit.split()[0]}s, {policy} actions. Bands and brackets: 95 % intervals over {over}."
    )
    return Adaptation(task, unit, caption, pd.DataFrame(rows), measures)


def _combined(label: str, who: str, summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    entries = _combine([summary["return_by_episode"] for summary in summaries])
    return [{"label": label, "who": who, "episode": i} | entry for i, entry in enumerate(entries, 1)]


def _combine(runs: list[list[Any]]) -> list[dict[str, float]]:
    """Return the mean over runs of each entry; of a single run its own entries."""
    if len(runs) == 1:
        return [_entry(entry) for entry in runs[0]]
    table = np.array([[_entry(entry)["value"] for entry in run] for run in runs])
    columns = np.stack(mean_interval(table), axis=1).tolist()
    return [dict(zip(("value", "low", "high"), column, strict=True)) for column in columns]
