"""How far back does an agent look? The sensitivity of value and policy at one step to the inputs d steps before.

Two measures as functions of the lag d, each a mean over pairs of steps of fresh episodes:
- the norm of the gradient of the outputs at t with respect to the inputs at t - d;
- the change of the action distribution at t (total variation) when the inputs at t - d are replaced by those of another
  episode at the same step, and all later inputs stay the same.

The steps are sampled at random for each episode: with evenly spaced steps, some lags would occur at some steps only.
The first step of an episode is reported separately: it is often a cue, the memory before it is empty, and a mean over
few pairs would jump where it is included. Lags with few pairs are left out.

Inputs are observation, previous action and previous reward. Of images the outputs of the convolutions are taken, and of
normalized observations the normalized values.
"""

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from memax_rl.envs import spaces
from memax_rl.envs.base import EnvironmentFailure, close, failure
from memax_rl.evaluation.episodes import of_seeds, say_lost
from memax_rl.evaluation.figures import BLACK, BLUE, GRAY, VERMILLION, make_figure, seeds_and, set_counts
from memax_rl.networks import ActionDistribution, ActorCritic
from memax_rl.networks.encoder import AgentInput, Encoder
from memax_rl.precision import products_in
from memax_rl.rollout.streams import Act, seed_key, start_stream, step_stream
from memax_rl.rollout.tape import Tape, positions, previous
from memax_rl.runs.build import load_agent
from memax_rl.runs.files import json_text, save_figure, write_atomically
from memax_rl.runs.run import Checkpoint, Run

# Steps t, or places t - d, sampled per row: enough for a mean, and cheap enough for many lags.
_MOST_PLACES = 32
# Fewest pairs of steps in a reported mean.
_FEWEST_PAIRS = 32
# The pairs of first steps are few, one a step: their lags are put together in so many bins.
# More would exceed the memory of any machine.
_MOST_ROWS, _MOST_STEPS = 65_536, 65_536
_FIRST_BINS = 16
# Samples of the bootstrap.
_RESAMPLES = 500
_MEASURES = ("policy_gradient", "value_gradient", "action_change")


class _ShiftedEncoder(eqx.Module):
    """An encoder that adds a shift to its flat inputs: the observation is a pair of the true inputs and the shift."""

    encoder: Encoder

    def __call__(self, inputs: AgentInput) -> Float[Array, " width"]:
        true, shift = inputs.observation
        return self.encoder.embed(self.encoder.flatten(true) + shift)


def _shifted(network: ActorCritic) -> ActorCritic:
    """Return the network with shifted encoders, in both torsos if there are two."""
    network = eqx.tree_at(lambda n: n.torso.encoder, network, _ShiftedEncoder(network.torso.encoder))
    if network.value_torso is None:
        return network
    return eqx.tree_at(lambda n: n.value_torso.encoder, network, _ShiftedEncoder(network.value_torso.encoder))


def collect(env: Any, params: Any, act: Act, memory: Any, key: PRNGKeyArray, *, rows: int, steps: int) -> Tape:
    """Play `rows` fresh environments for `steps` steps and return the tape [rows, steps].

    Args:
        memory: The carry before the first step.
    """
    start_key, key = jax.random.split(key)
    streams = jax.vmap(lambda k: start_stream(env, params, memory, k))(jax.random.split(start_key, rows))

    def body(streams, keys):
        streams, slot, _ = jax.vmap(lambda s, k: step_stream(env, params, act, s, k))(streams, keys)
        return streams, slot

    _, tape = jax.lax.scan(body, streams, jax.random.split(key, (steps, rows, 2)))
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tape)


def _inputs(tape: Tape) -> AgentInput:
    """Return the agent's inputs at every slot of a tape [rows, slots] whose rows begin with an episode."""
    first = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:, 0]), (tape.action, tape.reward))
    action, reward = jax.vmap(previous)((tape.action, tape.reward), tape.start, first)
    return AgentInput(tape.observation, action, reward, tape.start, tape.action_mask)


def _scan(network: ActorCritic, inputs: AgentInput, shift: Float[Array, "rows slots inputs"]):
    """Return the distributions and values of the slots, with shifted flat inputs."""
    memory = network.initial_state()
    memory = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (inputs.start.shape[0], *leaf.shape)), memory)
    _, distribution, value, _ = _shifted(network).scan(memory, inputs._replace(observation=(inputs, shift)))
    return distribution, value


