"""Searching for settings: trials of Optuna, each an ordinary run, in a folder that several processes share.

The folder holds tune.yaml (the space), journal.log (Optuna's record), trials/NUMBER (run folders), failures/, and
best.yaml. A process that ends in the middle of a trial, however it ends, leaves it to the next, which goes on with it.
"""

import json
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memax_rl.envs.trust import import_modules, only_imports
from memax_rl.paths import expanded
from memax_rl.runs.config import TrainConfig, dump_config
from memax_rl.runs.files import write_atomically
from memax_rl.runs.run import Run, RunError
from memax_rl.studies.folder import Folder
from memax_rl.studies.grid import Cell, differing
from memax_rl.studies.space import FIRST_SEED, Space, dump_space, load_space, make_space
from memax_rl.training import Callback, TrainingProgress, train

Row = Mapping[str, float]
# How often a trial is looked at, and the part of its steps that a score is the mean of.
REPORTS, WINDOW = 20, 0.1
# So many trials that fail before any other ends are no chance.
_MOST_FAILURES = 5
_NAME = "tune"


@dataclass(frozen=True)
class Tuned:
    """How a search stands.

    Attributes:
        folder: Its folder.
        best: The file of the best configuration, or None if no trial was finished.
        value: The score of the best trial, nan if there is none.
        values: The fields that were varied, with the values of the best trial.
        counts: How many trials finished ("complete"), were pruned, failed, or are run by other processes.
    """

    folder: Path
    best: Path | None
    value: float
    values: dict[str, Any]
    counts: dict[str, int]


def score(rows: Iterable[Row], metric: str, total_steps: int, upto: float) -> float:
    """Return the mean over seeds of a metric's mean over the tenth of `total_steps` before `upto`; nan without a value.

    Updates in which the metric has no value, because no episode ended, do not count.

    Args:
        rows: Of metrics.csv.
    """
    by_seed: dict[float, list[float]] = {}
    for row in rows:
        if upto - WINDOW * total_steps < row["env_steps"] <= upto and not math.isnan(row[metric]):
            by_seed.setdefault(row["seed"], []).append(row[metric])
    return float(np.mean([np.mean(values) for values in by_seed.values()])) if by_seed else math.nan


def tune(
    space: Space | Mapping[str, Any] | str | Path,
    *,
    out: str | Path | None = None,
    trials: int | None = None,
    progress: bool = False,
    say: Callable[[str], None] | None = None,
    imports: Iterable[str] = (),
    trust: bool = False,
) -> Tuned:
    """Search for settings until there are so many trials, and return how it stands. See `memax_rl.tune`.

    Args:
        space, trials: As in `memax_rl.tune`.
        say: Is called with a line about each trial.

    Raises:
        ValueError: If the space is wrong, the folder holds another search, or the first trials all fail.
        KeyboardInterrupt: After the trial was saved because of Ctrl-C or SIGTERM.
    """
    names = tuple(imports)
    _check_installed()
    folder, space = _find(space, out, trials, names)
    with only_imports(names, trust=trust):
        import_modules(names)
        space.check()
    folder.check_place("tune.yaml", "the folder of a search")
    with folder.lock("tune.yaml", wait=True):
        space = _prepare(folder, space)
    say = say or (lambda line: None)
    if trials is not None and trials < space.trials:
        say(f"trials={trials} changes nothing: the search in {folder.path} has {space.trials}, and can only get more")
    search = _Search(folder, space, say, progress, names, trust)
    while search.run_next():
        pass
    return search.outcome()


def _check_installed() -> None:
    try:
        import optuna  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RunError("tune needs Optuna, which is not installed; pip install 'memax_rl[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _find(
    space: Space | Mapping[str, Any] | str | Path, out: str | Path | None, trials: int | None, imports: Sequence[str]
) -> tuple[Folder, Space]:
    """Return the folder of a search, which may not be there yet, and the space with the number of trials asked for.

    The trials of a new search name the modules of `imports`.
    """
    folder = Folder(out) if out is not None else None
    space = expanded(space) if isinstance(space, str | Path) else space
    if isinstance(space, Path) and space.is_dir():
        if folder is not None:
            raise RunError("the folder of a search says itself where it is; leave out --out")
        folder = Folder(space)
        if not (folder.path / "tune.yaml").is_file():
            raise RunError(f"{folder.path} is not the folder of a search: it has no tune.yaml")
        space = load_space(folder.path / "tune.yaml")
    elif isinstance(space, Path):
        space = load_space(space).naming(imports)
    else:
        space = (space if isinstance(space, Space) else make_space(space)).naming(imports)
    if folder is None:
        raise RunError("a new search needs a folder; name one with --out")
    if trials is not None:
        space = make_space(space.model_dump(exclude_defaults=True) | {"trials": trials})
    return folder, space


