"""What many runs say about their memories: tables of results and curves in, a `Comparison` out. No file is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from memax_rl.studies.comparison import mean_interval, performance_profile, ranking
from memax_rl.studies.results import COLUMNS

# Settings that change no result: runs that differ in these alone are of one kind.
_WITHOUT_EFFECT = (
    *("checkpoint_interval", "eval_episodes", "eval_sequences", "test_lengths", "tensorboard", "wandb", "imports"),
    "on_divergence",
)
# Settings that make another task of the same environment.
_OF_TASKS = ("env_options", "env_wrappers", "task_options")
# A training return counts as reached when the mean of so many rows is that high; one row alone may be luck.
WINDOW = 5
_POINTS = 100

Interval = tuple[np.ndarray, np.ndarray, np.ndarray]
# A pandas DataFrame; type checkers do not see through what its methods return.
Frame = Any


@dataclass(frozen=True)
class Curve:
    """The mean over runs of the training return, by environment steps; the ends of its interval are nan for one run."""

    steps: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int


@dataclass(frozen=True)
class Level:
    """How long runs take to a level: the first environment step of each at which its training return is that high.

    A run that never is has inf.
    """

    name: str
    value: float
    steps: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """The runs of one task, by label: memory, and settings that differ between runs of one memory.

    `scores` are the mean returns of evaluation of finished seeds, best mean first; labels without one are left out.
    """

    name: str
    scores: dict[str, np.ndarray]
    chance: float
    best: float
    rows: Frame
    curves: dict[str, Curve]
    levels: list[Level]
    doubled: int

    @property
    def is_normalized(self) -> bool:
        """Whether chance and best known are known."""
        return bool(np.isfinite([self.chance, self.best]).all() and self.best > self.chance)

    def normalized(self, returns: Any) -> Any:
        """Return 0 for chance and 1 for the best known."""
        return (returns - self.chance) / (self.best - self.chance)

    @property
    def normalized_scores(self) -> dict[str, np.ndarray]:
        """The scores, normalized."""
        return {label: self.normalized(scores) for label, scores in self.scores.items()}


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows.

    `compared` are the tasks with scores of several labels, or with any where none has; what is said over tasks is of
    these. `complete` are the labels with scores on all of them; `over_tasks` holds their normalized scores on those of
    them where chance and best are known. `incomplete` says of the others on which of them they lack scores.
    """

    labels: list[str]
    tasks: list[Task]
    compared: list[Task]
    complete: list[str]
    incomplete: dict[str, list[str]]
    ranks: dict[str, dict[str, float]]
    left_out: Frame
    over_tasks: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def normalized(self) -> list[Task]:
        """The compared tasks where chance and best are known."""
        return [task for task in self.compared if task.is_normalized]

    def profiles(self, levels: np.ndarray) -> dict[str, Interval]:
        """Return the performance profile of each label over the tasks."""
        return {label: performance_profile(scores, levels) for label, scores in self.over_tasks.items()}


def span(counts: Any, noun: str = "") -> str:
    """Return as "3", or "1 to 5" where counts differ; with a noun, as "1 seed" or "3 seeds"."""
    found = sorted(set(counts)) or [0]
    text = str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
    return f"{text} {noun}{'s' * (found != [1])}" if noun else text


def seeds_and_episodes(tasks: Sequence[Task]) -> str:
    """Return how many seeds the scores have, and episodes each, as "3 seeds, 16 to 256 episodes each"."""
    rows: Frame = pd.concat([task.rows[task.rows["scored"]] for task in tasks])
    seeds = span((len(scores) for task in tasks for scores in task.scores.values()), "seed")
    return f"{seeds}, {span(rows['episodes'].astype(int), 'episode')} each"


