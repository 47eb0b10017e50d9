"""`memax-rl train`: a command with an option for every field of the configuration."""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from memax_rl.cli import catalog
from memax_rl.cli.common import (
    PathType,
    answers,
    did_you_mean,
    find_typed,
    import_own,
    prepare_jax,
    trust_options,
)

# Names that are typed often, and the fields that they are short for.
SHORT = {"memory": "network.memory", "memory-options": "network.memory-options", "width": "network.width"}
# What `--help` shows; all else has `--help-all`.
_MAIN = ("env", "agent", "network.memory", "network.width", "total-steps", "seed", "num-seeds", "devices")
# Fields whose parts have names that no model knows beforehand, as --env-options.size 7.
_OPEN = ("env-options", "env-wrappers", "memory-options", "network.memory-options")
# What may be typed beside --resume.
_CHANGEABLE = ("--total-steps=", "--devices=")
_METAVARS = {"integer": "INTEGER", "number": "NUMBER", "text": "TEXT", "list": "LIST", "options": "OPTIONS"}
_EXAMPLES = """\
Examples:

\b
  memax-rl train                                   the README's example
  memax-rl train --env popgym/RepeatFirstMedium --memory gru --total-steps 5M
  memax-rl train --agent dqn --memory lru --memory-options.r-min 0.5
  memax-rl train --config my.yaml --seed 3 --out runs/third
  memax-rl train --resume runs/third
  memax-rl train --resume runs/third --total-steps 10M
"""


class FieldType(click.ParamType):
    """The text of a field's value; the configuration itself reads and checks it."""

    def __init__(self, field: catalog.Field):
        self.field = field
        self.name = field.kind

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the choices, where there are few, or the kind of value."""
        if self.field.kind == "switch":
            return "[true|false]"
        if self.field.choices and len(self.field.choices) <= 8:
            return f"[{'|'.join(self.field.choices)}]"
        return "NAME" if self.field.choices or self.field.name == "env" else _METAVARS[self.field.kind]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text; refuse an option in its place."""
        if str(value).startswith("--"):
            raise click.UsageError(f"--{self.field.name} needs a value, got the option {value}")
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Return the values that begin with what was typed."""
        from click.shell_completion import CompletionItem

        known: Sequence[str] = self.field.choices
        if self.field.name == "env":
            from memax_rl import envs

            known = envs.names()
        if self.field.kind == "switch":
            known = ("true", "false")
        if self.field.name == "env-wrappers":
            known = tuple(catalog.load()["wrappers"])
        return [CompletionItem(value) for value in known if value.lower().startswith(incomplete.lower())]


class ConfigType(PathType):
    """A YAML file or the name of a preset."""

    name = "config"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Return the presets that begin with what was typed, and have the shell add files."""
        from click.shell_completion import CompletionItem

        from memax_rl.cli.listing import shipped

        found = [CompletionItem(name) for name, _ in shipped("presets") if name.startswith(incomplete)]
        return found or super().shell_complete(ctx, param, incomplete)


