"""What is public has its meaning, shapes and errors in words.

Public is what docs/reference documents and what the packages export. Names that mean the same everywhere are in
docs/reference/conventions.md, and need no words of their own.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

import memax_rl
from memax_rl import agents, envs, memory
from memax_rl.envs.wrappers import CONFIGS
from memax_rl.memory import Memory
from memax_rl.probes import tasks

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
PACKAGES = (
    *("agents", "envs", "envs.wrappers", "evaluation", "memory", "networks", "ops", "probes", "rollout", "runs"),
    *("studies", "training"),
)
CONVENTIONS = {
    name
    for row in re.findall(r"^\| (`.*?) \|", (REFERENCE / "conventions.md").read_text(), re.MULTILINE)
    for name in re.findall(r"`(\w+)`", row)
}


def _members(module: ModuleType) -> Iterator[Any]:
    exported = getattr(module, "__all__", None)
    for name in exported or vars(module):
        if not name.startswith("_"):
            yield getattr(module, name)


def _public() -> dict[str, Any]:
    """Return the functions and classes that are public, by their full names."""
    lines = [line for page in sorted(REFERENCE.glob("*.md")) for line in page.read_text().splitlines()]
    named = [line.removeprefix("::: ").strip() for line in lines if line.startswith("::: ")]
    found = list(_members(memax_rl))
    for package in PACKAGES:
        found += _members(importlib.import_module(f"memax_rl.{package}"))
    for name in named:
        value = pkgutil.resolve_name(name)
        is_module = isinstance(value, ModuleType)
        found += [v for v in _members(value) if getattr(v, "__module__", "") == name] if is_module else [value]
    known = [v for v in found if inspect.isclass(v) or inspect.isfunction(v)]
    return {f"{v.__module__}.{v.__qualname__}": v for v in known if v.__module__.startswith("memax_rl")}


PUBLIC = _public()


def _methods(cls: type) -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Yield the public methods that a class has itself: name, function, and all words about it."""
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value.fget if isinstance(value, property) else value)
        if name.startswith("_") or not inspect.isfunction(function) or "memax_rl" not in function.__module__:
            continue
        bases = [base for base in cls.__mro__ if base.__module__.startswith("memax_rl")]
        yield name, function, " ".join(_words(vars(base).get(name)) + _words(base) for base in bases)


def _words(value: Any) -> str:
    return f"{getattr(getattr(value, '__func__', value), '__doc__', None) or ''} "


def _functions() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Yield all public functions, methods and constructors, with the words about them."""
    for name, value in PUBLIC.items():
        if inspect.isfunction(value):
            yield name, value, _words(value)
            continue
        init = vars(value).get("__init__")
        if inspect.isfunction(init) and "def __init__" in inspect.getsource(value):
            bases = [base for base in value.__mro__ if base.__module__.startswith("memax_rl")]
            yield name, init, " ".join(map(_words, bases)) + _words(init)
        for method, function, words in _methods(value):
            yield f"{name}.{method}", function, words


def _says(words: str, name: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", words) is not None


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.name not in ("self", "cls") and not p.name.startswith("_")]


def test_the_walk_finds_what_is_public():
    for name in ("memax_rl.train", "memax_rl.memory.lru.LRU", "memax_rl.agents.ppo.PPO", "memax_rl.studies.grid.Study"):
        assert name in PUBLIC
    assert len(PUBLIC) > 350
    assert {"key", "starts", "env_params"} <= CONVENTIONS


def test_everything_says_what_it_does():
    silent = [name for name, value in PUBLIC.items() if not (value.__doc__ or "").strip()]
    silent += [name for name, _, words in _functions() if not words.strip()]
    assert not silent


def test_every_parameter_has_its_meaning():
    missing = [
        f"{name}: {parameter.name}"
        for name, function, words in _functions()
        for parameter in _parameters(function)
        if parameter.name not in CONVENTIONS and not _says(words, parameter.name)
    ]
    assert not missing, "\n".join(missing)


def test_every_field_has_its_meaning():
    missing = []
    for name, value in PUBLIC.items():
        if not inspect.isclass(value):
            continue
        if issubclass(value, BaseModel):
            undescribed = [field for field, info in value.model_fields.items() if not info.description]
            silent = [field for field in undescribed if field != "name" and not _says(_words(value), field)]
        elif issubclass(value, Memory):
            continue  # Its fields are weights, with the names of the recurrence.
        else:
            bases = [base for base in value.__mro__ if base.__module__.startswith("memax_rl")]
            words = " ".join(map(_words, bases))
            source = inspect.getsource(value)
            silent = [
                field
                for field in vars(value).get("__annotations__", {})
                if not field.startswith("_")
                and field not in CONVENTIONS
                and not _says(words, field)
                and not re.search(rf'^    {field}\b.*\n    """', source, re.MULTILINE)
            ]
        missing += [f"{name}.{field}" for field in silent]
    assert not missing, "\n".join(missing)


