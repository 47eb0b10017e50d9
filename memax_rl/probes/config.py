"""The configuration of a probe. In a run folder it is told from that of an agent by its field `task`."""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from memax_rl.agents.optimizer import OptimizerSettings, Schedule
from memax_rl.networks import NetworkConfig
from memax_rl.probes import tasks
from memax_rl.probes.tasks import Task
from memax_rl.runs.config import read_count

# What agents alone have, and the value that stands for "not there".
_OF_AGENTS = {
    "previous_action": False,
    "previous_reward": False,
    "separate_value": False,
    "state_dependent_std": False,
    "normalize_observation": False,
    "images": "auto",
    "channels": "auto",
}
# More sums are not exact in float32.
_MOST_SEQUENCES = 1_000_000
# The trained length, at most, at which is tested.
_MOST_TIMES = 10_000


class LearnerSettings(OptimizerSettings):
    """Settings of supervised learning."""

    lr_schedule: Schedule = "cosine"
    """How the step size falls over the run, to zero at the end."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient is scaled down to this global norm."""
    batch_size: int = Field(default=32, ge=1, le=1_000_000)
    """Sequences an update."""
    pack: int = Field(default=1, ge=1, le=1_000_000)
    """How many of them lie end to end in a row, told apart by start flags; a divisor of batch_size."""
    chunk: int | None = Field(default=None, ge=1, le=10**7)
    """Slots that gradients are computed through at a time: the activations of one chunk are in memory, and are computed
    again on the way back. None: all of a row at once."""
    truncate: bool = False
    """Cut the gradient between chunks (truncated backpropagation) instead of passing it on."""

    @model_validator(mode="after")
    def _check_rows(self) -> "LearnerSettings":
        if self.batch_size % self.pack:
            raise ValueError(f"pack must divide batch_size={self.batch_size}, got {self.pack}")
        if self.truncate and self.chunk is None:
            raise ValueError("truncate=True cuts between chunks, and there are none; set chunk, or leave truncate out")
        return self


class ProbeConfig(BaseModel):
    """Settings of a probe. Everything that decides its result is here."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    scored_by: ClassVar[str] = "score"
    devices: ClassVar[int] = 1

    task: str = "copying"
    """The task, see `memax-rl list probes`."""
    task_options: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """Options of the task, for example --task-options.length 1000; see `memax-rl list probes -v`."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The first seed."""
    num_seeds: int = Field(default=1, ge=1, le=4096)
    """How many runs, of seeds seed, seed + 1, ..., train together."""
    total_updates: int = Field(default=1_000, ge=1, le=10**9)
    """Gradient steps of each seed."""
    on_divergence: Literal["continue", "stop"] = "continue"
    """What to do when the network of one of several seeds is no longer finite: train the others on, or stop."""
    network: NetworkConfig = NetworkConfig(previous_action=False, previous_reward=False)
    """Settings of the network; of those of an agent's network the ones that have a meaning here."""
    learner: LearnerSettings = LearnerSettings()
    """Settings of the learner."""
    checkpoint_interval: float = Field(default=60.0, ge=0)
    """Seconds between checkpoints. The last state is always saved."""
    eval_interval: int | None = Field(default=None, ge=1, le=10**9)
    """Updates between tests during training, which do not change it. None: one at the end alone."""
    eval_sequences: int = Field(default=256, ge=1, le=_MOST_SEQUENCES)
    """Fresh sequences to test each seed on, rounded up to whole batches."""
    test_lengths: tuple[int, ...] = ()
    """Test also at so many times the trained length, with the norm of the state over time, for example [1, 2, 4, 8,
    16]."""
    tensorboard: bool = False
    """Also log to TensorBoard, in the run's folder (needs `pip install memax_rl[tensorboard]`)."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases (needs `pip install memax_rl[wandb]`)."""

    @field_validator("total_updates", "eval_interval", mode="before")
    @classmethod
    def _read_counts(cls, value: Any) -> Any:
        return read_count(value)

    @field_validator("task_options")
    @classmethod
    def _complete_options(cls, options: dict[str, Any], info: Any) -> dict[str, Any]:
        # If the task itself is wrong, that is what the user is told.
        if info.data.get("task") not in tasks.names():
            return options
        return tasks.make(info.data["task"], options).model_dump(mode="json")

    @field_validator("task")
    @classmethod
    def _check_task(cls, name: str) -> str:
        tasks.spec(name)
        return name

    @field_validator("network", mode="before")
    @classmethod
    def _leave_out_actions(cls, network: Any) -> Any:
        given = {"previous_action": False, "previous_reward": False}
        return given | network if isinstance(network, dict) else network

    @field_validator("network")
    @classmethod
    def _check_network(cls, network: NetworkConfig) -> NetworkConfig:
        for name, value in _OF_AGENTS.items():
            if getattr(network, name) != value:
                raise ValueError(f"network.{name} is for agents, and has no meaning in a probe; leave it out")
        return network

    @field_validator("test_lengths")
    @classmethod
    def _check_lengths(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= times <= _MOST_TIMES for times in lengths) or len(set(lengths)) < len(lengths):
            raise ValueError(
                f"test_lengths must be different whole numbers from 1 to {_MOST_TIMES:,}, got {list(lengths)}"
            )
        return lengths

    @model_validator(mode="after")
    def _check_tests(self) -> "ProbeConfig":
        for times in self.test_lengths:
            self.make_task().at_length(times * self.make_task().length)
        return self

    def make_task(self) -> Task:
        """Return the task."""
        return tasks.make(self.task, self.task_options)

    @property
    def total_steps(self) -> int:
        """Slots that a seed learns from in all."""
        return self.total_updates * self.learner.batch_size * self.make_task().length


def make_probe_config(fields: Mapping[str, Any]) -> ProbeConfig:
    """Return the configuration with the given fields, nested as in YAML.

    Raises:
        ValueError: With one line that names every field at fault, what came and what was expected.
    """
    try:
        return ProbeConfig.model_validate(fields)
    except ValidationError as error:
        raise ValueError("; ".join(map(_explain, error.errors()))) from None


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with dotted names, such as `network.memory`, as nested ones.

    Raises:
        ValueError: If one of them is a part of another that is given as a whole.
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        *path, last = name.split(".")
        part = found
        for key in path:
            part = part.setdefault(key, {})
            if not isinstance(part, dict):
                raise ValueError(f"{name} is a part of {'.'.join(path)}, which is given as a whole; choose one")
        part[last] = value
    return found


def _explain(error: Any) -> str:
    path = list(map(str, error["loc"]))
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        model: Any = ProbeConfig
        for part in path[:-1]:
            model = model.model_fields[part].annotation
        close = difflib.get_close_matches(path[-1], model.model_fields, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(model.model_fields)}"
        return f"unknown configuration key {name!r} of a probe; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    return f"{name}: {message[0].lower() + message[1:]}, got {error['input']!r}"
