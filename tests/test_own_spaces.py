"""One's own environment: every space that docs promise, and plain words for what is missing."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import struct
from gymnax.environments import environment
from gymnax.environments import spaces as gymnax_spaces

import memax_rl
from memax_rl import envs
from memax_rl.envs import spaces
from memax_rl.envs.base import Environment
from memax_rl.envs.registry import _OWN

SMALL: dict[str, Any] = {
    "total_steps": 64,
    "network": {"memory": "min_gru", "width": 8},
    "ppo": {"num_envs": 2, "rollout_length": 16, "update_epochs": 1, "num_minibatches": 1},
    "eval_episodes": 0,
}


@struct.dataclass
class State(environment.EnvState):
    time: jax.Array


class Shows(environment.Environment):
    """A gymnax-style environment that shows `value`, in episodes of four steps."""

    def __init__(self, space: Any, value: Any, reward: float = 1.0):
        super().__init__()
        self.space, self.value, self.reward = space, value, reward

    @property
    def default_params(self):
        return environment.EnvParams(max_steps_in_episode=4)

    def action_space(self, params):
        return gymnax_spaces.Discrete(2)

    def observation_space(self, params):
        return self.space

    def reset_env(self, key, params):
        return self.value, State(time=jnp.zeros((), jnp.int32))

    def step_env(self, key, state, action, params):
        return self.value, State(time=state.time + 1), jnp.asarray(self.reward), jnp.zeros((), bool), {}


class Foreign:
    """A space of another package: the attributes, and another class."""

    def __init__(self, **attributes: Any):
        vars(self).update(attributes)


BOX = gymnax_spaces.Box(0.0, 1.0, (2,))
PROMISED = {
    "box": (BOX, jnp.ones(2)),
    "discrete": (gymnax_spaces.Discrete(3), jnp.array(2)),
    "multi-discrete": (spaces.MultiDiscrete([2, 3]), jnp.array([1, 2])),
    "dict": (gymnax_spaces.Dict({"b": BOX, "a": gymnax_spaces.Discrete(3)}), {"b": jnp.ones(2), "a": jnp.array(1)}),
    "tuple": (gymnax_spaces.Tuple([BOX, gymnax_spaces.Discrete(3)]), (jnp.zeros(2), jnp.array(1))),
    "foreign": (Foreign(spaces={"x": Foreign(n=4), "y": Foreign(low=0, high=9, shape=(3,), dtype=jnp.float32)}), {
        "x": jnp.array(3), "y": jnp.ones(3)}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forget():
    yield
    for name in [name for name in _OWN if name.startswith("own/")]:
        _OWN.pop(name)


def _register(space: Any, value: Any, **options: Any) -> str:
    envs.register("own/Shows", lambda: Shows(space, value, **options))
    return "own/Shows"


@pytest.mark.parametrize("kind", PROMISED)
def test_an_environment_with_any_promised_space_is_made(kind):
    env, params = envs.make(_register(*PROMISED[kind]))
    observation, _ = env.reset(jax.random.key(0), params)
    kinds = [leaf.dtype for leaf in spaces.leaves(env.observation_space(params))]
    assert [x.dtype for x in jax.tree.leaves(observation)] == kinds


@pytest.mark.parametrize("kind", ["dict", "tuple", "foreign"])
def test_an_environment_with_any_promised_space_trains(kind, tmp_path):
    run = memax_rl.train(env=_register(*PROMISED[kind]), out=tmp_path / "run", **SMALL)
    assert run.metrics()[-1]["episode/length"] == 4


@pytest.mark.parametrize(
    ("space", "value", "options", "says"),
    [
        (BOX, jnp.ones(3), {}, r"own/Shows: the observation of reset has the shape \(3,\)"),
        (BOX, jnp.array([0.5, 7.0]), {}, r"own/Shows: the observation of reset is outside of its space"),
        (BOX, jnp.array([0.5, jnp.nan]), {}, r"own/Shows: .* not finite"),
        (gymnax_spaces.Discrete(3), jnp.array(3), {}, r"outside of its space, \[0, 2\]: 3"),
        (
            gymnax_spaces.Dict({"a": BOX}),
            {"a": jnp.ones(2), "b": jnp.ones(2)},
            {},
            "an observation has 'b' beside; its space is",
        ),
        (gymnax_spaces.Dict({"a": BOX, "b": BOX}), {"a": jnp.ones(2)}, {}, "^own/Shows: an observation lacks 'b'; its"),
        (gymnax_spaces.Tuple([BOX, BOX]), jnp.ones(2), {}, r"must be as its space, Tuple\(.*\); got f(loat)?32\[2\]"),
        (
            gymnax_spaces.Discrete(3),
            jnp.array(0.7),
            {},
            r"has the dtype float32, but its space Discrete\(3\) holds int32",
        ),
        (BOX, jnp.ones(2) * 1j, {}, r"has the dtype complex64, but its space Box\(2\) holds float32"),
        (
            gymnax_spaces.Dict({"a": BOX, "b": BOX}),
            {"a": jnp.ones(2), "c": jnp.ones(2)},
            {},
            "lacks 'b' and has 'c' beside",
        ),
        (
            gymnax_spaces.Tuple([gymnax_spaces.Dict({"a": BOX})]),
            ({"c": jnp.ones(2)},),
            {},
            r"must be as its space, Tuple\(Dict\(a: Box\(2\)\)\); got \({'c'",
        ),
        (gymnax_spaces.Dict({"a": BOX}), {"a": jnp.ones((2, 1))}, {}, r"at \['a'\] has the shape \(2, 1\)"),
        (BOX, jnp.ones(2), {"reward": float("inf")}, "reward of step 1 must be one finite number"),
        (Foreign(what=1), jnp.ones(2), {}, "cannot read the space"),
    ],
    ids=[
        "shape",
        "range",
        "nan",
        "discrete",
        "structure",
        "key",
        "tuple",
        "float",
        "complex",
        "other key",
        "key of a part",
        "shape of a part",
        "reward",
        "space",
    ],
)
def test_what_an_environment_shows_is_checked_against_its_space_when_it_is_made(space, value, options, says):
    with pytest.raises(ValueError, match=says):
        envs.make(_register(space, value, **options))


def test_gymnax_params_of_one_step_are_refused():
    class Bare(Shows):
        default_params = environment.Environment.default_params

    envs.register("own/Bare", lambda: Bare(BOX, jnp.ones(2)))
    with pytest.raises(ValueError, match="own/Bare: Bare has no default_params of its own"):
        envs.make("own/Bare")


def test_params_of_one_step_are_refused_in_a_subclass_of_ours_too():
    class Bare(Environment):
        reset_env, step_env = Turns.reset_env, Turns.step_env
        action_space, observation_space = Turns.action_space, Turns.observation_space

    envs.register("own/Bare", Bare)
    with pytest.raises(ValueError, match="own/Bare: Bare has no default_params of its own"):
        envs.make("own/Bare")


@pytest.mark.parametrize("base", [environment.Environment, Environment])
def test_what_a_subclass_leaves_to_the_base_class_is_listed_at_once(base):
    class Half(base):
        def action_space(self, params):
            return spaces.Discrete(2)

    envs.register("own/Half", Half)
    with pytest.raises(ValueError, match="own/Half: Half lacks reset_env, step_env, observation_space;"):
        envs.make("own/Half")


class Turns(Environment):
    """Goes wrong in one way, `how`, at its step."""

    def __init__(self, how: str):
        self.how = how

    default_params = None  # pyright: ignore[reportAssignmentType]

    def action_space(self, params):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return BOX

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    def reset_env(self, key, params):
        return jnp.zeros(2, jnp.int32 if self.how == "dtype" else jnp.float32), {"time": jnp.zeros((), jnp.int32)}

    def step_env(self, key, state, action, params):
        if self.how == "raises":
            raise KeyError("door")
        observation, _ = self.reset_env(key, params)
        time = state["time"] + (jnp.ones(()) if self.how == "state" else 1)
        after = {"time": time} | ({"more": time} if self.how == "structure" else {})
        return observation, after, jnp.ones(()), jnp.zeros((), bool), {}

    def step(self, key, state, action, params=None):
        if self.how == "five":
            return jnp.zeros(2), state, jnp.ones(()), jnp.zeros((), bool), {}
        if self.how == "raises":
            return super().step(key, state, action, params)
        observation, state, reward, done, _ = self.step_env(key, state, action, params)
        return observation, state, reward, done, done, {"final_observation": observation}


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raises", r"own/Turns: step_env raised KeyError: 'door' \(test_own_spaces.py, line \d+\)$"),
        ("dtype", "own/Turns: the observation of reset has the dtype int32, but its space float32"),
        ("state", r"own/Turns: the state of step 1 at \['time'\] is f(loat)?32\[\], but that of reset is i(nt)?32\[\]"),
        ("structure", "own/Turns: the state of step 1 has another structure than that of reset"),
        ("five", r"own/Turns: step must return \(observation, .*\), as gymnax 1.0 does, got 5 values"),
    ],
)
def test_an_environment_that_cannot_run_in_a_loop_is_told_so_in_words(how, says):
    envs.register("own/Turns", lambda: Turns(how))
    with pytest.raises(ValueError, match=says) as error:
        envs.make("own/Turns")
    assert "\n" not in str(error.value)


def test_numbers_are_cast_to_the_dtype_of_a_box():
    env, params = envs.make(_register(gymnax_spaces.Box(0, 1, (2,), jnp.int32), jnp.ones(2)))
    assert env.reset(jax.random.key(0), params)[0].dtype == jnp.int32
    catch, params = envs.make("gymnax/Catch-bsuite")
    assert catch.reset(jax.random.key(0), params)[0].dtype == jnp.int32


def test_an_action_space_of_another_package_is_only_recognized():
    class Acts(Shows):
        def action_space(self, params):
            return Foreign(n=2)

    envs.register("own/Acts", lambda: Acts(BOX, jnp.ones(2)))
    env, params = envs.make("own/Acts")
    assert env.action_space(params).n == 2


@pytest.mark.parametrize("base", [Shows, Turns])
@pytest.mark.parametrize(
    ("method", "values", "says"),
    [
        ("reset_env", 1, r"own/Few: reset_env must return \(observation, state\), got an array"),
        ("reset_env", 3, r"own/Few: reset_env must return \(observation, state\), got 3 values"),
        ("step_env", 4, r"step_env must return \(observation, state, reward, terminated, info\), got 4 values"),
    ],
)
def test_another_number_of_values_than_a_function_returns_is_told(base, method, values, says):
    def few(self, *arguments):
        return jnp.ones(2) if values == 1 else tuple(jnp.ones(2) for _ in range(values))

    few_values = type("Few", (base,), {method: few})
    envs.register("own/Few", lambda: few_values(*([BOX, jnp.ones(2)] if base is Shows else ["well"])))
    with pytest.raises(ValueError, match=says):
        envs.make("own/Few")


def test_everything_that_a_class_lacks_is_listed_at_once():
    class Other:
        def reset(self):
            raise AssertionError("never called")

    envs.register("own/Other", Other)
    with pytest.raises(
        ValueError, match="Other lacks reset_env, step_env, observation_space, action_space, default_params"
    ):
        envs.make("own/Other")


def test_a_subclass_without_horizon_trains(tmp_path):
    class Endless(Environment):
        @property
        def default_params(self):
            return None

        def action_space(self, params):
            return spaces.Discrete(2)

        def observation_space(self, params):
            return spaces.Discrete(2)

        def is_truncated(self, state, params):
            return jnp.zeros((), bool)

        def reset_env(self, key, params):
            return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

        def step_env(self, key, state, action, params):
            return jnp.asarray(action, jnp.int32), state + 1, jnp.ones(()), state == 3, {}

    envs.register("own/Endless", Endless)
    run = memax_rl.train(env="own/Endless", out=tmp_path / "run", **SMALL)
    assert run.metrics()[-1]["episode/length"] == 4


def test_the_package_that_registers_an_id_is_named():
    with pytest.raises(ValueError, match="write gym/ale_py:ALE/Pong-v5"):
        envs.check("gym/ALE/Pong-v5")
