"""AdaKV: heads that look at much get the slots that heads which look at little can spare.

Feng et al., NeurIPS 2025, arXiv:2407.11550. With b slots for each of the H heads of a layer, keeping the H b highest
scores of all heads together keeps more attention than the b highest of every head, and so lowers the bound on how far
the output of the layer can move (section 3). If c_h of them belong to head h, its budget is

    b_h = (1 - a) c_h + a b,

where the floor a spares heads whose scores mislead. Which keys a head keeps is ranked as SnapKV does: by the attention
of the last w prompt rows, smoothed over neighbours, next to these rows themselves. Before heads are compared, each one
is scaled by the share of its attention that b slots would hold (the released code; not part of the bound).

Where we differ:
- Budgets add up to H b exactly; the released code rounds every head on its own.
- The budget is a share of the prompt, the window included; in the paper it is a fixed number of tokens. A budget below
  the window keeps the latest tokens of every head. The window is at most as long as the text after the last picture,
  but 8 rows at least.
- Heads of different length are stored packed and read one by one; the paper has a kernel for them, whose speed is not
  shown here. A widespread other implementation keeps all rows and masks those that would be dropped.
- Scores are smoothed by averages over 5 neighbours, as in the codes for vision-language models; the paper's text models
  take the maximum over 7. Grouped queries share one selection, by the mean of their scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from elvi.core.budgets import over_heads
from elvi.core.facts import Fact
from elvi.core.scores import best_and_last, observed
from elvi.core.tokens import budget
from elvi.errors import BudgetError, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from elvi.core.views import LayerView


@dataclass(frozen=True)
class AdaKV:
    """Keep the prompt keys that the last prompt rows attend to, more of them in heads whose attention is spread.

    keep_ratio: share of a layer's prompt rows that its heads keep on average; window: w, at most so many last rows
    observe (and stay themselves); kernel: odd width of the pooling, 1 for none; floor_ratio: a, 1 for equal budgets;
    normalise: scale heads before they are compared. Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.25
    window: int = 32
    kernel: int = 5
    floor_ratio: float = 0.2
    normalise: bool = True

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_HEAD})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "window", 1, float("inf"))
        check_range(self, "kernel", 1, float("inf"))
        check_range(self, "floor_ratio", 0.0, 1.0)
        if self.kernel % 2 == 0:
            raise BudgetError(f"AdaKV was asked for kernel={self.kernel}, which has no middle: use an odd number.")

    def keep(self, views: list[LayerView]) -> list[list[Tensor] | None]:
        return [self._keep(view) for view in views]

    def _keep(self, view: LayerView) -> list[Tensor] | None:
        total = view.keys.shape[1]
        count = budget(self.keep_ratio, total)
        if count == total:
            return None
        score = observed(view, self.window, self.kernel)
        last = min(count, total - score.shape[1])
        shares = over_heads(score, count - last, self.floor_ratio, normalise=self.normalise)
        return [best_and_last(head[None], last + int(share), total)[0] for head, share in zip(score, shares)]
