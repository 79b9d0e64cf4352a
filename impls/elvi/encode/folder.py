"""FOLDER: accelerating multi-modal large language models with enhanced performance.

Wang et al., ICCV 2025, arXiv:2501.02430. Merging by averaging loses less than dropping, and it loses least at the very
end of the vision tower. Tokens of a frame are matched as in ToMe (each at an even place with the one at an odd place
whose key is most like its own) and merged into means weighted by size. One pass can at most halve a frame, so a larger
reduction folds it again and again until the number asked for is gone. With class-token attention c, the tie of a token
a counts as

    S_ab = cos(k_a, k_b) - alpha kappa c_a,

so that what the class token attends to is not merged away (it may still take others in). Tokens stay in raster order.

Where we differ:
- This is the simplified placement of the released code, behind the last block that the language model reads. Its other
  placement, between attention and MLP one block earlier, is not offered. The step that scales features by 1 + log size
  is left out: it is one in which the released code fails where nothing is merged.
- alpha is 0 by default, as in the simplified variant, which needs no attention; the variant inside the tower has 5. It
  has effect only with a class token. kappa is 30 as in the simplified variant (100 elsewhere); between two folds c is
  averaged like the keys (the released code averages or sums).
- The metric is the key of the tower's block, mean over heads; where the tower shows none (tiles), the feature. No token
  is protected: the released code spares the first patch of towers without a class token.
- Just as many as asked for go, down to one token per frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from elvi.core.facts import Fact
from elvi.core.match import by_frame, folded
from elvi.core.seams import Encoded
from elvi.core.tokens import budget
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen

WITH_CLS, WITHOUT_CLS = -2, -1  # the block of the tower whose output the language model reads
KAPPA = 30.0


@dataclass(frozen=True)
class FOLDER:
    """Fold the tokens of each frame behind the vision tower.

    keep_ratio: share of a frame's tokens that is left, one at least (paper: 0.34 and 0.25); alpha: how dear it is to
    merge away what the class token attends to. positions: "original" keeps the gaps, "compact" numbers what is left
    anew. Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.34
    alpha: float = 0.0
    positions: str = "original"

    at: ClassVar[Encoded] = Encoded()
    tower_layers: ClassVar[tuple[int, ...]] = (WITH_CLS, WITHOUT_CLS)
    needs: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.UNIT_MASS})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.34, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "alpha", 0.0, float("inf"))
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.tower is not None, "the tower is seen at Encoded"
        layer = WITH_CLS if seen.tower.has_cls else WITHOUT_CLS
        metric = seen.tower.keys(layer)[tokens.row] if seen.tower.key else tokens.hidden
        penalty = None
        if self.alpha and seen.tower.has_cls:
            penalty = self.alpha * KAPPA * seen.tower.cls_attention(layer)[tokens.row]

        def choose(frame: Tensor) -> Tensor:
            gone = len(frame) - budget(self.keep_ratio, len(frame))
            return folded(metric[frame], tokens.mass[frame], gone, None if penalty is None else penalty[frame])

        return by_frame(tokens, choose)
