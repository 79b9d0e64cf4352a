"""MixKV: where keys repeat each other, keep those that differ.

Liu et al., ICLR 2026, arXiv:2510.20707. The end of the prompt attends to many visual keys that are nearly the same, so
that attention alone fills the cache with duplicates. With a_j the attention that key j receives from the last w prompt
rows, smoothed over neighbours, u_j = k_j / |k_j| and m the mean of all u,

    importance  I_j = a_j + scaled(|v_j|),    diversity  D_j = scaled(- u_j . m),    score  s_j = r D_j + (1 - r) I_j,

where scaled() maps the head's range onto [0, 1] and then its mean onto that of a, and r is how much the head repeats
itself: the mean cosine of two different keys, (T |m|^2 - 1) / (T - 1). Heads keep the best keys and the window, either
equally many or, as in AdaKV, as the best scores of all heads fall.

Where we differ:
- r is taken from the prompt at hand, at least 0. The released code works it out too, but then reads a table of means
  over a data set instead.
- The budget is a share of the prompt, the window included; in the paper it is a fixed number of tokens. A budget below
  the window keeps the latest tokens of every head. The window is at most as long as the text after the last picture,
  but 8 rows at least.
- Budgets by layer (PyramidKV) or from a table of heads (SparseMM), with which the paper also combines its score, are
  left out, and so is the variant that weighs a, D and the value norms equally.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from elvi.core.budgets import over_heads
from elvi.core.facts import Fact
from elvi.core.scores import best_and_last, observed
from elvi.core.tokens import budget
from elvi.errors import BudgetError, check_choice, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from elvi.core.views import LayerView

EPSILON = 1e-8  # keeps ranges and means of zero from dividing
FLOOR = 0.2  # share of equal budgets that heads get anyway when they are adaptive


@dataclass(frozen=True)
class MixKV:
    """Keep the prompt keys that the last prompt rows attend to, or that are unlike the others where keys repeat.

    keep_ratio: share of a layer's prompt rows that its heads keep on average; window: w, at most so many last rows
    observe (and stay themselves); kernel: odd width of the pooling, 1 for none; budgets: "uniform" over the heads of a
    layer, or "adaptive", after which heads no longer hold equally many. Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.25
    window: int = 32
    kernel: int = 5
    budgets: str = "uniform"

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.SAME_KEYS_PER_HEAD})
    lossless: ClassVar[bool] = False
    rolling: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.05, 0.1, 0.25, 0.5))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "window", 1, float("inf"))
        check_range(self, "kernel", 1, float("inf"))
        check_choice(self, "budgets", "uniform", "adaptive")
        if self.kernel % 2 == 0:
            raise BudgetError(f"MixKV was asked for kernel={self.kernel}, which has no middle: use an odd number.")
        if self.budgets == "adaptive":  # what holds of the class holds of equal budgets
            object.__setattr__(self, "breaks", self.breaks | {Fact.SAME_LENGTH_PER_HEAD})

    def keep(self, views: list[LayerView]) -> list[Tensor | list[Tensor] | None]:
        return [self._keep(view) for view in views]

    def _keep(self, view: LayerView) -> Tensor | list[Tensor] | None:
        total = view.keys.shape[1]
        count = budget(self.keep_ratio, total)
        if count == total:
            return None
        score = mixed(observed(view, self.window, self.kernel), view.keys.float(), view.values.float())
        if self.budgets == "uniform":
            return best_and_last(score, count, total)
        last = min(count, total - score.shape[1])
        shares = over_heads(score, count - last, FLOOR, normalise=True)
        return [best_and_last(head[None], last + int(share), total)[0] for head, share in zip(score, shares)]


def mixed(attended: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Score [H, P] of the first P slots, from the attention [H, P] that they receive; keys, values [H, K, d]."""
    earlier = attended.shape[1]
    if not earlier:
        return attended
    unit = keys / keys.norm(dim=-1, keepdim=True).clamp(min=EPSILON)
    mean = unit.mean(1, keepdim=True)  # of all slots, those of the window too
    diversity = scaled(-(unit[:, :earlier] * mean).sum(-1), attended)
    importance = attended + scaled(values[:, :earlier].norm(dim=-1), attended)
    repeats = redundancy(mean, keys.shape[1]).clamp(min=0)
    return repeats * diversity + (1 - repeats) * importance


def redundancy(mean: Tensor, count: int) -> Tensor:
    """Mean cosine [H, 1] between two different of `count` keys, from the mean [H, 1, d] of their unit vectors."""
    return (count * mean.square().sum(-1) - 1) / max(count - 1, 1)


def scaled(x: Tensor, like: Tensor) -> Tensor:
    """x [H, P] mapped onto [0, 1] and then onto the mean of `like` [H, P], head by head; zero where x is constant."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    spread = (x - low) / (high - low + EPSILON)
    return spread * like.mean(1, keepdim=True) / (spread.mean(1, keepdim=True) + EPSILON)
