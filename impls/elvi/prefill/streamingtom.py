"""StreamingTOM: streaming token compression for efficient video understanding.

Chen et al., CVPR 2026, arXiv:2510.18269. Streams forbid looking ahead, and their tokens pile up:

1. Causal temporal reduction (CTR) leaves G of the n tokens of a frame. Those at cosine above tau_c to their own place
   in the frame before, as it was before its own reduction, are static, S, the others dynamic, as all of the first frame
   are. floor(G |S| / n) clusters (density peaks) of the static ones become their means; the dynamic ones that the
   vision tower attends to most fill up G.
2. Online quantized memory (OQM). A frame that leaves the window of recent ones becomes a group: its keys and values in
   4 bits, with the least value and the step of each head and channel, and its mean key. A question, by cosine with the
   mean keys, brings `num_groups` of them back, which are read next to the window for the whole answer.

Where we differ cannot be told in full: we know the abstract, a summary, and a re-implementation of CTR. Ours (R) are:
- clusters by directions, with 7 neighbours; means that stand at their centres, and all tokens in raster order at the
  positions of the stream, which a group keeps when it comes back;
- mean keys and queries without rotation, as means of rotated keys mix positions; heads side by side; that each layer
  chooses for itself, once, by the mean of the question's tokens;
- that frames read the window alone, of 4 frames, and the text before the first, which stays; text between them joins
  its group; 4 groups, where others quote 12,544 tokens, as clips here are short;
- that groups lie in main memory, restored whenever they are read. The paper's ablation at 2 bits is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from elvi.core.bits import Pair, levels
from elvi.core.cluster import density_peaks
from elvi.core.facts import Fact
from elvi.core.rows import PackedRows
from elvi.core.scores import grouped
from elvi.core.seams import Encoded
from elvi.core.store import Kept
from elvi.core.tokens import budget, top
from elvi.core.views import Fetched
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import LayerView, Seen

WITH_CLS, WITHOUT_CLS = -2, -1  # the block of the tower whose output the language model reads
NEIGHBOURS = 7


@dataclass(frozen=True)
class StreamingTOM:
    """Leave G tokens of every frame, hold old frames in few bits, and bring back those that a question is about.

    keep_ratio: G / n (paper: 50 of 196), but G is at least 1; threshold: tau_c; local: frames in the window; bits: 4 or
    8. Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.255
    threshold: float = 0.9
    num_groups: int = 4
    local: int = 4
    bits: int = 4

    at: ClassVar[Encoded] = Encoded()
    tower_layers: ClassVar[tuple[int, ...]] = (WITH_CLS, WITHOUT_CLS)
    window: ClassVar[int] = 0
    rolling: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRID, Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_HEAD, Fact.ONE_TIER}
    )
    breaks: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRID, Fact.UNIT_MASS, Fact.WHOLE_PROMPT, Fact.QUESTION_KNOWN, Fact.ONE_TIER, Fact.EXACT_VALUES}
    )
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0, "local": 1_000_000}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.255, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "threshold", -2.0, 2.0)
        check_range(self, "num_groups", 0, float("inf"))
        check_range(self, "local", 1, float("inf"))
        check_choice(self, "bits", 4, 8)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        frames = tokens.frames  # [T, n]
        count = max(1, budget(self.keep_ratio, frames.shape[1]))
        if count == frames.shape[1]:
            return tokens
        assert seen.tower is not None, "the tower is seen at Encoded"
        salience = seen.tower.cls_attention(WITH_CLS) if seen.tower.has_cls else seen.tower.received(WITHOUT_CLS)
        owner, before = torch.full_like(tokens.row, -1), seen.memory.get("before")
        for frame in frames:
            hidden, static = tokens.hidden[frame].float(), torch.zeros_like(frame, dtype=torch.bool)
            if before is not None and before.shape == hidden.shape:
                static = cosine_similarity(hidden, before, dim=-1) > self.threshold
            still, moving = frame[static], frame[~static]
            clusters = count * len(still) // len(frame)
            most = moving[top(salience[tokens.row[moving]], count - clusters)]
            owner[most] = most
            if clusters:
                centre, group = density_peaks(normalize(hidden[static], dim=-1), clusters, NEIGHBOURS)
                owner[still] = still[centre[group]]
            before = hidden
        seen.memory["before"] = before
        return tokens.fold(owner)

    def keep(self, views: list[LayerView]) -> list[Kept | None]:
        return [self._keep(view) if view.phase == "piece" else None for view in views]

    def _keep(self, view: LayerView) -> Kept | None:
        assert view.family is not None
        step = view.layout.step[view.row[0]]
        leaving = (step >= 0) & (step <= int(step.max()) - self.local)
        if not leaving.any():
            return None
        groups, means = [], []
        for each in step[leaving].unique():
            slots = (step == each).nonzero()[:, 0]
            keys, row = view.keys[:, slots], view.row[:, slots]
            groups.append((packed(keys, view.values[:, slots], self.bits), row.cpu()))
            means.append(view.family.rotate(keys, view.positions(row), back=True).mean(1).flatten())  # [H * d]
        # Reassigned, never changed in place: a forked run shares what was remembered.
        view.memory["means"] = [*view.memory.get("means", []), *means]
        return Kept((~leaving).nonzero()[:, 0].expand(len(view.row), -1), far=PackedRows(groups))

    def fetch(self, view: LayerView) -> Fetched:
        if view.phase == "prompt":
            view.memory["loaded"] = self._chosen(view)
        looked = sum(mean.nbytes for mean in view.memory["means"]) if view.phase == "prompt" else 0
        slots = view.memory["loaded"] if view.phase != "piece" else torch.empty(0, dtype=torch.long)
        return Fetched([slots.expand(view.query.shape[1], -1)] * len(view.row), looked)

    def _chosen(self, view: LayerView) -> Tensor:
        """Ascending slots of the second tier that belong to the groups most like the question."""
        assert view.family is not None
        assert isinstance(view.store.far, PackedRows)
        query = view.family.rotate(view.query, view.positions(view.query_row), back=True)
        asked = grouped(query, len(view.row)).mean(1).flatten()  # [H * d]
        best = top(cosine_similarity(torch.stack(view.memory["means"]), asked[None]), self.num_groups)
        sizes = torch.tensor([row.shape[1] for _, row in view.store.far.blocks])
        return torch.isin(torch.arange(len(sizes)).repeat_interleave(sizes), best.cpu()).nonzero()[:, 0]


def packed(keys: Tensor, values: Tensor, bits: int) -> Pair:
    """keys, values [H, m, d] in main memory, at 2^bits levels over the range of each head and channel."""
    both = (keys.cpu(), values.cpu())
    return Pair(*(levels(x, bits, x.amin(1, keepdim=True), x.amax(1, keepdim=True)) for x in both))
