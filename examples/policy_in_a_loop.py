"""A trained policy inside a program that knows Gymnasium only: a cart-pole that shows positions, no velocities.

    python examples/policy_in_a_loop.py --total-steps 200k

Memory, previous action and the reset at an episode's start are handled inside `policy.step`.
"""

import argparse
from pathlib import Path

import gymnasium

import memax_rl


def main(total_steps: str, out: Path, episodes: int) -> list[float]:
    """Train on gymnax's cart-pole without velocities, act in Gymnasium's, and return the length of each episode."""
    if not out.exists():
        memax_rl.train(
            env="gymnax/CartPole-v1",
            env_wrappers="position_only",
            network={"memory": "gru", "width": 32},
            total_steps=total_steps,
            out=out,
        )
    policy = memax_rl.load(out)
    env = gymnasium.make("CartPole-v1")
    lengths = []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        policy.reset()
        reward, length, ended = 0.0, 0, False
        while not ended:
            # All four numbers are given; the wrapper of the run takes the velocities away.
            observation, reward, terminated, truncated, _ = env.step(policy.step(observation, float(reward)))
            length, ended = length + 1, terminated or truncated
        lengths.append(float(length))
        print(f"episode {seed}: {length} steps")
    env.close()
    return lengths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-steps", default="200k")
    parser.add_argument("--out", type=Path, default=Path("runs/policy_in_a_loop"))
    parser.add_argument("--episodes", type=int, default=5)
    options = parser.parse_args()
    main(options.total_steps, options.out, options.episodes)
