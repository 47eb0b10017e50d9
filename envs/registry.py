"""The registry of environments. Importing it imports neither JAX nor gymnax; making an environment does."""

import difflib
import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from memax_rl.envs.ids import DOWNLOADS as DOWNLOADS
from memax_rl.envs.ids import OPTIONAL_IDS, SUITES, builtin_names
from memax_rl.envs.packages import missing

if TYPE_CHECKING:
    from pydantic import BaseModel


class Own(NamedTuple):
    """An environment of the user's own.

    Attributes:
        make: Returns the environment, or the family of tasks, given its options if it has any.
        options: The model of its options, or None.
        episodes: Episodes a trial of a family of tasks by default; None for an environment.
    """

    make: Callable[..., Any]
    options: "type[BaseModel] | None" = None
    episodes: int | None = None


_OWN: dict[str, Own] = {}


def names() -> tuple[str, ...]:
    """The ids of the built-in environments and of the registered ones, each `suite/Name`.

    `make` also takes `gym/ID` with any ID of Gymnasium, and `jax/module:Class` with any class that has gymnax's, brax's
    or Jumanji's interface. Some suites need a package, see `missing_package`.
    """
    return builtin_names() + tuple(_OWN)


def missing_package(env_id: str) -> str | None:
    """The command that installs what an environment needs and is not installed, or None."""
    return missing(env_id.partition("/")[0])


def package_of(env_id: str) -> str | None:
    """The module that an id names in front of its colon, "" where it names none; None where the suite lists its ids."""
    suite, _, name = env_id.partition("/")
    return name.rpartition(":")[0] if suite in ("gym", "envpool", "jax") else None


def register(name: str, make: Callable[..., Any], options: "type[BaseModel] | None" = None) -> None:
    """Register an environment of your own under a name, for configurations and `make`.

    The name is known in this process only: to resume or evaluate a run, register it again first.

    Args:
        name: `suite/Name`, in no suite of this package, for example `"own/TMaze"`.
        make: Returns the environment: one with gymnax's, brax's or Jumanji's interface, or a
            `memax_rl.envs.base.Environment`. A class will do. Called with no argument, or with `options` filled in.
            Called once for each choice of options.
        options: A pydantic model whose fields are the options of the environment, all with defaults. Configurations
            give them in `env_options`, the command line by `--env-options.NAME VALUE`.

    Raises:
        ValueError: If the name is not of that form, or an option has no default or one that JSON cannot hold.
    """
    _register(name, Own(make, options))


