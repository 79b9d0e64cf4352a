"""SparseVLM: visual token sparsification for efficient vision-language model inference.

Zhang et al., ICML 2025, arXiv:2410.04417. Only words that have to do with the picture should judge it. With V [N, D]
the visual tokens and T [M, D] the text behind them, both as they enter the model, R = softmax of V T^T over the text
and r_i = mean_j R_ji, the raters are the words i with r_i >= mean r. In three layers, once the layer has run:

1. p_j is the attention that visual token j gets there, mean over heads and raters. The best of them stay.
2. The best int(tau m) + 1 of the m others are recycled: int(theta times as many) + 1 = C clusters (density peaks, C
   neighbours) on the output of the layer, each of which becomes the mean of its tokens.

How many stay: the released code lists three counts for each mean budget, `BUDGETS`. The paper's own rule removes
lambda (n - rank P) of n tokens, P [raters, n] being the attention of the raters.

Where we differ:
- (R) Shares for budgets between the listed ones are interpolated, and the layers 2, 6 and 15 of 32 are shares of the
  depth. Where two of the three fall on one layer, the later counts.
- (R) Recycled tokens stand at the row and position of their cluster's centre and not behind the others. Positions are
  the original ones; the first released version numbers the row anew after each of the layers.
- >= and the mean, where code and paper say > or the sum: so there is a rater even if all words are alike. Density ties
  go to the earlier token, without noise.
- The second version (no recycling: recycle_ratio=0) also divides the attention by that of two vectors of ones and
  reads 14 heads only, which is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from elvi.core.cluster import density_peaks
from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen

DEPTHS = (3 / 32, 7 / 32, 16 / 32)  # share of the layers that have run
BUDGETS = np.array(  # of 576 tokens: the mean budget, and what stays at each of the three layers
    [(0, 0, 0, 0), (64, 66, 30, 17), (96, 238, 48, 26), (128, 303, 110, 36), (192, 300, 200, 110), (576, 576, 576, 576)]
)


@dataclass(frozen=True)
class SparseVLM:
    """Let words that fit the picture judge its tokens in three layers, and recycle some of those that go.

    keep_ratio: mean budget as a share of the visual tokens; recycle_ratio: tau (0: none); cluster_ratio: theta;
    rank_scale: lambda of the paper's rule, which then replaces keep_ratio. Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.333
    recycle_ratio: float = 0.3
    cluster_ratio: float = 0.1
    rank_scale: float | None = None

    at: ClassVar[Layer] = Layer(0, every=1)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS, Fact.SAME_LENGTH_PER_LAYER}
    )
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.111, 0.222, 0.333, 0.6))

    def __post_init__(self) -> None:
        for field in ("keep_ratio", "recycle_ratio", "cluster_ratio"):
            check_range(self, field, 0.0, 1.0)
        if self.rank_scale is not None:
            check_range(self, "rank_scale", 0.0, 1.0)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.family is not None, "layers are known from Layer(0) on"
        visual = tokens.visual.nonzero()[:, 0]
        if not len(visual) or not len(seen.question_index):
            return tokens
        if seen.layer == 0:
            text = tokens.hidden[seen.question_index]
            seen.memory["raters"] = tokens.row[seen.question_index[raters(tokens.hidden[visual], text)]]
            return tokens
        stages = {max(1, budget(depth, seen.family.num_layers)): stage for stage, depth in enumerate(DEPTHS)}
        if seen.layer not in stages:
            return tokens
        rating = torch.isin(tokens.row, seen.memory["raters"]).nonzero()[:, 0]
        paid = seen.attention(rating).mean(0)[:, visual]  # [raters, n]
        kept = top(paid.mean(0), self._count(paid, stages[seen.layer], seen.entered))
        return self._without(tokens, visual, kept, paid.mean(0))

    def _count(self, paid: Tensor, stage: int, entered: int) -> int:
        """How many of the n tokens that are left stay."""
        total = paid.shape[1]
        if self.rank_scale is not None:
            return total - int(self.rank_scale * (total - int(torch.linalg.matrix_rank(paid))))
        share = np.interp(self.keep_ratio, BUDGETS[:, 0] / 576, BUDGETS[:, 1 + stage] / 576)
        return min(total, budget(float(share), entered))

    def _without(self, tokens: Tokens, visual: Tensor, kept: Tensor, score: Tensor) -> Tokens:
        """Only those kept [k] of the tokens at visual [n], and some of the others recycled."""
        goes = torch.ones_like(visual, dtype=torch.bool)
        goes[kept] = False
        pruned = goes.nonzero()[:, 0]
        owner = torch.arange(len(tokens), device=visual.device)
        weight = torch.ones_like(tokens.mass)
        owner[visual[pruned]] = -1
        if self.recycle_ratio > 0 and len(pruned):
            some = visual[pruned[top(score[pruned], int(self.recycle_ratio * len(pruned)) + 1)]]
            count = int(self.cluster_ratio * len(some)) + 1
            centre, group = density_peaks(tokens.hidden[some], min(count, len(some)), count)
            owner[some] = some[centre[group]]
            weight[some] = 1 / torch.bincount(group)[group]
        if owner[-1] < 0:
            owner[-1] = len(tokens) - 1  # the row whose logits are wanted, should the prompt end in a picture
        return tokens.fold(owner, weight)


def raters(visual: Tensor, text: Tensor) -> Tensor:
    """Ascending index of the words of text [M, D] that fit visual tokens [N, D] no worse than words do on average."""
    fit = (visual.float() @ text.float().mT).softmax(-1).mean(0)
    return (fit >= fit.mean()).nonzero()[:, 0]
