"""Weights from another run, for a run that begins: what fits is taken, part by part, and what was taken is told."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from memax_rl.agents import Agent
from memax_rl.runs.config import TrainConfig
from memax_rl.runs.plain_arrays import array_name
from memax_rl.runs.run import Run, RunError

_NETWORK = "network."


class Taken(NamedTuple):
    """What a run takes from another.

    Attributes:
        arrays: By their names in the network, with a leading axis of the new run's seeds.
        lines: What was taken and what was not, in words.
    """

    arrays: dict[str, Array]
    lines: tuple[str, ...]


def weights_of(config: TrainConfig, network: PyTree) -> Taken:
    """Return the weights that a configuration takes from the run that its `start_from` names, none if it names none.

    Args:
        network: The network of one seed, with the shapes of arrays for arrays.

    Raises:
        RunError: If that is no run, it has no such checkpoint, its memory does not fit, or its seeds do not.
    """
    if config.start_from is None:
        return Taken({}, ())
    run = Run.open(config.start_from)
    text = config.start_from_checkpoint
    checkpoint: Any = int(text) if text.isdigit() else text
    here = {array_name(path): leaf for path, leaf in jax.tree.leaves_with_path(network) if leaf.size}
    there = {
        name.removeprefix(_NETWORK): shape_and_dtype
        for name, shape_and_dtype in run.shapes(checkpoint).items()
        if name.startswith(_NETWORK)
    }
    places = _places(config, run)
    if _memories(run.fields()) != _memories(config.model_dump()):
        raise RunError(
            f"start_from: the run {run.folder} has the memory {_memories(run.fields())}, and this one "
            f"{_memories(config.model_dump())}; they must be the same"
        )
    taken, lines = _fitting(config.start_from, here, there)
    like = {name: jax.ShapeDtypeStruct(*there[name]) for name in taken}
    arrays = run.restore_some({_NETWORK + name: leaf for name, leaf in like.items()}, checkpoint)
    arrays = {name.removeprefix(_NETWORK): array[places] for name, array in arrays.items()}
    for name, array in arrays.items():
        if jnp.issubdtype(array.dtype, jnp.inexact) and not np.all(np.isfinite(array.astype(np.float32))):
            raise RunError(f"start_from: {name} of the run {run.folder} is not finite")
    return Taken({name: jnp.asarray(array) for name, array in arrays.items()}, tuple(lines))


def _places(config: TrainConfig, run: Run) -> np.ndarray:
    """Return which of the other run's seeds each seed starts from: the one of the same place, or the only one."""
    fields, count = run.fields(), config.num_seeds
    try:
        first, seeds = int(fields["seed"]), int(fields["num_seeds"])
    except (KeyError, TypeError, ValueError):
        raise RunError(f"start_from: {run.config_path} does not say which seeds it has") from None
    if seeds not in (1, count):
        raise RunError(
            f"start_from: the run {run.folder} has {seeds} seeds and this one {count}; train as many, or start from one"
        )
    places = np.zeros(count, int) if seeds == 1 else np.arange(count)
    if lost := sorted({first + int(place) for place in places} & set(run.diverged_seeds())):
        raise RunError(f"start_from: seed {lost[0]} of the run {run.folder} diverged in training")
    return places


def _memories(fields: Mapping[str, Any]) -> str:
    """Return the names of a network's memories, from its first block to the last."""
    try:
        network = fields["network"]
        blocks = [name for block in network["blocks"] for name in [block["memory"]] * int(block["repeat"])]
        return "+".join(blocks or [network["memory"]] * int(network["depth"]))
    except (KeyError, TypeError, ValueError):
        return "that its config.yaml does not tell"


def _part(name: str) -> str:
    """Return the part of the network that an array belongs to, such as torso.encoder, torso.blocks.0 or policy_head."""
    *path, last = name.split(".")
    return ".".join(path[: 3 if path[2:] and path[2].isdigit() else 2]) or last


def _fitting(
    folder: str | Path, here: Mapping[str, Any], there: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> tuple[list[str], list[str]]:
    """Return the names of the arrays to take, those of whole parts only, and lines about the parts.

    Raises:
        RunError: If a block of the memory does not fit, or nothing does.
    """
    parts: dict[str, list[str]] = {}
    for name in here:
        parts.setdefault(_part(name), []).append(name)
    why = {part: _misfit(part, names, here, there) for part, names in parts.items()}
    memory = [text for part, text in why.items() if text and part.startswith("torso.blocks")]
    if memory or all(why.values()):
        raise RunError(f"start_from: the run {folder} does not fit: {(memory or list(why.values()))[0]}")
    fit = [part for part, text in why.items() if not text]
    lines = [f"taken from {folder}: {', '.join(fit)}", *(f"not taken: {text}" for text in why.values() if text)]
    return [name for part in fit for name in parts[part]], lines


def _misfit(part: str, names: list[str], here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Return why a part cannot be taken, or an empty text."""
    others = {name for name in there if _part(name) == part}
    if not others:
        return f"{part}, which is not there"
    if differ := sorted(others ^ set(names)):
        return f"{part}, because {differ[0]} is only in {'the other run' if differ[0] in others else 'this one'}"
    for name in names:
        (_, *shape), dtype = there[name]
        if tuple(shape) != here[name].shape or np.dtype(dtype) != np.dtype(here[name].dtype):
            return f"{part}, because {name} is {dtype}{shape} there and {here[name].dtype}{list(here[name].shape)} here"
    return ""


def starting_from(agent: Agent[Any], arrays: Mapping[str, Array]) -> Agent[Any]:
    """Return the agent with networks that begin with these arrays, by name; all that it makes of a network follows."""

    def make_network(observation_space: Any, action_space: Any, key: Any) -> Any:
        network = agent.make_network(observation_space, action_space, key)
        return jax.tree.map_with_path(lambda path, leaf: arrays.get(array_name(path), leaf), network)

    started = copy.copy(agent)
    started.make_network = make_network
    return started
