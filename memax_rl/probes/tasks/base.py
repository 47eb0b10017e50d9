"""What a task is: a source of sequences with inputs, targets, and marks where a target counts."""

import abc
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Array, Bool, PRNGKeyArray, PyTree, Shaped
from pydantic import BaseModel, ConfigDict, Field

# Shorter sequences hold nothing; of longer ones int32 does not count all slots of a batch.
LONGEST = 10**7


class Sequence(NamedTuple):
    """One sequence, along a leading axis of slots.

    Attributes:
        inputs: What the network sees: whole numbers [slots] or vectors [slots, features].
        targets: What it is to say: classes [slots] or vectors [slots, outputs].
        where: True at the slots whose target counts, for loss and score.
    """

    inputs: Shaped[Array, "slots ..."]
    targets: Shaped[Array, "slots ..."]
    where: Bool[Array, " slots"]


class Task(BaseModel):
    """A supervised task on sequences of one length. Its fields are its options.

    A score is 1 where all is right. Of classes it is the share of right ones; of numbers the share of variance that is
    explained, 1 - squared error / variance, averaged over the outputs.

    Attributes:
        known: Which memories are known to solve it, and which not.
        source: Where it was described, and where that is shown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    known: ClassVar[str]
    source: ClassVar[str]

    length: int = Field(default=100, ge=1, le=LONGEST)
    """Slots of a sequence."""

    @property
    @abc.abstractmethod
    def input_space(self) -> Any:
        """The space of one input, which the network encodes."""

    @property
    def classes(self) -> int | None:
        """How many classes a target has, or None where it is a vector of numbers."""
        return None

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """How many numbers the network gives out at a slot: logits, or the prediction."""

    @property
    def chance(self) -> float:
        """The score of the best guess that sees no input."""
        return 1 / self.classes if self.classes else 0.0

    def data(self, split: Literal["train", "test"]) -> PyTree[Array]:
        """Return the data that sequences are made of; those of the `split` "test" are others. None by default.

        Raises:
            ValueError: If they are not there; it says how to get them.
        """
        del split
        return ()

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, data: PyTree[Array] = ()) -> Sequence:
        """Return a random sequence, made of `data` where the task has any."""

    def at_length(self, length: int) -> "Task":
        """Return the task with longer or shorter sequences. Raises `ValueError` if it has none of that length."""
        return type(self)(**(self.model_dump() | {"length": length}))


class Classification(Task):
    """A task whose targets are classes."""

    @property
    @abc.abstractmethod
    def classes(self) -> int:
        """How many classes a target has."""

    @property
    def outputs(self) -> int:
        """A logit for each class."""
        return self.classes


def at_least(task: Task, needed: int, why: str) -> None:
    """Raise `ValueError` unless the sequences of a `task` have as many slots as `needed`; the message says `why`."""
    if task.length < needed:
        raise ValueError(f"length must be at least {needed} ({why}), got {task.length}; set it, or lower the others")