def _places(key: PRNGKeyArray, rows: int, first: int, slots: int) -> Int[Array, "rows places"]:
    """Return at most `_MOST_PLACES` different slots from `first` on for each row, drawn at random."""
    number = min(slots - first, _MOST_PLACES)
    return jax.vmap(lambda k: first + jax.random.permutation(k, slots - first)[:number])(jax.random.split(key, rows))


def _by_lag(
    x: Float[Array, "places slots"], lag: Array, counts: Array, is_first: Array
) -> tuple[Float[Array, "2 slots"], Float[Array, "2 slots"]]:
    """Return sums and counts of x by lag: for the inputs of later steps, and for those of first steps."""
    slots = x.shape[1]
    index = (is_first.astype(jnp.int32), jnp.where(counts, lag, 0))
    total = jnp.zeros((2, slots)).at[index].add(jnp.where(counts, x, 0))
    return total, jnp.zeros((2, slots)).at[index].add(jnp.where(counts, 1.0, 0.0))


def gradients_by_lag(
    network: ActorCritic, tape: Tape, key: PRNGKeyArray
) -> tuple[Float[Array, "rows 2 slots"], Float[Array, "rows 2 slots"], Float[Array, "rows 2 slots"]]:
    """Return sums of the gradient norms of policy and value by row and lag, and the number of pairs of steps.

    The axis of size two: the inputs of later steps of an episode, and those of its first step. The gradient of the
    policy is that of all outputs of its head, minus their mean over the actions of a discrete space. Lags do not cross
    episodes.
    """
    inputs = _inputs(tape)
    rows, slots = tape.start.shape
    size = jax.eval_shape(network.torso.encoder.flatten, jax.tree.map(lambda leaf: leaf[0, 0], inputs)).shape[0]
    shown = jnp.arange(size) < size - network.torso.encoder.include[2]

    def one_row(row):
        row_inputs, valid, places = row
        alone = jax.tree.map(lambda leaf: leaf[None], row_inputs)

        def outputs(shift):
            distribution, value = _scan(network, alone, shift[None])
            raw = distribution.raw[0]
            if isinstance(distribution.space, spaces.Discrete):
                raw = raw - jnp.mean(raw, axis=-1, keepdims=True)
            return jnp.concatenate([raw, value[0][:, None]], axis=-1)

        out, pullback = jax.vjp(outputs, jnp.zeros((slots, size)))
        width = out.shape[-1]

        def norms(place):
            def gradient(k):
                (g,) = pullback(jnp.zeros_like(out).at[place, k].set(1))
                return jnp.where(shown[None, :], g, 0)

            g = jax.vmap(gradient)(jnp.arange(width))
            return jnp.linalg.norm(g[:-1], axis=(0, 2)), jnp.linalg.norm(g[-1], axis=-1)

        policy, value = jax.vmap(norms)(places)
        lag = places[:, None] - jnp.arange(slots)[None, :]
        within = positions(row_inputs.start)[places][:, None]
        counts = (lag >= 0) & (lag <= within) & valid[places][:, None]
        is_first = jnp.broadcast_to(row_inputs.start[None, :], lag.shape)
        policy_sum, number = _by_lag(policy, lag, counts, is_first)
        return policy_sum, _by_lag(value, lag, counts, is_first)[0], number

    return jax.lax.map(one_row, (inputs, tape.valid, _places(key, rows, 0, slots)))


def action_change_by_lag(
    network: ActorCritic, tape: Tape, key: PRNGKeyArray
) -> tuple[Float[Array, "rows 2 slots"], Float[Array, "rows 2 slots"]]:
    """Return the summed total variation between the action distributions with and without a replaced input, and the
    number of pairs of steps, by row and lag; the axis of two is that of `gradients_by_lag`.

    The inputs at one place of a row are replaced by those of the next row at the same place. The first slot, where an
    episode begins, is among the places of every row.
    """
    inputs = _inputs(tape)
    rows, slots = tape.start.shape
    flat = jax.vmap(jax.vmap(network.torso.encoder.flatten))(inputs)
    keep_start = jnp.arange(flat.shape[-1]) < flat.shape[-1] - network.torso.encoder.include[2]
    difference = jnp.where(keep_start[None, None, :], jnp.roll(flat, 1, axis=0) - flat, 0)
    places = jnp.concatenate([jnp.zeros((rows, 1), jnp.int32), _places(key, rows, 1, slots)], axis=1)
    true, _ = _scan(network, inputs, jnp.zeros_like(flat))
    position = jax.vmap(positions)(tape.start)

    def one_place(place):
        here = jnp.arange(slots)[None, :] == place[:, None]
        changed, _ = _scan(network, inputs, jnp.where(here[..., None], difference, 0))
        variation = jax.vmap(jax.vmap(total_variation))(true, changed)
        lag = jnp.arange(slots)[None, :] - place[:, None]
        counts = (lag >= 0) & (lag <= position) & tape.valid
        is_first = jnp.broadcast_to(jnp.take_along_axis(tape.start, place[:, None], axis=1), lag.shape)
        return jax.vmap(lambda *x: _by_lag(*(leaf[None] for leaf in x)))(variation, lag, counts, is_first)

    return jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(one_place, places.T))


