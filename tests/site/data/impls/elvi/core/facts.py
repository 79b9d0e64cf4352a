"""Facts of the fixture."""

from enum import Enum


class Fact(Enum):
    """A property of a run."""

    GRID = "the visual tokens form a full grid"
    QUESTION_KNOWN = "the question is part of the prompt"
