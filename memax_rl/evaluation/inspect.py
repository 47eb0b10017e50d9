"""How far back does an agent look? What its value and policy at one step owe to what it saw d steps before.

Two measures, each a mean over steps t of fresh episodes, as a function of the lag d:
- the norm of the gradient of the outputs at t with respect to the inputs at t - d;
- the change of the action distribution at t (total variation) when the inputs at t - d are replaced by those that
  another episode had at that place, everything after being left as it was.

Inputs are what the agent is shown at a step: observation, previous action and previous reward. Images count as the
features of their convolutions, and observations that the network normalises as they are after that.
"""

import csv
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from memax_rl.encoder import Encoder, Inputs
from memax_rl.envs import spaces
from memax_rl.envs.base import EnvironmentFailure, close, failure
from memax_rl.files import save_figure, write_atomically
from memax_rl.networks import ActionDistribution, ActorCritic
from memax_rl.streams import Act, seed_key, start_stream, step_stream
from memax_rl.tape import Tape, positions, previous

# Steps t, or places t - d, that are looked at in a row: enough for a mean, and few enough for many lags.
_MOST_PLACES = 32


class _ShiftedEncoder(eqx.Module):
    """An encoder whose flat inputs are moved: the observation is a pair of the true inputs and the shift."""

    encoder: Encoder

    def __call__(self, inputs: Inputs) -> Float[Array, " width"]:
        true, shift = inputs.observation
        return self.encoder.embed(self.encoder.flatten(true) + shift)


def _shifted(network: ActorCritic) -> ActorCritic:
    """Return the network with shifted encoders, in both torsos if there are two."""
    network = eqx.tree_at(lambda n: n.torso.encoder, network, _ShiftedEncoder(network.torso.encoder))
    if network.value_torso is None:
        return network
    return eqx.tree_at(lambda n: n.value_torso.encoder, network, _ShiftedEncoder(network.value_torso.encoder))


def collect(env: Any, params: Any, act: Act, memory: Any, key: PRNGKeyArray, *, rows: int, steps: int) -> Tape:
    """Play `rows` fresh environments for so many steps and return the tape [rows, steps]."""
    start_key, key = jax.random.split(key)
    streams = jax.vmap(lambda k: start_stream(env, params, memory, k))(jax.random.split(start_key, rows))

    def body(streams, keys):
        streams, slot, _ = jax.vmap(lambda s, k: step_stream(env, params, act, s, k))(streams, keys)
        return streams, slot

    _, tape = jax.lax.scan(body, streams, jax.random.split(key, (steps, rows, 2)))
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tape)


def _inputs(tape: Tape) -> Inputs:
    """Return what the agent was shown in every slot of a tape [rows, slots] whose rows begin with an episode."""
    first = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:, 0]), (tape.action, tape.reward))
    action, reward = jax.vmap(previous)((tape.action, tape.reward), tape.start, first)
    return Inputs(tape.observation, action, reward, tape.start)


def _scan(network: ActorCritic, inputs: Inputs, shift: Float[Array, "rows slots inputs"]):
    """Return the distributions and values of the slots, with the flat inputs moved."""
    memory = network.initial_state()
    memory = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (inputs.start.shape[0], *leaf.shape)), memory)
    _, distribution, value = _shifted(network).scan(memory, inputs._replace(observation=(inputs, shift)))
    return distribution, value


def _places(slots: int) -> Array:
    """Return at most `_MOST_PLACES` slots, evenly spaced, the first and the last among them."""
    return jnp.asarray(np.unique(np.linspace(0, slots - 1, min(slots, _MOST_PLACES)).round().astype(int)))


def _by_lag(
    x: Float[Array, "places slots"], lag: Array, counts: Array, slots: int
) -> tuple[Float[Array, " slots"], Float[Array, " slots"]]:
    """Return sums and numbers of x by lag, where it counts."""
    index = jnp.where(counts, lag, 0)
    total = jnp.zeros(slots).at[index].add(jnp.where(counts, x, 0))
    return total, jnp.zeros(slots).at[index].add(jnp.where(counts, 1.0, 0.0))


