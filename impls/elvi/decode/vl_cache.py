"""VL-Cache: text that follows the picture knows how many slots a layer needs, and which.

Tu et al., ICLR 2025, arXiv:2410.23317. Rows of visual tokens attend nearly uniformly; rows of the text behind the
pictures attend as the answer will. Let A be the attention of these rows P over all keys of the prompt, and

    d_l = mean over heads of the share of entries with A_qj >= p max_j A_qj   (density of layer l: one minus sparsity),
    s_j = sum over q in P of A_qj                                             (importance of key j, per head).

Layer l of L keeps the share clip(d_l / sum(d) alpha L, 0.01, 1) of the prompt. A tenth of that goes to the most recent
tokens, the rest to those of highest s_j, text and visual ones in one list. All is chosen once, after the last layer.

Where we differ:
- There is no official code; budgets in whole tokens and grouped queries are reconstructed (R): budgets are rounded by
  largest remainder, the rows of a group of query heads are averaged, and every head of a layer keeps as many.
- What clipping adds or takes away is made up for by the other layers, in proportion to their density, so that the
  share of the whole cache is alpha exactly. The paper does not rescale.
- P holds `window` rows at most, from the end (50, as in the paper's study of speed). In prompts without pictures it
  holds the last `window` rows.
- Attention rows are recomputed from queries and keys when the prompt has been read; the paper has kernels for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from elvi.core.budgets import clipped
from elvi.core.facts import Fact
from elvi.core.scores import attention, best_and_last, grouped, observers
from elvi.core.tokens import budget
from elvi.errors import check_range

if TYPE_CHECKING:
    from torch import Tensor

    from elvi.core.views import LayerView

LEAST = 0.01  # share of the prompt that every layer keeps
RECENT = 0.1  # share of a layer's budget for the most recent tokens


@dataclass(frozen=True)
class VLCache:
    """Keep, per head, the keys that the text behind the picture attends to: more of them in layers that look at many.

    keep_ratio: alpha, share of the prompt rows that a layer keeps on average; threshold: p, the share of a row's
    maximum from which on an entry counts as active; window: at most so many last rows are asked. Raises BudgetError
    for values out of range.
    """

    keep_ratio: float = 0.1
    threshold: float = 0.01
    window: int = 50

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_LAYER})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "threshold", 0.0, 1.0, open_low=True)
        check_range(self, "window", 1, float("inf"))

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        if self.keep_ratio == 1.0:
            return [None] * len(views)
        densities, scores = zip(*(self._look(view) for view in views))
        counts = layer_budgets(torch.stack(densities), [score.shape[1] for score in scores], self.keep_ratio)
        return [chosen(score, count) for score, count in zip(scores, counts)]

    def _look(self, view: LayerView) -> tuple[Tensor, Tensor]:
        """Density [] of the layer, and the importance [H, K] of its slots."""
        rows = observers(view.query_row, view.layout, self.window, shortest=1)
        weights = attention(view, slice(-rows, None))
        return density(weights, view.row, view.query_row[-rows:], self.threshold), grouped(
            weights.sum(1), view.keys.shape[0]
        )


def density(weights: Tensor, row: Tensor, query_row: Tensor, threshold: float) -> Tensor:
    """Share [] of the entries of weights [Hq, Q, K] that reach `threshold` of their row's maximum, mean over heads.

    Only slots that a query may read count: `row` [H, K] up to its own of `query_row` [Q].
    """
    active = (weights >= threshold * weights.amax(-1, keepdim=True)).sum((1, 2))  # what is not read weighs 0
    readable = (row[:, None] <= query_row[:, None]).sum((1, 2)).repeat_interleave(len(weights) // len(row))
    return (active / readable).mean()


def layer_budgets(densities: Tensor, lengths: list[int], keep_ratio: float) -> list[int]:
    """Rows that each layer keeps of the `lengths` it holds, by density [L]; they add up to those of equal shares."""
    mean = torch.tensor([budget(keep_ratio, length) for length in lengths])
    most = torch.tensor(lengths)
    least = (LEAST * most).ceil().long().minimum(mean)
    return clipped(densities.cpu() * most, int(mean.sum()), most, least).tolist()


def chosen(score: Tensor, count: int) -> Tensor:
    """Ascending slots [H, count] of score [H, K]: the most recent tenth, and the best of those before."""
    total = score.shape[1]
    return best_and_last(score[:, : total - budget(RECENT, count)], count, total)
