"""State size and training cost against counts by hand."""

import equinox as eqx
import jax
import pytest

from memax_rl import memory
from memax_rl.cli import main
from memax_rl.ops import kernels

WIDTH = 128
MATRIX = 2 * WIDTH**2


def _model(name, **options):
    def make(key):
        return memory.make(name, in_size=WIDTH, out_size=WIDTH, key=key, **options)

    return eqx.filter_eval_shape(make, jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("mlp", {}, 0),
        ("gru", {}, WIDTH),
        ("lstm", {}, 2 * WIDTH),
        ("lru", {}, 2 * WIDTH),
        ("linear_transformer", {"heads": 1, "head_size": 64}, 64 * 65),
        ("delta_net", {"heads": 2, "head_size": 64}, 2 * 64 * 64 + 3 * 3 * WIDTH),
        # Keys and values of window - 1 steps, and how many of either count.
        ("attention", {"window": 20}, 2 * 19 * WIDTH + 2),
    ],
)
def test_state_size(name, options, size):
    assert memory.state_size(_model(name, **options)) == size


@pytest.mark.parametrize(
    ("name", "options", "products"),
    [
        ("mlp", {}, 2),
        ("min_gru", {}, 2),
        ("lru", {}, 4),
        ("frame_stack", {"window": 4, "frame_size": WIDTH}, 5),
        # Of which one is the recurrent product, in a loop.
        ("elman", {}, 2),
    ],
)
def test_training_flops_are_three_times_the_matrix_products(name, options, products):
    flops = memory.training_flops(_model(name, **options))
    assert 3 * products * MATRIX <= flops < 3 * products * MATRIX * 1.2


def test_training_flops_of_a_loop_are_those_of_all_its_turns():
    few, many = (memory.training_flops(_model("gru"), steps=steps) for steps in (64, 512))
    assert many == pytest.approx(few, rel=0.02)


def test_listing_shows_paper_class_options_state_cost_and_what_it_was_verified_against(capsys, monkeypatch):
    monkeypatch.setattr(memory, "names", lambda: ("gru", "lru"))
    assert main(["list", "memories", "-v"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (lru,) = [line.split() for line in lines if line.startswith("lru ")]
    assert lru[1:3] == ["diagonal", "256"]
    assert float(lru[3]) == pytest.approx(memory.training_flops(_model("lru")) / 1e3, rel=0.01)
    assert lru[4].startswith("https://arxiv.org/")
    assert any(line.strip().startswith("r_min: ") for line in lines)
    assert f"verified: {memory.spec('lru').verified}" in [line.strip() for line in lines]
    assert "kernels: gates_backward, gates_forward" in [line.strip() for line in lines]
    assert "Kernels, for NVIDIA GPUs: not used here (cpu, MEMAX_RL_KERNELS=auto)." in lines


def test_kernels_do_not_change_the_cost():
    model = _model("gru")
    flops = memory.training_flops(model)
    with kernels.use("1"):
        assert memory.training_flops(model) == flops
    assert memory.gpu_kernels(model) == ("gates_backward", "gates_forward")
    assert memory.gpu_kernels(_model("mlp")) == ()
