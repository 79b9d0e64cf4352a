"""Narrow: made up, for the pages."""

from dataclasses import dataclass
from typing import ClassVar

from elvi.core.facts import Fact


@dataclass(frozen=True)
class Narrow:
    """Keep the share `keep_ratio` of the rows."""

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID})
    keep_ratio: float = 0.5

    def keep(self, views):
        """Return the slots that stay."""
        return views
