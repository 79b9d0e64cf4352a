"""VisionZip: longer is better but not necessary in vision language models.

Yang et al., CVPR 2025, arXiv:2412.04467. In each frame, keep the dominant tokens, those that the summary token of the
vision tower attends to, and squeeze the others into a few contextual tokens: anchors are spread evenly over them, every
other one joins the anchor with the most similar key, and an anchor becomes itself plus the mean of its members. The
question is not looked at, so the result may be cached over turns.

Where we differ:
- The class token itself is not emitted, as the cells of a prompt belong to patches: 64 tokens are 54 + 10 patches here,
  a class token + 53 + 10 in the paper.
- Towers without a class token use the attention that a token receives from its whole frame, as the paper says and the
  released code leaves out. It is read in the last block (the one whose output the language model reads; in Qwen2.5-VL
  the block before it sees windows only). Qwen2.5-VL's tokens come after its merger: scores and keys are means over the
  patches of a token, and keys carry rotary positions.
- Contextual tokens stand in raster order at the place of their anchor and not after the dominant ones.
- Budgets are ratios per frame. The split of the paper's budgets (54+10, 108+20, 162+30) is `contextual_ratio`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.facts import Fact
from elvi.core.seams import Encoded
from elvi.core.tokens import budget, top
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen, TowerView

WITH_CLS, WITHOUT_CLS = -2, -1  # the block of the tower whose output the language model reads


@dataclass(frozen=True)
class VisionZip:
    """Keep the dominant tokens of each frame and merge the rest into contextual ones.

    keep_ratio: share of a frame's tokens that comes out (paper: 64 of 576); contextual_ratio: share of these that are
    contextual (paper: 10 of 64). Raises BudgetError outside 0 to 1.
    """

    keep_ratio: float = 0.111
    contextual_ratio: float = 0.156

    at: ClassVar[Encoded] = Encoded()
    tower_layers: ClassVar[tuple[int, ...]] = (WITH_CLS, WITHOUT_CLS)
    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.UNIT_MASS})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.111, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "contextual_ratio", 0.0, 1.0)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.tower is not None, "the tower is seen at Encoded"
        score, key = salience(seen.tower, tokens.row)
        owner = torch.empty_like(tokens.row)
        for step in tokens.cell[:, 0].unique().tolist():
            frame = (tokens.cell[:, 0] == step).nonzero()[:, 0]
            count = budget(self.keep_ratio, len(frame))
            contextual = budget(self.contextual_ratio, count)
            local = owners(score[frame], key[frame], count - contextual, contextual)
            owner[frame] = torch.where(local < 0, -1, frame[local])
        return merged(tokens, owner)


def salience(tower: TowerView, row: Tensor) -> tuple[Tensor, Tensor]:
    """Score [N] and key [N, d] of the tokens that stood at `row` [N] when they left the tower."""
    layer = WITH_CLS if tower.has_cls else WITHOUT_CLS
    score = tower.cls_attention(layer) if tower.has_cls else tower.received(layer)
    return score[row], tower.keys(layer)[row]


def owners(score: Tensor, key: Tensor, dominant: int, contextual: int) -> Tensor:
    """For each token of a frame the token [n] that it goes into: itself if it stays, -1 if it is dropped.

    score [n], key [n, d]; dominant + contextual tokens stay. Without contextual ones the others are dropped.
    """
    owner = torch.arange(len(score), device=score.device)
    member = torch.ones_like(score, dtype=torch.bool)
    member[top(score, dominant)] = False
    rest = member.nonzero()[:, 0]
    anchor = rest[:: max(1, len(rest) // max(1, contextual))][:contextual]
    member[anchor] = False
    unit = normalize(key.float(), dim=-1)
    owner[member] = anchor[(unit[member] @ unit[anchor].mT).argmax(1)] if contextual else -1
    return owner


def merged(tokens: Tokens, owner: Tensor) -> Tokens:
    """Every token that owns itself plus the mean of the others it owns; owner [N] indexes tokens, -1: dropped."""
    left = owner >= 0
    owner = (left.cumsum(0) - 1)[owner[left]]
    itself = owner == torch.arange(len(owner), device=owner.device)
    members = torch.bincount(owner) - 1
    weight = torch.where(itself, 1.0, 1.0 / members[owner].clamp(min=1))
    anchor = itself.nonzero()[:, 0]
    return tokens.keep(left).merge(torch.searchsorted(anchor, owner), anchor, weight)
