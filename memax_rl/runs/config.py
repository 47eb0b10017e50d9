"""The configuration of a run: read from YAML, overridden field by field, written back complete."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from memax_rl import agents, envs
from memax_rl.agents.base import AgentSettings
from memax_rl.envs.ids import SUITES
from memax_rl.envs.trust import import_modules, may_import, only_imports
from memax_rl.envs.wrappers import CONFIGS, AnyWrapper
from memax_rl.networks import NetworkConfig
from memax_rl.paths import expanded
from memax_rl.precision import Precision
from memax_rl.runs.yaml_text import read_fields
from memax_rl.unused import refuse_unused


class EarlyStoppingConfig(BaseModel):
    """Settings of early stopping, by the evaluations during training."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    patience: int | None = Field(default=None, ge=1, le=1_000_000)
    """End the run after so many evaluations in a row in which no seed got better. None: train to the end."""
    metric: Literal["mean_return", "mean_length"] = "mean_return"
    """What of an evaluation counts."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of it is better."""
    min_delta: float = Field(default=0.0, ge=0)
    """What is better by no more than this is not better."""

    @model_validator(mode="after")
    def _check_used(self) -> "EarlyStoppingConfig":
        if self.patience is None:
            refuse_unused(self, ("metric", "mode", "min_delta"), "is for early stopping; set patience")
        return self


