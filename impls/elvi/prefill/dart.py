"""DART: stop looking for important tokens, duplication matters more.

Wen et al., EMNLP 2025, arXiv:2502.11494. A few pivots stand for what is already known: the p_v visual and the p_t text
tokens whose keys are longest. Each pivot in turn then chooses, of the visual tokens that are left, the q that are least
like it by the cosine of their hidden states, so that what doubles a pivot goes. No attention is looked at. From layer K
on the model runs on the pivots and on what they chose.

1. Length of a token: L1 norm of its post-RoPE keys of layer K-1, all heads together.
2. Pivots: the p_v longest visual tokens, and the p_t longest text tokens after the last picture.
3. Hidden states entering layer K go through the model's last norm, as in the released code; cosines are taken of that.
4. Each pivot chooses its q = (M - p_v) / (p_v + p_t) tokens out of those that nobody has chosen yet.

Where we differ:
- Pivots choose in a fixed order, visual ones before text ones, the longest first. The released code walks through a
  Python set, so that its choice hangs on the numbers of the tokens. Ties go to the lowest index.
- Exactly M tokens stay: where q is no whole number, the first pivots choose one token more. The released code rounds q
  down and in one form adds the pivots on top (132 tokens where 128 were asked for). If M is below p_v, the M longest
  visual tokens are all that stays.
- Without text after the last picture only visual tokens are pivots.
- Steps are those of a public copy of the released code; the authors' repository was not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen


@dataclass(frozen=True)
class DART:
    """Keep a few visual tokens with long keys, and those that are least like them.

    layer: K, the first layer that runs on fewer tokens (1 or more); keep_ratio: M as a share of the visual tokens
    (paper: 0.222, 128 of 576); visual_pivots: p_v, and text_pivots: p_t. Raises BudgetError for values out of range;
    the plan raises FitError when the model has no layer K.
    """

    layer: int = 2
    keep_ratio: float = 0.222
    visual_pivots: int = 4
    text_pivots: int = 4

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.SAME_LENGTH_PER_LAYER})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.222, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "layer", 1, float("inf"))
        check_range(self, "keep_ratio", 0.0, 1.0)
        check_range(self, "visual_pivots", 1, float("inf"))
        check_range(self, "text_pivots", 0, float("inf"))

    @property
    def at(self) -> Layer:
        return Layer(self.layer)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        visual = tokens.visual.nonzero()[:, 0]
        count = budget(self.keep_ratio, len(visual))
        if count == len(visual):
            return tokens
        assert seen.key is not None
        assert seen.family is not None
        length = seen.key.float().abs().sum((0, 2))  # [N]
        after = torch.arange(int(visual[-1]) + 1, len(tokens), device=visual.device)
        pivots = longest(length, visual, min(self.visual_pivots, count))
        askers = torch.cat([pivots, longest(length, after, self.text_pivots)])
        direction = normalize(seen.family.text.norm(tokens.hidden).float(), dim=-1)
        likeness = direction[askers] @ direction[visual].mT  # [p_v + p_t, N]
        taken = torch.isin(visual, pivots)
        return tokens.keep_visual(visual[least_alike(likeness, taken, count)])


def longest(length: Tensor, index: Tensor, count: int) -> Tensor:
    """Of the tokens at `index` the `count` (or all) with the greatest length [N], the longest first."""
    return index[length[index].sort(descending=True, stable=True).indices[:count]]


def least_alike(likeness: Tensor, taken: Tensor, count: int) -> Tensor:
    """`taken` bool [N], and what the rows of likeness [P, N] choose one after another, until `count` are: bool [N]."""
    taken = taken.clone()
    left = count - int(taken.sum())
    for place, row in enumerate(likeness):
        quota = left // len(likeness) + (place < left % len(likeness))
        taken[row.masked_fill(taken, float("inf")).sort(stable=True).indices[:quota]] = True
    return taken
