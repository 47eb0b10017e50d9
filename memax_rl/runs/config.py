"""The configuration of a run: read from YAML, overridden field by field, written back complete."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from memax_rl.precision import Precision


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
            raise ValueError(f"unknown environment {name!r}; {_close(name, envs.names())}{own}")
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
    """Return a count that is written as 1M, 2.5k or 1e6 as a whole number; anything else as it is."""
    if isinstance(value, str) and value[-1:].lower() in _UNITS:
        try:
            value = float(value[:-1]) * _UNITS[value[-1].lower()]
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _close(name: str, known: Iterable[str]) -> str:
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
        return f"unknown wrapper {_short(tag)} in {name}; {_close(tag, CONFIGS)}"
    if error["type"] == "extra_forbidden":
        return f"unknown configuration key {name!r}; {_close(path[-1], _keys(path[:-1]))}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] == "value_error":
        says_it = not name or message.startswith(f"{name}: ") or "unknown" in message or "option" in message
        return message if says_it else f"{name}: {message}"
    return f"{name}: {message}, got {_short(error['input'])}"


def _short(value: Any) -> str:
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


# What is more than this is no configuration.
_LONGEST_VALUE = 100
_LARGEST_FILE = 1_000_000
_DEEPEST = 20


class _Loader(yaml.SafeLoader):
    """YAML of plain values: no aliases, which can stand for more than any memory holds, and no dates or deep nests."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"it is nested deeper than {_DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _letter, _resolvers in list(_Loader.yaml_implicit_resolvers.items()):
    _Loader.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers | {
        _letter: [(tag, pattern) for tag, pattern in _resolvers if tag != "tag:yaml.org,2002:timestamp"]
    }


def parse_yaml(text: str) -> Any:
    """Return the values of a YAML text. Raises `ValueError` with one line of why not."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(_cut(" ".join(str(error).split()))) from None
    except (ValueError, TypeError, AttributeError, KeyError):
        # PyYAML's constructors raise these, in no words for a person, for a tag that its value does not fit.
        raise ValueError("a value is not of the type that its tag (!!type) says; leave the tag out") from None


def _cut(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else text[:longest] + "..."


def read_fields(path: Path) -> dict[str, Any]:
    """Return the fields in a YAML file. Raises `ValueError` that names the file if it holds anything else."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"{path} is larger than {_LARGEST_FILE} bytes, and no configuration")
        fields = parse_yaml(path.read_text())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path} is not valid YAML: {error}") from None
    if fields is not None and not isinstance(fields, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(fields).__name__}")
    return fields or {}


def load_config(name: str | Path) -> TrainConfig:
    """Return the configuration in a YAML file, or the preset of that name.

    Raises:
        ValueError: If there is no such file or preset, or it does not hold a valid configuration.
    """
    path = Path(name)
    if not path.is_file():
        if str(name) not in presets():
            raise ValueError(f"no configuration file or preset {str(name)!r}; {_close(str(name), presets())}")
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
    """Return the file at `path`, or the one of that name that is shipped as one of the "studies" or for "tune".

    Raises:
        ValueError: If there is neither.
    """
    if path.exists():
        return path
    folder = _preset_folder() / kind
    known = {found.stem: found for found in sorted(folder.glob("*.yaml"))}
    if str(path) not in known:
        raise ValueError(f"{str(path)!r} is no file, nor one that is shipped; {_close(str(path), known)}")
    return known[str(path)]


def preset_path(name: str) -> Path:
    """Return the file of a shipped configuration."""
    return _preset_folder() / f"{name}.yaml"


