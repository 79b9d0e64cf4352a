"""AIM: similar tokens of a frame are merged first, and the language model lets go of the rest by and by.

Zhong et al., ICCV 2025, arXiv:2412.03248. Two halves:

Before the language model, in each frame by itself, every second token looks for its like (cosine) among the others; the
most alike pairs become their mean, all sources of one target together. That is repeated, at most half of the tokens a
round, until the wanted share is left (a quarter: two rounds).

Inside it, tokens are ranked after each layer from the middle on by PageRank over the layer's attention: G the softmax
of the logits over a temperature of 0.1, all tokens equally likely at first, and dist <- dist G five times; importance
is the root of the mean over heads of dist^2. All text stays. Of the visual tokens that entered the model, after layer i

    rho_i = max(0, 1 - (i - first + 1) / (last - first + 1)), from i = first on,

are left: none after layer `last` (first 14, last 21 of 28 layers in the released code).

Where we differ:
- Tokens are dropped from layer i + 1 on. The released code hides them by masks and saves nothing, which gives the same
  logits up to the ranking: ours walks the graph of the tokens that are left, theirs of all.
- Merged tokens stand where their target stood. In the released code tokens that merged with none come first, the most
  alike first, and what follows is numbered anew; positions="compact" numbers anew in the order of the picture.
- Every frame keeps its share rounded half up; `first` and `last` are shares of the depth, rounded down.
- Means of a round count each token once, as there, however many it already stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from elvi.core.facts import Fact
from elvi.core.match import matched
from elvi.core.seams import Layer
from elvi.core.tokens import budget, top
from elvi.core.views import attention_rows
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen


@dataclass(frozen=True)
class AIM:
    """Merge visual tokens frame by frame, then drop a growing share of them in the deep layers.

    keep_ratio: share of each frame's tokens that merging leaves; first, last: shares of the depth between which the
    visual tokens go (first=1: they all stay); temperature: of the attention that is walked along; steps: how often;
    positions: "original" or "compact". Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.25
    first: float = 0.5
    last: float = 0.75
    temperature: float = 0.1
    steps: int = 5
    positions: str = "original"

    at: ClassVar[Layer] = Layer(0, every=1)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS, Fact.SAME_LENGTH_PER_LAYER}
    )
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0, "first": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.1, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        check_range(self, "keep_ratio", 0.0, 1.0, open_low=True)
        check_range(self, "first", 0.0, 1.0)
        check_range(self, "last", self.first if self.first < 1 else 0.0, 1.0)
        check_range(self, "temperature", 0.0, float("inf"), open_low=True)
        check_range(self, "steps", 0, float("inf"))
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        if seen.layer == 0:
            return self.merge(tokens)
        assert seen.family is not None
        visual = tokens.visual.nonzero()[:, 0]
        count = int(seen.entered * self.share(seen.layer - 1, seen.family.num_layers))
        if count >= len(visual):
            return tokens
        return tokens.keep_visual(visual[top(importance(seen, self.temperature, self.steps)[visual], count)])

    def share(self, layer: int, layers: int) -> float:
        """rho: of the visual tokens that entered the model, what is left after a layer."""
        first, last = int(self.first * layers), int(self.last * layers)
        return 1.0 if layer < first else max(0.0, 1 - (layer - first + 1) / (last - first + 1))

    def merge(self, tokens: Tokens) -> Tokens:
        """Rounds of merging in every frame, until its share of tokens is left, one at least."""
        for step in tokens.cell[tokens.visual, 0].unique():
            count = max(1, budget(self.keep_ratio, int((tokens.cell[:, 0] == step).sum())))
            while len(frame := (tokens.cell[:, 0] == step).nonzero()[:, 0]) > count:
                target = torch.arange(len(tokens), device=frame.device)
                target[frame] = frame[matched(tokens.hidden[frame], len(frame) - count)]
                anchor, group, members = target.unique(return_inverse=True, return_counts=True)
                tokens = tokens.merge(group, anchor, 1 / members[group])
        return tokens


def importance(seen: Seen, temperature: float, steps: int) -> Tensor:
    """Root of the mean over heads of the squared PageRank in the layer before: float32 [N]."""
    assert seen.query is not None
    assert seen.key is not None
    heads, total = seen.query.shape[:2]
    groups, rows = heads // len(seen.key), torch.arange(total, device=seen.query.device)
    squares = torch.zeros(total, device=rows.device)
    for head in range(heads):  # one graph at a time: N x N
        key = seen.key[head // groups, None]
        graph = attention_rows(seen.query[head, None], key, rows, seen.scaling / temperature)[0]
        rank = torch.full((total,), 1 / total, device=rows.device)
        for _ in range(steps):
            rank = rank @ graph
        squares += rank.square()
    return (squares / heads).sqrt()
