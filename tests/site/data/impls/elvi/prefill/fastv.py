"""FastV: rank visual tokens once, by the attention of the last prompt token.

The score is $s_j = \\frac{1}{H} \\sum_h A_{h,j}$, read from layer `layer - 1` with ``seen.attention``.

- Ties go to the lower index.
- Text stays.
"""

from dataclasses import dataclass
from typing import ClassVar

from elvi.core.facts import Fact


@dataclass(frozen=True)
class FastV:
    """Keep the share `keep_ratio` of the visual tokens from layer `layer` on."""

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID})
    layer: int = 2
    keep_ratio: float = 0.5

    def reduce(self, tokens, seen):
        """Return the tokens that stay."""
        return tokens
