"""Which memories jax2onnx converts, and how far ONNX Runtime is from the policy over 1,000 steps.

    pip install 'memax_rl[onnx]'
    python benchmarks/export_onnx.py
    python benchmarks/export_onnx.py --memories gru lru

Each is a greedy policy with fresh weights on observations of unit noise, episodes of 100 steps. The figures are the
largest difference of any number of the carry relative to its largest size, and the share of actions that are the same.
"""

import argparse
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import numpy as np

from memax_rl import agents, envs, memory
from memax_rl.evaluation.export import ExportError, export_trained
from memax_rl.evaluation.policy import PolicyStep
from memax_rl.rollout.streams import seed_key
from memax_rl.runs import make_config
from memax_rl.runs.build import Trained
from memax_rl.runs.spaces_file import spaces_of

ENVIRONMENT = "popgym/NoisyPositionOnlyCartPoleEasy"
STEPS, EPISODE = 1_000, 100


def fresh(name: str, width: int) -> Trained:
    """Return an agent with fresh weights in place of a trained one."""
    config = make_config({"env": ENVIRONMENT, "network": {"memory": name, "width": width}})
    env, params = envs.make(ENVIRONMENT)
    make = agents.spec("ppo").acting
    assert make is not None
    acting = make(config.settings, config.network)
    spaces = env.observation_space(params), env.action_space(params)
    networks = eqx.filter_vmap(lambda key: acting.make_network(*spaces, key))(jax.random.split(seed_key(0), 1))
    return Trained(config, spaces_of(env, params), acting, networks, [0])


def compare(trained: Trained, path: Path) -> tuple[float, float]:
    """Return the largest difference of the carry, and the share of equal actions."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    step = PolicyStep(trained, 0, greedy=True, wrapped=False)
    run = jax.jit(lambda state, x, reward, start: step(step.leaves, state, (x,), reward, start, seed_key(0)))
    state, carry = step.initial, [np.asarray(x) for x in jax.tree.leaves(step.initial)]
    worst, equal, rng = 0.0, 0, np.random.default_rng(0)
    for t in range(STEPS):
        x = rng.normal(size=step.spaces.observation.shape).astype(np.float32)
        reward, start = np.array(rng.normal(), np.float32), np.array(t % EPISODE == 0)
        state, action = run(state, x, reward, start)
        *carry, other = session.run(None, dict(zip(names, [*carry, x, reward, start], strict=True)))
        equal += int(np.all(action == other))
        for a, b in zip(jax.tree.leaves(state), carry, strict=True):
            size = max(float(np.max(np.abs(a), initial=0)), 1)
            worst = max(worst, float(np.max(np.abs(np.asarray(a, np.float64) - b), initial=0)) / size)
    return worst, equal / STEPS


def main() -> None:
    """Print a row a memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--memories", nargs="+", default=memory.names(), choices=memory.names(), metavar="NAME")
    parser.add_argument("--width", type=int, default=32)
    arguments = parser.parse_args()
    print("| memory | converts | largest difference | equal actions |\n|---|---|---|---|")
    for name in arguments.memories:
        trained = fresh(name, arguments.width)
        with tempfile.TemporaryDirectory() as folder:
            try:
                made = export_trained(trained, 0, Path(folder) / "policy", greedy=True, onnx=True)
                worst, equal = compare(trained, made / "policy.onnx")
                print(f"| {name} | yes | {worst:.1e} | {equal:.3f} |", flush=True)
            except (ExportError, RuntimeError) as error:
                print(f"| {name} | no: {str(error)[:160]} | | |", flush=True)


if __name__ == "__main__":
    main()