class TrainConfig(BaseModel):
    """Settings of a training run. Everything that decides its result is here."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )

    scored_by: ClassVar[str] = "return"

    imports: tuple[str, ...] = ()
    """Modules that register environments, agents or memories of one's own; they are imported first. A file that names
    them is only used where the user names them too, by --import or --trust, because importing runs their code."""
    env: str = "popgym/RepeatPreviousEasy"
    """The environment, see `memax-rl list envs`; gym/ID is any of Gymnasium, jax/module:Class any class in JAX."""
    env_options: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """Options of the environment, for example --env-options.size 7; see `memax-rl list envs -v`."""
    env_wrappers: tuple[AnyWrapper, ...] = ()
    """Wrappers, the innermost first, for example '[{name: sticky_actions, probability: 0.25}]'."""
    agent: str = "ppo"
    """The agent, see `memax-rl list agents`. Its settings stand under its name."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The first seed."""
    num_seeds: int = Field(default=1, ge=1, le=4096)
    """How many runs, of seeds seed, seed + 1, ..., train together."""
    devices: int = Field(default=1, ge=1, le=4096)
    """Devices that share the seeds, where they divide num_seeds, or else the rows of each update; on a CPU they are
    threads. Another number is another random run."""
    precision: Precision = "tensorfloat32"
    """How exactly matrices are multiplied: highest is float32; tensorfloat32 is JAX's own choice on NVIDIA GPUs, and
    float32 elsewhere; bfloat16 rounds the factors of products with weights. States and sums are float32."""
    total_steps: int = Field(default=260_000, ge=1, le=10**15)
    """Environment steps of each seed; the run ends with the first update that reaches them."""
    on_divergence: Literal["continue", "stop"] = "continue"
    """What to do when the network of one of several seeds is no longer finite: train the others on, or stop."""
    network: NetworkConfig = NetworkConfig()
    """Settings of the network."""
    settings: SerializeAsAny[AgentSettings] = Field(default_factory=AgentSettings)
    """Settings of the agent; in files and on the command line they stand under the agent's name."""
    start_from: str | None = None
    """The folder of another run, whose weights each seed begins with as far as they fit. A resumed run does not look
    into it any more."""
    start_from_checkpoint: str = Field(default="newest", pattern="^(newest|best|[0-9]{1,18})$")
    """Which of that run's checkpoints: newest, best, or an update."""
    checkpoint_interval: float = Field(default=60.0, ge=0)
    """Seconds between checkpoints. The last state is always saved."""
    keep_every_n_steps: int | None = Field(default=None, ge=1, le=10**15)
    """Keep a checkpoint every so many environment steps, beside the newest. None: the newest alone."""
    eval_interval: int | None = Field(default=None, ge=1, le=10**15)
    """Environment steps between evaluations during training, which also choose each seed's best checkpoint. They do
    not change the training. None: no such evaluations."""
    eval_episodes: int = Field(default=256, ge=0, le=1_000_000)
    """Fresh episodes to evaluate each seed on, during training and at the end. 0: none."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    """Settings of early stopping."""
    tensorboard: bool = False
    """Also log to TensorBoard, in the run's folder (needs `pip install memax_rl[tensorboard]`)."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases (needs `pip install memax_rl[wandb]`)."""

    @field_validator("total_steps", "keep_every_n_steps", "eval_interval", mode="before")
    @classmethod
    def _read_steps(cls, value: Any) -> Any:
        return read_count(value)

    @field_validator("eval_episodes")
    @classmethod
    def _check_episodes(cls, episodes: int, info: Any) -> int:
        if not episodes and info.data.get("eval_interval") is not None:
            raise ValueError("eval_interval is set, and eval_episodes is 0; evaluations need 1 episode or more")
        return episodes

    @model_validator(mode="after")
    def _check_used(self) -> "TrainConfig":
        if self.start_from is None:
            refuse_unused(self, ("start_from_checkpoint",), "is of the run that start_from names; set start_from")
        return self

    @field_validator("env_wrappers", mode="before")
    @classmethod
    def _read_wrappers(cls, value: Any) -> Any:
        # A name alone, or one wrapper alone, is short for a list of one.
        value = [value] if isinstance(value, str | dict) else value
        return [{"name": w} if isinstance(w, str) else w for w in value] if isinstance(value, list | tuple) else value

    @model_validator(mode="before")
    @classmethod
    def _read_settings(cls, fields: Any) -> Any:
        """Take the section of the agent's name as its settings. Those of another agent would be ignored: refused."""
        if not isinstance(fields, dict):
            return fields
        modules = fields.get("imports", ())
        if isinstance(modules, list | tuple) and all(isinstance(module, str) for module in modules):
            import_modules(modules)
        name = fields.get("agent", "ppo")
        name = name.lower() if isinstance(name, str) else str(name)
        model = agents.spec(name).settings
        others = [other for other in agents.names() if other != name and other in fields]
        if others:
            raise ValueError(f"settings of {others[0]} are given, but agent is {name!r}; leave them out, or set agent")
        if isinstance(fields.get("settings"), AgentSettings):
            return fields
        if "settings" in fields:
            raise ValueError(f"unknown configuration key 'settings'; settings of the agent stand under {name!r}")
        rest = {key: value for key, value in fields.items() if key != name}
        section = fields.get(name, {})
        if isinstance(section, AgentSettings):
            return rest | {"agent": name, "settings": section}
        try:
            return rest | {"agent": name, "settings": model.model_validate(section)}
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                cls.__name__, [_within(name, details) for details in error.errors()]
            ) from None

    @model_serializer(mode="wrap")
    def _write_settings(self, handler: Any) -> dict[str, Any]:
        fields = handler(self)
        return {self.agent if name == "settings" else name: value for name, value in fields.items()}

    @field_validator("env")
    @classmethod
    def _check_env(cls, name: str) -> str:
        package = envs.package_of(name)
        if package is not None:
            # A configuration that may not import a package can be read all the same; `envs.make` says so.
            if not package or may_import(package):
                envs.check(name)
        elif name not in envs.names():
            own = "" if name.partition("/")[0] in SUITES else "; one of your own needs --import MODULE"
            raise ValueError(f"unknown environment {name!r}; {close_to(name, envs.names())}{own}")
        return name

    @field_validator("env_options")
    @classmethod
    def _complete_env_options(cls, options: dict[str, Any], info: Any) -> dict[str, Any]:
        # If the environment itself is wrong, that is what the user is told.
        return envs.complete_options(info.data["env"], options) if "env" in info.data else options


def _within(part: str, details: Any) -> Any:
    """Return an error of pydantic's as one of a part of the configuration."""
    kind = details["type"]
    if kind in ("value_error", "assertion_error"):
        kind = PydanticCustomError(kind, "Value error, {text}", {"text": str(details["ctx"]["error"])})
    return {"type": kind, "loc": (part, *details["loc"]), "input": details["input"], "ctx": details.get("ctx", {})}