def _prepare(folder: Folder, space: Space) -> Space:
    """Write tune.yaml, and return the space. A search that is here may get more trials, and nothing else."""
    path = folder.path / "tune.yaml"
    if path.exists():
        before = load_space(path)
        fields = differing(before.model_dump(mode="json"), space.model_dump(mode="json"))
        # Modules register what the fields name, and change nothing else.
        changed = [name for name in fields if name not in ("trials", "base.imports")]
        if changed:
            raise RunError(f"{', '.join(changed)} differs from the search in {folder.path}; choose another --out")
        if space.trials < before.trials:
            return before
    elif folder.path.exists() and any(p.name != ".locks" for p in folder.path.iterdir()):
        raise RunError(f"{folder.path} exists and is not the folder of a search; choose another with --out")
    try:
        (folder.path / "trials").mkdir(parents=True, exist_ok=True)
        write_atomically(path, dump_space(space))
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None
    return space


class _Pruned(Exception):
    """A trial is not worth its rest."""


class _Reports(Callback):
    """Tells Optuna how a trial goes, and ends it where Optuna says so."""

    def __init__(self, trial: Any, space: Space, total_steps: int, before: Sequence[Row], known: Iterable[int]):
        self._trial, self._space, self._total = trial, space, total_steps
        self._rows, self._known = list(before), set(known)
        if before and self._space.metric not in before[0]:
            raise RunError(_unknown_metric(self._space.metric, before[0]))

    def on_update(self, progress: TrainingProgress) -> None:
        """Report the score of the rows that are new."""
        self.report(progress.rows)

    def report(self, rows: Sequence[Row]) -> None:
        """Report the score at every twentieth of the steps that was passed, the last one left out."""
        if rows and self._space.metric not in rows[0]:
            raise RunError(_unknown_metric(self._space.metric, rows[0]))
        self._rows += rows
        reached = min((self._rows_of(seed)[-1]["env_steps"] for seed in self._seeds()), default=0.0)
        for step in range(1, REPORTS):
            at = self._total * step / REPORTS
            if step in self._known or at > reached:
                continue
            self._known.add(step)
            value = score(self._rows, self._space.metric, self._total, at)
            if not math.isnan(value):
                self._trial.report(value, step)
                if self._trial.should_prune():
                    raise _Pruned

    def _seeds(self) -> set[float]:
        return {row["seed"] for row in self._rows}

    def _rows_of(self, seed: float) -> list[Row]:
        return [row for row in self._rows if row["seed"] == seed]


def _unknown_metric(metric: str, row: Row) -> str:
    return f"metrics.csv has no column {metric!r}; it has {', '.join(row)}"


