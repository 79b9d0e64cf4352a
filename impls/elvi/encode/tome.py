"""ToMe: token merging, your ViT but faster.

Bolya et al., ICLR 2023, arXiv:2210.09461. In every block of the vision tower, between attention and MLP, r tokens of a
frame are merged into others, so that the tower itself becomes faster. Tokens are split alternately in two sets; each of
the first proposes to go into the one of the second whose keys, mean over heads, are most like its own; the r strongest
ties are taken, and a token becomes the mean of what it holds, weighted by how many patches each stands for (its size
s). Later blocks attend in proportion to size: softmax(q k / sqrt d + log s), the logarithm being added per key.

Where we differ:
- `keep_ratio` is the share of a frame's tokens that leaves the tower; what goes is spread evenly over the blocks that
  the language model's input passes. In a block at most half can go. The paper gives r itself, and schedules that fall.
- Tokens stay in raster order, each merged one at the place of the token of the second set; the released code puts all
  of the first set before the second, and splits that row alternately in the next block.
- The class token is never merged, as in the paper; it is not part of the split, which begins with the first patch.
- Towers whose tokens are bound to a grid to the end (windows and merger of Qwen2.5-VL, pooling of LLaVA-OneVision) are
  not touched: there the tokens that come out are merged, by their features, in as many rounds as are needed (R). The
  tower then costs what it did. Which kind of tower a model has is `Family.free_tower`.
- Attention in proportion to size needs a kernel that takes an additive mask; others want `proportional=False`. The
  language model does not know of sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from elvi.core.facts import Fact
from elvi.core.match import by_frame, folded, matched, quota
from elvi.core.seams import Tower
from elvi.core.tokens import budget
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen


@dataclass(frozen=True)
class ToMe:
    """Merge similar tokens in every block of the vision tower.

    keep_ratio: share of a frame's tokens that is left after the last block (paper: 40 of 196, r = 13 in 12 blocks), one
    at least; proportional: attend in proportion to size. positions: "original" keeps the gaps, "compact" numbers what
    is left anew. Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.204
    proportional: bool = True
    positions: str = "original"

    at: ClassVar[Tower] = Tower(0, every=1)
    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.UNIT_MASS})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.204, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        metric = tokens.hidden if seen.block is None or seen.key is None else seen.key.mean(0)

        def choose(frame: Tensor) -> Tensor:
            patches = round(float(tokens.mass[frame].sum()))
            gone = patches - budget(self.keep_ratio, patches)
            if seen.block is None:
                return folded(metric[frame], tokens.mass[frame], gone - (patches - len(frame)))
            return matched(metric[frame], quota(gone, seen.block, seen.blocks))

        return by_frame(tokens, choose)
