"""`memax-rl list`: what can be named on the command line, with its options."""

import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from memax_rl.cli import catalog
from memax_rl.cli.common import answers, import_option, import_own

_WHAT = ("memories", "envs", "wrappers", "agents", "presets", "studies", "tune", "probes")


@click.command("list", short_help="List memories, environments, wrappers, agents, presets, studies, probes.")
@click.argument("what", metavar="WHAT", type=click.Choice(_WHAT))
@click.option(
    "-v", "--verbose", is_flag=True, help="With papers, options and costs, or with spaces, scores and options."
)
@import_option
@answers
def listing(what: str, verbose: bool, imports: tuple[str, ...]) -> None:
    """List what can be named: memories, environments, wrappers, agents, presets, studies, tasks of probes, or what
    `tune` knows."""
    if imports:
        import_own(imports)
    if what == "envs":
        _list_envs(verbose)
    elif what == "agents":
        for name, summary in _agents().items():
            print(f"{name:12s}{summary}" if verbose else name)
    elif what == "wrappers":
        for name, about in catalog.load()["wrappers"].items():
            print(f"{name:24s}{about['summary']}" if verbose else name)
            if verbose:
                for option, meaning in about["options"].items():
                    print(f"    {option}: {meaning}")
    elif what == "probes":
        _list_probes(verbose)
    elif what in ("presets", "studies", "tune"):
        for name, summary in shipped(what):
            print(f"{name:40s}{summary}" if verbose else name)
    else:
        for line in _describe_memories() if verbose else _memories():
            print(line, flush=True)


def _list_probes(verbose: bool) -> None:
    for name, about in catalog.load()["probes"].items():
        print(f"{name:24s}{about['summary']}" if verbose else name)
        if verbose:
            print(f"    chance: {about['chance']}\n    known: {about['known']}\n    source: {about['source']}")
            for option, meaning in about["options"].items():
                print(f"    option {option}: {meaning}")


def _agents() -> dict[str, str]:
    """Return the summaries of the agents by name; those of one's own are known where they were registered."""
    if "memax_rl.agents" not in sys.modules:
        return catalog.load()["agents"]
    from memax_rl import agents

    return {name: agents.spec(name).summary for name in agents.names()}


def _memories() -> Sequence[str]:
    if "memax_rl.memory" not in sys.modules:
        return catalog.load()["memories"]
    from memax_rl import memory

    return memory.names()


def shipped(what: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the first line of each shipped preset, study or search space."""
    import memax_rl.configs

    (folder,) = map(Path, memax_rl.configs.__path__)
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).with_suffix("")
        kind = name.parts[0] if name.parts[0] in _WHAT else "presets"
        if kind == what:
            shown = str(name) if what == "presets" else name.name
            yield shown, path.read_text().splitlines()[0].removeprefix("#").strip()


def _list_envs(verbose: bool) -> None:
    from memax_rl import envs

    if verbose:
        print(_ENV_LINE.format("name", "observation", "action", "horizon", "chance", "best"))
    absent: dict[str, int] = {}
    for name in envs.names():
        suite = name.partition("/")[0]
        if envs.missing_package(name) is not None:
            absent[suite] = absent.get(suite, 0) + 1
            continue
        print(_describe_env(name) if verbose else name)
        if verbose:
            _print_options(name)
    print("gym/ID: any environment of Gymnasium, as gym/CartPole-v1; gym/package:ID imports the package first")
    if verbose:
        _print_options("gym/ID")
    if envs.missing_package("envpool/ID") is None:
        print("envpool/ID: any task of EnvPool, as envpool/Pong-v5")
        if verbose:
            _print_options("envpool/ID")
    else:
        absent["envpool"] = 0
    print("jax/module:Class: any class with gymnax's, brax's or Jumanji's interface; options are its arguments")
    for suite, count in absent.items():
        print(f"{suite}/: {f'{count} environments, ' if count else ''}needs {envs.missing_package(f'{suite}/')}")


def _print_options(env_id: str) -> None:
    from memax_rl import envs

    for option, (default, meaning) in envs.options(env_id).items():
        about = f": {meaning.rstrip('.')}" if meaning else ""
        print(f"    {option}{about} (default: {json.dumps(default)})")


_ENV_LINE = "{:40s} {:34s} {:22s} {:>7s} {:>7s} {:>7s}"


def _describe_env(name: str) -> str:
    """Return the line of one environment; a dash where something is not known."""
    from memax_rl import envs
    from memax_rl.envs.baselines.scores import find_scores
    from memax_rl.envs.spaces import describe

    scores = [f"{score:.3f}" for score in find_scores(name) or ()] or ["-", "-"]
    if name in envs.DOWNLOADS:
        return _ENV_LINE.format(name, "- (downloads its data)", "-", "-", *scores)
    env, params = envs.make(name)
    spaces = describe(env.observation_space(params)), describe(env.action_space(params))
    return _ENV_LINE.format(name, *spaces, str(envs.max_episode_steps(env, params) or "-"), *scores)


def _describe_memories(width: int = 128) -> Iterator[str]:
    """Yield the lines of `memax-rl list memories -v`; state and cost are those of the model that `make` returns."""
    import equinox as eqx
    import jax

    from memax_rl import memory
    from memax_rl.ops import kernels

    yield f"State: numbers carried. Cost: kFLOP of a step of learning. Both at width {width} with the default options."
    used = "used" if kernels.chosen() else "not used"
    yield f"Kernels, for NVIDIA GPUs: {used} here ({jax.default_backend()}, MEMAX_RL_KERNELS={kernels.mode()})."
    yield f"{'name':20s} {'class':10s} {'state':>7s} {'cost':>7s}  paper"
    for name in memory.names():
        entry = memory.spec(name)
        make = functools.partial(memory.make, name, in_size=width, out_size=width)
        model = eqx.filter_eval_shape(lambda key, make=make: make(key=key), jax.random.key(0))
        state, cost = memory.state_size(model), memory.training_flops(model) / 1e3
        yield f"{name:20s} {entry.family:10s} {state:7,d} {cost:7,.0f}  {entry.paper}".rstrip()
        if entry.verified:
            yield f"{'':20s}   verified: {entry.verified}"
        if found := memory.gpu_kernels(model):
            yield f"{'':20s}   kernels: {', '.join(found)}"
        for option, meaning in entry.options.items():
            yield f"{'':20s}   {option}: {meaning}"
