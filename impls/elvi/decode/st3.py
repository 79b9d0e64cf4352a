"""ST3: visual tokens are trimmed over the layers, and go on being trimmed while the answer grows.

Zhuang et al., AAAI 2025, arXiv:2412.20105. Attention to the picture fades in depth and in time. Progressive visual
token pruning (PVTP) therefore drops the least attended visual tokens at one layer after another while the prompt is
read, and visual token annealing (VTA) keeps taking rows of visual tokens from each layer's cache as tokens are written.

The body of the paper was not available and no code was found: it is known here from its abstract and from summaries.
Everything below is our reconstruction (R), and its schedules are guesses:
- (R) PVTP acts at layers l_0, l_0 + s, l_0 + 2s, ... and each time keeps the share rho of the visual tokens that are
  left, by the attention of the last prompt token in the layer before, averaged over heads. A token dropped there has
  no rows in the cache from that layer on.
- (R) VTA leaves n(t) = max(n_min, ceil(n(0) exp(-t / tau))) visual rows in a head after t tokens of the answer, n(0)
  being what the prompt left. The rows that go have the lowest running mean m <- beta m + (1 - beta) o of the
  attention o that tokens of the answer pay them, starting from the last prompt token's.

Where we differ:
- Text is never dropped, and kept rows keep their positions; layers that are said to inherit the choice of an earlier
  one ("lazy layers") are not modelled (R).
- Every head chooses its own rows, by the mean over its query heads, and all heads of a layer give up equally many: n(0)
  is what the head with the fewest visual rows has (R).
- A drafted row reads what it would have read decoded alone: the annealing along its own past is taken in turn, and
  that of rejected drafts never happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from elvi.core.facts import Fact
from elvi.core.scores import grouped, paid
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import LayerView, Seen


@dataclass(frozen=True)
class ST3:
    """Drop visual tokens every few layers of the prompt, then visual rows of the cache as the answer grows.

    layer: l_0 (1 or more); every: s; keep_ratio: rho, share of the visual tokens left that stays each time, above 0;
    tau: tokens of the answer after which 1 / e of the visual rows is left (None: all stay); least: n_min, which neither
    half goes below; beta: of the running mean. Raises BudgetError for values out of range; the plan raises FitError
    when the model has no layer l_0.
    """

    layer: int = 2
    every: int = 4
    keep_ratio: float = 0.7
    tau: float | None = 128.0
    least: int = 16
    beta: float = 0.9

    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT, Fact.SAME_LENGTH_PER_HEAD, Fact.SETTLED}
    )
    breaks: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRID, Fact.EQUAL_FRAMES, Fact.SAME_LENGTH_PER_LAYER, Fact.SAME_KEYS_PER_HEAD, Fact.SETTLED}
    )
    lossless: ClassVar[bool] = False
    prefill: ClassVar[bool] = False
    decode: ClassVar[bool] = True
    rolling: ClassVar[bool] = True
    window: ClassVar[int] = 1
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0, "tau": None}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.3, 0.5, 0.7, 0.9))

    def __post_init__(self) -> None:
        check_range(self, "layer", 1, float("inf"))
        check_range(self, "every", 1, float("inf"))
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "least", 0, float("inf"))
        check_range(self, "beta", 0.0, 1.0)
        if self.tau is not None:
            check_range(self, "tau", 0.0, float("inf"), open_low=True)

    @property
    def at(self) -> Layer:
        return Layer(self.layer, self.every)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        visual = tokens.visual.nonzero()[:, 0]
        last = torch.tensor([len(tokens) - 1], device=visual.device)
        score = seen.attention(last)[:, 0].mean(0)[visual]
        count = max(budget(self.keep_ratio, len(visual)), min(self.least, len(visual)))
        return tokens.keep_visual(visual[top(score, count)])

    def attend(self, view: LayerView) -> Tensor | None:
        if self.tau is None:
            return None
        reads = torch.stack([reads for reads, _, _ in self._steps(view)], dim=1)  # [H, Q, K]
        return reads.repeat_interleave(len(view.query) // len(view.keys), dim=0)

    def keep(self, views: list[LayerView]) -> list[Tensor | None]:
        return [None if self.tau is None else self._keep(view) for view in views]

    def _keep(self, view: LayerView) -> Tensor | None:
        if view.phase == "prompt":
            mean, gone = grouped(view.attention()[:, -1], len(view.row)), None
        else:
            _, mean, gone = self._steps(view)[-1]
        by_row = mean.new_zeros(len(mean), int(view.row.max()) + 1)
        view.memory["mean"] = by_row.scatter(1, view.row, mean)
        return None if gone is None else (~gone).nonzero()[:, 1].view(len(mean), -1)

    def _steps(self, view: LayerView) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For every row in flight what it reads, then the means after it and what is gone by then, each [H, K].

        Each goes on from the state that the row before it has left, be that another drafted one or the last committed.
        """
        most = view.memory.setdefault("visual", int(view.visual.sum(1).min()))  # n(0), before any of them goes
        known = view.memory["mean"]
        known = pad(known, (0, max(0, int(view.row.max()) + 1 - known.shape[1])))
        committed = known.gather(1, view.row), torch.zeros_like(view.row, dtype=torch.bool)
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        written = (view.query_row - len(view.layout)).tolist()  # tokens of the answer before each row
        for place, parent in enumerate(view.parents):
            mean, gone = steps[parent][1:] if parent >= 0 else committed
            reads = view.readable[place] & ~gone
            mean = self.beta * mean + (1 - self.beta) * paid(view, place, reads)
            fewer = self._left(most, written[place]) - self._left(most, written[place] + 1)
            gone = gone | lowest(mean, reads & view.visual, fewer)
            steps.append((reads, mean, gone))
        return steps

    def _left(self, most: int, written: int) -> int:
        """n(t): visual rows of a head after that many tokens of the answer."""
        assert self.tau is not None
        return max(min(self.least, most), ceil(most * exp(-written / self.tau)))


def lowest(score: Tensor, among: Tensor, count: int) -> Tensor:
    """bool [H, K]: the `count` lowest scores [H, K] `among` these slots of each head; of equal ones the later go."""
    stay = top(score.masked_fill(~among, float("inf")), score.shape[1] - count)
    return torch.ones_like(among).scatter(1, stay, False)
