"""Memory models for reinforcement learning: recurrent agents on partially observable problems, in JAX.

>>> import memax_rl
>>> run = memax_rl.train(env="popgym/RepeatPreviousEasy", network={"memory": "lru"}, out="runs/first")  # doctest: +SKIP
>>> memax_rl.evaluate(run.folder)["return"]["mean"]  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from memax_rl._version import __version__ as __version__

if TYPE_CHECKING:
    from memax_rl.evaluation import evaluate as evaluate
    from memax_rl.runs import TrainConfig as TrainConfig
    from memax_rl.training import train as train


def __getattr__(name: str) -> Any:
    """Import on first use: JAX and the environments take seconds, and not every command needs them."""
    if name == "train":
        from memax_rl.training import train

        return train
    if name == "TrainConfig":
        from memax_rl.runs import TrainConfig

        return TrainConfig
    if name == "evaluate":
        from memax_rl.evaluation import evaluate

        return evaluate
    raise AttributeError(f"module 'memax_rl' has no attribute {name!r}")
