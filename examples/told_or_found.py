"""What a memory can hold when it is told, by behavior cloning of a perfect player, beside what PPO finds by itself.

    python examples/told_or_found.py --total-steps 500k

The two counts of steps are not the same thing: PPO plays them, behavior cloning learns from recorded ones many times.
"""

import argparse
from pathlib import Path

import memax_rl

ENV = "popgym/RepeatPreviousMedium"


def main(total_steps: str, out: Path, memories: list[str], episodes: int) -> dict[str, tuple[float, float]]:
    """Train each memory in both ways, and return its mean returns (told, found)."""
    data = out / "data.npz"
    memax_rl.collect(env=ENV, episodes=episodes, out=data)
    found = {}
    for name in memories:
        # Not shown the last action: the teacher's is always right, and says more than the network's own would.
        network = {"memory": name, "width": 64, "previous_action": False, "previous_reward": False}
        settings = {"env": ENV, "network": network, "total_steps": total_steps, "eval_episodes": 64}
        told = memax_rl.train(agent="bc", bc={"data": str(data)}, out=out / f"{name}_told", **settings)
        plays = {"gamma": 0.0, "gae_lambda": 0.0, "reward_scale": 20.0}
        itself = memax_rl.train(agent="ppo", ppo=plays, out=out / f"{name}_found", **settings)
        returns = [memax_rl.evaluate(run.folder, episodes=64)["return"]["mean"]["value"] for run in (told, itself)]
        found[name] = (returns[0], returns[1])
        print(f"{name}: told {returns[0]:.3f}, found {returns[1]:.3f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-steps", default="500k")
    parser.add_argument("--out", type=Path, default=Path("runs/told_or_found"))
    parser.add_argument("--memories", nargs="+", default=["lru", "gru", "attention"])
    parser.add_argument("--episodes", type=int, default=300)
    options = parser.parse_args()
    main(options.total_steps, options.out, options.memories, options.episodes)