def register_tasks(
    name: str, make: Callable[..., Any], options: "type[BaseModel] | None" = None, episodes: int = 8
) -> None:
    """Register a family of tasks of your own. The environment of that name is trials of its tasks.

    It has the options of trials too (`episodes`, `split`, `num_tasks`, ...), and `memax-rl icl` measures agents that
    were trained on it.

    Args:
        name: As of `register`.
        make: Returns a `memax_rl.envs.meta.trials.TaskEnvironment`. A class will do.
        options: As of `register`.
        episodes: Episodes of a trial unless the option `episodes` says otherwise.

    Raises:
        ValueError: As `register`, and if an option is called like one of those of trials.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    _register(name, Own(make, options, episodes))


def _register(name: str, own: Own) -> None:
    suite, slash, rest = name.partition("/")
    if not (suite and slash and rest) or suite in SUITES:
        raise ValueError(f"name: expected suite/Name in a suite of your own, for example 'own/TMaze', got {name!r}")
    if own.options is not None:
        from memax_rl.envs.meta.trial_options import TrialOptions
        from memax_rl.envs.option_models import check_model

        check_model(name, own.options, taken=() if own.episodes is None else tuple(TrialOptions.model_fields))
    _OWN[name] = own
    _make.cache_clear()


def check(env_id: str) -> None:
    """Raise `ValueError` with close matches, in one line, unless `make` knows the id."""
    if env_id.startswith("gym/"):
        from memax_rl.envs.adapters import gymnasium

        gymnasium.find_spec(env_id.removeprefix("gym/"))
    elif env_id.startswith("envpool/"):
        from memax_rl.envs.adapters import envpool_tasks

        _need_package(env_id)
        envpool_tasks.check(env_id.removeprefix("envpool/"))
    elif env_id.startswith("jax/"):
        from memax_rl.envs.adapters import interfaces

        interfaces.find(env_id.removeprefix("jax/"))
    elif env_id not in names():
        close = difflib.get_close_matches(env_id, names(), n=5, cutoff=0.4)
        hint = f"close matches: {', '.join(close)}" if close else "see memax_rl.envs.names()"
        raise ValueError(f"env_id: there is no environment {env_id!r}; {hint}")


def options(env_id: str) -> dict[str, tuple[Any, str]]:
    """The options of an environment: name, default, meaning.

    gymnax/ and popgym/ have none. Those of `jax/` are its constructor's arguments, which are not known here.
    """
    family, name = env_id.split("/", maxsplit=1)
    if family == "meta":
        from memax_rl.envs.meta import suite

        return {option: (d.default, d.meaning) for option, d in suite.FAMILIES[name].options.items()}
    found = {
        option: (default, model.model_fields[option].description or "")
        for model in _option_models(env_id)
        for option, default in model().model_dump(mode="json").items()
    }
    if env_id in _OWN and _OWN[env_id].episodes is not None:
        found["episodes"] = (_OWN[env_id].episodes, found["episodes"][1])
    return found


def _option_models(env_id: str) -> "list[type[BaseModel]]":
    """The settings models of an environment's options; there are two where a family of tasks has options of its own."""
    if env_id.startswith("gym/"):
        from memax_rl.envs.adapters.gymnasium_options import HostOptions

        return [HostOptions]
    if env_id.startswith("envpool/"):
        from memax_rl.envs.adapters.gymnasium_options import EnvPoolOptions

        return [EnvPoolOptions]
    if env_id.startswith("xminigrid/"):
        from memax_rl.envs.adapters.xland_minigrid_options import GridOptions, XLandOptions

        return [XLandOptions if env_id.startswith("xminigrid/XLand") else GridOptions]
    suite = env_id.partition("/")[0]
    if suite in OPTIONAL_IDS:
        from memax_rl.envs.adapters.suite_options import MODELS

        return [MODELS[suite]]
    if env_id not in _OWN:
        return []
    own = _OWN[env_id]
    models = [] if own.options is None else [own.options]
    if own.episodes is not None:
        from memax_rl.envs.meta.trial_options import TrialOptions

        models.append(TrialOptions)
    return models