class TrainCommand(click.Command):
    """`train`: declared fields by click, parts of open ones such as `--env-options.size 7` beside them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set `ctx.obj` to the open fields; parse the rest."""
        agent = _last("--agent", args)
        ctx.meta["agent"] = (agent or "ppo").lower()
        ctx.meta["all"] = "--help-all" in args
        opened, rest = _split(args, (*_OPEN, *([ctx.meta["agent"]] if not self._knows(ctx.meta["agent"]) else [])))
        ctx.obj = opened
        try:
            return super().parse_args(ctx, ["--help" if arg == "--help-all" else arg for arg in rest])
        except click.BadOptionUsage as error:
            raise click.UsageError(f"{error.option_name} needs a value") from None
        except click.NoSuchOption as error:
            name = error.option_name.removeprefix("--")
            known = [option for param in self.params for option in (*param.opts, *param.secondary_opts)]
            hint = did_you_mean(f"--{name}", known, "see memax-rl train --help-all")
            raise click.UsageError(f"unknown field --{name}; {hint}") from None

    def _knows(self, agent: str) -> bool:
        return any(field.topic == agent for field in _fields(self))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by topic: the main ones, or all of this agent's."""
        fields = {param: param.type.field for param in self.params if isinstance(param.type, FieldType)}
        own = [param for param in self.get_params(ctx) if param not in fields]
        _write(formatter, ctx, "Run", own)
        main = [param for param, field in fields.items() if field.name in _MAIN]
        _write(formatter, ctx, "Fields of the configuration", sorted(main, key=lambda p: _MAIN.index(fields[p].name)))
        agent, topics = ctx.meta.get("agent", "ppo"), list(dict.fromkeys(field.topic for field in fields.values()))
        if not ctx.meta.get("all"):
            formatter.write_paragraph()
            formatter.write_text(
                "All fields of the network and of an agent: memax-rl train --agent NAME --help-all. Open ones have "
                "parts: --env-options.NAME VALUE, --memory-options.NAME VALUE (see memax-rl list envs -v, "
                "memax-rl list memories -v), --env-wrappers '[{name: NAME, ...}]' (memax-rl list wrappers -v)."
            )
            return
        agents = [topic for topic in topics if topic not in ("run", "network")]
        for topic in (topic for topic in topics if topic not in agents or topic == agent):
            rest = [param for param, field in fields.items() if field.topic == topic and param not in main]
            _write(formatter, ctx, f"Fields: {topic}", rest)


def _write(formatter: click.HelpFormatter, ctx: click.Context, title: str, params: Sequence[click.Parameter]) -> None:
    records = [record for param in params if (record := param.get_help_record(ctx)) is not None]
    if records:
        with formatter.section(title):
            formatter.write_dl(records)


def _fields(command: click.Command) -> Iterator[catalog.Field]:
    return (param.type.field for param in command.params if isinstance(param.type, FieldType))


def _last(name: str, args: Sequence[str]) -> str | None:
    """Return the last value that is typed for an option, or None."""
    found = [arg.partition("=")[2] for arg in args if arg.startswith(f"{name}=")]
    found += [value for arg, value in itertools.pairwise(args) if arg == name]
    return found[-1] if found else None


