"""SnapKV: the end of the prompt knows what the answer will look at.

Li et al., NeurIPS 2024, arXiv:2404.14469. The keys that the last w prompt tokens attend to are largely, head by head,
those attended during generation. With A the attention of this observation window, every earlier key j gets the score
s_j = sum_i A_ij, smoothed by average pooling so that the neighbours of a peak survive with it. The best keys and the
window itself stay in the cache, chosen once, and decoding reads nothing else.

Where we differ:
- The budget is a share of the prompt, the window included, so that it fits prompts of any length; in the paper it is
  a fixed number of tokens (2048 or 320, with a window of 32 or 64). A budget below the window keeps the latest tokens.
- The window holds at most the text after the last picture, but 8 rows at least: questions about pictures are often
  shorter than 32 tokens, and visual tokens should be judged by text.
- Grouped queries share one selection, by the mean of their scores, so that the cache shrinks by the whole share; the
  released code selects per query head and so stores every key once per member of the group.
- The attention rows are recomputed from queries and keys when the prompt has been read, with any kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from elvi.core.facts import Fact
from elvi.core.scores import best_and_last, observed
from elvi.core.tokens import budget
from elvi.errors import BudgetError, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from elvi.core.views import LayerView


@dataclass(frozen=True)
class SnapKV:
    """Keep, per head, the prompt keys that the last prompt rows attend to.

    keep_ratio: share of each layer's prompt rows that every head keeps; window: w, at most so many last rows observe
    (and stay themselves); kernel: odd width of the pooling, 1 for none. Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.25
    window: int = 32
    kernel: int = 5

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "window", 1, float("inf"))
        check_range(self, "kernel", 1, float("inf"))
        if self.kernel % 2 == 0:
            raise BudgetError(f"SnapKV was asked for kernel={self.kernel}, which has no middle: use an odd number.")

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        return [self._keep(view) for view in views]

    def _keep(self, view: LayerView) -> Tensor | None:
        count = budget(self.keep_ratio, view.keys.shape[1])
        if count == view.keys.shape[1]:
            return None
        return best_and_last(observed(view, self.window, self.kernel), count, view.keys.shape[1])