_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def read_count(value: Any) -> Any:
    """Return a `value` that is written as 1M, 2.5k or 1e6 as a whole number; anything else as it is."""
    if isinstance(value, str) and value[-1:].lower() in _UNITS:
        try:
            value = float(value[:-1]) * _UNITS[value[-1].lower()]
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def close_to(name: str, known: Iterable[str]) -> str:
    """Return a question with the known names that are like `name`, or what is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"known: {', '.join(known)}" if len(known) <= 60 else f"{len(known)} are known, see `memax-rl list`"


def is_probe(fields: Mapping[str, Any]) -> bool:
    """Return whether the fields of a configuration are those of a supervised probe (`memax_rl.probes`)."""
    return "task" in fields


def make_config(fields: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with the given fields, nested as in YAML.

    Raises:
        ValueError: With one line that names every field at fault, what came and what was expected.
    """
    try:
        return TrainConfig.model_validate(fields)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(e) for e in error.errors())) from None


def _explain(error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path)
    if error["type"] == "union_tag_invalid":
        tag = error["ctx"]["tag"]
        return f"unknown wrapper {short(tag)} in {name}; {close_to(tag, CONFIGS)}"
    if error["type"] == "extra_forbidden":
        return f"unknown configuration key {name!r}; {close_to(path[-1], _keys(path[:-1]))}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] == "value_error":
        says_it = not name or message.startswith(f"{name}: ") or "unknown" in message or "option" in message
        return message if says_it else f"{name}: {message}"
    return f"{name}: {message}, got {short(error['input'])}"


def short(value: Any) -> str:
    """Return a value as in a program, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."


def _keys(path: list[str]) -> list[str]:
    """Return the valid keys of the configuration under `path`."""
    if path[:1] == ["env_wrappers"]:
        # The path holds the wrapper's index and name.
        return list(CONFIGS[path[2]].model_fields)
    model: Any = TrainConfig
    for part in path:
        model = agents.spec(part).settings if part in agents.names() else model.model_fields[part].annotation
    return list(model.model_fields)


# A value that a message repeats is cut here.
_LONGEST_VALUE = 100


def load_config(name: str | Path) -> TrainConfig:
    """Return the configuration in a YAML file, or the preset of that name.

    Raises:
        ValueError: If there is no such file or preset, or it does not hold a valid configuration.
    """
    path = expanded(name)
    if path.is_dir() or not path.exists():
        if str(name) not in presets():
            raise ValueError(f"no configuration file or preset {str(name)!r}; {close_to(str(name), presets())}")
        path = preset_path(str(name))
    try:
        # Reading a file imports nothing, whoever wrote it. Making its environment may, where the user allows it.
        with only_imports():
            return make_config(read_fields(path))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


# Folders of what else is shipped beside the presets.
_NO_PRESETS = ("studies", "tune")


def _preset_folder() -> Path:
    import memax_rl.configs

    (folder,) = memax_rl.configs.__path__
    return Path(folder)


def presets() -> tuple[str, ...]:
    """Return the names of the shipped configurations, such as "ppo/repeat_previous_hard"."""
    folder = _preset_folder()
    names = (p.relative_to(folder).with_suffix("") for p in folder.rglob("*.yaml"))
    return tuple(sorted(str(name) for name in names if name.parts[0] not in _NO_PRESETS))


def find_shipped(kind: str, path: Path) -> Path:
    """Return the file at `path`, or the shipped one of that name. `kind` is "studies" or "tune".

    Raises:
        ValueError: If there is neither.
    """
    if path.exists():
        return path
    folder = _preset_folder() / kind
    known = {found.stem: found for found in sorted(folder.glob("*.yaml"))}
    if str(path) not in known:
        raise ValueError(f"{str(path)!r} is no file, nor one that is shipped; {close_to(str(path), known)}")
    return known[str(path)]


def preset_path(name: str) -> Path:
    """Return the file of a shipped configuration, by its `name`, such as "ppo/repeat_previous_easy"."""
    return _preset_folder() / f"{name}.yaml"


def dump_config(config: BaseModel) -> str:
    """Return the complete configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
