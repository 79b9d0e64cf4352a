"""LiveVLM: a compressed long-term memory that covers the whole stream, of which a question reads the pages it is about.

Ning et al., DAC 2026, arXiv:2505.15269 v2. The last steps of a stream stay exact (short-term memory). Older visual rows
are long-term memory, of at most M tokens in every head:

- Vision sink bucketing. S_j is the attention that the newest visual tokens pay j. Time is cut into N buckets of equal
  capacity B, N B = M. The `sinks` tokens of highest S go to their buckets unconditionally, the others by falling S as
  long as their bucket has room: what stands out stays, and every part of the stream is represented.
- Position-agnostic retrieval. Pages of C consecutive rows are represented by their mean key without rotation; a page
  is as relevant as the mean product with the question's queries, also without rotation. The best share of the pages is
  read, with its rotation, for the whole answer.

The paper's text was not seen, two independent notes on its second version were; the first version is another method.
Ours (R) are: the newest step as the queries of S, R = M / 2 sinks, buckets by the rows of the whole stream so that old
parts are not squeezed again and again, free places filled by S, the mean over tokens and heads as relevance, and that
pages which a question does not read are dropped from its own copy of the cache. Text between pictures leaves with the
last token of its step. M is 192 where the notes say 12,000,
since clips here are short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.scores import WHOLE_PROMPT, grouped, without_orphans
from elvi.core.tokens import top
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.views import LayerView


@dataclass(frozen=True)
class LiveVLM:
    """Keep `memory` (M) older visual tokens of a stream, and read `retrieval_ratio` of their pages for a question.

    bucket: B, tokens a bucket holds; sink_share: R / M; page: C, rows of a page; short: time steps that stay exact.
    Raises BudgetError for values out of range.
    """

    memory: int = 192
    retrieval_ratio: float = 0.4
    bucket: int = 1
    sink_share: float = 0.5
    page: int = 16
    short: int = 2

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT, Fact.QUESTION_KNOWN, Fact.SAME_KEYS_PER_HEAD})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    prefill: ClassVar[bool] = True
    decode: ClassVar[bool] = False
    window: ClassVar[int] = WHOLE_PROMPT  # all rows of the latest piece
    full: ClassVar[dict[str, Any] | None] = {"memory": 1_000_000, "retrieval_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("memory", (48, 96, 192, 384))

    def __post_init__(self) -> None:
        check_range(self, "memory", 1, float("inf"))
        check_range(self, "retrieval_ratio", 0, 1)
        check_range(self, "bucket", 1, self.memory)
        check_range(self, "sink_share", 0, 1)
        check_range(self, "page", 1, float("inf"))
        check_range(self, "short", 0, float("inf"))

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        return [self._compress(view) if view.phase == "piece" else self._drop(view) for view in views]

    def attend(self, view: LayerView) -> Tensor | None:
        """Only the question's rows read pages; what they do not read is dropped when the prompt is committed."""
        if view.phase == "prompt":
            view.memory["read"] = self.read(view)
            return view.memory["read"].repeat_interleave(len(view.query) // len(view.row), dim=0)[:, None]
        return None

    def _compress(self, view: LayerView) -> Tensor | None:
        old = self._long_term(view)
        if int(old[0].sum()) <= self.memory:
            return None
        slots = old.nonzero()[:, 1].view(len(old), -1)
        paid = grouped(view.attention().mean(1), len(old)).gather(1, slots)
        row = view.row.gather(1, slots)
        places = [self.choose(*each, len(view.layout)) for each in zip(paid, row)]
        stays = (~old).scatter(1, slots.gather(1, torch.stack(places)), True)
        return without_orphans(view, stays).nonzero()[:, 1].view(len(old), -1)

    def choose(self, score: Tensor, row: Tensor, total: int) -> Tensor:
        """Ascending places [M] of one head's long-term rows: score [m], row [m] below `total`, m at least M."""
        count = max(1, self.memory // self.bucket)
        cell = (row * count // total).tolist()
        order = score.sort(descending=True, stable=True).indices.tolist()
        sinks = int(self.sink_share * self.memory)
        room, kept = [self.bucket] * count, order[:sinks]
        for place in kept:
            room[cell[place]] -= 1
        for place in order[sinks:]:
            if room[cell[place]] > 0 and len(kept) < self.memory:
                room[cell[place]] -= 1
                kept.append(place)
        taken = set(kept)
        kept += [place for place in order if place not in taken][: self.memory - len(kept)]
        return torch.tensor(sorted(kept), device=score.device)

    def read(self, view: LayerView) -> Tensor:
        """bool [H, K]: all slots but the long-term pages that the rows in flight are not about."""
        old = self._long_term(view)
        heads, held = len(old), int(old[0].sum())
        pages = -(-held // self.page)
        chosen = max(1, round(self.retrieval_ratio * pages))
        if chosen >= pages or self.retrieval_ratio == 1:
            return torch.ones_like(old)
        assert view.family is not None
        slots = old.nonzero()[:, 1].view(heads, held)
        keys = view.keys.gather(1, slots[..., None].expand(-1, -1, view.keys.shape[-1]))
        keys = view.family.rotate(keys, view.positions(view.row.gather(1, slots)), back=True)
        query = view.family.rotate(view.query, view.positions(view.query_row), back=True)
        agreement = (keys * grouped(query, heads).mean(1, keepdim=True)).sum(-1).mean(0)  # [held], mean over heads
        page = torch.arange(held, device=old.device) // self.page
        total = agreement.new_zeros(pages).index_add_(0, page, agreement)
        best = top(total / torch.bincount(page, minlength=pages), chosen)
        return (~old).scatter(1, slots, torch.isin(page, best).expand(heads, -1))

    def _drop(self, view: LayerView) -> Tensor | None:
        read = view.memory.get("read")
        if read is None or read.all():
            return None
        return read.nonzero()[:, 1].view(len(read), -1)

    def _long_term(self, view: LayerView) -> Tensor:
        """bool [H, K]: visual rows older than the short-term memory."""
        step = view.layout.step[view.row.clamp(max=len(view.layout) - 1)]
        return view.visual & (step <= int(view.layout.step.max()) - self.short)