def test_every_option_has_its_meaning():
    """Those of environments, memories, wrappers, probes and agents, as `memax-rl list` shows them."""
    named = [(f"env {name}", envs.options(name)) for name in (*envs.names(), "gym/CartPole-v1", "envpool/Pong-v5")]
    meanings = [(where, option, meaning) for where, found in named for option, (_, meaning) in found.items()]
    for name in memory.names():
        described = memory.spec(name).options
        meanings += [(f"memory {name}", option, text.rpartition(" (")[0]) for option, text in described.items()]
    models = {f"wrapper {name}": model for name, model in CONFIGS.items()}
    models |= {f"agent {name}": agents.spec(name).settings for name in agents.names()}
    models |= {f"probe {name}": tasks.spec(name) for name in tasks.names()}
    for where, model in models.items():
        fields = {option: info for option, info in model.model_fields.items() if option != "name"}
        meanings += [(where, option, info.description or "") for option, info in fields.items()]
    assert len(meanings) > 300
    assert not [f"{where}: {option}" for where, option, meaning in meanings if len(meaning.split()) < 2]


def _raised(function: Callable[..., Any]) -> set[str]:
    """Return the names of the errors that a function raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    inner = {id(n) for d in ast.walk(tree.body[0]) if _is_inner(d, tree) for n in ast.walk(d)}
    calls = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and id(n) not in inner]
    return {c.func.id for c in calls if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}


def _is_inner(node: ast.AST, tree: ast.Module) -> bool:
    return isinstance(node, ast.FunctionDef | ast.Lambda) and node is not tree.body[0]


def test_every_error_is_named():
    missing = [
        f"{name}: {error}"
        for name, function, words in _functions()
        for error in _raised(function)
        if error != "NotImplementedError" and not error.startswith("_") and not _says(words, error)
    ]
    assert not missing, "\n".join(missing)


# An annotation without a shape: jaxtyping's have one.
_BARE = re.compile(r"(?<![\w\[])(?:jax\.\w*\.?_?\w*\.?Array|numpy\.ndarray)\b")


def test_every_array_has_its_shape():
    missing = []
    for name, function, words in _functions():
        result = inspect.signature(function).return_annotation
        annotated = {p.name: p.annotation for p in _parameters(function) if p.name not in CONVENTIONS}
        for part, annotation in {**annotated, "what it returns": result}.items():
            text = str(annotation)
            bare = _BARE.search(text) and "jaxtyping" not in text and "Callable" not in text
            if bare and not re.search(r"\[[^\]]*\]|scalar|shape", words):
                missing.append(f"{name}: {part}")
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(
    ("words", "name", "says"),
    [("Args:\n  key: It.", "key", True), ("the monkey", "key", False), ("config.key", "key", False)],
)
def test_a_name_within_another_word_says_nothing(words, name, says):
    assert _says(words, name) == says
