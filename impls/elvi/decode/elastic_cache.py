"""Elastic Cache: merge what the instruction can spare, then drop one row per step at a fixed place.

Liu et al., ECCV 2024, arXiv:2407.18121. Reading an instruction and writing an answer want different rules.

Instruction: every row of a layer is scored by the attention that it receives from all rows, averaged over heads. The
first few rows, the last one and the best of the others stay, (1 - f) T of T rows in all, f the forget ratio; each row
that goes is merged into the nearest one that stays: keys and values of that one become the mean of all it stands for.

Answer: after each step the cache is cut back to (1 - f) times the tokens seen so far, by dropping the row at a fixed
place e = (1 - f) T + distance. The start of the instruction is never touched, and what comes later - the end of the
instruction first, then the answer - moves through the window behind e.

Where we differ:
- The best rows are kept. The released code takes the order of a sort for ranks, which keeps rows of any score, and
  merges into rows that lie as many places off as there are protected ones at the start.
- `keep_ratio` is the share that stays, 1 - f. One row stays at least; of a budget too small for the protected rows the
  last one stays before the first ones.
- Tokens that were pruned before the cache leave gaps; which row is nearest is judged in places of the whole prompt.
- The fixed place is never among the protected first rows, nor behind the instruction.
- The row of a step reads all that was left by the steps before it, whether it is decoded alone or drafted; what goes
  depends on its place alone, so it is masked where slots must stay for other rows. The paper does not treat drafts.
- Attention sums are recomputed from queries and keys, chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.scores import WHOLE_PROMPT, column_sums
from elvi.core.store import Kept
from elvi.core.tokens import budget, top
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class ElasticCache:
    """Merge the prompt's rows by importance and keep the cache at `keep_ratio` (1 - f, above 0) of the tokens seen.

    num_sinks: first rows that always stay; distance: the place e where rows are dropped, counted from the end of the
    compressed prompt if 0 or below, else from the start. Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.8
    num_sinks: int = 4
    distance: int = -25

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT, Fact.SAME_KEYS_PER_HEAD, Fact.SETTLED})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.EXACT_VALUES, Fact.SETTLED})
    lossless: ClassVar[bool] = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True
    rolling: ClassVar[bool] = True
    window: ClassVar[int] = WHOLE_PROMPT
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "num_sinks", 0, float("inf"))

    def attend(self, view: LayerView) -> Tensor | None:
        first = self._place(view)
        before = (view.query_row - len(view.layout)).tolist()  # tokens of the answer before each row
        last = [first + self._dropped(view, seen) for seen in before]
        if max(last) == first:
            return None
        place = places(view, first)
        return ((place < first) | (place >= torch.tensor(last, device=place.device)[:, None]))[None]  # [1, Q, K]

    def keep(self, views: list[LayerView]) -> list[Kept | Tensor | None]:
        return [self._compress(view) if view.phase == "prompt" else self._drop(view) for view in views]

    def _compress(self, view: LayerView) -> Kept | None:
        heads, total = view.row.shape
        view.memory["total"], count = total, self._limit(total)
        if count == total:
            return None
        score = column_sums(view).mean(0)
        score[: self.num_sinks] = score.max() + 1
        score[-1] = score.max() + 1
        kept = top(score, count)
        keys, values = (merged(part, view.row[0], kept) for part in (view.keys, view.values))
        return Kept(kept.expand(heads, -1), keys=keys, values=values)

    def _drop(self, view: LayerView) -> Tensor:
        """Slots that the next row may still read."""
        first, seen = self._place(view), int(view.row[0, -1]) + 1 - len(view.layout)
        place, dropped = places(view, first), self._dropped(view, seen)
        view.memory["dropped"] = dropped
        return ((place < first) | (place >= first + dropped)).nonzero()[:, 0].expand(len(view.row), -1)

    def _place(self, view: LayerView) -> int:
        """e, between the first rows and the end of the compressed prompt."""
        count = held(view)
        wanted = count + self.distance if self.distance <= 0 else self.distance
        return min(max(wanted, self.num_sinks), count)

    def _dropped(self, view: LayerView, seen: int) -> int:
        """How many rows are gone when `seen` tokens of the answer have been read."""
        return max(0, held(view) + seen - self._limit(view.memory["total"] + seen))

    def _limit(self, seen: int) -> int:
        return max(1, budget(self.keep_ratio, seen))


def held(view: LayerView) -> int:
    """Rows of the prompt when the answer began: counted once, before any of them is dropped."""
    return view.memory.setdefault("held", int((view.row[0] < len(view.layout)).sum()))


def places(view: LayerView, first: int) -> Tensor:
    """For every slot [K] the place that it would have, had nothing been dropped since the answer began."""
    row, total = view.row[0], len(view.layout)
    slot = torch.arange(len(row), device=row.device)
    prompt = slot + view.memory.get("dropped", 0) * (slot >= first)
    return torch.where(row < total, prompt, held(view) + row - total)


def merged(part: Tensor, row: Tensor, kept: Tensor) -> Tensor:
    """Keys or values [H, m, d] of the slots `kept` [m], each the mean of itself and of those nearest to it by row [K].

    part [H, K, d]; a slot halfway between two kept ones goes to the earlier.
    """
    stays = row[kept]
    after = torch.searchsorted(stays, row).clamp(max=len(kept) - 1)
    before = (after - 1).clamp(min=0)
    nearest = torch.where(row - stays[before] <= stays[after] - row, before, after)  # [K], places in `kept`
    sums = part.new_zeros(part.shape[0], len(kept), part.shape[2]).index_add_(1, nearest, part)
    return sums / torch.bincount(nearest, minlength=len(kept))[:, None]
