"""Sequential digits: our memories, a GRU of torch's, and the models of memax, at one width and in the same steps.

    pip install 'memax_rl[probes]' torch memax
    python benchmarks/probe_digits.py
    python benchmarks/probe_digits.py --ours gru lru --torch plain --memax --seeds 1      some of them

8 x 8 pictures of scikit-learn's, pixel by pixel; the class is asked at the last one. Everyone has 1,500 updates of 32
random pictures, Adam with a step of 3e-3 that falls to zero by a cosine, the gradient clipped to norm 1, and is tested
on all pictures that were held back. `torch plain` is `nn.GRU` on the pixels with a linear layer behind it; `torch
block` has the encoder, the norms and the residual connection of our networks around it. `memax` is that package's own
residual model of one layer. Seconds include compilation.
"""

import argparse
import math
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from memax_rl.probes import Learner, make_probe_config
from memax_rl.probes.learner import Batch, first_states, run_through, score
from memax_rl.probes.tasks.digits import load_digits
from memax_rl.rollout.streams import seed_key

PIXELS, CLASSES, BATCH, STEP, CLIP = 64, 10, 32, 3e-3, 1.0
OURS = ("gru", "lstm", "slstm", "lru", "s5", "min_gru", "mamba2", "gated_delta_net", "attention")
MEMAX = ("GRU", "LSTM", "LRU", "S6", "FFM", "DeltaNet", "GDN")


def pictures(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures of a split [count, pixels, 1], from 0 to 1, and the digits on them."""
    images, labels = load_digits("digits", split)  # pyright: ignore[reportArgumentType]
    return np.asarray(images, np.float32)[..., None] / 255, np.asarray(labels)


def ours(name: str, width: int, updates: int, seed: int) -> float:
    """Return the accuracy of one of our memories."""
    fields = {"task": "sequential_digits", "total_updates": updates, "network": {"memory": name, "width": width}}
    learner = Learner(make_probe_config(fields | {"learner": {"batch_size": BATCH, "learning_rate": STEP}}))
    arrays, static = eqx.partition(learner.init(seed_key(seed)), eqx.is_array)

    @jax.jit
    def train(arrays):
        def body(arrays, _):
            return eqx.filter(learner.update(eqx.combine(arrays, static))[0], eqx.is_array), None

        return jax.lax.scan(body, arrays, None, updates)[0]

    network = eqx.combine(train(arrays), static).network
    images, labels = pictures("test")
    last = np.tile(np.arange(PIXELS) == PIXELS - 1, (len(labels), 1))
    batch = Batch(*map(jnp.asarray, (images, np.where(last, labels[:, None], 0), last, last[:, ::-1])))
    _, sums = eqx.filter_jit(run_through)(learner.task, network, first_states(network, len(labels)), batch, None)
    return float(score(learner.task, sums))


def memax(name: str, width: int, updates: int, seed: int) -> float:
    """Return the accuracy of a residual model of the memax package, with one layer."""
    from memax.equinox.train_utils import get_residual_memory_model  # pyright: ignore[reportMissingImports]

    model_key, key = jax.random.split(jax.random.key(seed))
    model = get_residual_memory_model(name, input=1, hidden=width, output=CLASSES, num_layers=1, key=model_key)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(optax.cosine_decay_schedule(STEP, updates)))
    images, labels = map(jnp.asarray, pictures("train"))

    def logits(params, images, key):
        model, start = eqx.combine(params, static), jnp.zeros(PIXELS, bool)

        def one(image, key):
            carry_key, key = jax.random.split(key)
            return model(model.initialize_carry(carry_key), (image, start), key)[1][-1]

        return jax.vmap(one)(images, jax.random.split(key, len(images)))

    def body(carry, key):
        params, state = carry
        draw_key, key = jax.random.split(key)
        index = jax.random.randint(draw_key, (BATCH,), 0, len(labels))

        def loss(params):
            found = logits(params, images[index], key)
            return optax.softmax_cross_entropy_with_integer_labels(found, labels[index]).mean()

        change, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, change), state), None

    @jax.jit
    def train(params):
        return jax.lax.scan(body, (params, optimizer.init(params)), jax.random.split(key, updates))[0][0]

    test_images, test_labels = map(jnp.asarray, pictures("test"))
    found = jax.jit(logits)(train(params), test_images, key)
    return float(jnp.mean(jnp.argmax(found, axis=1) == test_labels))


def torchs(kind: str, width: int, updates: int, seed: int) -> float:
    """Return the accuracy of torch's GRU, `plain` or in a `block` like ours."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.before, self.after = nn.Linear(2, width), nn.LayerNorm(width), nn.LayerNorm(width)
            self.gru, self.head = nn.GRU(width, width, batch_first=True), nn.Linear(width, CLASSES)

        def forward(self, x):
            start = torch.zeros_like(x)
            start[:, 0] = 1
            x = nn.functional.gelu(self.embed(torch.cat([x, start], dim=-1)))
            x = x + self.gru(self.before(x))[0]
            return self.head(self.after(x[:, -1]))

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(1, width, batch_first=True), nn.Linear(width, CLASSES)

        def forward(self, x):
            return self.head(self.gru(x)[0][:, -1])

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng, model = np.random.default_rng(seed), Block() if kind == "block" else Plain()
    optimizer = torch.optim.Adam(model.parameters(), STEP)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: (1 + math.cos(math.pi * n / updates)) / 2)
    images, labels = map(torch.tensor, pictures("train"))
    labels = labels.long()
    for _ in range(updates):
        index = torch.tensor(rng.integers(0, len(labels), BATCH))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
    test_images, test_labels = map(torch.tensor, pictures("test"))
    with torch.no_grad():
        return float((model(test_images).argmax(dim=1) == test_labels).float().mean())


def report(who: str, measure: Callable[[str, int, int, int], float], name: str, chosen: argparse.Namespace) -> None:
    """Print the row of a model."""
    begin = time.perf_counter()
    found = [measure(name, chosen.width, chosen.updates, seed) for seed in range(chosen.seeds)]
    seconds = (time.perf_counter() - begin) / chosen.seeds
    each = ", ".join(f"{one:.3f}" for one in found)
    print(f"| {who} {name} | {np.mean(found):.3f} | {each} | {seconds:.0f} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ours", nargs="*", default=OURS, metavar="NAME")
    parser.add_argument("--torch", nargs="*", default=("plain", "block"), choices=("plain", "block"))
    parser.add_argument("--memax", nargs="*", default=MEMAX, metavar="NAME")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--updates", type=int, default=1_500)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    print("| model | accuracy | each seed | seconds a seed |\n|---|---|---|---|")
    for who, measure in (("ours", ours), ("torch", torchs), ("memax", memax)):
        for name in getattr(chosen, who):
            report(who, measure, name, chosen)


if __name__ == "__main__":
    main()