def dump_config(config: BaseModel) -> str:
    """Return the complete configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


# Overriding fields from the command line

# Names that are typed often, and what they are short for.
SHORT = {"memory": "network.memory", "memory-options": "network.memory-options", "width": "network.width"}


def override(config: TrainConfig, arguments: Sequence[str]) -> TrainConfig:
    """Return the configuration with fields replaced by command-line arguments.

    `--a.b-c VALUE` or `--a.b-c=VALUE` sets field b_c of part a; a switch is also set by `--a.b` and cleared by
    `--no-a.b`.

    Raises:
        ValueError: That names the argument, for an unknown field or a value of the wrong type or range.
    """
    fields, pairs = config.model_dump(), list(_pairs(arguments))
    for name, value in pairs:
        if value is _NO_VALUE and name in ("agent", "env"):
            raise ValueError(f"--{name} needs a value")
    asked = [str(value).lower() for name, value in pairs if name == "agent"]
    if asked and asked[-1] != config.agent:
        # The settings of the agent of before are of no use to another.
        fields.pop(config.agent)
        fields |= {"agent": asked[-1], asked[-1]: agents.spec(asked[-1]).settings().model_dump()}
    if any(name == "env" and value != config.env for name, value in pairs):
        # What nobody chose for the old environment is not asked of the new one.
        defaults = envs.complete_options(config.env, {})
        fields["env_options"] = {name: x for name, x in config.env_options.items() if x != defaults[name]}
    _choose_stack(fields, [name.replace("-", "_") for name, _ in pairs])
    for name, value in pairs:
        _set(fields, name, value)
    return make_config(fields)


def _choose_stack(fields: dict[str, Any], typed: list[str]) -> None:
    """Forget a memory where blocks are typed, and blocks where a memory is: a network is made of either."""
    network = fields["network"]
    if "network.blocks" in typed and not {"memory", "network.memory"} & set(typed):
        network |= {"memory": "", "memory_options": {}, "depth": 1}
    elif {"memory", "network.memory"} & set(typed) and "network.blocks" not in typed:
        network["blocks"] = []


def override_env_options(config: TrainConfig, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the environment's options with those in command-line arguments such as `--env-options.length 10`.

    Raises:
        ValueError: For any other argument, and for a wrong option.
    """
    for name, _ in _pairs(arguments):
        if name.partition(".")[0] != "env-options":
            raise ValueError(f"unrecognized argument --{name}; only options of the environment may be changed here")
    return override(config, arguments).env_options


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) for each argument."""
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            raise ValueError(f"expected a field such as --seed, got {argument!r}")
        name, equals, value = argument[2:].partition("=")
        if equals:
            yield name, parse_value(value)
        elif rest and not rest[0].startswith("--"):
            yield name, parse_value(rest.pop(0))
        elif name.startswith("no-"):
            yield name.removeprefix("no-"), False
        else:
            yield name, _NO_VALUE


# What stands for the value of a field that was typed without one.
_NO_VALUE = object()


def parse_value(text: str) -> Any:
    """Return a number where the text is one (YAML reads 1e-3 as a string), else what YAML makes of it."""
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        # 1e3 is a whole number, 1000.0 is not.
        whole = isinstance(value, float) and value.is_integer() and "." not in text
        return int(value) if whole else value
    try:
        return parse_yaml(text)
    except ValueError:
        return text


def _set(fields: dict[str, Any], name: str, value: Any) -> None:
    head, _, tail = name.partition(".")
    full = (SHORT.get(head, head) + (f".{tail}" if tail else "")).replace("-", "_")
    *path, last = full.split(".")
    part: Any = fields
    in_env_options = path[:1] == ["env_options"]
    for key in path:
        if isinstance(part, list | tuple):
            # An item of a list, such as --env-wrappers.0.probability.
            part = part[int(key)] if key.isdigit() and int(key) < len(part) else None
        else:
            if in_env_options and part.get(key) is None:
                # An option that holds options, such as --env-options.arguments.length, and was not given yet.
                part[key] = {}
            part = part.get(key)
        if not isinstance(part, dict | list | tuple):
            raise ValueError(f"unknown field --{name}; {_close(name, _field_names())}")
    if not isinstance(part, dict):
        raise ValueError(f"unknown field --{name}; {_close(name, _field_names())}")
    if last in ("memory_options", "env_options") and not path[1:] and not isinstance(value, dict):
        raise ValueError(f"--{name} needs the name of an option, as --{name}.NAME VALUE, got {_short(value)}")
    is_option = in_env_options or path[-1:] == ["memory_options"]
    is_mapping = last in ("memory_options", "env_options") and isinstance(value, dict)
    if not is_option and not is_mapping and (last not in part or isinstance(part[last], dict)):
        raise ValueError(f"unknown field --{name}; {_close(name, _field_names())}")
    if not is_option and not isinstance(part[last], bool) and (value is _NO_VALUE or isinstance(value, bool)):
        got = "" if value is _NO_VALUE else f", got {str(value).lower()}"
        raise ValueError(f"--{name} needs a value{got}")
    part[last] = True if value is _NO_VALUE else value


def _walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the command-line name and the description of every field."""
    for key, field in model.model_fields.items():
        kind: Any = field.annotation
        name = prefix + key.replace("_", "-")
        if kind is AgentSettings:
            for agent in agents.names():
                yield from _walk(agents.spec(agent).settings, f"{agent}.")
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _walk(kind, f"{name}.")
        else:
            yield name, field


def _field_names() -> list[str]:
    return [*SHORT, *(name for name, _ in _walk(TrainConfig))]
