"""Options of environments and families of tasks of one's own."""

import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from memax_rl import envs
from memax_rl.cli import main
from memax_rl.envs import spaces
from memax_rl.envs.base import Environment
from memax_rl.envs.baselines.strategies import strategies
from memax_rl.envs.meta.trials import TaskEnvironment
from memax_rl.envs.registry import _OWN
from memax_rl.evaluation.in_context import _trials
from memax_rl.runs import make_config, override
from memax_rl.runs.config import dump_config


class Door(BaseModel):
    color: str = "red"
    wide: bool = False


class RoomOptions(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    size: int = Field(default=7, ge=1)
    """Cells on a side."""
    goal: tuple[int, int] = (0, 0)
    light: float = 1.0
    door: Door = Door()

    @field_validator("size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("a room needs a middle")
        return value


class Room(Environment):
    """Shows the cell; ends after two steps."""

    def __init__(self, options: RoomOptions):
        self.options = options

    @property
    def default_params(self):
        return None

    def action_space(self, params):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Discrete(self.options.size)

    def max_episode_steps(self, params):
        return 2

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)

    def reset_env(self, key, params):
        return jnp.array(0), jnp.array(0)

    def step_env(self, key, state, action, params):
        return jnp.array(0), state + 1, jnp.ones(()), state == 1, {}


class Levers(TaskEnvironment):
    """One of some levers pays."""

    episode_length = 2
    observation_space = spaces.Discrete(1)

    def __init__(self, options: Any = None):
        self.levers = options.levers if options else 3
        self.action_space = spaces.Discrete(self.levers)

    def all_tasks(self):
        return {"lever": np.arange(self.levers)}

    def reset_episode(self, key, task):
        return jnp.array(0), jnp.array(0)

    def step_episode(self, key, task, state, action):
        return state, state, action == task["lever"], False


class LeverOptions(BaseModel):
    levers: int = 10


@pytest.fixture(autouse=True)
def _registered():
    envs.register("own/Room", Room, options=RoomOptions)
    envs.register_tasks("own/Levers", Levers, options=LeverOptions, episodes=3)
    yield
    for name in [name for name in _OWN if name.startswith("own/")]:
        _OWN.pop(name)


def test_options_are_completed_kept_and_given_to_the_maker():
    config = make_config({"env": "own/Room", "env_options": {"size": 5, "door": {"wide": True}}})
    complete = {"size": 5, "goal": [0, 0], "light": 1.0, "door": {"color": "red", "wide": True}}
    assert config.env_options == complete
    changed = override(
        config, ["--env-options.size", "9", "--env-options.door.color", "blue", "--env-options.goal=[1, 2]"]
    )
    env, params = envs.make(changed.env, **changed.env_options)
    assert env.options == RoomOptions(size=9, goal=(1, 2), door=Door(color="blue", wide=True))  # pyright: ignore
    assert env.observation_space(params).n == 9
    assert "color: blue" in dump_config(changed)
    again, _ = envs.make(changed.env, **changed.env_options)
    assert again is env, "another instance would be compiled again"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sise": 3}, r"own/Room has no option 'sise'; its options are size, goal, light, door; did you mean 'size'\?"),
        ({"size": "5"}, "env_options.size: input should be a valid integer, got '5'"),
        ({"size": 5.5}, "env_options.size: input should be a valid integer, got 5.5"),
        ({"size": 4}, "env_options.size: a room needs a middle, got 4"),
        ({"size": -1}, "env_options.size: input should be greater than or equal to 1, got -1"),
        ({"goal": [1]}, "env_options.goal.1: field required"),
        ({"door": {"colour": "red"}}, "env_options.door.colour: extra inputs are not permitted, got 'red'"),
        ({"light": np.float32(1)}, "env_options must be plain values"),
    ],
    ids=str,
)
def test_wrong_options_are_one_line(options, says):
    with pytest.raises(ValueError, match=says) as error:
        envs.make("own/Room", **options)
    assert "\n" not in str(error.value)


def test_a_wrong_option_on_the_command_line_is_status_2_and_makes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--env", "own/Room", "--env-options.sise", "3"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "did you mean 'size'?" in line
    assert list(tmp_path.iterdir()) == []


def test_the_list_shows_options_with_their_meaning(capsys, monkeypatch):
    monkeypatch.setattr("memax_rl.envs.registry.builtin_names", lambda: ())
    assert main(["list", "envs", "-v"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "size: Cells on a side (default: 7)" in lines
    assert 'door (default: {"color": "red", "wide": false})' in lines
    assert "levers (default: 10)" in lines
    assert "episodes: Episodes a trial; null if steps is given (default: 3)" in lines


class Size(enum.Enum):
    SMALL = "small"


def _model(**fields: Any) -> type[BaseModel]:
    return type("Options", (BaseModel,), {"__annotations__": {k: t for k, (t, _) in fields.items()}} | {
        k: v for k, (_, v) in fields.items() if v is not ...})  # fmt: skip


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (_model(size=(int, ...), door=(str, ...)), "size, door of Options must have a default"),
        (_model(size=(float, float("inf"))), "the default inf of size cannot be kept in a file"),
        (_model(size=(int, "seven")), "the default 'seven' of size cannot be kept in a file"),
        (dict, "expected a class derived from pydantic.BaseModel"),
        (RoomOptions(), "expected a class derived from pydantic.BaseModel"),
    ],
    ids=str,
)
def test_a_model_that_no_file_can_hold_is_refused_when_registered(model, says):
    with pytest.raises(ValueError, match=f"options of own/Wrong: .*{says}") as error:
        envs.register("own/Wrong", Room, options=model)
    assert "\n" not in str(error.value)
    assert "own/Wrong" not in envs.names()


