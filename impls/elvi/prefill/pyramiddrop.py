"""PyramidDrop: visual tokens are dropped in stages, more of them the deeper the layer.

Xing et al., CVPR 2025, arXiv:2410.17247. In shallow layers all visual tokens matter, in deep ones few do. The L layers
are parted into S stages of equal length. At the end of each but the last, a share of the visual tokens goes, so that
stage s runs on N lambda^s of them (s from 0). They are ranked by what the last token of the instruction would pay them
in the layer about to run, whose query and key projections are computed for that alone; the mean over heads decides.
With S = 4 and lambda = 1/2 the layers run on (1 + 1/2 + 1/4 + 1/8) / 4 = 46.9 % of the visual tokens on average.

Where we differ:
- Stages end at the layers nearest to equal parts of the model's depth (8, 16 and 24 of 32, as in the paper).
- Tokens keep their positions; the released code numbers what is left anew at every stage, which would undo the
  three-dimensional positions of Qwen2.5-VL and give a token another position in each stage's cache.
- All visual tokens of the prompt are ranked together; the released code prunes the first picture.
- Used without training here; the paper also trains with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.tokens import top
from elvi.errors import FitError, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen
    from elvi.families.family import Family


@dataclass(frozen=True)
class PyramidDrop:
    """Drop visual tokens at the end of every stage of layers, ranked by the last token's query in the next layer.

    stages: S, from 1 (nothing is dropped) to the number of layers; keep_ratio: lambda, share of its visual tokens that
    a stage leaves to the next, rounded down. Raises BudgetError for values out of range, FitError for a model with
    fewer layers than stages.
    """

    stages: int = 4
    keep_ratio: float = 0.5

    at: ClassVar[Layer] = Layer(1, every=1)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.EQUAL_FRAMES, Fact.SAME_LENGTH_PER_LAYER})
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "stages", 1, float("inf"))
        check_range(self, "keep_ratio", 0.0, 1.0)

    def fit(self, family: Family) -> None:
        if self.stages > family.num_layers:
            raise FitError(
                f"PyramidDrop was asked for {self.stages} stages, but {family.name} has {family.num_layers} layers: "
                f"ask for at most {family.num_layers}."
            )

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.family is not None
        ends = boundaries(self.stages, seen.family.num_layers)
        if seen.layer not in ends:
            return tokens
        visual = tokens.visual.nonzero()[:, 0]
        count = int(seen.entered * self.keep_ratio ** (ends.index(seen.layer) + 1))
        if count >= len(visual):
            return tokens
        last = torch.tensor([len(tokens) - 1], device=visual.device)
        score = seen.attention_ahead(tokens, last)[:, 0].mean(0)[visual]
        return tokens.keep_visual(visual[top(score, count)])


def boundaries(stages: int, layers: int) -> list[int]:
    """The first layer of every stage but the first: parts of equal length, rounded half up."""
    return [(2 * stage * layers + stages) // (2 * stages) for stage in range(1, stages)]