def gradients_by_lag(
    network: ActorCritic, tape: Tape
) -> tuple[Float[Array, " slots"], Float[Array, " slots"], Float[Array, " slots"]]:
    """Return the mean gradient norms of policy and value by lag, and the number of pairs of steps behind each.

    The gradient of the policy is that of all outputs of its head together, without what is common to all actions
    of a discrete space. A lag counts within an episode only.
    """
    inputs = _inputs(tape)
    slots = tape.start.shape[1]
    size = jax.eval_shape(network.torso.encoder.flatten, jax.tree.map(lambda leaf: leaf[0, 0], inputs)).shape[0]
    shown = jnp.arange(size) < size - network.torso.encoder.include[2]
    places = _places(slots)

    def one_row(row):
        row_inputs, valid = row
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
        policy_sum, number = _by_lag(policy, lag, counts, slots)
        return policy_sum, _by_lag(value, lag, counts, slots)[0], number

    policy, value, number = jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(one_row, (inputs, tape.valid)))
    return policy / number, value / number, number


def action_change_by_lag(network: ActorCritic, tape: Tape) -> Float[Array, " slots"]:
    """Return the mean total variation between the action distributions with and without a replaced input, by lag.

    What was shown at one place of a row is replaced by what the next row was shown at that place.
    """
    inputs = _inputs(tape)
    rows, slots = tape.start.shape
    flat = jax.vmap(jax.vmap(network.torso.encoder.flatten))(inputs)
    keep_start = jnp.arange(flat.shape[-1]) < flat.shape[-1] - network.torso.encoder.include[2]
    difference = jnp.where(keep_start[None, None, :], jnp.roll(flat, 1, axis=0) - flat, 0)
    places = _places(slots)
    true, _ = _scan(network, inputs, jnp.zeros_like(flat))
    position = jax.vmap(positions)(tape.start)

    def one_place(place):
        here = (jnp.arange(slots) == place)[None, :, None]
        changed, _ = _scan(network, inputs, jnp.where(here, difference, 0))
        variation = jax.vmap(jax.vmap(total_variation))(true, changed)
        lag = jnp.broadcast_to(jnp.arange(slots) - place, (rows, slots))
        counts = (lag >= 0) & (lag <= position) & tape.valid
        return _by_lag(variation, lag, counts, slots)

    total, number = jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(one_place, places))
    return total / number


def total_variation(p: ActionDistribution, q: ActionDistribution) -> Float[Array, ""]:
    """Return the total variation distance of two distributions over actions, between 0 and 1.

    Of a MultiDiscrete space the mean over its components; of a Box that of two normals of one standard deviation.
    """
    if p.log_std is not None:
        distance = jnp.linalg.norm((p.raw - q.raw) / jnp.exp(p.log_std))
        return jax.scipy.special.erf(distance / (2 * math.sqrt(2)))
    if isinstance(p.space, spaces.MultiDiscrete):
        nvec = [int(n) for n in p.space.nvec]
        bounds = [sum(nvec[:i]) for i in range(len(nvec) + 1)]
    else:
        bounds = [0, p.raw.shape[0]]
    parts = [
        0.5 * jnp.sum(jnp.abs(jax.nn.softmax(p.raw[a:b]) - jax.nn.softmax(q.raw[a:b])))
        for a, b in itertools.pairwise(bounds)
    ]
    return jnp.mean(jnp.stack(parts))


