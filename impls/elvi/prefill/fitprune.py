"""FitPrune: how many visual tokens each layer may lose is fitted once, to what attention would change by.

Ye et al., AAAI 2025, arXiv:2409.10197. With M the greatest attention weight over the heads of a layer, a visual token j
receives self_j = sum_i M_ij / n from the n visual tokens and cross_j = sum_i M_ij from the text after them. Offline
(`elvi search fitprune`), for one tolerance alpha for all layers, each layer gives up the tokens without which both its
self and its cross attention keep at least 1 - alpha of their sums, and the smallest alpha is looked for that brings
the FLOPs down to the budget. What is kept of this is a recipe: how many tokens each layer gives up. While answering, a
layer gives up that many of the tokens that are left, those with the lowest cross_j self_j. As rows look back only, self
falls along a row of tokens; in a clip the last frames go first, whatever they show.

Where we differ:
- Tokens leave before the next layer; in the released code they leave inside the layer, after its attention, so that its
  MLP is spared them, too. As an MLP looks at each token alone, the logits are the same.
- A recipe holds shares of the visual tokens, as clips differ in length, where the released one holds counts of 576.
  It is fitted to budgets of 10 to 90 % of the visual tokens' FLOPs; between two of them shares are interpolated (R).
  Where the first layer alone costs more than the budget, all of them leave after it.
- Recipes are fitted to clips of the tiny models' world; the released ones to samples of LLaVA's training data.
- What leaves first among equals is the last of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.searched import searched
from elvi.core.tokens import budget, top
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen
    from elvi.families.family import Family

FOUND = Path(__file__).with_name("fitprune_recipes.json")  # by model: a row of shares for every budget in BUDGETS
BUDGETS = tuple(tenth / 10 for tenth in range(1, 10))
CHUNK = 256  # query rows looked at together


@dataclass(frozen=True)
class FitPrune:
    """Drop in each layer as many visual tokens as a recipe says, those that picture and text look at least.

    keep_ratio: share of the FLOPs spent on visual tokens that is left; table: "auto" (the shipped recipes) or a file
    that `elvi search fitprune` wrote. Raises BudgetError for values out of range, FitError for a model without recipe.
    """

    keep_ratio: float = 0.4
    table: str = "auto"

    at: ClassVar[Layer] = Layer(1, every=1)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.SAME_LENGTH_PER_LAYER})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.2, 0.4, 0.6, 0.8))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)

    def fit(self, family: Family) -> None:
        self.recipe(family)

    def recipe(self, family: Family) -> list[float]:
        """Share of the visual tokens that is left after every layer but the last."""
        shape = len(BUDGETS), family.num_layers - 1
        source = FOUND if self.table == "auto" else Path(self.table)
        rows = searched(source, family, shape, "fitprune", self)
        rows = torch.cat([torch.zeros_like(rows[:1]), rows, torch.ones_like(rows[:1])])
        below = min(int(self.keep_ratio * 10), 9)
        return rows[below].lerp(rows[below + 1], self.keep_ratio * 10 - below).tolist()

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.family is not None
        visual = tokens.visual.nonzero()[:, 0]
        count = budget(self.recipe(seen.family)[seen.layer - 1], seen.entered)
        if count >= len(visual):
            return tokens
        itself, cross = received(tokens, seen)
        return tokens.keep_visual(visual[top(itself * cross, count)])


def received(tokens: Tokens, seen: Seen) -> tuple[Tensor, Tensor]:
    """self and cross [n]: what visual tokens receive from visual ones (mean) and from the question (sum), head-max."""
    visual = tokens.visual.nonzero()[:, 0]
    sums = [column_sums(seen, rows)[visual] for rows in (visual, seen.question_index)]
    return sums[0] / max(1, len(visual)), sums[1]


def column_sums(seen: Seen, rows: Tensor) -> Tensor:
    """What these rows pay each token in the layer before, of each weight the greatest over heads: float32 [N]."""
    assert seen.query is not None
    total = torch.zeros(seen.query.shape[1], device=rows.device)
    for chunk in rows.split(CHUNK):
        total += seen.attention(chunk).amax(0).sum(0)
    return total
