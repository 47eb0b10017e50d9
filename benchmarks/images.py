"""Is the same image learned from alike, whatever its dtype and bounds?

    python benchmarks/images.py

An image of 10 x 10 shows a plus or a cross somewhere; the agent says which. The same images come as bool, as uint8 of
0 and 1, as uint8 of 0 and 255 and as float32. Prints the return of fresh episodes of each seed:
0 is chance, 1 the best.
"""

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp

import memax_rl
from memax_rl import envs
from memax_rl.envs import spaces
from memax_rl.envs.base import Environment

SIZE = 10
KINDS = {
    "bool": (jnp.bool_, 1),
    "uint8 of 0 and 1": (jnp.uint8, 1),
    "uint8 of 0 and 255": (jnp.uint8, 255),
    "float32": (jnp.float32, 1),
}
PLUS = jnp.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
CROSS = jnp.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])


class PlusOrCross(Environment):
    """One step; the reward is 1 for the right answer and -1 for the wrong one."""

    def __init__(self, dtype: Any, largest: int):
        self.dtype, self.largest = dtype, largest

    @property
    def default_params(self) -> None:
        """There are none."""
        return None

    def action_space(self, params: Any) -> Any:
        """0 for a plus, 1 for a cross."""
        return spaces.Discrete(2)

    def observation_space(self, params: Any) -> Any:
        """The image."""
        return spaces.Box(0, self.largest, (SIZE, SIZE, 1), self.dtype)

    def max_episode_steps(self, params: Any) -> int:
        """One."""
        return 1

    def fixed_length(self, params: Any) -> int:
        """One."""
        return 1

    def truncates(self, params: Any) -> bool:
        """No time limit."""
        return False

    def is_truncated(self, state: Any, params: Any) -> Any:
        """Never."""
        return jnp.zeros((), bool)

    def reset_env(self, key: Any, params: Any) -> tuple[Any, Any]:
        """Draw the sign and its place."""
        sign_key, place_key = jax.random.split(key)
        sign = jax.random.randint(sign_key, (), 0, 2)
        row, column = jax.random.randint(place_key, (2,), 0, SIZE - 2)
        image = jax.lax.dynamic_update_slice(jnp.zeros((SIZE, SIZE), int), jnp.where(sign, CROSS, PLUS), (row, column))
        return (self.largest * image[..., None]).astype(self.dtype), sign

    def step_env(self, key: Any, state: Any, action: Any, params: Any) -> Any:
        """Compare the answer with the sign."""
        observation, _ = self.reset_env(key, params)
        return observation, state, jnp.where(action == state, 1.0, -1.0), jnp.ones((), bool), {}


def main() -> None:
    """Train on each kind of image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps of each seed")
    parser.add_argument("--seed", type=int, default=100, help="the first seed")
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--out", default="runs/images", help="where the run folders go")
    arguments = parser.parse_args()
    for kind, (dtype, largest) in KINDS.items():
        name = kind.replace(" ", "-")
        envs.register(f"own/{name}", lambda dtype=dtype, largest=largest: PlusOrCross(dtype, largest))
        run = memax_rl.train(
            out=f"{arguments.out}/{name}",
            env=f"own/{name}",
            network={"memory": "mlp", "width": 32},
            seed=arguments.seed,
            num_seeds=arguments.num_seeds,
            ppo={"num_envs": 64, "rollout_length": 16},
            total_steps=arguments.steps,
            eval_episodes=1_000,
        )
        returns = json.loads(run.summary_path.read_text())["evaluation"]["mean_return_per_seed"]
        print(f"{kind:20s}" + "  ".join(f"{value:.3f}" for value in returns), flush=True)


if __name__ == "__main__":
    main()
