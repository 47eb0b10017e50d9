"""What a known mistake is, and short names of tests that notice some (tests/mutants.py makes them)."""

from typing import NamedTuple


class Mistake(NamedTuple):
    """A change of one place in the code, and the tests that must notice it.

    `row` is a number that groups mistakes of a kind, for `--rows`.
    """

    row: int
    what: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


def ppo(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_ppo.py::test_{name}" for name in names)


def bc(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_bc.py::test_{name}" for name in names)


def policy(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_policy.py::test_{name}" for name in names)


def probes(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_probes.py::test_{name}" for name in names)