def total_variation(p: ActionDistribution, q: ActionDistribution) -> Float[Array, ""]:
    """Return the total variation distance of two distributions over actions, `p` and `q`, between 0 and 1.

    For a MultiDiscrete space the mean over its components; for a Box that of two normals with the same standard
    deviation.
    """
    if p.log_std is not None:
        distance = jnp.linalg.norm((p.raw - q.raw) / jnp.exp(p.log_std))
        return jax.scipy.special.erf(distance / (2 * math.sqrt(2)))
    parts = [
        0.5 * jnp.sum(jnp.abs(jax.nn.softmax(a) - jax.nn.softmax(b)))
        for a, b in zip(p.logits(), q.logits(), strict=True)
    ]
    return jnp.mean(jnp.stack(parts))


def inspect(
    folder: str | Path,
    *,
    steps: int | None = None,
    rows: int = 16,
    seed: int | None = None,
    checkpoint: Checkpoint = "newest",
    imports: Iterable[str] = (),
    trust: bool = False,
) -> dict[str, Any]:
    """Return how value and policy of a run depend on the past, averaged over its seeds.

    Args:
        folder: The run folder.
        steps: Slots to look at from an episode's start; by default as long as an episode can be, at most 256.
        rows: Fresh episodes for each seed, at least 2.
        seed: Of the episodes; by default the run's own.
        checkpoint: "newest", "best" by evaluation during training, or the update of one that was kept.
        imports, trust: Packages that the run's environment may import, or whether it may import any (docs/runs.md).

    Returns:
        A dict ready for JSON; `"lags"` holds, for each lag, `"policy_gradient"`, `"value_gradient"`, `"action_change"`,
        each with a 95 % bootstrap interval over episodes and seeds under the same name with `_low` and `_high`, and the
        number of `"pairs"` of steps the gradients are a mean of; without what the first step of an episode showed. Of
        that, `"first_step"` holds the same in bins of lags `"from"` to `"to"`. `"reach"` says within which lag nine
        tenths of the summed gradient, or change, of `"lags"` lie.

    Raises:
        RunError: If the folder is no run or has no sound checkpoint.
        ValueError: If an argument is out of range, there are too few pairs of steps, or the run's agent has no policy
            and value to look into (dqn).
        EnvironmentFailure: If an environment on the host fails.
    """
    _check_size(rows, steps)
    run = Run.open(folder, imports, trust)
    config = run.config()
    _check_agent(config.agent)
    agent, networks, seeds = load_agent(run, checkpoint)
    key = jax.random.fold_in(seed_key(config.seed if seed is None else seed), 2**31)
    slots = min(agent.env.max_episode_steps(agent.env_params) or 256, 256) if steps is None else steps

    places = [s - config.seed for s in seeds]
    with products_in(config.precision):
        policy, value, pairs, change, changes = _measure(agent, networks, places, key, rows, slots)
    totals, numbers = np.stack([policy, value, change]), np.stack([pairs, pairs, changes])
    lags = _entries(totals[..., 0, :], numbers[..., 0, :], np.arange(slots + 1))
    _check_lags(lags, rows)
    width = -(-slots // _FIRST_BINS)
    first = _entries(totals[..., 1, :], numbers[..., 1, :], np.append(np.arange(0, slots, width), slots))
    return {
        "env": config.env,
        "memory": config.network.memory,
        **of_seeds(config, seeds),
        "checkpoint": checkpoint,
        "rows": rows,
        "steps": slots,
        "reach": {name: _reach(np.array([entry[name] for entry in lags])) for name in _MEASURES},
        "lags": [{"lag": entry.pop("from"), **{k: v for k, v in entry.items() if k != "to"}} for entry in lags],
        "first_step": first,
    }


def _check_lags(lags: list[dict[str, Any]], rows: int) -> None:
    if not lags:
        raise ValueError(
            f"fewer than {_FEWEST_PAIRS} pairs of steps behind a lag of 0, without the first step of each episode; "
            f"raise rows above {rows}, if episodes have more than one step"
        )


def _check_agent(name: str) -> None:
    if name != "ppo":
        raise ValueError(
            f"memax-rl inspect looks into a policy and a value, which agents of ppo have; this run's agent is {name!r}"
        )


def _check_size(rows: int, steps: int | None) -> None:
    if rows < 2:
        raise ValueError(f"rows must be at least 2, because the input of one replaces another's, got {rows}")
    if rows > _MOST_ROWS or (steps or 0) > _MOST_STEPS:
        raise ValueError(f"rows must be at most {_MOST_ROWS} and steps at most {_MOST_STEPS}, got {rows} and {steps}")
    if steps is not None and steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")


def _measure(
    agent: Any, networks: ActorCritic, places: list[int], key: PRNGKeyArray, rows: int, slots: int
) -> list[Float[np.ndarray, "seeds rows 2 slots"]]:
    """Play with each seed's network, and return its sums and numbers by lag: policy, value, pairs; change, pairs."""

    @eqx.filter_jit
    def one_seed(network, key):
        act = agent.act(network)
        memory = network.initial_state()
        tape = collect(agent.env, agent.env_params, act, memory, key, rows=rows, steps=slots)
        gradient_key, change_key = jax.random.split(jax.random.fold_in(key, 1))
        return *gradients_by_lag(network, tape, gradient_key), *action_change_by_lag(network, tape, change_key)

    params, rest = eqx.partition(networks, eqx.is_array)
    measured = []
    try:
        for index, place in enumerate(places):
            network = eqx.combine(jax.tree.map(lambda leaf, i=index: leaf[i], params), rest)
            measured.append([np.asarray(x, np.float64) for x in one_seed(network, jax.random.fold_in(key, place))])
            if (failed := failure(agent.env)) is not None:
                raise EnvironmentFailure(failed)
    finally:
        close(agent.env)
    return [np.stack(x) for x in zip(*measured, strict=True)]


def _entries(
    totals: Float[np.ndarray, "measures seeds rows lags"],
    numbers: Float[np.ndarray, "measures seeds rows lags"],
    borders: Int[np.ndarray, " bins_and_1"],
) -> list[dict[str, Any]]:
    """Return the means in bins of lags, up to the first bin that has few pairs, with bootstrap intervals.

    The bootstrap resamples seeds, and episodes within each, because the pairs of one episode are correlated.
    """
    totals, numbers = (np.add.reduceat(x, borders[:-1], axis=-1) for x in (totals, numbers))
    _, seeds, rows, _ = totals.shape
    rng = np.random.default_rng(0)
    weights = np.zeros((_RESAMPLES, seeds, rows))
    for sample in weights:
        for seed in rng.integers(seeds, size=seeds):
            sample[seed] += rng.multinomial(rows, np.full(rows, 1 / rows))
    drawn = [np.einsum("bsr,msrl->bml", weights, x) for x in (totals, numbers)]
    # A sample may hold none of the episodes that last so long.
    samples = np.divide(*drawn, out=np.full_like(drawn[0], np.nan), where=drawn[1] > 0)
    enough = numbers.sum(axis=(1, 2)).min(axis=0) >= _FEWEST_PAIRS
    entries = []
    for i in range(len(enough) if enough.all() else int(np.argmin(enough))):
        entry: dict[str, Any] = {"from": int(borders[i]), "to": int(borders[i + 1] - 1)}
        for m, name in enumerate(_MEASURES):
            low, high = np.nanpercentile(samples[:, m, i], [2.5, 97.5])
            value = totals[m, ..., i].sum() / numbers[m, ..., i].sum()
            entry |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
        entries.append(entry | {"pairs": int(numbers[0, ..., i].sum())})
    return entries


def _reach(curve: Float[np.ndarray, " lags"]) -> int:
    """Return the smallest lag up to which nine tenths of the sum lie."""
    total = np.cumsum(curve)
    return int(np.argmax(total >= 0.9 * total[-1]))


def write_inspection(result: dict[str, Any], folder: Path) -> tuple[Path, Path, Path]:
    """Write inspect.json, inspect.csv and inspect.png into a folder and return their paths.

    Args:
        result: What `inspect` returns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "inspect.json", folder / "inspect.csv", folder / "inspect.png"
    write_atomically(paths[0], json_text(result))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(result["lags"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["lags"])
    write_atomically(paths[1], buffer.getvalue())
    save_figure(inspection_figure(result), paths[2])
    return paths


def inspection_figure(result: dict[str, Any]) -> Any:
    """Return the matplotlib figure of a result of `inspect`."""
    from matplotlib.lines import Line2D

    looks = {
        "value_gradient": ("gradient of the value", VERMILLION, "s"),
        "policy_gradient": ("gradient of the policy", BLUE, "o"),
        "action_change": ("change of the action", BLACK, "D"),
    }
    legend = [
        Line2D([], [], color=color, label=f"{label} (nine tenths within {result['reach'][name]})")
        for name, (label, color, _) in looks.items()
    ]
    legend.append(Line2D([], [], color=GRAY, marker="o", markersize=4, linestyle="", label="of the first step"))
    seeds = len(result["seeds"])
    caption = (
        "Mean over pairs of steps of what a step owes to the input d steps before: norm of the gradient (left), and "
        "total variation of the action if that input was another (right). "
        f"{seeds_and(seeds, result['rows'], 'episode')} "
        f"each, {result['steps']} steps. Bands and bars: 95 % bootstrap intervals over episodes"
        f"{' and seeds' if seeds > 1 else ''}. Inputs of an episode's first step are apart (points, in bins of lags); "
        f"lags of fewer than {_FEWEST_PAIRS} pairs are left out."
    )
    figure, axes = make_figure(2, f"{result['env']}, {result['memory']}", legend, caption)
    for name, (_, color, marker) in looks.items():
        _draw_measure(axes[int(name == "action_change")], result, name, color, marker)
    last = max(entry.get("to", entry.get("lag")) for entry in (*result["lags"], *result["first_step"]))
    for panel in axes:
        panel.set_xlabel("lag d in steps")
        set_counts(panel, 0, last)
    # All zero: there is no logarithm.
    if any(entry[name] > 0 for entry in result["lags"] for name in ("value_gradient", "policy_gradient")):
        axes[0].set_yscale("log")
    axes[0].set_ylabel("norm of the gradient")
    axes[1].set_ylabel("total variation")
    axes[1].set_ylim(bottom=0)
    return figure


def _draw_measure(axes: Any, result: dict[str, Any], name: str, color: str, marker: str) -> None:
    """Draw a measure by lag with its band, and that of the first steps as points with bars."""

    def column(entries: list[dict[str, Any]], suffix: str = "") -> Any:
        # Zeros are gaps on a logarithmic axis.
        x = np.array([entry[name + suffix] for entry in entries])
        return x if name == "action_change" else np.where(x > 0, x, np.nan)

    entries, first = result["lags"], result["first_step"]
    lag = [entry["lag"] for entry in entries]
    axes.plot(lag, column(entries), color=color, linewidth=1.4, marker="o" if len(lag) == 1 else "")
    axes.fill_between(lag, column(entries, "_low"), column(entries, "_high"), color=color, alpha=0.25, linewidth=0)
    center = [(entry["from"] + entry["to"]) / 2 for entry in first]
    axes.plot(center, column(first), color=color, linestyle="", marker=marker, markersize=4, markerfacecolor="white")
    axes.vlines(center, column(first, "_low"), column(first, "_high"), color=color, linewidth=0.8)


def print_inspection(result: dict[str, Any]) -> None:
    """Print the result of `inspect` at lags 0, 1, 2, 4, 8 and so on."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['env']}, {result['memory']}: what an output owes to the input d steps before")
    for column in ("lag", "value's gradient", "policy's gradient", "change of action"):
        table.add_column(column, justify="right")
    wanted = [0] + [2**i for i in range(20)]
    for entry in (result["lags"][d] for d in wanted if d < len(result["lags"])):
        numbers = (entry[name] for name in ("value_gradient", "policy_gradient", "action_change"))
        table.add_row(str(entry["lag"]), *(f"{x:.2e}" for x in numbers))
    table.add_section()
    for entry in result["first_step"]:
        numbers = (entry[name] for name in ("value_gradient", "policy_gradient", "action_change"))
        table.add_row(f"first, {_span(entry)}", *(f"{x:.2e}" for x in numbers))
    reach = result["reach"]
    table.caption = (
        f"nine tenths within {reach['value_gradient']} steps (value), {reach['policy_gradient']} (policy), "
        f"{reach['action_change']} (change of action), an episode's first step apart{say_lost(result)}"
    )
    Console().print(table)


def _span(entry: dict[str, Any]) -> str:
    return str(entry["from"]) if entry["from"] == entry["to"] else f"{entry['from']} to {entry['to']}"