def inspect(folder: str | Path, *, steps: int | None = None, rows: int = 16, seed: int | None = None) -> dict[str, Any]:
    """Return how value and policy of a run depend on the past, averaged over its seeds.

    **Arguments:**

    - `folder`: the run folder.
    - `steps`: slots to look at from an episode's start; by default as long as an episode can be, at most 256.
    - `rows`: fresh episodes for each seed, at least 2.
    - `seed`: of the episodes; by default the run's own.

    **Returns:** a dict ready for JSON; `"lags"` holds, for each lag, `"policy_gradient"`, `"value_gradient"`,
    `"action_change"` and the number of `"pairs"` of steps the gradients are a mean of. `"reach"` says within which lag
    nine tenths of the summed gradient, or change, lie.

    **Raises:** `RunError` if the folder is no run or has no sound checkpoint; `ValueError` if an argument is out of
    range, or the run's agent has no policy and value to look into (dqn); `EnvironmentFailure` if an environment on the
    host fails.
    """
    from memax_rl.training.loop import load_agent
    from memax_rl.training.run import Run

    if rows < 2:
        raise ValueError(f"rows must be at least 2, because the input of one replaces another's, got {rows}")
    if steps is not None and steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    run = Run.open(folder)
    config = run.config()
    if config.agent != "ppo":
        raise ValueError(
            f"memax-rl inspect looks into a policy and a value, which agents of ppo have; this run's agent is "
            f"{config.agent!r}"
        )
    agent, networks = load_agent(run)
    key = jax.random.fold_in(seed_key(config.seed if seed is None else seed), 2**31)
    slots = min(agent.env.horizon(agent.env_params) or 256, 256) if steps is None else steps

    @eqx.filter_jit
    def one_seed(network, key):
        act = agent.act(network)
        memory = network.initial_state()
        tape = collect(agent.env, agent.env_params, act, memory, key, rows=rows, steps=slots)
        return *gradients_by_lag(network, tape), action_change_by_lag(network, tape)

    params, rest = eqx.partition(networks, eqx.is_array)
    measured = []
    try:
        for index in range(config.num_seeds):
            network = eqx.combine(jax.tree.map(lambda leaf, i=index: leaf[i], params), rest)
            measured.append([np.asarray(x, np.float64) for x in one_seed(network, jax.random.fold_in(key, index))])
            if (failed := failure(agent.env)) is not None:
                raise EnvironmentFailure(failed)
    finally:
        close(agent.env)
    policy, value, pairs, change = (np.mean(x, axis=0) for x in zip(*measured, strict=True))
    # A lag counts as far as every seed has seen pairs of steps that far apart.
    lags = int(np.argmax(~np.isfinite(policy + value + change))) or slots
    curves = {"policy_gradient": policy[:lags], "value_gradient": value[:lags], "action_change": change[:lags]}
    return {
        "env": config.env,
        "memory": config.network.memory,
        "seeds": list(range(config.seed, config.seed + config.num_seeds)),
        "rows": rows,
        "steps": slots,
        "reach": {name: _reach(curve) for name, curve in curves.items()},
        "lags": [
            {"lag": d, **{name: float(curve[d]) for name, curve in curves.items()}, "pairs": int(pairs[d])}
            for d in range(lags)
        ],
    }


def _reach(curve: Float[np.ndarray, " lags"]) -> int:
    """Return the smallest lag by which nine tenths of the sum lie."""
    total = np.cumsum(curve)
    return int(np.argmax(total >= 0.9 * total[-1]))


def write_inspection(result: dict[str, Any], folder: Path) -> tuple[Path, Path, Path]:
    """Write inspect.json, inspect.csv and inspect.png into a folder and return their paths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "inspect.json", folder / "inspect.csv", folder / "inspect.png"
    write_atomically(paths[0], json.dumps(result, indent=2) + "\n")
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(result["lags"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["lags"])
    write_atomically(paths[1], buffer.getvalue())
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    lag = [entry["lag"] for entry in result["lags"]]
    for name, colour in (("value_gradient", "#D55E00"), ("policy_gradient", "#0072B2")):
        label = f"{name.split('_')[0]} (nine tenths within {result['reach'][name]} steps)"
        left.plot(lag, [max(entry[name], 1e-12) for entry in result["lags"]], color=colour, label=label)
    left.set_yscale("log")
    left.set_ylabel("norm of the gradient")
    left.legend(frameon=False, fontsize=9)
    left.set_title("What it owes to the input d steps before", loc="left", fontsize=11)
    right.plot(lag, [entry["action_change"] for entry in result["lags"]], color="#0072B2")
    right.set_ylim(bottom=0)
    right.set_ylabel("total variation")
    right.set_title("Change of the action if that input was another", loc="left", fontsize=11)
    for axes in (left, right):
        axes.set_xlabel("lag d in steps")
        axes.set_xlim(0, lag[-1])
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['env']}, {result['memory']}", x=0.01, ha="left")
    save_figure(figure, paths[2])
    return paths


def print_inspection(result: dict[str, Any]) -> None:
    """Print the result of `inspect` at lags 0, 1, 2, 4, 8 and so on."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['env']}, {result['memory']}: what an output owes to the input so many steps before")
    for column in ("lag", "gradient of value", "gradient of policy", "change of action"):
        table.add_column(column, justify="right")
    wanted = [0] + [2**i for i in range(20)]
    for entry in (result["lags"][d] for d in wanted if d < len(result["lags"])):
        numbers = (entry[name] for name in ("value_gradient", "policy_gradient", "action_change"))
        table.add_row(str(entry["lag"]), *(f"{x:.2e}" for x in numbers))
    reach = result["reach"]
    table.caption = (
        f"nine tenths within {reach['value_gradient']} steps (value), {reach['policy_gradient']} (policy), "
        f"{reach['action_change']} (change of action)"
    )
    Console().print(table)
