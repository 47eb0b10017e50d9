"""The meta suite: distributions of tasks, for in-context reinforcement learning. A family and its options by name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from memax_rl.envs.base import Environment
from memax_rl.envs.meta.bandit import BernoulliBandit, GaussianBandit
from memax_rl.envs.meta.cartpole import ProjectedCartPole
from memax_rl.envs.meta.grid import DarkRoom, KeyToDoor
from memax_rl.envs.meta.mdp import TabularMDP
from memax_rl.envs.meta.pointmass import PointMass
from memax_rl.envs.meta.tmaze import EndlessTMaze
from memax_rl.envs.meta.trials import FromParams, FromReset, Trials, make_trials


class Option(NamedTuple):
    """An option of a family: its default, what it means, and the largest number it can be."""

    default: Any
    meaning: str
    largest: int = 2**31 - 1


Options = dict[str, Option]
# As `memax_rl.envs.make`.
Make = Callable[..., tuple[Any, Any]]


class Family(NamedTuple):
    """How a family is made from its options, all of them given, and what these are."""

    build: Callable[[Mapping[str, Any], Make], Environment]
    options: Options


def _trial_options(episodes: int, episode_length: Option | None) -> Options:
    return {
        **({} if episode_length is None else {"episode_length": episode_length}),
        "episodes": Option(episodes, "episodes a trial; null if steps is given"),
        "steps": Option(None, "steps a trial instead, the last episode being cut"),
        "discount_across_episodes": Option(True, "whether a return goes on into the next episode of the trial"),
        "novelty_bonus": Option(0.0, "what the learner adds for what is new in the trial, until the first reward"),
        "unrewarded_fraction": Option(0.0, "share of training trials that pay nothing but that bonus"),
        "split": Option("train", "train or test: which of the disjoint sets of tasks"),
        "split_seed": Option(0, "seed of the split"),
        "num_tasks": Option(None, "draw from only so many tasks"),
    }


def _pick(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names}


def _any_environment(options: Mapping[str, Any], make: Make) -> Trials:
    if str(options["env"]).startswith(("gym/", "envpool/")):
        raise ValueError(f"env: trials are made of environments in JAX, and {options['env']!r} runs on the host")
    inner = options["inner_options"]
    if not isinstance(inner, Mapping):
        raise ValueError(f"inner_options must give options of env by name, as {{max_steps: 50}}, got {inner!r}")
    if inner.get("benchmark") is not None:
        return _rulesets(options, inner, make)
    env, params = make(options["env"], **inner)
    if options["vary"] is None:
        return make_trials(FromReset(env, params), options)
    if str(options["env"]).startswith("xminigrid/"):
        raise ValueError(f"vary: the parameters of {options['env']} are sizes, the same for all tasks; set it to null")
    try:
        ranges = {name: (float(low), float(high)) for name, (low, high) in options["vary"].items()}
        if not ranges:
            raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            f"vary must give each parameter a range, as {{gravity: [8, 12]}}, got {options['vary']!r}"
        ) from None
    return make_trials(FromParams(env, params, ranges), options)


def _rulesets(options: Mapping[str, Any], inner: Mapping[str, Any], make: Make) -> Trials:
    from memax_rl.envs.adapters.xland_minigrid import RulesetTasks

    for name in ("split", "split_seed"):
        if name in inner:
            raise ValueError(f"inner_options: {name} of the benchmark is that of the trials; set env_options.{name}")
    if options["vary"] is not None:
        raise ValueError("vary: a benchmark's rulesets are the tasks; set either vary or inner_options.benchmark")
    # The trials' own split would only draw other keys, which pick from the same rulesets.
    env, params = make(options["env"], **inner, **_pick(options, "split", "split_seed"))
    return make_trials(RulesetTasks(env, params), options)


_TEST_FRACTION = Option(0.2, "share of the hidden cells held out for testing")
_GRID_OPTIONS = ("size", "episode_length", "test_fraction", "split", "split_seed")
_GRID_LENGTH = "steps an episode; by default {} times the size"

FAMILIES: dict[str, Family] = {
    "BernoulliBandit": Family(
        lambda o, _: make_trials(BernoulliBandit(**_pick(o, "arms", "payouts", "episode_length")), o),
        {
            "arms": Option(5, "number of arms", 4096),
            "payouts": Option(None, "the arms' probabilities, in random order, instead of draws from U(0, 1)"),
            **_trial_options(10, Option(10, "pulls in a block; a trial has episodes blocks")),
        },
    ),
    "GaussianBandit": Family(
        lambda o, _: make_trials(GaussianBandit(**_pick(o, "arms", "episode_length")), o),
        {
            "arms": Option(5, "number of arms", 4096),
            **_trial_options(10, Option(10, "pulls in a block; a trial has episodes blocks")),
        },
    ),
    "DarkRoom": Family(
        lambda o, _: make_trials(DarkRoom(**_pick(o, *_GRID_OPTIONS)), o),
        {
            "size": Option(5, "cells on a side", 256),
            "test_fraction": _TEST_FRACTION,
            **_trial_options(8, Option(None, _GRID_LENGTH.format(2))),
        },
    ),
    "KeyToDoor": Family(
        lambda o, _: make_trials(
            KeyToDoor(**_pick(o, "size", "episode_length", "test_fraction", "split", "split_seed")), o
        ),
        {
            "size": Option(5, "cells on a side", 256),
            "test_fraction": _TEST_FRACTION,
            **_trial_options(8, Option(None, _GRID_LENGTH.format(5))),
        },
    ),
    "TabularMDP": Family(
        lambda o, _: make_trials(TabularMDP(**_pick(o, "states", "actions", "reward_noise", "episode_length")), o),
        {
            "states": Option(10, "number of states", 256),
            "actions": Option(5, "number of actions", 256),
            "reward_noise": Option(1.0, "standard deviation of a reward"),
            **_trial_options(10, Option(10, "steps an episode")),
        },
    ),
    "ProjectedCartPole": Family(
        lambda o, _: make_trials(
            ProjectedCartPole(
                **_pick(
                    o, "observation_size", "project_action", "vary_physics", "start_range", "episode_length", "split"
                )
            ),
            o,
        ),
        {
            "observation_size": Option(4, "numbers shown", 4096),
            "project_action": Option(True, "swap left and right in half of the tasks"),
            "vary_physics": Option(
                False, "draw pole mass, pole length and force too; testing lies outside of training"
            ),
            "start_range": Option(
                [1.0, 0.5, 0.1, 1.5], "how far from rest an episode begins at most: x, its speed, angle, its speed"
            ),
            **_trial_options(16, Option(200, "time limit of an episode")),
        },
    ),
    "PointMass": Family(
        lambda o, _: make_trials(PointMass(**_pick(o, "episode_length", "split", "split_seed")), o),
        _trial_options(8, Option(20, "steps an episode")),
    ),
    "EndlessTMaze": Family(
        lambda o, _: EndlessTMaze(**_pick(o, "corridors", "length", "random_length")),
        {
            "corridors": Option(10, "corridors an episode", 10**6),
            "length": Option(5, "steps to a corridor's end", 10**6),
            "random_length": Option(False, "draw each corridor's length from 1 to length"),
        },
    ),
    "Trials": Family(
        _any_environment,
        {
            "env": Option("gymnax/PointRobot-misc", "the environment to make trials of; its reset draws the task"),
            "inner_options": Option({}, "options of that environment, as {max_steps: 50}"),
            "vary": Option(None, "parameters that hold the task instead, each with its range, as {gravity: [8, 12]}"),
            **_trial_options(8, None),
        },
    ),
}


def make(name: str, options: Mapping[str, Any], make_inner: Make) -> Environment:
    """Make an environment of a family.

    Args:
        name: One of `FAMILIES`.
        options: All its options.
        make_inner: `memax_rl.envs.make`, for families that are made of another environment.

    Raises:
        ValueError: If an option has a wrong value.
    """
    family = FAMILIES[name]
    for option, value in options.items():
        default = family.options[option].default
        fits = {bool: (bool,), int: (int,), float: (int, float), str: (str,), list: (list, tuple)}.get(type(default))
        if fits is not None and (not isinstance(value, fits) or (isinstance(value, bool) and bool not in fits)):
            # Steps replace episodes, so episodes may be left out.
            if option == "episodes" and value is None:
                continue
            raise ValueError(f"{option} must be of type {type(default).__name__}, got {_short(value)}")
        numbers = value if isinstance(value, list | tuple) else [value]
        largest = family.options[option].largest
        if any(isinstance(x, int | float) and not abs(x) <= largest for x in numbers):
            raise ValueError(f"{option} must be at most {largest:,}, got {_short(value)}")
    for option in ("episode_length", "num_tasks", "steps", "episodes"):
        value = options.get(option)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{option} must be a number of at least 1, got {_short(value)}")
    return family.build(options, make_inner)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