def test_an_enumeration_is_an_option():
    envs.register("own/Enum", lambda options: Room(RoomOptions()), options=_model(size=(Size, Size.SMALL)))
    assert envs.complete_options("own/Enum", {}) == {"size": "small"}
    envs.make("own/Enum", size="small")


def test_an_option_called_like_one_of_trials_is_refused():
    with pytest.raises(ValueError, match="split of Options is an option of all trials"):
        envs.register_tasks("own/Wrong", Levers, options=_model(split=(str, "train")))


# Families of tasks


def test_a_family_has_its_own_options_and_those_of_trials():
    env, params = envs.make("own/Levers", levers=20, episodes=5)
    assert env.action_space(params).n == 20
    assert (int(params.episodes), env.fixed_length(params)) == (5, 10)
    assert int(envs.make("own/Levers")[1].episodes) == 3
    steps, params = envs.make("own/Levers", steps=4)
    assert steps.fixed_length(params) == 4
    assert envs.make("own/Levers", steps=4, episodes=None)[0].fixed_length(params) == 4
    with pytest.raises(ValueError, match=r"so many episodes or so many steps, got episodes=5 and steps=4; set one of"):
        envs.make("own/Levers", steps=4, episodes=5)
    with pytest.raises(ValueError, match=r"give either episodes or steps of a trial, got episodes=None and steps=None"):
        envs.make("own/Levers", episodes=None)
    with pytest.raises(ValueError, match=r"env_options\.split: input should be 'train' or 'test', got 'valid'"):
        envs.make("own/Levers", split="valid")


def _drawn(env: Any) -> set[int]:
    return set(np.asarray(jax.vmap(env.draw_task)(jax.random.split(jax.random.key(0), 500))["lever"]).tolist())


def test_tasks_that_can_be_counted_are_split_without_overlap():
    train, test = (_drawn(envs.make("own/Levers", split=split)[0]) for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)
    assert train | test == set(range(10))
    other = _drawn(envs.make("own/Levers", split="test", split_seed=1)[0])
    assert other != test
    few = _drawn(envs.make("own/Levers", num_tasks=3)[0])
    assert len(few) == 3
    assert few < train


def test_the_trials_that_measure_are_of_the_family_as_it_was_trained():
    config = make_config({"env": "own/Levers", "env_options": {"levers": 20, "num_tasks": 2}})
    test = _trials(config, "test", num_tasks=None)
    assert (test.tasks.action_space.n, test.split, test.num_tasks, len(_drawn(test))) == (20, "test", None, 4)
    envs.register("own/AsEnvironment", lambda options: envs.make("own/Levers", levers=options.levers)[0], LeverOptions)
    config = make_config({"env": "own/AsEnvironment", "env_options": {"levers": 20}})
    assert _trials(config, "test", num_tasks=None).tasks.action_space.n == 20


def test_strategies_of_a_family_stand_beside_random_actions():
    class Known(Levers):
        def strategies(self, episodes):
            return {f"one of {episodes}": strategies(envs.make("own/Levers")[0], 1)["random"]}

    envs.register_tasks("own/Known", Known)
    assert list(strategies(envs.make("own/Known")[0], 7)) == ["random", "one of 7"]


class NoTasks(Levers):
    def all_tasks(self):
        return None


class OneTask(Levers):
    def all_tasks(self):
        return jnp.array([1])


class Raises(Levers):
    def __init__(self):
        raise KeyError("lever")


class Bare(TaskEnvironment):
    def reset_episode(self, key, task):
        raise AssertionError("never called")

    def step_episode(self, key, task, state, action):
        raise AssertionError("never called")


class Abstract(TaskEnvironment):
    pass


class FewOfReset(Levers):
    def reset_episode(self, key, task):
        return jnp.array(0)


class FewOfStep(Levers):
    def step_episode(self, key, task, state, action):
        return state, state, 1.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (NoTasks, r"NoTasks must have draw_task\(key\), or all_tasks\(\) where they can be counted"),
        (OneTask, r"all_tasks of OneTask must stack two or more tasks .*, got shapes \[\(1,\)\]"),
        (Raises, r"making it raised KeyError: 'lever' \(test_own_options.py, line \d+\)"),
        (Bare, "Bare lacks episode_length, observation_space, action_space"),
        (Abstract, "making it raised TypeError: .*reset_episode"),
        (FewOfReset, r"own/Wrong: reset_episode must return \(observation, state\), got an array"),
        (FewOfStep, r"own/Wrong: step_episode must return \(.*, whether the episode ended\), got 3 values"),
        (lambda: Room(RoomOptions()), "register_tasks expects a .*TaskEnvironment, got Room"),
    ],
)
def test_a_family_that_is_none_is_told_so_in_one_line(make, says):
    envs.register_tasks("own/Wrong", make)
    with pytest.raises(ValueError, match=says) as error:
        envs.make("own/Wrong")
    assert "\n" not in str(error.value)


def test_a_family_that_is_registered_as_an_environment_is_told_of_the_other_function():
    envs.register("own/Wrong", Levers)
    with pytest.raises(ValueError, match=r"use memax_rl\.envs\.register_tasks"):
        envs.make("own/Wrong")


def test_an_unknown_environment_of_no_suite_asks_for_its_module():
    with pytest.raises(ValueError, match=r"'own/Lever'; did you mean 'own/Levers'.* needs --import MODULE"):
        make_config({"env": "own/Lever"})
    with pytest.raises(ValueError, match="unknown environment 'popgym/Repeat'") as error:
        make_config({"env": "popgym/Repeat"})
    assert "--import" not in str(error.value)
