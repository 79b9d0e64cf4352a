"""FastVID: dynamic density pruning for fast video language models.

Shen et al., NeurIPS 2025, arXiv:2503.11187. Three steps, none of which looks at the question:

1. Dynamic segments (DySeg). Of the cosines of the features of neighbouring frames, cut at the c - 1 lowest and wherever
   one is below tau.
2. Of the R = r n tokens that a frame of n may keep, R - C are those that the vision tower attends to most (ATS), and
   C = d R are context.
3. Density pruning. In a segment of s frames, those at distance 0, p, 2p, ... from its end are anchor frames and share
   C s anchors, the density peaks (4 neighbours) among their tokens that step 2 left. In each anchor frame, all tokens
   of the segment that step 2 left join the anchor with the highest cosine, and an anchor becomes w anchor + (1 - w)
   mean of the m that joined it, itself among them, w = max(1 / (m + 1), beta).

Where we differ:
- (R) A frame's feature is the mean of its tokens, as in the released code for Qwen2.5-VL. The one for LLaVA-OneVision
  loads the pooling head of SigLIP, which checkpoints leave out, and skips no frames, nor do we.
- What the tower attends to is what its class token attends to, else what receives most attention in its last block.
- C s anchors that the anchor frames do not share evenly go one by one to the earliest; the released code drops them.
  Where anchor frames hold too few tokens, p shrinks. With R = n there is nothing to merge, and nothing changes.
- More segments than frames cannot be: each frame is one then. The released code crashes, and with d = 0, too.
- Of a token that joins anchors in several frames, an equal part of the mass goes to each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from elvi.core.cluster import density_peaks
from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen, TowerView

WITH_CLS, WITHOUT_CLS = -2, -1  # the block of the tower whose output the language model reads
NEIGHBOURS = 4


@dataclass(frozen=True)
class FastVID:
    """Keep salient tokens of each frame, and density peaks of each segment that the others are folded into.

    keep_ratio: r; segments: c, at least so many; threshold: tau; context_ratio: d; stride: p; anchor_weight: beta;
    positions: "original" (as in the released code) or "compact". Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.1
    segments: int = 8
    threshold: float = 0.9
    context_ratio: float = 0.4
    stride: int = 4
    anchor_weight: float = 0.6
    positions: str = "original"

    at: ClassVar[Layer] = Layer(0)
    tower_layers: ClassVar[tuple[int, ...]] = (WITH_CLS, WITHOUT_CLS)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.EQUAL_FRAMES, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        for field in ("keep_ratio", "context_ratio", "anchor_weight"):
            check_range(self, field, 0.0, 1.0)
        check_range(self, "threshold", -1.0, 1.0)
        check_range(self, "segments", 1, float("inf"))
        check_range(self, "stride", 1, float("inf"))
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        frames = tokens.frames  # [T, n]
        quota = budget(self.keep_ratio, frames.shape[1])
        if quota == frames.shape[1]:
            return tokens
        assert seen.tower is not None, "the tower is seen at Layer(0)"
        context = budget(self.context_ratio, quota)
        salient = top(salience(seen.tower)[tokens.row[frames]], quota - context)
        rest = torch.ones_like(frames, dtype=torch.bool).scatter_(1, salient, False)
        stays = ~tokens.visual
        stays[frames.gather(1, salient)] = True
        rest = frames[rest].view(len(frames), -1)  # [T, m]
        hidden, mass = tokens.hidden.clone(), tokens.mass.clone()
        for start, stop in cut(tokens.hidden[frames].float().mean(1), self.segments, self.threshold):
            members = rest[start:stop]
            chosen = slots(len(members), members.shape[1], context, self.stride)
            for frame, count in chosen:
                anchor = members[frame][density_peaks(tokens.hidden[members[frame]], count, NEIGHBOURS)[0]]
                stays[anchor] = True
                hidden[anchor], given = folded(tokens, members.flatten(), anchor, self.anchor_weight)
                mass[anchor] = given / len(chosen)
        return replace(tokens, hidden=hidden, mass=mass).keep(stays)


def salience(tower: TowerView) -> Tensor:
    """What the tower attends to: its class token, or all patches together."""
    return tower.cls_attention(WITH_CLS) if tower.has_cls else tower.received(WITHOUT_CLS)


def cut(feature: Tensor, count: int, threshold: float) -> list[tuple[int, int]]:
    """Segments (start, stop) of frames with features [T, D], at least `count` of them if there are as many frames."""
    similarity = cosine_similarity(feature[:-1], feature[1:], dim=-1)
    ends = similarity < threshold
    ends[top(-similarity, count - 1)] = True
    return list(pairwise([0, *(ends.nonzero()[:, 0] + 1).tolist(), len(feature)]))


def slots(frames: int, available: int, context: int, stride: int) -> list[tuple[int, int]]:
    """Anchor frames of a segment, ascending, and how many anchors each of them has among its `available` tokens."""
    total = context * frames
    while stride > 1 and total > available * -(-frames // stride):
        stride -= 1
    chosen = range((frames - 1) % stride, frames, stride)
    each, more = divmod(total, len(chosen))
    return [(frame, each + (place < more)) for place, frame in enumerate(chosen) if each + (place < more)]


def folded(tokens: Tokens, members: Tensor, anchor: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """What anchors [a] become when members [M] join the most similar one, and the mass that each is given."""
    unit = normalize(tokens.hidden.float(), dim=-1)
    match = (unit[members] @ unit[anchor].mT).argmax(1)
    match[torch.searchsorted(members, anchor)] = torch.arange(len(anchor), device=anchor.device)
    number = torch.bincount(match, minlength=len(anchor))[:, None]
    own = tokens.hidden[anchor].float()
    mean = torch.zeros_like(own).index_add_(0, match, tokens.hidden[members].float()) / number
    weight = (1 / (number + 1)).clamp(min=least)
    mass = torch.zeros_like(tokens.mass[anchor]).index_add_(0, match, tokens.mass[members])
    return (weight * own + (1 - weight) * mean).to(tokens.hidden.dtype), mass
