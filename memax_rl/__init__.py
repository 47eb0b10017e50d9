"""Memory models for reinforcement learning: recurrent agents on partially observable problems, in JAX.

>>> import memax_rl
>>> run = memax_rl.train(env="popgym/RepeatPreviousEasy", network={"memory": "lru"}, out="runs/first")  # doctest: +SKIP
>>> memax_rl.evaluate(run.folder)["return"]["mean"]  # doctest: +SKIP

Everything here is imported on first use: JAX and the environments take seconds, and not every command needs them.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memax_rl._version import __version__ as __version__

if TYPE_CHECKING:
    from memax_rl import agents as agents
    from memax_rl import envs as envs
    from memax_rl import evaluation as evaluation
    from memax_rl import memory as memory
    from memax_rl import networks as networks
    from memax_rl import ops as ops
    from memax_rl import probes as probes
    from memax_rl import returns as returns
    from memax_rl import rollout as rollout
    from memax_rl import runs as runs
    from memax_rl import studies as studies
    from memax_rl import tape as tape
    from memax_rl import training as training
    from memax_rl.agents import AgentSettings
    from memax_rl.evaluation import collect as collect
    from memax_rl.evaluation import evaluate as evaluate
    from memax_rl.evaluation import load as load
    from memax_rl.networks import NetworkConfig
    from memax_rl.runs import EarlyStoppingConfig
    from memax_rl.runs import Run as Run
    from memax_rl.runs import TrainConfig as TrainConfig
    from memax_rl.studies import Outcome, Ray, Slurm, Space, Study, Tuned
    from memax_rl.studies import results as results
    from memax_rl.training import Callback

_OBJECTS = {
    "TrainConfig": "memax_rl.runs",
    "Run": "memax_rl.runs",
    "collect": "memax_rl.evaluation",
    "evaluate": "memax_rl.evaluation",
    "load": "memax_rl.evaluation",
    "results": "memax_rl.studies",
}

__all__ = [
    "Run",
    "TrainConfig",
    "agents",
    "collect",
    "envs",
    "evaluate",
    "evaluation",
    "load",
    "memory",
    "networks",
    "ops",
    "probes",
    "results",
    "returns",
    "rollout",
    "runs",
    "studies",
    "study",
    "tape",
    "train",
    "training",
    "tune",
]


if not TYPE_CHECKING:  # A type checker that sees `__getattr__` takes every name for a public one.

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name not in __all__:
            raise AttributeError(f"module 'memax_rl' has no attribute {name!r}; it has {', '.join(__all__)}")
        if name not in _OBJECTS:
            return importlib.import_module(f"memax_rl.{name}")
        value = globals()[name] = getattr(importlib.import_module(_OBJECTS[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


class _Unset:
    """Stands for the default of `TrainConfig`, which is not imported before it is needed."""

    def __repr__(self) -> str:
        return "TrainConfig's"


_UNSET: Any = _Unset()


def train(
    config: "TrainConfig | None" = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = False,
    callbacks: "Sequence[Callback]" = (),
    imports: Iterable[str] = (),
    trust: bool = False,
    env: str = _UNSET,
    env_options: Mapping[str, Any] = _UNSET,
    env_wrappers: "str | Mapping[str, Any] | Sequence[Any]" = _UNSET,
    agent: str = _UNSET,
    seed: int = _UNSET,
    num_seeds: int = _UNSET,
    devices: int = _UNSET,
    precision: Literal["highest", "tensorfloat32", "bfloat16"] = _UNSET,
    total_steps: int | str = _UNSET,
    on_divergence: Literal["continue", "stop"] = _UNSET,
    network: "NetworkConfig | Mapping[str, Any]" = _UNSET,
    start_from: str | None = _UNSET,
    start_from_checkpoint: str = _UNSET,
    checkpoint_interval: float = _UNSET,
    keep_every_n_steps: int | str | None = _UNSET,
    eval_interval: int | str | None = _UNSET,
    eval_episodes: int = _UNSET,
    early_stopping: "EarlyStoppingConfig | Mapping[str, Any]" = _UNSET,
    tensorboard: bool = _UNSET,
    wandb: str | None = _UNSET,
    **agent_settings: "AgentSettings | Mapping[str, Any]",
) -> "Run":
    """Train, and return the run. The fields of `TrainConfig` are its keyword arguments, nested as in YAML.

    Args:
        config: The configuration, instead of its fields.
        out, resume: The folder to make, by default a new one under runs/; or that of a run to continue (docs/runs.md).
        progress: Whether to show a progress bar.
        callbacks: Called while it trains (`memax_rl.training.Callback`, docs/runs.md).
        imports, trust: Modules of one's own, imported first, that a resumed run may import; or whether it may any.
        env, env_options, env_wrappers: One of `memax_rl.envs.names()`; its options; wrappers, innermost first.
        agent, network: One of `memax_rl.agents.names()`; settings of the network, such as memory and width.
        seed, num_seeds: The first seed, and how many runs, of seeds seed, seed + 1, ..., train together.
        devices, precision: Devices that share the batch of each update; how exactly matrices are multiplied.
        total_steps: Environment steps of each seed, also as "1M"; the run ends with the first update that reaches them.
        on_divergence: What to do when one of several seeds diverges.
        start_from, start_from_checkpoint: Another run whose weights to begin with; "newest", "best" or an update.
        checkpoint_interval, keep_every_n_steps: Seconds between checkpoints; environment steps between those kept.
        eval_interval, eval_episodes, early_stopping: Steps between evaluations; episodes of each; when to end.
        tensorboard, wandb: Whether to log to TensorBoard, and to which project of Weights & Biases.
        **agent_settings: Settings of the agent under its name, such as `ppo={"gamma": 0.9}`.

    Raises:
        ValueError: If the configuration is wrong.
        RunError: If a folder cannot be used.
        TrainingError: If training cannot go on.
        KeyboardInterrupt: After the state was saved because of Ctrl-C or SIGTERM.
    """
    given = {name: value for name, value in locals().items() if value is not _UNSET}
    given |= given.pop("agent_settings")
    return importlib.import_module("memax_rl.training").train(**given)


def study(
    study: "Study | Mapping[str, Any] | str | Path",
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    on: "Ray | Slurm | None" = None,
    progress: bool = False,
    imports: Iterable[str] = (),
    trust: bool = False,
) -> "Outcome":
    """Train every cell of a grid, each in a run folder of its own, and return how that ended.

    >>> grid = {"env": ["popgym/RepeatFirstEasy"], "memory": ["gru", "lru"]}
    >>> memax_rl.study({"grid": grid, "seeds": 5}, out="studies/first").failed  # doctest: +SKIP

    What is finished already is skipped, and what was interrupted goes on; see docs/studies.md.

    Args:
        study: The study, its parts (base, grid, zip, exclude, seeds), a YAML file of them, or the folder of one.
        out: The folder; one of the same study is continued. Left out where `study` is a folder.
        workers: Processes; by default one a GPU, or one a core. With `on`: cells at once, by default as many as fit.
        on: `memax_rl.studies.Ray(...)` or `memax_rl.studies.Slurm({...})`, to run the cells on other machines.
        progress: Whether to show how far it is.
        imports: Modules of one's own, imported first; also packages that a configuration may import (docs/runs.md).
        trust: Whether a configuration may import any package.

    Returns:
        The folder, the finished cells, and why others failed.

    Raises:
        ValueError: If the study is wrong, the folder holds another one, or `on` cannot be used; no cell was run then.
        KeyboardInterrupt: After all cells were saved because of Ctrl-C or SIGTERM.
    """
    given = dict(locals())
    return importlib.import_module("memax_rl.studies").study(given.pop("study"), **given)


def tune(
    space: "Space | Mapping[str, Any] | str | Path",
    *,
    out: str | Path | None = None,
    trials: int | None = None,
    progress: bool = False,
    imports: Iterable[str] = (),
    trust: bool = False,
) -> "Tuned":
    """Search for settings by trials, each a run in a folder of its own, and return how the search stands.

    >>> space = {"ppo.learning_rate": {"float": [1e-4, 1e-2], "log": True}, "memory": ["gru", "lru"]}
    >>> memax_rl.tune({"space": space, "trials": 20}, out="tuning/first").best  # doctest: +SKIP

    The same call goes on with a search that was interrupted, and several processes may work on one; see docs/tuning.md.
    The seeds of trials are none that a run has by default: what is reported must be of others.

    Args:
        space: The space, its parts (base, space, trials, seeds, metric, direction, sampler, pruner), a YAML file of
            them, the name of a shipped one, or the folder of a search.
        out: The folder; one of the same search is continued. Left out where `space` is a folder.
        trials: How many trials there are to be, in place of what the space says.
        progress: Whether to show a progress bar of each trial.
        imports: Modules of one's own, imported first; also packages that a configuration may import (docs/runs.md).
        trust: Whether a configuration may import any package.

    Returns:
        The folder, best.yaml, its score, the values of the fields that were varied, and how many trials ended how.

    Raises:
        ValueError: If the space is wrong, the folder holds another search, or the first trials all fail.
        KeyboardInterrupt: After the trial was saved because of Ctrl-C or SIGTERM.
    """
    given = dict(locals())
    return importlib.import_module("memax_rl.studies").tune(given.pop("space"), **given)
