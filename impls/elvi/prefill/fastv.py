"""FastV: an image is worth half its tokens after layer 2.

Chen et al., ECCV 2024, arXiv:2403.06764. After the first decoder layers hardly any attention goes to visual tokens.
They are ranked once, by the attention that the last prompt token pays them in layer K-1, and layers K ... L-1 run on
the best of them only. With S tokens, N of them visual, and f the FLOPs of one layer, prefill falls to
[K f(S) + (L-K) f(S - (1-r)N)] / (L f(S)).

Where we differ:
- `keep_ratio` r is the share that stays, the paper's R = 1 - r the share that goes; rounded half up, not half to even.
- The attention row is recomputed from the queries and keys of layer K-1, so no layer needs the eager kernel.
- Visual tokens of all images are ranked together; the released code knows a single image at a fixed offset.
- The cache holds all S tokens below layer K and the survivors above, each at its original position, and decoding goes
  on after the last position of the prompt. The released port with a cache counts the survivors instead, which moves
  later tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.errors import check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen


@dataclass(frozen=True)
class FastV:
    """Drop visual tokens that the last prompt token hardly attends to.

    layer: K, the first layer that runs on fewer tokens (1 or more); keep_ratio: share of the visual tokens that stays.
    Raises BudgetError for values out of range; the plan raises FitError when the model has no layer K.
    """

    layer: int = 2
    keep_ratio: float = 0.5

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.SAME_LENGTH_PER_LAYER})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "layer", 1, float("inf"))
        check_range(self, "keep_ratio", 0.0, 1.0)

    @property
    def at(self) -> Layer:
        return Layer(self.layer)

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        visual = tokens.visual.nonzero()[:, 0]
        kept = visual[top(last_row_score(seen, visual), budget(self.keep_ratio, len(visual)))]
        return tokens.keep_visual(kept)


def last_row_score(seen: Seen, visual: Tensor) -> Tensor:
    """What the last row pays the tokens at `visual` [M] in the layer before, averaged over heads: float32 [M]."""
    assert seen.query is not None
    last = torch.tensor([seen.query.shape[1] - 1], device=visual.device)
    return seen.attention(last)[:, 0].mean(0)[visual]