def complete_options(env_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an environment, with defaults where nothing is given.

    Raises:
        ValueError: If an option does not exist, the message lists those that do; if one of a gym/ or xminigrid/
            environment, of an optional package's, or of one's own, has a wrong value, while others are looked at by
            `make`; or if both episodes and steps of a trial are chosen.
    """
    if env_id.startswith("jax/"):
        # Arguments of a constructor, which is not imported to read a configuration.
        return dict(given)
    known = options(env_id)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
            hint = f"its options are {', '.join(known)}" if known else "it takes none"
            hint += f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"env_options: {env_id} has no option {name!r}; {hint}")
    models = _option_models(env_id)
    if not models:
        complete = {name: given.get(name, default) for name, (default, _) in known.items()}
        if "episodes" in known:
            _check_trials(complete, known["episodes"][0])
        return complete
    from memax_rl.envs.option_models import read_options, read_values

    if env_id not in _OWN:
        return read_values(models[0], given).model_dump()
    if _OWN[env_id].episodes is not None:
        given = {"episodes": _OWN[env_id].episodes, **given}
    checked = {}
    for model in models:
        part = read_options(model, {name: given[name] for name in given if name in model.model_fields})
        checked |= part.model_dump(mode="json")
    if _OWN[env_id].episodes is not None:
        _check_trials(checked, _OWN[env_id].episodes)
    return {name: checked[name] for name in known}


def _check_trials(options: Mapping[str, Any], default: Any) -> None:
    """Raise `ValueError` if a trial is to have so many steps, and so many episodes other than by default, too."""
    episodes, steps = options["episodes"], options["steps"]
    if steps is not None and episodes not in (None, default):
        raise ValueError(
            f"env_options: a trial has so many episodes or so many steps, got episodes={episodes} and steps={steps}; "
            "set one of them to null"
        )


def make(env_id: str, **options: Any) -> tuple[Any, Any]:
    """Make an environment and its default parameters.

    The same id and options give the same instance, but for `gym/` and `envpool/`: an environment is a static argument
    of its jitted methods, so a new instance would compile everything again. One on the host has copies and processes
    of its own.

    Args:
        env_id: One of `names()`, for example `"popgym/RepeatPreviousEasy"`, `gym/ID` with an ID of Gymnasium, or
            `jax/module:Class`.
        options: Options of the environment, see `options`. For `gym/`: processes, time limit of a step, arguments of
            `gymnasium.make`.

    Returns:
        The environment, a `memax_rl.envs.base.Environment`, and its parameters, a pytree of scalars (XLand's
        hold a ruleset too).

    Raises:
        ValueError: If there is no such id, the message lists close matches; or if an option does not exist or has
            a wrong value; or if a package that it needs is not installed.
        EnvironmentFailure: If its data could not be downloaded (`gymnax/MNISTBandit-bsuite` and benchmarks of XLand).
    """
    check(env_id)
    checked = complete_options(env_id, options)
    if env_id.startswith("gym/"):
        from memax_rl.envs.adapters import gymnasium
        from memax_rl.envs.adapters.gymnasium_options import HostOptions

        env: Any = gymnasium.GymnasiumAdapter(env_id.removeprefix("gym/"), HostOptions(**checked))
        return env, env.default_params
    if env_id.startswith("envpool/"):
        from memax_rl.envs.adapters import envpool_tasks
        from memax_rl.envs.adapters.gymnasium_options import EnvPoolOptions

        env = envpool_tasks.EnvPoolAdapter(env_id.removeprefix("envpool/"), EnvPoolOptions(**checked))
        return env, env.default_params
    return _make(env_id, json.dumps(checked, sort_keys=True))


@functools.cache
def _make(env_id: str, options: str) -> tuple[Any, Any]:
    """Make an environment; the options as JSON, which can be hashed."""
    kind, name = env_id.split("/", maxsplit=1)
    if env_id in _OWN:
        from memax_rl.envs.own import make_own

        own = _OWN[env_id]
        env = make_own(env_id, own.make, own.options, json.loads(options), is_family=own.episodes is not None)
    elif kind == "gymnax":
        from memax_rl.envs.adapters import gymnax

        env = gymnax.make(name)
    elif kind == "meta":
        from memax_rl.envs.meta import suite

        env = suite.make(name, json.loads(options), make)
    elif kind == "xminigrid":
        from memax_rl.envs.adapters import xland_minigrid

        _need_package(env_id)
        env = xland_minigrid.make(name, json.loads(options))
    elif kind == "jax":
        from memax_rl.envs.adapters import interfaces

        env = interfaces.make(name, json.loads(options))
    elif kind in OPTIONAL_IDS:
        from memax_rl.envs.adapters import suites

        _need_package(env_id)
        env = suites.make(kind, name, json.loads(options))
    else:
        from memax_rl.envs.popgym import suite

        env = suite.BUILDERS[name]()
    return env, env.default_params


def _need_package(env_id: str) -> None:
    if install := missing_package(env_id):
        raise ValueError(f"env: {env_id} needs the package {env_id.partition('/')[0]}; {install}")


def max_episode_steps(env: Any, params: Any) -> int | None:
    """The largest number of steps an episode can have, or None if no bound is known.

    Args:
        env: An environment from `make`.
        params: Its parameters, with concrete (not traced) values.
    """
    return env.max_episode_steps(params)


def fixed_length(env: Any, params: Any) -> int | None:
    """The number of steps of every episode, or None if episodes differ in length.

    Args:
        env: An environment from `make`.
        params: Its parameters, with concrete (not traced) values.
    """
    return env.fixed_length(params)


def truncates(env: Any, params: Any) -> bool:
    """Whether an episode of the fixed length may be cut there by a time limit.

    Args:
        env: An environment from `make`.
        params: Its parameters, with concrete (not traced) values.
    """
    return env.truncates(params)