def _split(args: Sequence[str], prefixes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments that set parts of open fields, and the others."""
    opened, rest, queue = [], [], list(args)
    while queue:
        arg = queue.pop(0)
        if not any(arg.startswith(f"--{prefix}.") for prefix in prefixes):
            rest.append(arg)
            continue
        opened.append(arg)
        if "=" not in arg and queue and not queue[0].startswith("--"):
            opened.append(queue.pop(0))
    return opened, rest


def _options() -> list[click.Option]:
    """Return an option for each field; a switch `--x` may also be cleared by `--no-x`."""
    short = {full: name for name, full in SHORT.items()}
    options = []
    for index, field in enumerate(catalog.load()["fields"]):
        names = [f"--{short[field.name]}"] if field.name in short else []
        about = field.help.removesuffix(".")
        text = f"{about}  [default: {_shown(field.default)}]"
        switch: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if field.kind == "switch" else {}
        names += [f"--{field.name}", f"field{index}"]
        options.append(click.Option(names, type=FieldType(field), help=text, **switch))
        if switch:
            options.append(click.Option([f"--no-{field.name}", f"no{index}"], is_flag=True, hidden=True))
    return options


def _shown(default: Any) -> str:
    return default if isinstance(default, str) and default else json.dumps(default)


@click.command(
    "train",
    cls=TrainCommand,
    params=_options(),
    epilog=_EXAMPLES,
    short_help="Train an agent; without options, the README's example.",
)
@click.option("--config", type=ConfigType(), help="A YAML file, or a preset of `memax-rl list presets`.")
@click.option("--out", type=PathType(), help="The run folder to make (default: a new one in runs/).")
@click.option("--resume", type=PathType(), help="Continue the run in this folder; with --total-steps, longer.")
@click.option("--check", is_flag=True, help="Say what would be trained, and make nothing.")
@click.option(
    "--distributed",
    is_flag=False,
    flag_value="auto",
    metavar="[HOST:PORT,PROCESS,PROCESSES]",
    help="Train together with other processes: those that Slurm, Open MPI or Kubernetes started, or at an address.",
)
@trust_options
@click.option("--help-all", is_flag=True, expose_value=False, help="Show all fields, those of --agent too.")
@click.pass_context
@answers
def train(
    ctx: click.Context, config: Path | None, resume: Path | None, check: bool, distributed: str | None, **rest: Any
) -> None:
    """Train an agent, and write a run folder.

    Every field of the configuration is an option. Without --config the fields begin with the agent's preset, or, with
    --env, with the defaults.
    """
    own = {name: rest.pop(name) for name in ("out", "imports", "trust")}
    typed = [*_typed(ctx.command, rest), *ctx.obj]
    changed = dict(argument[2:].split("=", 1) for argument in typed if argument.startswith(_CHANGEABLE))
    if resume is not None and (config or own["out"] or check or len(changed) < len(typed)):
        raise ValueError(
            "--resume continues a run as it is configured; beside it only --total-steps and --devices may be given"
        )
    # As many CPU devices as cores, for --devices; processes that train together are one each. JAX counts them when it
    # is first used, which the next import does.
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1" if distributed else str(os.cpu_count()))
    prepare_jax(trains=True)
    from memax_rl.distributed import is_first, taking_part

    with taking_part(distributed):
        import_own(own["imports"], own["trust"], *([config.resolve().parent] if config and config.is_file() else []))
        if resume is not None:
            from memax_rl import training

            more: Any = {name.replace("-", "_"): value for name, value in changed.items()}
            trust = {name: own[name] for name in ("imports", "trust")}
            run = training.train(resume=resume, progress=True, **trust, **more)
        else:
            run = _train_anew(ctx, typed, config, check, own)
        if run is not None and is_first():
            print(f"run folder: {run.folder}")


def _train_anew(ctx: click.Context, typed: list[str], config: Path | None, check: bool, own: dict[str, Any]) -> Any:
    """Return a run that was trained as typed; with `check` say what it would be, and return None."""
    from memax_rl import agents, distributed, training
    from memax_rl.envs.trust import import_modules, only_imports
    from memax_rl.runs import load_config, make_config, override
    from memax_rl.runs.yaml_text import read_fields

    imports, trust = own["imports"], own["trust"]
    env, agent = _last("--env", typed), ctx.meta["agent"]
    preset = agents.spec(agent).preset
    base = load_config(preset) if preset and not env else make_config({"agent": agent})
    # What is typed here may be imported; what a file says, only with --import or --trust.
    package = find_typed(env)
    with only_imports([*imports, *([package] if package else [])], trust=trust):
        if trust and config is not None and config.is_file():
            import_modules(read_fields(config).get("imports", ()))
        if config is not None:
            base = load_config(config)
        modules = list(dict.fromkeys([*base.imports, *imports]))
        chosen = override(base, [*([f"--imports={modules}"] if modules else []), *typed])
        if distributed.count() > 1 and chosen.devices == 1:
            # One would be of no use to the others.
            chosen = override(chosen, [f"--devices={distributed.devices()}"])
        if check:
            print("\n".join(training.check(chosen)))
            return None
        return training.train(chosen, out=own["out"], progress=True)


def _typed(command: click.Command, values: dict[str, Any]) -> list[str]:
    """Return the fields that were typed as `--name=value`. Raises `ValueError` for both `--x` and `--no-x`."""
    fields = list(_fields(command))
    given = [(name, value) for name, value in values.items() if value not in (None, False)]
    for name in dict(given):
        if name.startswith("no") and values[f"field{name[2:]}"] is not None:
            switch = fields[int(name[2:])].name
            raise ValueError(f"--{switch} and --no-{switch} are both given; leave one of them out")
    typed = [f"--{fields[int(name[5:])].name}={value}" for name, value in given if name.startswith("field")]
    return typed + [f"--{fields[int(name[2:])].name}=false" for name, _ in given if name.startswith("no")]
