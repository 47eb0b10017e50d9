"""What `import memax_rl` offers: names, types, and no wait."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

import inspect
import pydoc
import subprocess
import sys
import typing

import pytest

import memax_rl
from memax_rl import agents, evaluation, training
from memax_rl.runs import TrainConfig

# What users import. Renaming any of it breaks their code.
PROMISED = {
    "memory": ["names", "make", "Memory", "Memoroid", "register"],
    "ops": ["linear_recurrence", "linear_attention", "delta_rule", "window_attention"],
    "tape": ["Tape", "segment_ids", "positions"],
    "returns": ["discounted_returns", "generalized_advantages"],
    "envs": ["make", "names", "register"],
    "agents": ["make", "names", "register"],
}


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("jax", "numpy", "equinox", "pydantic", "gymnax", "popgym")
    assert _run(f"import sys, memax_rl; dir(memax_rl); print([m for m in {heavy} if m in sys.modules])") == "[]\n"


@pytest.mark.slow
def test_parts_are_there_without_an_import_of_their_own():
    code = f"import memax_rl\nfor part, names in {PROMISED}.items():\n    for name in names:\n"
    assert _run(code + "        getattr(getattr(memax_rl, part), name)\nprint('all')") == "all\n"


def test_dir_and_help_show_the_public_names():
    assert set(memax_rl.__all__) <= set(dir(memax_rl))
    assert not [name for name in dir(memax_rl) if name.startswith("_") and not name.startswith("__")]
    text = pydoc.plain(pydoc.render_doc(memax_rl))
    for shown in ("train(", "evaluate(", "class TrainConfig", "class Run", "env: str", "num_seeds: int"):
        assert shown in text, shown


def test_an_unknown_name_is_an_attribute_error_that_lists_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'trian'; it has .*train"):
        memax_rl.trian  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018


def test_train_has_every_field_of_the_configuration_with_its_type():
    parameters = inspect.signature(memax_rl.train).parameters
    fields = {name: field for name, field in TrainConfig.model_fields.items() if name not in ("settings", "imports")}
    assert list(parameters)[list(parameters).index("trust") + 1 : -1] == list(fields)
    annotations = typing.get_type_hints(
        memax_rl.train,
        localns=dict.fromkeys(
            ("TrainConfig", "NetworkConfig", "AgentSettings", "EarlyStoppingConfig", "Callback", "Run"), typing.Any
        ),
    )
    wider = {
        "env_options",
        "env_wrappers",
        "network",
        "total_steps",
        "keep_every_n_steps",
        "eval_interval",
        "early_stopping",
    }
    assert {name for name in fields if annotations[name] != fields[name].annotation} == wider
    own = inspect.signature(training.train).parameters
    assert list(parameters)[: len(own) - 1] == list(own)[:-1]
    assert [p.default for p in parameters.values()][: len(own) - 1] == [p.default for p in own.values()][:-1]


def test_train_hands_on_what_was_given_and_nothing_else(monkeypatch):
    seen = {}
    monkeypatch.setattr(training, "train", lambda config, **given: seen.update(given, config=config))
    memax_rl.train(env="popgym/RepeatFirstEasy", wandb=None, ppo={"gamma": 0.9}, out="folder")
    assert seen == {
        "config": None,
        "out": "folder",
        "resume": None,
        "progress": False,
        "callbacks": (),
        "imports": (),
        "trust": False,
        "env": "popgym/RepeatFirstEasy",
        "wandb": None,
        "ppo": {"gamma": 0.9},
    }


def _calls_that_the_type_checker_refuses() -> None:
    """Never called. Pyright fails where one of these comments is not needed, because the mistake went unnoticed."""
    memax_rl.train(total_stpes=5)  # pyright: ignore[reportArgumentType]
    memax_rl.train(seed="0")  # pyright: ignore[reportArgumentType]
    memax_rl.train(on_divergence="halt")  # pyright: ignore[reportArgumentType]
    memax_rl.train(env="popgym/RepeatFirstEasy", network={"memory": "gru"}, ppo={"gamma": 0.9}).config()


def test_what_the_package_offers_is_what_the_parts_hold():
    assert memax_rl.evaluate is evaluation.evaluate
    assert memax_rl.TrainConfig is TrainConfig
    assert memax_rl.agents is agents
