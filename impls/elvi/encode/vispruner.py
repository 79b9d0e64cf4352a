"""VisPruner: beyond text-visual attention, exploiting visual cues for effective token pruning in VLMs.

Zhang et al., ICCV 2025, arXiv:2412.01818 (first posted as FasterVLM). Part of a frame's budget goes to the important
tokens, those that the class token of the vision tower attends to. The rest goes to a sample of the others without
near-duplicates: they are split alternately in two halves, and in each round up to eight tokens of the first half, those
most similar to some token of the second, are dropped until the budget is met. Nothing is merged, and the question is
not looked at.

Where we differ:
- The first half of an odd number of tokens has one more than the second; the released code sizes its index by the
  smaller one and fails there. Where a round could not drop as many, it drops what it can; the released code counts
  below zero.
- Towers without a class token use the attention that a token receives from its whole frame, as the paper says and the
  released code leaves out (R). It is read in the last block, the one whose output the language model reads.
- Similarities are computed once, in float32, and looked up in each round. Sorting is stable: ties keep the order of the
  round before.
- Budgets are ratios per frame (a tile in the paper). The released code numbers kept tokens anew, which is
  `positions="compact"` here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.facts import Fact
from elvi.core.seams import Encoded
from elvi.core.tokens import budget
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen, TowerView

WITH_CLS, WITHOUT_CLS = -2, -1  # the block of the tower whose output the language model reads
STEP = 8  # tokens dropped in one round at most


@dataclass(frozen=True)
class VisPruner:
    """Keep the important tokens of each frame and a diverse sample of the others.

    keep_ratio: share of a frame's tokens that stays (paper: 128 of 576); important_ratio: share of these that the class
    token chooses, rounded down. positions: "original" keeps the gaps, "compact" numbers what is left anew.
    Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.222
    important_ratio: float = 0.5
    positions: str = "original"

    at: ClassVar[Encoded] = Encoded()
    tower_layers: ClassVar[tuple[int, ...]] = (WITH_CLS, WITHOUT_CLS)
    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.111, 0.222, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "important_ratio", 0.0, 1.0)
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.tower is not None, "the tower is seen at Encoded"
        score, step = salience(seen.tower)[tokens.row], tokens.cell[:, 0]
        stays = torch.zeros_like(tokens.visual)
        for each in step.unique().tolist():
            frame = (step == each).nonzero()[:, 0]
            count = budget(self.keep_ratio, len(frame))
            important = int(count * self.important_ratio)
            stays[frame[chosen(score[frame], tokens.hidden[frame], important, count - important)]] = True
        return tokens.keep(stays)


def salience(tower: TowerView) -> Tensor:
    """What the class token pays each token that left the tower, or what it receives where there is none: [N]."""
    return tower.cls_attention(WITH_CLS) if tower.has_cls else tower.received(WITHOUT_CLS)


def chosen(score: Tensor, hidden: Tensor, important: int, diverse: int) -> Tensor:
    """Index [important + diverse] of the tokens of a frame that stay: score [n], hidden [n, D]."""
    order = score.sort(descending=True, stable=True).indices
    return torch.cat([order[:important], order[important:][distinct(hidden[order[important:]], diverse)]])


def distinct(hidden: Tensor, count: int) -> Tensor:
    """Index [count] of the rows of hidden [m, D] that are left when near-duplicates are dropped round by round."""
    unit = normalize(hidden.float(), dim=-1)
    similar, left = unit @ unit.mT, torch.arange(len(hidden), device=hidden.device)
    while count and len(left) > count:
        first, second = left[0::2], left[1::2]
        drop = min(STEP, len(left) - count, len(second))
        closest = similar[first][:, second].amax(1)
        # The survivors of the first half stay in the order of likeness, which decides the next round's halves.
        left = torch.cat([first[closest.sort(descending=True, stable=True).indices[drop:]], second])
    return left[:count]