def compare(results: Frame, curves: Frame, levels: Sequence[float] = ()) -> Comparison:
    """Compare the runs of these tables, as `results_and_curves` returns them.

    Args:
        results: A row a run and seed.
        curves: A row an update, run and seed.
        levels: Of the way from chance to the best known, for sample efficiency. None given: half and nine tenths.

    Raises:
        ValueError: If a level is not between 0 and 1.
    """
    if wrong := [share for share in levels if not 0 <= share <= 1]:
        raise ValueError(f"levels: expected shares of the way from chance to the best known, 0 to 1, got {wrong[0]}")
    results = with_labels(results)
    own = dict(iter(curves.groupby(["run", "seed"], sort=False)))
    tasks = [_task(str(name), rows, own, levels or (0.5, 0.9)) for name, rows in results.groupby("task", sort=False)]
    scored = [task for task in tasks if task.scores]
    labels = list(dict.fromkeys(results["label"]))
    # A task with one memory says nothing of others, and would leave all of them out.
    compared = [task for task in scored if len(task.scores) > 1] or scored
    incomplete = {label: [task.name for task in compared if label not in task.scores] for label in labels}
    complete = [label for label in labels if compared and not incomplete[label]]
    ranks = ranking([{label: task.scores[label] for label in complete} for task in compared]) if complete else {}
    complete.sort(key=lambda label: ranks[label]["value"])
    # The best first, so that the lines of the first figures are the ones most easily told apart.
    labels = complete + [label for label in labels if label not in complete]
    normalized = [task.normalized_scores for task in compared if task.is_normalized]
    return Comparison(
        labels=labels,
        tasks=tasks,
        compared=compared,
        complete=complete,
        incomplete={label: missing for label, missing in incomplete.items() if missing},
        ranks=ranks,
        left_out=results[~results["scored"]],
        over_tasks={label: [scores[label] for scores in normalized] for label in complete} if normalized else {},
    )


def with_scores(results: Frame, scores: Mapping[str, tuple[float, float]]) -> Frame:
    """Return the results with these (chance, best known) for their tasks, in place of those that the runs hold.

    Args:
        results: A row a run and seed, as `memax_rl.results` returns them.
        scores: By environment, such as `own/TMaze`, or by task as `compare` names it, such as `own/TMaze, length=20`.
            Of two that fit the later one holds.

    Raises:
        ValueError: If no run is of such an environment or task, or the best known is not above chance.
    """
    named = with_labels(results)
    for name, (chance, best) in scores.items():
        rows = (named["env"] == name) | (named["task"] == name)
        if not rows.any():
            known = ", ".join(dict.fromkeys([*named["task"].astype(str), *named["env"].astype(str)]))
            raise ValueError(f"scores: no run here is of {name!r}; there are {known}")
        if not (np.isfinite([chance, best]).all() and best > chance):
            raise ValueError(
                f"scores of {name}: expected a mean return by chance and a greater one, the best known, got {chance:g} "
                f"and {best:g}"
            )
        results = results.assign(
            chance=results["chance"].where(~rows, chance), best_known=results["best_known"].where(~rows, best)
        )
    return results


def with_labels(results: Frame) -> Frame:
    """Return the results with columns task, label (memory, and settings that differ between its runs) and scored."""
    settings = [name for name in results.columns.difference(COLUMNS, sort=False) if name not in _WITHOUT_EFFECT]
    of_tasks = [name for name in settings if name.partition(".")[0] in _OF_TASKS]
    task = results["env"].astype(str)
    for name in of_tasks:
        differs = results[name].map(_exact).groupby(results["env"]).transform("nunique") > 1
        task = task.where(~differs, task + f", {name.partition('.')[2] or name}=" + _texts(results[name]))
    if results["agent"].nunique() > 1:
        task = task + ", " + results["agent"].astype(str)
    label = results["memory"].astype(str)
    shown = [name for name in settings if name not in of_tasks and _differs(results[name], [task, label])]
    if shown:
        label = label + pd.concat([_said(results, name) for name in shown], axis=1).agg(_in_brackets, axis=1)
    scored = (results["status"] == "finished") & np.isfinite(results["final_return"])
    return results.assign(task=task, label=label, scored=scored)


def _differs(column: Frame, of: list[Frame]) -> bool:
    """Return whether a setting differs between runs of one memory and task. One that a memory always has is its own."""
    return bool((column.map(_exact).groupby(of).nunique() > 1).any())


def _said(results: Frame, name: str) -> Frame:
    """Return a setting of each run as text, an empty one for an option that no run of the memory has."""
    text = _texts(results[name])
    said = f"{name}=" + text
    if name.startswith("network.memory_options."):
        return said.where((text != "none").groupby(results["memory"]).transform("any"), "")
    return said


def _in_brackets(texts: Frame) -> str:
    said = ", ".join(filter(None, texts))
    return f" ({said})" if said else ""


def _texts(column: Frame) -> Frame:
    """Return a setting of each run as a short text, or in full where a short one would stand for two values."""
    short, exact = column.map(_text), column.map(_exact)
    return short if short.nunique() == exact.nunique() else exact


