"""PyramidKV: many slots for the low layers, few for the high ones.

Cai et al., 2024, arXiv:2406.02069. In text models attention is spread over the whole prompt in low layers and
gathers on few tokens in high ones. So the layers share the budget unequally: with C slots per layer on average, of
which w hold the observation window, layer l of L gets w + b_l, where b_l falls on a straight line

    from b_max = 2 (C - w) - b_min    to b_min = (C - w) / beta.

A line that would start above the prompt starts at the prompt and ends higher, so that the mean stays. Inside a layer
every head keeps the keys that the window attends to, smoothed over neighbours, and the window, as SnapKV does.

Where we differ:
- The budget is a share of the prompt; in the paper it is a fixed number of tokens per layer (C = 2048 in its scripts).
- Budgets add up to L C exactly. The released code rounds the slope of the line down, which leaves up to L - 2 slots
  too many in the last layer. As there, prompts shorter than 2 (C - w) are shared out evenly.
- Budgets are reckoned for every prompt; some derived codes keep those of the first prompt they see.
- A budget below the window keeps the latest tokens of every layer, and the window is at most as long as the text after
  the last picture, but 8 rows at least.
- Grouped queries share one selection, by the mean of their scores, so that the cache shrinks by the whole share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from elvi.core.budgets import pyramid
from elvi.core.facts import Fact
from elvi.core.scores import best_and_last, observed
from elvi.core.tokens import budget
from elvi.errors import BudgetError, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from elvi.core.views import LayerView


@dataclass(frozen=True)
class PyramidKV:
    """Keep, per head, the prompt keys that the last prompt rows attend to: more of them in lower layers.

    keep_ratio: share of the prompt rows that a layer keeps on average; window: w, at most so many last rows observe
    (and stay themselves); kernel: odd width of the pooling, 1 for none; beta: how steep the pyramid is, 1 for equal
    budgets. Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.25
    window: int = 32
    kernel: int = 5
    beta: float = 20.0

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD, Fact.SAME_LENGTH_PER_LAYER})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "window", 1, float("inf"))
        check_range(self, "kernel", 1, float("inf"))
        check_range(self, "beta", 1.0, float("inf"))
        if self.kernel % 2 == 0:
            raise BudgetError(f"PyramidKV was asked for kernel={self.kernel}, which has no middle: use an odd number.")

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        if self.keep_ratio == 1.0:
            return [None] * len(views)
        scores = [observed(view, self.window, self.kernel) for view in views]
        lengths = [view.keys.shape[1] for view in views]
        windows = [length - score.shape[1] for length, score in zip(lengths, scores)]
        counts = layer_budgets(lengths, windows, self.keep_ratio, self.beta)
        return [best_and_last(score, count, length) for score, count, length in zip(scores, counts, lengths)]


def layer_budgets(lengths: list[int], windows: list[int], keep_ratio: float, beta: float) -> list[int]:
    """Rows that each layer keeps of the `lengths` it holds, its window included; they add up to those of equal shares.

    Lengths and windows are the same in all layers, unless tokens were dropped on the way through the model.
    """
    mean = [budget(keep_ratio, length) for length in lengths]
    last = torch.tensor([min(window, count) for window, count in zip(windows, mean)])
    earlier = sum(mean) - int(last.sum())
    even = sum(lengths) < 2 * earlier
    return (last + pyramid(len(mean), earlier, torch.tensor(lengths) - last, 1.0 if even else beta)).tolist()
