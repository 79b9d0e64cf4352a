"""HIVTP: hierarchical visual token pruning using middle-layer-based importance score.

Xu et al., 2025, arXiv:2509.23663. Middle blocks of a vision tower attend to objects, late ones to a few patches without
meaning. Patches are ranked by the attention they receive in the middle blocks, mean over heads, all query rows and the
blocks. Globally, the best share of each large region of the frame stays; locally, of every small window the best of
what is left stays, too, so that no area disappears. How many tokens that makes depends on the frame: with the paper's
settings between 252 and 288 of 576.

Where we differ:
- The paper reads blocks 6, 7 and 8 of 24; towers of another depth are read at the same shares of it. Where blocks see
  windows only (Qwen2.5-VL), the nearest block that sees whole frames is read, and a token's score is the mean over its
  patches.
- Grids need not be square or even: regions differ by one row or column at most, and windows are cut at the border; the
  released code loses what does not fill a window.
- The share of a region is rounded, not truncated. The released code handles the first picture of a batch only.
- No kernel is replaced for the scores: attention of the blocks asked for is computed a second time on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.seams import Encoded
from elvi.core.tokens import budget
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen

MIDDLE = (6 / 24, 7 / 24, 8 / 24)  # blocks of the tower, as shares of its depth


@dataclass(frozen=True)
class HIVTP:
    """Keep the best share of each region of a frame, then the best leftover of every window.

    global_ratio: k, share of each region that stays; regions: r, into how many rows and columns of regions a frame is
    cut; window: w, side of a window. positions: "original" keeps the gaps, "compact" numbers what is left anew.
    Raises BudgetError for values out of range.
    """

    global_ratio: float = 0.25
    regions: int = 2
    window: int = 2
    positions: str = "original"

    at: ClassVar[Encoded] = Encoded()
    tower_layers: ClassVar[tuple[float, ...]] = MIDDLE
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"global_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("global_ratio", (0.0, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "global_ratio", 0.0, 1.0)
        check_range(self, "regions", 1, float("inf"))
        check_range(self, "window", 1, float("inf"))
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.tower is not None, "the tower is seen at Encoded"
        score = torch.stack([seen.tower.received(layer) for layer in MIDDLE]).mean(0)[tokens.row]
        return tokens.keep(chosen(score, tokens.cell, self.global_ratio, self.regions, self.window))


def chosen(score: Tensor, cell: Tensor, share: float, regions: int, window: int) -> Tensor:
    """Which tokens stay, bool [N]: score [N], cell [N, 3] places in a full grid (t, y, x)."""
    if not len(score):
        return torch.ones_like(score, dtype=torch.bool)
    size = cell[:, 1:].amax(0) + 1
    step, place = cell[:, :1], cell[:, 1:]
    region = torch.cat([step, place * regions // size], dim=1).unique(dim=0, return_inverse=True)[1]
    quota = torch.tensor([budget(share, count) for count in region.bincount().tolist()], device=score.device)
    stays = rank(score, region) < quota[region]
    rest = (~stays).nonzero()[:, 0]
    near = torch.cat([step, place // window], dim=1).unique(dim=0, return_inverse=True)[1]
    stays[rest[rank(score[rest], near[rest]) == 0]] = True
    return stays


def rank(score: Tensor, group: Tensor) -> Tensor:
    """Place [n] of each score [n] among those of its group [n], the highest being 0; ties go to the lower index."""
    order = score.sort(descending=True, stable=True).indices
    order = order[group[order].sort(stable=True).indices]
    size = group.bincount()
    start = (size.cumsum(0) - size)[group[order]]
    return torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device) - start)
