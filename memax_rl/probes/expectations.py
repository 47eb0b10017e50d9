"""What theory expects of which memory on which task: claims that a run can refute.

A task counts as solved from a score of `SOLVED` on, at the trained length and at `BEYOND` times it. A claim that a
memory solves a task is about training, too; that it does not solve it at lengths beyond is about what its recurrence
can express, whatever its parameters. `benchmarks/probe_expectations.py` trains every row and compares.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

SOLVED = 0.95
BEYOND = 4

# One block with a feed-forward layer, so that claims about a recurrence are not about a stack of them.
BASE: Mapping[str, Any] = MappingProxyType(
    {
        "network.width": 64,
        "network.depth": 1,
        "network.feed_forward": 2.0,
        "learner.batch_size": 32,
        "learner.learning_rate": 3e-3,
        "eval_sequences": 256,
        "test_lengths": [1, BEYOND],
    }
)

# The settings of each task; recall takes two blocks, of which the first moves a key beside its value.
PROBES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "parity": {"task": "parity", "task_options": {"length": 24}, "total_updates": 1_000},
        "counting to 3": {
            "task": "modular_counting",
            "task_options": {"length": 16, "modulus": 3},
            "total_updates": 1_000,
            "learner.learning_rate": 1e-2,
        },
        "S3": {
            "task": "permutations",
            "task_options": {"length": 12, "points": 3},
            "total_updates": 1_500,
            "learner.learning_rate": 1e-2,
        },
        # Shorter ones, at which products of reflections find a solution in as few updates.
        "counting to 3 (8 slots)": {
            "task": "modular_counting",
            "task_options": {"length": 8, "modulus": 3},
            "total_updates": 1_500,
            "learner.learning_rate": 1e-2,
        },
        "S3 (8 slots)": {
            "task": "permutations",
            "task_options": {"length": 8, "points": 3},
            "total_updates": 1_500,
            "learner.learning_rate": 1e-2,
        },
        "recall": {
            "task": "associative_recall",
            "task_options": {"length": 32, "pairs": 4, "keys": 8, "values": 8},
            "total_updates": 500,
            "network.depth": 2,
        },
    }
)


class Expectation(NamedTuple):
    """One claim.

    Attributes:
        probe: A name of `PROBES`.
        memory: Name of the memory.
        options: Its options that are not the default.
        trained: Whether it solves the task at the trained length; None where nothing is claimed.
        beyond: Whether it does at `BEYOND` times that; None where nothing is claimed.
        why: The reason, in a few words.
    """

    probe: str
    memory: str
    options: Mapping[str, Any]
    trained: bool | None
    beyond: bool | None
    why: str

    def agrees(self, trained: float, beyond: float) -> bool:
        """Return whether scores at the trained length and beyond are what is expected."""
        pairs = ((self.trained, trained), (self.beyond, beyond))
        return all(claim is None or claim == (score >= SOLVED) for claim, score in pairs)

    def fields(self) -> dict[str, Any]:
        """Return the fields in which its probe differs from `BASE`."""
        options = {"network.memory_options": dict(self.options)} if self.options else {}
        return {"memory": self.memory} | options | dict(PROBES[self.probe])


Named = str | tuple[str, dict[str, Any]]

_NEGATIVE = {"negative_eigenvalues": True}
_POSITIVE = {"negative_eigenvalues": False}


def _claims(
    probe: str, memories: Sequence[Named], trained: bool | None, beyond: bool | None, why: str
) -> list[Expectation]:
    named = [(one, {}) if isinstance(one, str) else one for one in memories]
    return [Expectation(probe, memory, options, trained, beyond, why) for memory, options in named]


_NONLINEAR, _INVARIANT = "nonlinear recurrence", "transition does not depend on the input"
_POSITIVE_ONLY, _NO_STATE, _SET = "eigenvalues of the transition in [0, 1]", "no state", "a mean over a set"
_ONE, _TWO = "one reflection a step", "two reflections a step"
# Without decay, which a product of reflections has to learn to leave out. That it can hold at every length is shown by
# parameters written down, in tests/test_probe_expectations.py; training finds such ones rarely, so nothing is claimed.
_UNGATED = ("delta_product", {"gated": False})

EXPECTATIONS: tuple[Expectation, ...] = (
    *_claims("parity", ["elman", "gru", "lstm", "slstm"], True, True, _NONLINEAR),
    *_claims("parity", [("delta_net", _NEGATIVE), ("gated_delta_net", _NEGATIVE)], True, True, _ONE),
    *_claims("parity", ["delta_product"], True, True, _TWO),
    *_claims("parity", ["min_gru", "mamba2", "gated_delta_net"], None, False, _POSITIVE_ONLY),
    *_claims("parity", [("delta_product", _POSITIVE)], None, False, _POSITIVE_ONLY),
    *_claims("parity", ["lru"], None, False, _INVARIANT),
    *_claims("parity", ["attention"], None, False, _SET),
    *_claims("parity", ["mlp"], False, False, _NO_STATE),
    *_claims("counting to 3", ["gru"], True, True, _NONLINEAR),
    *_claims("counting to 3 (8 slots)", [_UNGATED], True, None, _TWO),
    *_claims("counting to 3", ["mamba2"], None, False, _POSITIVE_ONLY),
    *_claims("counting to 3", ["lru"], None, False, _INVARIANT),
    *_claims("S3", ["gru"], True, True, _NONLINEAR),
    *_claims("S3 (8 slots)", [_UNGATED], True, None, _TWO),
    *_claims("S3", ["lru"], None, False, _INVARIANT),
    *_claims("recall", ["attention"], True, None, "compares every query with every key"),
    *_claims("recall", ["mamba2", "delta_net"], True, None, "a matrix holds pairs"),
    *_claims("recall", ["lru"], False, False, _INVARIANT),
    *_claims("recall", ["mlp"], False, False, _NO_STATE),
)


def study() -> dict[str, Any]:
    """Return the study of all rows, a case for each in their order, as `memax_rl.study` takes it."""
    return {"base": dict(BASE), "cases": [row.fields() for row in EXPECTATIONS]}