@dataclass(eq=False)
class _Search:
    """A search as this process sees it."""

    folder: Folder
    space: Space
    say: Callable[[str], None]
    progress: bool
    imports: tuple[str, ...]
    trust: bool

    def __post_init__(self):
        import optuna  # pyright: ignore[reportMissingImports]
        from optuna.storages import journal  # pyright: ignore[reportMissingImports]

        self._states = optuna.trial.TrialState
        path = str(self.folder.path / "journal.log")
        # A lock file that is made exclusively: it works where several machines share the folder, links or not.
        backend = journal.JournalFileBackend(path, lock_obj=journal.JournalFileOpenLock(path))
        storage = optuna.storages.JournalStorage(backend)
        pruners = {
            "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=REPORTS // 5),
            "hyperband": optuna.pruners.HyperbandPruner(min_resource=2, max_resource=REPORTS),
            "nop": optuna.pruners.NopPruner(),
        }
        with self.folder.lock("ask", wait=True):
            self._study = optuna.create_study(
                storage=storage,
                study_name=_NAME,
                load_if_exists=True,
                direction=self.space.direction,
                pruner=pruners[self.space.pruner],
            )

    def run_next(self) -> bool:
        """Run a trial that was left behind, or a new one, to its end. Return whether there was one."""
        with ExitStack() as stack:
            with self.folder.lock("ask", wait=True):
                trial = self._left(stack) or self._new(stack)
            if trial is None:
                return False
            self._run(trial)
        with self.folder.lock("best.yaml", wait=True):
            self._write_best()
        self._check_failures()
        return True

    def _left(self, stack: ExitStack) -> Any:
        """Return a trial that another process left, held by this one, or None."""
        import optuna  # pyright: ignore[reportMissingImports]

        for frozen in self._study.get_trials(deepcopy=False, states=(self._states.RUNNING,)):
            if stack.enter_context(self.folder.lock(_name(frozen.number))):
                if frozen.params.keys() == self.space.space.keys():
                    return optuna.trial.Trial(self._study, frozen._trial_id)
                # It was left while its values were drawn.
                self._study.tell(frozen.number, state=self._states.FAIL)
        return None

    def _new(self, stack: ExitStack) -> Any:
        """Return a new trial, held by this process, or None if there are enough."""
        number = len(self._study.get_trials(deepcopy=False))
        if number >= self.space.trials:
            return None
        self._study.sampler = self._sampler(number)
        trial = self._study.ask({name: part.distribution() for name, part in self.space.space.items()})
        stack.enter_context(self.folder.lock(_name(trial.number)))
        return trial

    def _sampler(self, number: int) -> Any:
        """Return the sampler of a trial. Its seed is the trial's own, or all processes would draw the same."""
        from optuna import samplers  # pyright: ignore[reportMissingImports]

        seed = int(np.random.SeedSequence([self.space.sampler_seed, number]).generate_state(1)[0])
        if self.space.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(seed=seed)

    def values(self, trial: Any) -> dict[str, Any]:
        """Return the values of the varied fields in a trial."""
        return {name: self.space.space[name].value(stored) for name, stored in trial.params.items()}

    def _run(self, trial: Any) -> None:
        """Train a trial, and tell Optuna how it ended."""
        name, values = _name(trial.number), self.values(trial)
        shown = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        try:
            rows, total = self._train(trial, Cell(name, "trials", self.space.trial_config(values)))
            value = score(rows, self.space.metric, total, max(row["env_steps"] for row in rows))
            if math.isnan(value):
                raise RunError(f"{self.space.metric} had no value in the last tenth of training; choose more steps")
        except _Pruned:
            self._study.tell(trial.number, state=self._states.PRUNED)
            self.say(f"{name}: pruned, {shown}")
        except Exception as error:
            # Whatever a trial does, the others go on.
            message = " ".join(str(error).split()) or type(error).__name__
            self._write_failure(name, {"message": message, "values": values, "traceback": traceback.format_exc()})
            self._study.tell(trial.number, state=self._states.FAIL)
            self.say(f"{name}: failed, {shown}: {message}")
        else:
            self._study.tell(trial.number, value)
            self.say(f"{name}: {value:.4g}, {shown}")

    def _train(self, trial: Any, cell: Cell) -> tuple[list[dict[str, float]], int]:
        """Train a trial from where it is, and return all its rows and how many steps a seed has."""
        import jax

        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        steps, path, run = cell.config.total_steps, self.folder.path / cell.name, self.folder.begun(cell)
        with only_imports(self.imports, trust=self.trust):
            if run is not None:
                saved = (run.saved_updates() or [0])[-1]
                before = [row for row in run.metrics() if row["update"] <= saved]
                reports = _Reports(trial, self.space, steps, before, frozen.intermediate_values)
                train(resume=path, progress=self.progress, callbacks=[reports], imports=self.imports, trust=self.trust)
            else:
                reports = _Reports(trial, self.space, steps, (), ())
                assert isinstance(cell.config, TrainConfig)
                train(cell.config, out=path, progress=self.progress, callbacks=[reports])
        # No two trials share a compiled program.
        jax.clear_caches()
        return Run(path).metrics(), steps

    def _write_failure(self, name: str, failure: Mapping[str, Any]) -> None:
        path = self.folder.path / "failures" / f"{Path(name).name}.json"
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, json.dumps(failure, indent=2, default=str) + "\n")
        except OSError:
            # On a full disk the journal, which says that it failed, is more than this.
            pass

    def _check_failures(self) -> None:
        """Raise `RunError` if nothing but failures came so far."""
        ended = [t for t in self._study.get_trials(deepcopy=False) if t.state.is_finished()]
        failed = [t for t in ended if t.state == self._states.FAIL]
        if len(failed) >= _MOST_FAILURES and len(failed) == len(ended):
            path = self.folder.path / "failures"
            try:
                last = json.loads(sorted(path.iterdir())[-1].read_text())["message"]
            except (OSError, ValueError, LookupError):
                last = "see there"
            raise RunError(f"the first {len(failed)} trials failed ({path}), the last with: {last}")

    def _write_best(self) -> None:
        """Write the best configuration so far, with how it was found."""
        outcome = self.outcome()
        if math.isnan(outcome.value):
            return
        counts = ", ".join(f"{count} {state}" for state, count in outcome.counts.items() if count)
        space, last = self.space, FIRST_SEED + self.space.seeds - 1
        head = [
            f"Trial {self._study.best_trial.number} of {counts} trials: the best, {space.metric} {space.direction}d at",
            f"{outcome.value:.6g}, the mean over the last tenth of training and the tuning seeds.",
            f"Tuning seeds: {FIRST_SEED} to {last}. What is reported must be of other seeds, as those of this file and",
            "of a study that begins with it are; the score above is of seeds that were tuned on, and too good.",
            "Varied: " + json.dumps(outcome.values, default=str),
        ]
        text = "".join(f"# {line}\n" for line in head) + dump_config(space.config(outcome.values))
        write_atomically(self.folder.path / "best.yaml", text)

    def outcome(self) -> Tuned:
        """Return how the search stands."""
        trials = self._study.get_trials(deepcopy=False)
        states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
        counts = {word: sum(t.state.name == state for t in trials) for word, state in states.items()}
        if not counts["complete"]:
            return Tuned(self.folder.path, None, math.nan, {}, counts)
        best = self._study.best_trial
        assert best.value is not None
        return Tuned(self.folder.path, self.folder.path / "best.yaml", best.value, self.values(best), counts)


def _name(number: int) -> str:
    """Return the place of a trial's run folder in the search's."""
    return f"trials/{number:04d}"
