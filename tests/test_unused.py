"""A setting that has no effect beside the others is refused, in a line that names it and says what to do."""

import re
import sys

import jax.numpy as jnp
import pytest
from pydantic import BaseModel

from memax_rl.cli import main
from memax_rl.envs import spaces
from memax_rl.evaluation.episodes import elsewhere
from memax_rl.networks import NetworkConfig, make_torso
from memax_rl.probes.config import make_probe_config
from memax_rl.runs import Run, make_config
from memax_rl.runs.build import make_agent, make_environment
from memax_rl.runs.config import dump_config, load_config, presets
from memax_rl.runs.overrides import override
from memax_rl.runs.yaml_text import parse_yaml
from memax_rl.studies import make_space, make_study
from memax_rl.training import train
from memax_rl.training.unreached import unreached
from memax_rl.unused import left_at_default, refuse_unused

_DQN = {"agent": "dqn"}


class _Settings(BaseModel):
    scale: float = 1.0
    on: bool = False


def test_what_differs_from_its_default_was_chosen():
    refuse_unused(_Settings(), ("scale",), "needs on; set on")
    refuse_unused(_Settings(scale=1, on=True), ("scale",), "needs on; set on")
    with pytest.raises(ValueError, match=r"^scale=2\.0 needs on; set on, or scale to its default, 1\.0$"):
        refuse_unused(_Settings(scale=2), ("on", "scale"), "needs on; set on")


