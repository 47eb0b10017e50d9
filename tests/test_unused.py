"""A setting that has no effect beside the others is refused, in a line that names it and says what to do."""

import re

import pytest
from pydantic import BaseModel

from memax_rl.probes.config import make_probe_config
from memax_rl.runs import make_config
from memax_rl.runs.config import dump_config, load_config, presets
from memax_rl.runs.yaml_text import parse_yaml
from memax_rl.unused import refuse_unused

_DQN = {"agent": "dqn"}


class _Settings(BaseModel):
    scale: float = 1.0
    on: bool = False


def test_what_differs_from_its_default_was_chosen():
    refuse_unused(_Settings(), ("scale",), "needs on; set on")
    refuse_unused(_Settings(scale=1, on=True), ("scale",), "needs on; set on")
    with pytest.raises(ValueError, match=r"^scale=2\.0 needs on; set on, or scale to its default, 1\.0$"):
        refuse_unused(_Settings(scale=2), ("on", "scale"), "needs on; set on")


# Fields, what the line says, and what makes the same choice count.
_UNUSED = [
    pytest.param(
        {"ppo": {"auxiliary_coef": 0.5}},
        "ppo: auxiliary_coef=0.5 weighs an auxiliary loss, and there is none; set auxiliary, or auxiliary_coef to its "
        "default, 0.1",
        {"ppo": {"auxiliary": "next_observation", "auxiliary_coef": 0.5}},
        id="auxiliary_coef",
    ),
    pytest.param(
        _DQN | {"dqn": {"priority_alpha": 0.5}},
        "dqn: priority_alpha=0.5 is for episodes drawn by priority; set sample_by to 'priority', or priority_alpha to "
        "its default, 0.6",
        _DQN | {"dqn": {"sample_by": "priority", "priority_alpha": 0.5}},
        id="priority_alpha",
    ),
    pytest.param(
        _DQN | {"dqn": {"num_envs": 1, "epsilon_per_env": True}},
        "dqn: epsilon_per_env=True is for several environments; set num_envs above 1, or epsilon_per_env to its "
        "default, False",
        _DQN | {"dqn": {"num_envs": 2, "epsilon_per_env": True}},
        id="epsilon_per_env",
    ),
    pytest.param(
        _DQN | {"dqn": {"q_lambda": 0.0, "watkins": True}},
        "dqn: watkins is about lambda-returns; set q_lambda above 0 as well",
        _DQN | {"dqn": {"q_lambda": 0.1, "watkins": True}},
        id="watkins",
    ),
    pytest.param(
        {"network": {"normalize_clip": 5.0}},
        "network: normalize_clip=5.0 is for normalized observations; set normalize_observation, or normalize_clip to "
        "its default, 10.0",
        {"network": {"normalize_observation": True, "normalize_clip": 5.0}},
        id="normalize_clip",
    ),
    pytest.param(
        {"network": {"width": 16, "feed_forward": 0.03}},
        "network: feed_forward=0.03 of width 16 is a layer of 0 units; set it to 0.0625 or more, or to 0 for none",
        {"network": {"width": 16, "feed_forward": 0.0625}},
        id="feed_forward",
    ),
    pytest.param(
        {"early_stopping": {"min_delta": 0.1}},
        "early_stopping: min_delta=0.1 is for early stopping; set patience, or min_delta to its default, 0.0",
        {"early_stopping": {"patience": 3, "min_delta": 0.1}},
        id="min_delta",
    ),
    pytest.param(
        {"start_from_checkpoint": "best"},
        "start_from_checkpoint=best is of the run that start_from names; set start_from, or start_from_checkpoint to "
        "its default, newest",
        {"start_from": "runs/other", "start_from_checkpoint": "best"},
        id="start_from_checkpoint",
    ),
    pytest.param(
        {"env": "gym/CartPole-v1", "env_options": {"step_timeout": 5.0}},
        "env_options: step_timeout=5.0 is for environments in processes of their own; set processes above 0, or "
        "step_timeout to its default, 60.0",
        {"env": "gym/CartPole-v1", "env_options": {"step_timeout": 5.0, "processes": 1}},
        id="step_timeout",
    ),
    pytest.param(
        {"env": "meta/DarkRoom", "env_options": {"episodes": 9, "steps": 50}},
        "env_options: a trial has so many episodes or so many steps, got episodes=9 and steps=50; set one of them to "
        "null",
        {"env": "meta/DarkRoom", "env_options": {"episodes": None, "steps": 50}},
        id="episodes",
    ),
]


@pytest.mark.parametrize(("fields", "message", "used"), _UNUSED)
def test_a_setting_without_effect_is_refused_in_one_line(fields, message, used):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_config(fields)
    assert make_config(used)


def test_a_probe_has_no_deviation_of_actions():
    with pytest.raises(ValueError, match=r"network\.state_dependent_std is for agents, and has no meaning in a probe"):
        make_probe_config({"network": {"state_dependent_std": True}})


@pytest.mark.parametrize("name", presets())
def test_a_written_preset_is_read_again(name):
    config = load_config(name)
    assert make_config(parse_yaml(dump_config(config))) == config
