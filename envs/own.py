"""Environments and families of tasks of the user's own, made from their options."""

from collections.abc import Callable
from typing import Any

import jax
from pydantic import BaseModel

from memax_rl.envs.adapters import interfaces
from memax_rl.envs.base import Environment
from memax_rl.envs.checking import call, call_for, check_environment
from memax_rl.envs.meta.trial_options import TrialOptions
from memax_rl.envs.meta.trials import TaskEnvironment, Trials, make_trials
from memax_rl.envs.option_models import read_options


def make_own(
    env_id: str, make: Callable[..., Any], model: type[BaseModel] | None, options: dict[str, Any], *, is_family: bool
) -> Environment:
    """Make what was registered, and look at it once.

    Args:
        env_id: Its name.
        make: What was registered.
        model: Of its options, or None if it has none.
        options: All its options, those of trials included.
        is_family: Whether it is a family of tasks.

    Raises:
        ValueError: If it cannot be made, or is no environment or family of tasks that works. One line, with file
            and line of the user's where something was raised.
    """
    arguments = [] if model is None else [read_options(model, {name: options[name] for name in model.model_fields})]
    made = call(f"{env_id}: making it", make, *arguments)
    if not is_family:
        if isinstance(made, TaskEnvironment):
            raise ValueError(f"{env_id}: {type(made).__name__} is a family of tasks; use memax_rl.envs.register_tasks")
        env = interfaces.adapt(env_id, made)
    else:
        if not isinstance(made, TaskEnvironment):
            raise ValueError(
                f"{env_id}: register_tasks expects a memax_rl.envs.meta.trials.TaskEnvironment, got "
                f"{type(made).__name__}; an environment is registered by memax_rl.envs.register"
            )
        _check_attributes(env_id, made)
        env = make_trials(made, {name: options[name] for name in TrialOptions.model_fields})
        _check_episodes(env_id, env)
    check_environment(env_id, env, env.default_params)
    return env


def _check_episodes(env_id: str, trials: Trials) -> None:
    """Raise `ValueError` unless a family's functions return as many values as they should. Nothing is run."""
    key, tasks = jax.random.key(0), trials.tasks
    task = call(f"{env_id}: a task", jax.eval_shape, trials.draw_task, key)
    _, state = call_for(f"{env_id}: reset_episode", ("observation", "state"), tasks.reset_episode, key, task)
    action = jax.eval_shape(tasks.action_space.sample, key)
    parts = ("observation", "state", "reward", "whether the episode ended")
    call_for(f"{env_id}: step_episode", parts, tasks.step_episode, key, task, state, action)


def _check_attributes(env_id: str, tasks: TaskEnvironment) -> None:
    needed = ("episode_length", "observation_space", "action_space")
    missing = [name for name in needed if not hasattr(tasks, name)]
    if missing:
        raise ValueError(f"{env_id}: {type(tasks).__name__} lacks {', '.join(missing)} (docs/own_task_family.md)")