def test_what_nobody_chose_for_these_settings_is_left_at_its_default():
    with left_at_default() as left:
        assert _Settings(scale=2).scale == 2
        settings = _Settings(scale=2)
        refuse_unused(settings, ("on", "scale"), "needs on; set on")
    assert (settings.scale, left) == (1, {"scale"})
    with pytest.raises(ValueError, match=r"^scale=2\.0 needs on"):
        refuse_unused(_Settings(scale=2), ("scale",), "needs on; set on")


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
        {"ppo": {"entropy_coef": 0.0, "entropy_schedule": "linear"}},
        "ppo: entropy_schedule=linear is of the entropy bonus; set entropy_coef above 0, or entropy_schedule to its "
        "default, constant",
        {"ppo": {"entropy_coef": 0.1, "entropy_schedule": "linear"}},
        id="entropy_schedule",
    ),
    *(
        pytest.param(
            {"agent": name, name: {"epsilon_start": 0.05, "epsilon_decay_steps": 100}},
            f"{name}: epsilon_decay_steps=100 is for an epsilon that falls; set epsilon_start higher, or "
            "epsilon_decay_steps to its default, None",
            {"agent": name, name: {"epsilon_start": 0.1, "epsilon_decay_steps": 100}},
            id=f"{name} epsilon_decay_steps",
        )
        for name in ("dqn", "pqn")
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
        "dqn: watkins=True is about lambda-returns; set q_lambda above 0, or watkins to its default, False",
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
        {"network": {"blocks": [{"memory": "lru", "options": {"state_size": 8}, "state_size": 16}]}},
        "state_size stands in options of 'lru' and beside; give it once",
        {"network": {"blocks": [{"memory": "lru", "options": {"state_size": 8}, "r_min": 0.5}]}},
        id="options",
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


_AUXILIARY = {"ppo": {"auxiliary": "next_observation", "auxiliary_coef": 0.5}}


def test_a_field_of_a_file_is_not_asked_for_beside_what_is_typed():
    config = make_config(_AUXILIARY | {"early_stopping": {"patience": 3, "min_delta": 0.1}})
    typed = ["--ppo.auxiliary", "null", "--early-stopping.patience=null"]
    assert override(config, typed) == make_config({})
    with pytest.raises(ValueError, match=r"^ppo: auxiliary_coef=0\.3 weighs an auxiliary loss"):
        override(config, [*typed, "--ppo.auxiliary-coef", "0.3"])


def test_other_options_of_an_environment_leave_out_what_was_beside_the_old_ones():
    config = make_config({"env": "gym/CartPole-v1", "env_options": {"processes": 2, "step_timeout": 5}})
    assert elsewhere(config, config.env, {"processes": 0}).env_options["step_timeout"] == 60
    with pytest.raises(ValueError, match=r"step_timeout=7\.0 is for environments in processes"):
        elsewhere(config, config.env, {"processes": 0, "step_timeout": 7})


_STUDY = {"base": {"ppo.auxiliary_coef": 0.5}, "grid": {"ppo.auxiliary": [None, "next_observation"]}}


def test_what_all_cells_share_may_count_in_some_of_them():
    without, beside = make_study(_STUDY).cells()
    assert [cell.config.model_dump()["ppo"]["auxiliary_coef"] for cell in (without, beside)] == [0.1, 0.5]
    momentum = {"ppo.momentum": 0.9, "ppo.weight_decay": 0.01}
    cells = make_study({"base": momentum, "grid": {"ppo.optimizer": ["sgd", "adamw"]}}).cells()
    found = [cell.config.model_dump()["ppo"] for cell in cells]
    assert [(x["momentum"], x["weight_decay"]) for x in found] == [(0.9, None), (0.0, 0.01)]


@pytest.mark.parametrize(
    "parts",
    [
        # In no cell; and as a value that varies, which would make two cells of one configuration.
        {"base": {"ppo.auxiliary_coef": 0.5}, "grid": {"ppo.gamma": [0.9, 0.99]}},
        {"grid": {"ppo.auxiliary": [None, "next_observation"], "ppo.auxiliary_coef": [0.1, 0.5]}},
        {"cases": [{"ppo.auxiliary_coef": 0.5}]},
    ],
    ids=["base", "grid", "cases"],
)
def test_what_counts_in_no_cell_or_varies_without_an_effect_is_refused(parts):
    with pytest.raises(ValueError, match=r"^ppo: auxiliary_coef=0\.5 weighs an auxiliary loss"):
        make_study(parts).cells()


def test_a_trial_leaves_drawn_values_without_an_effect_at_their_default():
    ranges = {"ppo.auxiliary": [None, "next_observation"], "ppo.auxiliary_coef": {"float": [0.1, 1.0]}}
    space = make_space({"space": ranges})
    space.check()
    for auxiliary, used in ((None, 0.1), ("next_observation", 0.7)):
        config = space.trial_config({"ppo.auxiliary": auxiliary, "ppo.auxiliary_coef": 0.7})
        assert config.model_dump()["ppo"]["auxiliary_coef"] == used
        assert make_config(parse_yaml(dump_config(config))) == config
    # nesterov counts beside two values of others.
    momentum = {"ppo.momentum": {"float": [0.0, 0.9]}, "ppo.nesterov": [False, True]}
    make_space({"base": {"ppo.weight_decay": 0.1}, "space": {"ppo.optimizer": ["sgd", "adamw"]} | momentum}).check()
    make_space({"space": {"ppo.optimizer": ["adam", "sgd"]} | momentum}).check()


@pytest.mark.parametrize(
    "parts",
    [
        {"space": {"ppo.gamma": [0.9, 0.99], "ppo.auxiliary_coef": {"float": [0.2, 1.0]}}},
        {"base": {"ppo.auxiliary_coef": 0.2}, "space": {"ppo.gamma": [0.9, 0.99]}},
    ],
    ids=["space", "base"],
)
def test_what_counts_in_no_trial_is_refused(parts):
    with pytest.raises(ValueError, match=r"^ppo: auxiliary_coef=0\.2 weighs an auxiliary loss"):
        make_space(parts).check()


def test_a_probe_has_no_deviation_of_actions():
    with pytest.raises(ValueError, match=r"network\.state_dependent_std is for agents, and has no meaning in a probe"):
        make_probe_config({"network": {"state_dependent_std": True}})


@pytest.mark.parametrize("name", presets())
def test_a_written_preset_is_read_again(name):
    config = load_config(name)
    assert make_config(parse_yaml(dump_config(config))) == config


# Where only the environment, the command or the length of the run tells that a setting has no effect.


@pytest.mark.parametrize(
    ("settings", "shape", "says"),
    [
        ({"images": "codes"}, (4, 4, 3), r"network\.images is 'codes', and nothing .* an image with 2 axes or more"),
        ({"images": "pixels"}, (147,), r"network\.images is 'pixels', and nothing .*: Box\(147\); set it to 'auto'"),
        ({"channels": "last"}, (9, 9), r"network\.channels is 'last', and nothing .* an image with 3 axes or more"),
        ({"channels": "first"}, (9, 9, 3), r"network\.channels is 'first', and nothing .* an image with 3 axes"),
    ],
)
def test_how_images_are_read_is_not_said_where_there_is_none(settings, shape, says, key):
    codes = spaces.Box(0, 4, shape, jnp.uint8)
    with pytest.raises(ValueError, match=says):
        make_torso(NetworkConfig(width=8, **settings), codes, spaces.Discrete(2), key=key)
    # Beside an image it counts.
    both = spaces.Dict({"a": codes, "b": spaces.Box(0, 4, (6, 6, 6), jnp.uint8)})
    assert make_torso(NetworkConfig(width=8, **settings), both, spaces.Discrete(2), key=key)


_TOO_SHORT = [
    (
        {"agent": "dqn", "total_steps": 4_999},
        "dqn.learning_starts=5,000 is more than total_steps=4,999: this run learn",
    ),
    (
        {"total_steps": 900, "eval_interval": 901},
        "eval_interval=901 is more than total_steps=900: no evaluation before",
    ),
    ({"total_steps": 900, "keep_every_n_steps": 901}, "keep_every_n_steps=901 is more than total_steps=900: the last"),
    (
        {"total_steps": 900, "eval_interval": 300, "early_stopping": {"patience": 2}},
        "early_stopping.patience=2 with eval_interval=300 ends no run of 900 steps early",
    ),
]


@pytest.mark.parametrize(("fields", "says"), _TOO_SHORT)
def test_what_a_run_is_too_short_for_is_told(fields, says):
    (line,) = unreached(make_config(fields))
    assert line.startswith(says)
    assert unreached(make_config(fields | {"total_steps": 5_000})) == []


def test_a_check_tells_what_the_run_is_too_short_for(capsys):
    assert main(["train", "--total-steps", "500", "--eval-interval", "501", "--check"]) == 0
    assert "eval_interval=501 is more than total_steps=500" in capsys.readouterr().out


_COMMANDS = [
    (["compare", "runs", "--figures"], "--figures is of the report, which --out makes; add --out DIR"),
    (["compare", "runs", "--level", "0.7"], "--level is of the report, which --out makes; add --out DIR"),
    (["train", "--no-tensorboard", "--tensorboard"], "--tensorboard and --no-tensorboard are both given; leave one"),
    (["study", "--memory", "gru", "--cell", "0", "--check"], "--cell runs one cell in this process, and --check lists"),
    (["study", "--memory", "gru", "--cell", "0", "--workers", "2"], "--cell runs one cell in this process, and --work"),
]


@pytest.mark.parametrize(("arguments", "says"), _COMMANDS, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_an_option_that_a_command_would_ignore_is_refused(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"memax-rl: error: {says}")
    assert not list(tmp_path.iterdir())


def test_an_exclusion_that_leaves_nothing_out_is_told(tmp_path, capsys):
    file = tmp_path / "study.yaml"
    file.write_text(
        "grid: {memory: [gru, lru], width: [8, 16]}\nexclude:\n- {memory: gur}\n- {memory: gru, width: 8}\n"
    )
    assert main(["study", str(file), "--check"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 3
    assert shown.err == (
        "exclude: {'network.memory': 'gur'} leaves nothing out, because no combination has these values\n"
    )


def test_a_time_limit_does_not_replace_the_one_in_the_arguments():
    fields = {"env": "gym/CartPole-v1", "env_wrappers": [{"name": "time_limit", "steps": 20}]}
    says = (
        r"time_limit of 20 steps would replace env_options\.arguments\.max_episode_steps=30 of gym/CartPole-v1; leave"
    )
    with pytest.raises(ValueError, match=says):
        make_environment(make_config(fields | {"env_options": {"arguments": {"max_episode_steps": 30}}}))
    env, params = make_environment(make_config(fields))
    assert env.max_episode_steps(params) == 20


def test_a_trial_that_is_evaluated_while_it_trains_has_episodes_for_it():
    base = {"total_steps": 1_000, "eval_interval": 100}
    config = make_space({"base": base, "space": {"ppo.gamma": [0.9, 0.99]}}).trial_config({"ppo.gamma": 0.9})
    assert config.eval_episodes == 256
    assert make_config(parse_yaml(dump_config(config))) == config


def test_the_modules_beside_a_configuration_are_imported_and_written_down(tmp_path, monkeypatch):
    (tmp_path / "beside_it.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    monkeypatch.setattr("memax_rl.training.loop._train", lambda config, *rest: seen.append(config) or Run(tmp_path))
    train(make_config({"imports": ["json"]}), imports=["beside_it", "json"])
    assert seen[0].imports == ("json", "beside_it")
    assert "beside_it" in sys.modules


def test_samples_of_an_insert_that_are_rounded_to_none_are_refused():
    with pytest.raises(
        ValueError, match=r"samples_per_insert=0\.0004 is rounded to 0, .* set sac\.samples_per_insert to"
    ):
        make_agent(make_config({"agent": "sac", "sac": {"samples_per_insert": 0.0004}}))


def test_cloned_behavior_has_no_value_of_its_own():
    with pytest.raises(ValueError, match=r"^network\.separate_value is for ppo, which learns values; with"):
        make_agent(make_config({"agent": "bc", "network": {"separate_value": True}}))
