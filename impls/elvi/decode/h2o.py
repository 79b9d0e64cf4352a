"""H2O: a small set of heavy hitters, and the last tokens.

Zhang et al., NeurIPS 2023, arXiv:2306.14048. Summed over all queries so far, attention falls on few keys ("heavy
hitters"). With o_t the attention of row t, every key j of the cache carries the score

    s_j = sum_t o_t[j]        over the prompt's rows and then over every decoded one,

and after each step the cache of C rows is cut back to its last r rows and the C - r best of the others (algorithm 1:
one row goes for each that comes, greedily, and never returns). Summed attention has seen more of early keys than of
late ones, so pictures late in a prompt rank low: on vision-language models it is a baseline.

Where we differ:
- C is a share of the prompt, one row at least, split evenly as in the paper. If it is the whole prompt nothing is
  evicted at all, not even during the answer.
- Grouped queries share one selection, by the mean of their scores; the paper's models have as many keys as queries.
- Keys keep the positions they were computed at; the released streaming variant counts positions inside the cache.
- The prompt's scores are recomputed from queries and keys, chunk by chunk: no attention matrix is held, but attention
  over the prompt is computed a second time. Scores belong to one run; the released code must be reset between prompts.
- A drafted row reads what it would have read decoded alone: the evictions along its own past are taken in turn, and
  those of rejected drafts never happen. The paper does not treat drafts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from elvi.core.facts import Fact
from elvi.core.scores import WHOLE_PROMPT, column_sums, paid
from elvi.core.tokens import budget, top
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class H2O:
    """Keep, per head, the rows that received most attention so far and the most recent ones.

    keep_ratio: C as a share of each layer's prompt rows, above 0. recent_share: r as a share of C, one row at least (1
    is window attention). Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.2
    recent_share: float = 0.5

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD, Fact.SETTLED})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD, Fact.SETTLED})
    lossless: ClassVar[bool] = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True
    rolling: ClassVar[bool] = True
    window: ClassVar[int] = WHOLE_PROMPT
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "recent_share", 0.0, 1.0)

    def attend(self, view: LayerView) -> Tensor | None:
        if self.keep_ratio == 1.0:
            return None
        reads = torch.stack([reads for reads, _, _ in self._steps(view)], dim=1)  # [H, Q, K]
        return reads.repeat_interleave(len(view.query) // len(view.keys), dim=0)

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        return [None if self.keep_ratio == 1.0 else self._keep(view) for view in views]

    def _keep(self, view: LayerView) -> Tensor:
        if view.phase == "prompt":
            view.memory["capacity"] = max(1, budget(self.keep_ratio, view.row.shape[1]))
            score = column_sums(view)
            gone = ~self._survivors(view, score, torch.ones_like(view.row, dtype=torch.bool))
        else:
            _, score, gone = self._steps(view)[-1]
        by_row = score.new_zeros(len(score), int(view.row.max()) + 1)
        view.memory["score"] = by_row.scatter(1, view.row, score)
        return (~gone).nonzero()[:, 1].view(len(score), -1)

    def _steps(self, view: LayerView) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For every row in flight what it reads, then the scores after it and what is gone by then, each [H, K].

        Each goes on from the state that the row before it has left, be that another drafted one or the last committed.
        """
        known = view.memory["score"]
        known = pad(known, (0, max(0, int(view.row.max()) + 1 - known.shape[1])))
        committed = known.gather(1, view.row), torch.zeros_like(view.row, dtype=torch.bool)
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        for place, parent in enumerate(view.parents):
            score, gone = steps[parent][1:] if parent >= 0 else committed
            reads = view.readable[place] & ~gone
            score = score + paid(view, place, reads)
            gone = gone | (reads & ~self._survivors(view, score, reads))
            steps.append((reads, score, gone))
        return steps

    def _survivors(self, view: LayerView, score: Tensor, held: Tensor) -> Tensor:
        capacity = view.memory["capacity"]
        recent = max(1, budget(self.recent_share, capacity))
        return survivors(score, held, capacity - recent, recent)


def survivors(score: Tensor, held: Tensor, heavy: int, recent: int) -> Tensor:
    """Of the slots `held` (bool [H, K]) the last `recent` and, by score [H, K] >= 0, the `heavy` best before them."""
    place = held.cumsum(1)  # counts from 1
    last = held & (place > place[:, -1:] - recent)
    best = top(score.masked_fill(~held | last, -1.0), heavy)
    return last | (torch.zeros_like(held).scatter(1, best, True) & held)
