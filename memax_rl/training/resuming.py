"""A run that goes on: its state from the newest checkpoint, and its folder as it was then."""

import sys
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from memax_rl import distributed
from memax_rl.agents import Agent
from memax_rl.envs.base import close, failure, host_of
from memax_rl.runs.build import key_impl
from memax_rl.runs.config import TrainConfig
from memax_rl.runs.plain_arrays import rekey
from memax_rl.runs.run import Run, RunError
from memax_rl.training.session import TrainingError, saved_part, update_of


def resume(
    config: TrainConfig, run: Run, agent: Agent[Any], arrays: PyTree, static: PyTree, progress: bool
) -> tuple[PyTree, float]:
    """Return the arrays and the seconds of a run that goes on; `arrays` are those before training.

    `config` is the run's, but for `total_steps` and `devices`, which are written into it here.
    """
    before, begins_again = run.config(), not run.saved_updates() and not run.summary_path.exists()
    changed = {name: getattr(config, name) for name in ("total_steps", "devices")}
    changed = {name: value for name, value in changed.items() if value != getattr(before, name)}
    seconds, saved_devices = 0.0, config.devices
    # Where it was killed before its first checkpoint, it begins again.
    if not begins_again:
        saved_devices = run.saved_devices()
        arrays, seconds = restore(run, agent, arrays, config.devices)
        _check_total_steps(config, run, before.total_steps, int(arrays.env_steps.to_numpy().max()))
        if agent.transient_fields and agent.transient_hint:
            distributed.say(agent.transient_hint)
    if config.devices != saved_devices:
        distributed.say(
            f"the run goes on with {config.devices} devices, and was on {saved_devices}: from here on it is another "
            "random run than one left alone"
        )
    update = 0 if begins_again else update_of(arrays)
    if len(set(distributed.gather([update])[:, 0].tolist())) > 1:
        raise RunError(f"the processes do not see the same checkpoints in {run.folder}; put it where all of them do")
    if distributed.is_first():
        run.clean()
        if changed:
            run.change(**changed)
        run.drop_metrics_after(update)
        run.drop_evaluations_after(update)
    return _reopen(agent, arrays, static, progress), seconds


def _check_total_steps(config: TrainConfig, run: Run, before: int, made: int) -> None:
    """Raise `RunError` if a run is to go on to fewer steps than it has made; say which schedules change."""
    if config.total_steps == before:
        return
    if config.total_steps <= made:
        raise RunError(
            f"total_steps: the run {run.folder} has made {made:,} steps already, so it can go on to more, got "
            f"{config.total_steps:,}"
        )
    _warn_of_schedules(config, before, made)


def _warn_of_schedules(config: TrainConfig, before: int, made: int) -> None:
    """Say in a line which schedules that run over `total_steps` change where a run goes on to another total."""
    changed = []
    for name, value in config.settings.model_dump().items():
        if name.endswith("_schedule") and value != "constant":
            what = "the learning rate" if name == "lr_schedule" else name.removesuffix("_schedule").replace("_", " ")
            changed.append(f"{what}: {value}")
        if name == "epsilon_decay_steps" and value is None:
            changed.append("epsilon")
    if changed:
        distributed.say(
            f"what follows total_steps in this run ({', '.join(changed)}) is from step {made:,} on as in a run of "
            f"{config.total_steps:,} steps, where so far it was as in one of {before:,}. To have it where it was, "
            "start a new run with --start-from and a schedule of its own"
        )


def restore(run: Run, agent: Agent[Any], arrays: PyTree, devices: int = 1) -> tuple[PyTree, float]:
    """Return the arrays of the newest checkpoint, and the seconds trained so far.

    What the agent leaves out of checkpoints is taken from `arrays`, a state before training. Where the run goes on with
    other `devices` than it had, its random keys may become such of another kind.

    Raises:
        RunError: See `Run.restore`.
    """
    saved, seconds = run.restore(rekey(saved_part(agent, arrays), key_impl(run.saved_devices())))
    saved = rekey(saved, key_impl(devices))
    for name in agent.transient_fields:
        saved = eqx.tree_at(lambda s, n=name: getattr(s, n), saved, getattr(arrays, name), is_leaf=lambda x: x is None)
    return saved, seconds


def check_host(agent: Agent[Any], arrays: PyTree, when: str) -> None:
    """Raise `TrainingError` if an environment on the host has failed by the time that `arrays` are there."""
    jax.block_until_ready(arrays)
    failed = failure(agent.env)
    if failed is not None:
        raise TrainingError(f"{failed}; {when}")


def _reopen(agent: Agent[Any], arrays: PyTree, static: PyTree, progress: bool) -> PyTree:
    """Return a restored state whose environments can be stepped: on the host they begin new episodes."""
    if host_of(agent.env) is None:
        return arrays
    if progress:
        print(
            "the environment runs on the host, where its state cannot be saved: every stream begins a new episode, "
            "and what it had of an open one is not learned from",
            file=sys.stderr,
        )
    # The copies that were made for the state before training are of no use.
    close(agent.env)
    reopen = jax.vmap(lambda state: eqx.filter(agent.reset_environments(eqx.combine(state, static)), eqx.is_array))
    arrays = jax.jit(reopen)(arrays)
    check_host(agent, arrays, "this was when it was begun again for the resumed run")
    return arrays
