"""What the registry says of each model is what its class says, and people's own models join it."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from memax_rl import memory
from memax_rl.memory import description, registry


@pytest.mark.parametrize("name", memory.names())
def test_a_class_documents_exactly_its_options_and_where_it_comes_from(name):
    spec = memory.spec(name)
    assert isinstance(spec.build, type)
    meanings = description.documented_options(spec.build)
    assert list(meanings) == list(spec.options)
    for option, meaning in meanings.items():
        default = inspect.signature(spec.build).parameters[option].default
        assert (default is None) == (". None: " in meaning), option
    assert spec.paper.startswith("https://") or spec.paper == "no paper"
    assert spec.family in ("none", "diagonal", "matrix", "delta", "attention", "nonlinear")
    assert spec.verified


def test_the_text_of_options_is_that_of_the_class():
    assert memory.spec("lru").options == {
        "state_size": "complex state variables (out_size)",
        "r_min": "smallest modulus of the decay at the start (0.9)",
        "r_max": "largest modulus of the decay at the start (0.999)",
        "max_phase": "largest phase of the decay at the start, radians (3.14159)",
    }
    assert memory.spec("gru").options == {}


class _Sum(memory.Memory):
    """The sum of the episode so far.

    Args:
        scale: factor of each
            input.
    """

    in_size: int
    out_size: int
    scale: float

    def __init__(self, *, in_size, out_size, key, scale=2.0):
        del key
        self.in_size, self.out_size, self.scale = in_size, out_size, scale

    def initial_state(self):
        return jnp.zeros(self.out_size)

    def step(self, state, x, start):
        state = jnp.where(start, 0, state) + self.scale * jnp.sum(x)
        return state, state

    def scan(self, state, xs, starts):
        return jax.lax.scan(lambda state, now: self.step(state, *now), state, (xs, starts))


def test_a_class_is_registered_by_itself(monkeypatch, key):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    memory.register("own_sum", _Sum)
    spec = memory.spec("own_sum")
    assert (spec.family, spec.paper, spec.verified) == ("own", "no paper", "")
    assert spec.options == {"scale": "factor of each input (2)"}
    model = memory.make("own_sum", in_size=3, out_size=2, key=key, scale=0.5)
    assert model.step(model.initial_state(), jnp.ones(3), jnp.array(True))[1].tolist() == [1.5, 1.5]
    with pytest.raises(ValueError, match="no option 'scal'; did you mean 'scale'"):
        memory.make("own_sum", in_size=3, out_size=2, key=key, scal=1)
