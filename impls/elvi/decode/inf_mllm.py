"""Inf-MLLM: recent tokens and those that keep being looked at, in a cache of constant size.

Ning et al., 2024, arXiv:2409.09086. A few scattered tokens ("attention saddles") keep high attention for many steps.
The cache holds at most C rows: the most recent ones, and of the others those of the highest relevance, the attention
that the last w queries pay them. A bias that favours newer keys lets old saddles be displaced in time.

This is a reconstruction (R), inspired by the paper: only its abstract and overviews in words were seen. Ours are:

    b(i, j) = -bias (i - j) / C    for keys older than the recent ones, 0 for those,

added to the logits of every query, with ages counted in rows of the text; relevance as the mean over heads, one choice
per layer, over the queries of the last piece that was read; half of C for recent rows. Rows keep the positions at which
they were encoded, where a stream of millions of tokens needs them numbered anew. The cache is cut after every piece of
a stream and after the question; what is generated is added to it. C is 192 here, far below what the paper runs with,
since clips are short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.tokens import top
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class InfMLLM:
    """Keep `capacity` (C) rows: `recent_share` of them the latest, the others those that the latest queries look at.

    queries: w, how many of them; bias: how much older keys are disfavoured (0: not at all). Raises BudgetError for
    values out of range.
    """

    capacity: int = 192
    recent_share: float = 0.5
    queries: int = 32
    bias: float = 1.0

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT, Fact.QUESTION_KNOWN})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    prefill: ClassVar[bool] = True
    decode: ClassVar[bool] = True
    full: ClassVar[dict[str, Any] | None] = {"capacity": 1_000_000, "bias": 0.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("capacity", (48, 96, 192, 384))

    def __post_init__(self) -> None:
        check_range(self, "capacity", 2, float("inf"))
        check_range(self, "recent_share", 0, 1)
        check_range(self, "queries", 1, float("inf"))
        check_range(self, "bias", 0, float("inf"))

    @property
    def window(self) -> int:
        return self.queries

    @property
    def recent(self) -> int:
        """Rows that stay because they are the latest: one at least."""
        return max(1, int(self.capacity * self.recent_share))

    def attend(self, view: LayerView) -> Tensor | None:
        return self.favour(view)[None].expand(len(view.query), -1, -1) if self.bias else None

    def favour(self, view: LayerView) -> Tensor:
        """The bias [Q, K] of every query for every slot."""
        age = (view.query_row[:, None] - view.row[:1]).to(view.query.dtype)
        return torch.where(age < self.recent, 0.0, -self.bias / self.capacity * age)

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        return [self._keep(view) for view in views]

    def _keep(self, view: LayerView) -> Tensor | None:
        heads, held = view.row.shape
        if held <= self.capacity:
            return None
        weights = view.attention() * self.favour(view).exp()  # softmax(x + b) is proportional to softmax(x) e^b
        relevance = (weights / weights.sum(-1, keepdim=True)).sum(1).mean(0)  # [K]
        slot = torch.arange(held, device=relevance.device)
        latest = slot >= held - self.recent
        return top(torch.where(latest, float("inf"), relevance), self.capacity).expand(heads, -1)
