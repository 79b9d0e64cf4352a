"""TRIM: less is more, a simple yet effective token reduction method for efficient multi-modal LLMs.

Song et al., COLING 2025, arXiv:2409.10994. The patches of a frame are scored against the question in CLIP's joint
space; with v_i the projected feature of patch i, t that of the question, and s_i = v_i t,

    w = softmax(-s) over the patches of a frame,

those above the outlier bound Q3 + 1.5 (Q3 - Q1) of w stay, and one more token is the mean of all others.

As in the released code the similarity is negated, though the paper speaks of salient patches: dense similarities of
penultimate CLIP features are known to be turned around. `sign=1` takes the paper by its word.

Where we differ:
- The CLIP model is one of its own (default: the shipped tiny-clip), which looks at the frames again, for LLaVA
  checkpoints hold no text tower and other families no CLIP tower (R). Its patches are averaged, or repeated, to the
  grid of the tokens, and over the frames that share a time step.
- Outliers are counted per frame, not over a batch. `keep_ratio` None is that rule, a number the fixed share.
- The mean stands in the place of the last patch that it stands for (R), the released code appends it. Where nothing is
  left out there is no mean; the released code fails there.
- The survey calls this section blind to the prompt. TRIM is not: features cannot be used again for the next question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from elvi.core.facts import Fact
from elvi.core.seams import Encoded
from elvi.core.tokens import budget, outliers, top
from elvi.errors import check_asked, check_choice, check_range
from elvi.families.clip import frame_scorer

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen


@dataclass(frozen=True)
class TRIM:
    """Keep the patches that stand out against the question, and the mean of the others.

    keep_ratio: share of a frame's tokens that stays besides the mean; None lets outliers decide. sign: -1 keeps low
    similarities, 1 high ones; factor: how many interquartile ranges above the third quartile an outlier lies; scorer:
    CLIP folder, hub id or tiny-clip. positions: "original" keeps the gaps, "compact" numbers what is left anew.
    Raises BudgetError for values out of range, FitError without a question or a CLIP model.
    """

    keep_ratio: float | None = None
    sign: int = -1
    factor: float = 1.5
    scorer: str = "tiny-clip"
    positions: str = "original"

    at: ClassVar[Encoded] = Encoded()
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.QUESTION_KNOWN})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        if self.keep_ratio is not None:
            check_range(self, "keep_ratio", 0.0, 1.0)
        check_choice(self, "sign", -1, 1)
        check_range(self, "factor", 0.0, float("inf"))
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        if not len(tokens):
            return tokens
        check_asked(self, seen.question)
        products = at_cells(frame_scorer(self.scorer).patch_products(seen.clip, seen.question), tokens.cell)
        group = torch.empty_like(tokens.row)  # which token each goes into, by index
        for step in tokens.cell[:, 0].unique():
            frame = (tokens.cell[:, 0] == step).nonzero()[:, 0]
            weight = (self.sign * products[frame]).softmax(0)
            count = outliers(weight, self.factor) if self.keep_ratio is None else budget(self.keep_ratio, len(frame))
            stays = torch.zeros_like(weight, dtype=torch.bool)
            stays[top(weight, count)] = True
            group[frame] = torch.where(stays, frame, frame[~stays].amax() if count < len(frame) else -1)
        anchor, group = group.unique(return_inverse=True)
        return tokens if len(anchor) == len(tokens) else tokens.merge(group, anchor)


def at_cells(products: Tensor, cell: Tensor) -> Tensor:
    """Dot products [F, g, g] of frames brought to the tokens at cells [N, 3] of a full grid: [N]."""
    steps, height, width = (cell.amax(0) + 1).tolist()
    per_step = products.unflatten(0, (steps, -1)).mean(1)
    return adaptive_avg_pool2d(per_step, (height, width)).flatten().to(cell.device)
