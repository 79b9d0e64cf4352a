"""StreamingLLM: the first tokens and the last ones.

Xiao et al., ICLR 2024, arXiv:2309.17453. Softmax has to put its weight somewhere, and models learn to put what is left
over on the first tokens of the text ("attention sinks"). A sliding window alone therefore collapses as soon as those
leave it; with a few of them kept, s sinks and the r most recent tokens are a cache of fixed size for text of any length
(section 3.2). No scores are needed, so it is the floor of the papers on choosing keys.

Where we differ:
- The prompt is read with full attention; the limit holds from the first generated token on. Papers on vision-language
  models compare with this variant.
- Keys keep the positions they were computed at. The paper counts positions inside the cache, so that text may outgrow
  the positions a model was trained for; with rows of three-dimensional positions this would tear pictures apart.
- Each row reads the sinks and the r rows that end with itself, whether it was decoded alone or among drafted ones; the
  paper does not treat drafts. Slots are dropped only when no later row can read them.
- r is 128, not 512: of the prompts used here hardly one is longer than 512, so that nothing would ever be dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class StreamingLLM:
    """Keep the first `num_sinks` (s) and the last `recent` (r) tokens, the one being decoded included.

    Raises BudgetError for values out of range; num_sinks=0 is plain window attention.
    """

    num_sinks: int = 4
    recent: int = 128

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.SETTLED})
    lossless: ClassVar[bool] = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True
    rolling: ClassVar[bool] = True
    window: ClassVar[int] = 0
    full: ClassVar[dict[str, Any] | None] = {"recent": 1_000_000}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("recent", (32, 64, 128, 256))

    def __post_init__(self) -> None:
        check_range(self, "num_sinks", 0, float("inf"))
        check_range(self, "recent", 1, float("inf"))

    def attend(self, view: LayerView) -> Tensor | None:
        if view.keys.shape[1] <= self.num_sinks + self.recent:
            return None
        slot, query = ranks(view)
        reads = (slot < self.num_sinks) | (slot > query[:, None] - self.recent)  # [Q, K]
        return reads[None]

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        return [self._keep(view.row) for view in views]

    def _keep(self, row: Tensor) -> Tensor | None:
        heads, length = row.shape
        before = self.recent - 1  # the next row takes the last place itself
        if length <= self.num_sinks + before:
            return None
        slot = torch.arange(length, device=row.device)
        return slot[(slot < self.num_sinks) | (slot >= length - before)].expand(heads, -1)


def ranks(view: LayerView) -> tuple[Tensor, Tensor]:
    """Place in the text of every slot [K] and query row [Q], of which slots of the prompt count as held now.

    Rows of the prompt may have gaps where tokens were pruned, and heads may hold different ones, but equally many;
    generated rows have no gaps, and drafts of the same depth share a place.
    """
    total, row = len(view.layout), view.row[0]
    prompt = row < total
    held = prompt.sum()
    slot = torch.where(prompt, torch.arange(len(row), device=row.device), held + row - total)
    return slot, held + view.query_row - total
