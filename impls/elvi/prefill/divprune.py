"""DivPrune: diversity-based visual token pruning.

Alvar et al., CVPR 2025, arXiv:2503.02175. Of all subsets of a given size, look for the one whose two closest members
are as far apart as possible (max-min diversity) under cosine distance, and find it greedily: start with the token
whose nearest neighbour is farthest, then always add the token that is farthest from everything chosen so far. Neither
attention nor the question is looked at.

Where we differ:
- The distance to the chosen set is kept in a running vector, O(mN) for m of N tokens; the released loop gathers all
  chosen rows again at every step, O(m^2 N). A compiled kernel does it on the CPU.
- A token is never chosen twice; the released code repeats indices among exact duplicates. Ties go to the lowest index.
- Similarities are computed in float32 whatever the model's type, and a token of norm zero is at distance 1 from all.
- Kept tokens keep their positions; the released code lets LLaVA number them anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.spread import farthest, similarity
from elvi.core.tokens import budget
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen


@dataclass(frozen=True)
class DivPrune:
    """Keep visual tokens that are far from one another, before the language model.

    keep_ratio: share of the visual tokens that stays (paper: 0.098, 56 of the 576 of LLaVA-1.5).
    Raises BudgetError outside 0 to 1.
    """

    keep_ratio: float = 0.098

    at: ClassVar[Layer] = Layer(0)
    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.098, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        visual = tokens.visual.nonzero()[:, 0]
        return tokens.keep_visual(visual[choose(tokens.hidden[visual], budget(self.keep_ratio, len(visual)))])


def choose(hidden: Tensor, count: int) -> Tensor:
    """Index [count] of mutually distant rows of hidden [N, D], in the order in which they were chosen."""
    if count in (0, len(hidden)):
        return torch.arange(count, device=hidden.device)
    return farthest(similarity(hidden), count)
