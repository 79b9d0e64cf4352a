"""LOOK-M: text before pictures, and what is evicted is merged into what stays.

Wan et al., Findings of EMNLP 2024, arXiv:2406.18139. While a prompt of text and pictures is read, its text tokens get
far more attention than its visual ones. With A the attention over the whole prompt, row j has the score

    s_j = sum_i A_ij    (all queries i).

The last rows stay, then the highest scores, text always before pictures ("text prior"). Evicted keys and values are not
lost: each pair is merged into the kept one whose key is most alike, by a rule that `elvi.core.merge` writes out
(averaged, pivotal or weighted merging). This happens once, when the prompt has been read, hence look once.

Where we differ:
- alpha and beta, the shares of the prompt that stay for their score and for being recent, are written as their sum
  `keep_ratio` and beta's part of it, `recent_share`. Rounding is half up, and the budget is met exactly.
- The budget holds for text too, as the paper describes it. In the released code no text is ever evicted, whatever the
  budget; that is strict_budget=False.
- Text is ranked before pictures in whole numbers. The released code subtracts 65516 from visual scores, which in half
  precision leaves them all but equal, so that it evicts pictures almost arbitrarily.
- Weighted merging takes in every evicted row; the released code leaves out those less alike than the mean.
- Grouped queries share one selection, by the mean of their scores; the released code knows multi-head attention only.
- Column sums are recomputed from queries and keys, which costs about the attention of the prompt once more. They favour
  early rows, which more queries see, as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from elvi.core.facts import Fact
from elvi.core.merge import MERGING, merged
from elvi.core.scores import WHOLE_PROMPT, column_sums, tiered
from elvi.core.tokens import budget, top
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from elvi.core.store import Kept
    from elvi.core.views import LayerView

PICTURE, TEXT, RECENT = 0, 1, 2


@dataclass(frozen=True)
class LookM:
    """Keep the recent rows, then text, then what is attended to most; merge the rest into them.

    keep_ratio: alpha + beta, share of the prompt's rows that every head keeps; recent_share: beta / (alpha + beta);
    merging: "pivot", "averaged", "weighted" or "none"; strict_budget: whether text is evicted where the budget is
    smaller than it. Prompts without a picture are left alone. Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.2
    recent_share: float = 0.5
    merging: str = "pivot"
    strict_budget: bool = True

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD, Fact.EXACT_VALUES})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    window: ClassVar[int] = WHOLE_PROMPT
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "recent_share", 0.0, 1.0)
        check_choice(self, "merging", *MERGING)

    def keep(self, views: list[LayerView]) -> list[Kept | Tensor | None]:
        return [self._keep(view) for view in views]

    def _keep(self, view: LayerView) -> Kept | Tensor | None:
        total = view.keys.shape[1]
        count = budget(self.keep_ratio, total)
        recent = budget(self.recent_share, count)
        if not self.strict_budget:
            text = int((~view.visual[:, : total - recent]).sum(1).max())
            count = max(count, recent + text)
        if count == total or not view.visual.any():
            return None
        tier = torch.where(view.visual, PICTURE, TEXT)
        tier[:, total - recent :] = RECENT
        return merged(view.keys, view.values, top(tiered(tier, column_sums(view)), count), self.merging)