def _exact(value: Any) -> str:
    """Return a setting as a text that no other value has. One that is not set is a value too, which pandas skips."""
    return "none" if _text(value) == "none" else repr(value)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _task(name: str, rows: Frame, own: Mapping[Any, Frame], levels: Sequence[float]) -> Task:
    scored = rows[rows["scored"]]
    scores = {str(label): group["final_return"].to_numpy(float) for label, group in scored.groupby("label", sort=False)}
    scores = dict(sorted(scores.items(), key=lambda item: -item[1].mean()))
    # Without a score both may be known all the same, and levels are measured by them.
    chance, best = (_common((scored if len(scored) else rows)[column]) for column in ("chance", "best_known"))
    trained = {str(label): _trained(group, own) for label, group in rows.groupby("label", sort=False)}
    curves = _curves(trained)
    return Task(
        name=name,
        scores=scores,
        chance=chance,
        best=best,
        rows=rows,
        curves=curves,
        levels=_levels(trained, curves, chance, best, levels),
        doubled=int(scored.duplicated(["label", "seed"]).sum()),
    )


def _common(column: Frame) -> float:
    """Return the value that all runs have, or nan."""
    values = column.unique()
    return float(values[0]) if len(values) == 1 else np.nan


_Points = tuple[np.ndarray, np.ndarray]


def _trained(rows: Frame, own: Mapping[Any, Frame]) -> list[_Points]:
    """Return steps and training returns of each run: of finished ones, or of all where none is."""
    finished = rows[rows["status"] == "finished"]
    found = []
    for run, seed in (finished if len(finished) else rows)[["run", "seed"]].itertuples(index=False):
        table = own.get((run, seed))
        if table is not None:
            # In an update in which no episode ended there is no return.
            kept = table[np.isfinite(table["episode/return"])]
            if len(kept):
                found.append((kept["env_steps"].to_numpy(float), kept["episode/return"].to_numpy(float)))
    return found


def _curves(trained: Mapping[str, list[_Points]]) -> dict[str, Curve]:
    points = [p for runs in trained.values() for p in runs]
    if not points:
        return {}
    longest = max(steps[-1] for steps, _ in points)
    # A bin an update, as long as those are no more than the points of a curve.
    size = min((float(np.median(np.diff(steps))) for steps, _ in points if len(steps) > 1), default=longest)
    bins = int(np.clip(round(longest / max(size, 1)), 1, _POINTS))
    edges = np.linspace(0, longest, bins + 1)
    return {label: _curve(runs, edges) for label, runs in trained.items() if runs}


def _curve(runs: list[_Points], edges: np.ndarray) -> Curve:
    """Return the mean of runs over bins of steps, from where all of them have begun to where the first one ends."""
    ends, binned = edges[1:], []
    for steps, returns in runs:
        place = np.clip(np.searchsorted(ends, steps - 1e-9), 0, len(ends) - 1)
        counts = np.bincount(place, minlength=len(ends))
        filled = counts > 0
        means = np.bincount(place, returns, minlength=len(ends))[filled] / counts[filled]
        binned.append(np.interp(ends, ends[filled], means, left=np.nan, right=np.nan))
    table = np.stack(binned)
    whole = np.isfinite(table).all(axis=0)
    if not whole.any():
        # No step that all of them have: the longest run alone.
        table = table[[np.isfinite(table).sum(axis=1).argmax()]]
        whole = np.isfinite(table[0])
    value, low, high = mean_interval(table[:, whole])
    return Curve(ends[whole], value, low, high, len(table))


def _levels(
    trained: Mapping[str, list[_Points]],
    curves: Mapping[str, Curve],
    chance: float,
    best: float,
    shares: Sequence[float],
) -> list[Level]:
    if not curves:
        return []
    origin = "chance to best known"
    if not best > chance:
        origin = "the lowest to the highest mean return"
        chance = min(float(curve.value.min()) for curve in curves.values())
        best = max(float(curve.value.max()) for curve in curves.values())
    return [
        Level(
            f"{100 * share:g} % of the way from {origin}",
            level := chance + share * (best - chance),
            {label: np.array([_reached(*points, level) for points in runs]) for label, runs in trained.items() if runs},
        )
        for share in shares
    ]


def _reached(steps: np.ndarray, returns: np.ndarray, level: float) -> float:
    window = min(WINDOW, len(returns))
    means = np.convolve(returns, np.full(window, 1 / window), "valid")
    above = np.flatnonzero(means >= level)
    return float(steps[above[0] + window - 1]) if len(above) else np.inf
