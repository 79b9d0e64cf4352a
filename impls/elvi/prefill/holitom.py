"""HoliTom: holistic token merging for fast video language models.

Shao et al., NeurIPS 2025, arXiv:2505.21334. Outer half, before the language model and without the question:

1. A place p is static in a segment of frames s ... e if cos(X_t,p, X_t+1,p) > tau throughout. Its tokens become their
   mean, which saves gain(s, e) = static places x (e - s) tokens. Dynamic programming finds the segmentation that saves
   most, best[i] = max(best[i-1], max_w best[i-w] + gain(i-w+1, i)); of equal ones the shorter last segment.
2. What merging saves is spent: r' = min(1, r T n / (T n - gain)).
3. Of the other tokens of each frame, ceil(r' m) of m stay, those that receive most attention in the vision tower.
4. Static tokens of a segment become r' as many: density peaks (7 neighbours at most), each being
   beta centre + (1 - beta) mean of the others in its cluster.

Inner half, entering a deeper layer: by the attention of the last prompt token, 1 - R of the visual tokens stay. Every
other one, in order, is merged into the kept one h that it is most like, h <- (h + other) / 2, so later ones weigh more.

Where we differ:
- (R) Static tokens stand at the place of their centre in the first frame of their segment, in raster order; the
  released code puts them before the dynamic ones and numbers the row anew, as positions="compact" does.
- Contextual tokens among the dynamic ones (D > 0) are left out: the released code has D = 0 and crashes above.
- (R) Likeness inside the model is the cosine of hidden states before any merging; merging="mean" weighs all equally.
- The inner layer is a share of the layers, the paper's 18 of 28. Segments may be as long as the clip.
- What receives attention is read in the block whose output the language model reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, one_hot

from elvi.core.cluster import density_peaks
from elvi.core.facts import Fact
from elvi.core.seams import Layer
from elvi.core.segments import segmentation
from elvi.core.tokens import budget, top
from elvi.errors import check_choice, check_range

if TYPE_CHECKING:
    from elvi.core.tokens import Tokens
    from elvi.core.views import Seen

WITH_CLS, WITHOUT_CLS = -2, -1  # the block of the tower whose output the language model reads
NEIGHBOURS = 7


@dataclass(frozen=True)
class HoliTom:
    """Merge what stands still over time, then space; inside the model merge what the last token hardly attends to.

    keep_ratio: r; threshold: tau (paper: 0.65 for r = 0.1); centre_weight: beta; depth: share of the layers before the
    inner half; inner_keep_ratio: 1 - R; merging: "halving" or "mean"; positions: "original" or "compact".
    Raises BudgetError for values out of range.
    """

    keep_ratio: float = 0.15
    threshold: float = 0.8
    centre_weight: float = 0.6
    depth: float = 0.643
    inner_keep_ratio: float = 0.5
    merging: str = "halving"
    positions: str = "original"

    at: ClassVar[Layer] = Layer(0, every=1)
    tower_layers: ClassVar[tuple[int, ...]] = (WITH_CLS, WITHOUT_CLS)
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.GRID, Fact.QUESTION_KNOWN, Fact.WHOLE_PROMPT})
    breaks: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.GRID, Fact.EQUAL_FRAMES, Fact.UNIT_MASS, Fact.SAME_LENGTH_PER_LAYER}
    )
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"keep_ratio": 1.0, "threshold": 1.0, "inner_keep_ratio": 1.0}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("keep_ratio", (0.15, 0.25, 0.5, 0.75))

    def __post_init__(self) -> None:
        for field in ("keep_ratio", "centre_weight", "depth", "inner_keep_ratio"):
            check_range(self, field, 0.0, 1.0)
        check_range(self, "threshold", -1.0, 1.0)
        check_choice(self, "merging", "halving", "mean")
        check_choice(self, "positions", "original", "compact")

    def reduce(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.family is not None, "layers are known from Layer(0) on"
        if not tokens.visual.any():
            return tokens
        if seen.layer == 0:
            return self._outer(tokens, seen)
        return self._inner(tokens, seen) if seen.layer == max(1, budget(self.depth, seen.family.num_layers)) else tokens

    def _outer(self, tokens: Tokens, seen: Seen) -> Tokens:
        assert seen.tower is not None, "the tower is seen at Layer(0)"
        frames, hidden = tokens.frames, tokens.hidden.float()  # [T, n], [N, D]
        score = seen.tower.received(WITH_CLS if seen.tower.has_cls else WITHOUT_CLS)[tokens.row]
        similar = cosine_similarity(hidden[frames[:-1]], hidden[frames[1:]], dim=-1).clamp(max=1) > self.threshold
        spans, gain = segmentation(similar.cpu().numpy())
        ratio = min(1.0, self.keep_ratio * frames.numel() / (frames.numel() - gain))
        owner = torch.where(tokens.visual, -1, torch.arange(len(tokens), device=frames.device))
        weight = torch.ones_like(score)
        for start, stop in spans:
            static = similar[start : stop - 1].all(0) & (stop - start > 1)
            moving, still = frames[start:stop, ~static], frames[start:stop, static]
            most = top(score[moving], math.ceil(ratio * moving.shape[1] - 1e-9))
            owner[moving.gather(1, most)] = moving.gather(1, most)
            count = budget(ratio, still.shape[1])
            if count:
                centre, group = density_peaks(hidden[still].mean(0), count, min(NEIGHBOURS, count))
                owner[still] = still[0, centre[group]]
                weight[still] = shares(centre, group, self.centre_weight) / (stop - start)
        return tokens.fold(owner, weight)

    def _inner(self, tokens: Tokens, seen: Seen) -> Tokens:
        last = torch.tensor([len(tokens) - 1], device=tokens.row.device)
        visual = tokens.visual.nonzero()[:, 0]
        score = seen.attention(last)[:, 0].mean(0)[visual]
        kept = visual[top(score, budget(self.inner_keep_ratio, len(visual)))]
        owner = torch.where(tokens.visual, -1, torch.arange(len(tokens), device=visual.device))
        owner[kept] = kept
        owner[-1] = len(tokens) - 1  # the row whose logits are wanted, should the prompt end in a picture
        weight = torch.ones_like(tokens.mass)
        if len(kept):
            leaving = (owner < 0).nonzero()[:, 0]
            unit = normalize(tokens.hidden.float(), dim=-1)
            match = (unit[leaving] @ unit[kept].mT).argmax(1)
            owner[leaving] = kept[match]
            weight[kept], weight[leaving] = merge_weights(match, len(kept), self.merging)
        return tokens.fold(owner, weight)


def shares(centre: Tensor, group: Tensor, own: float) -> Tensor:
    """Weight [m] of each token in its cluster: `own` of the centre, the rest shared by the others; 1 of one alone."""
    others = torch.bincount(group, minlength=len(centre)) - 1
    weight = ((1 - own) / others.clamp(min=1))[group]
    weight[centre] = torch.where(others > 0, own, 1.0)
    return weight


def merge_weights(match: Tensor, count: int, merging: str) -> tuple[Tensor, Tensor]:
    """Weights of `count` kept tokens and of others [M] that are merged into those at `match`, one after another."""
    joined = one_hot(match, count)
    number = joined.sum(0)
    if merging == "mean":
        return 1 / (number + 1.0), (1 / (number + 1.0))[match]
    before = (joined.cumsum(0) * joined).sum(1) - 1
    return 0.5**number, 0.5 ** (number[match] - before)
